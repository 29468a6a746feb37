"""Training from shards: as from the folder they were made of, to the bit, however it is read."""

from __future__ import annotations

import signal
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from generated import make_image_folder
from PIL import Image
from processes import finish, start, when_placed
from tars import member, png, samples, write_tar
from torch import Tensor

from senet.checkpoints import LAST
from senet.cli import main
from senet.data import DataOptions, load_data, train_loader, val_loader
from senet.errors import UserError
from senet.loading import ImageLoader
from senet.packing import pack
from senet.runs import CARD, WEIGHTS, read_card
from senet.sampling import EpochSampler

pytestmark = pytest.mark.filterwarnings("ignore:This process .*multi-threaded:DeprecationWarning")

NAMES = ("a b", "q\"uote's", "new\nline", "ünï")
TRAIN = (
    *("--model=resnet20", "--image_size=16", "--batch_size=8", "--epochs=2", "--lr=0.02"),
    "--threads=1",
)


AFTER_AN_EPOCH = when_placed("metrics.csv", signal.SIGKILL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images") / "set"
    return make_image_folder(root, NAMES, per_class=8, size=(20, 18))


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(folder, tmp_path_factory.mktemp("packed") / "set", shard_bytes=15_000).directory


def options_for(data: Path | str, **changes: Any) -> DataOptions:
    return DataOptions(data=str(data), batch_size=4, image_size=16, **changes)


def epoch_of(loader: ImageLoader, epoch: int) -> tuple[Tensor, Tensor]:
    loader.sampler.set_epoch(epoch)
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"workers": 2, "cache": True},
        pytest.param({"workers": 2}, marks=pytest.mark.slow),
        pytest.param({"cache": True}, marks=pytest.mark.slow),
    ],
)
def test_batches_are_those_of_the_folder(
    folder: Path, packed: Path, changes: dict[str, Any]
) -> None:
    """For any number of workers, decoded anew or held in memory, in every epoch."""
    plain, options = options_for(folder), options_for(packed, **changes)
    of_folder, of_shards = load_data(plain), load_data(options)
    assert of_folder.classes == of_shards.classes
    pairs = [
        (train_loader(of_folder, plain), train_loader(of_shards, options)),
        (val_loader(of_folder, plain), val_loader(of_shards, options)),
    ]
    for ours, theirs in pairs:
        for epoch in (0, 1, 3):
            for a, b in zip(epoch_of(ours, epoch), epoch_of(theirs, epoch), strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("processes", "workers"),
    [(3, 0), (2, 2), *(pytest.param(4, n, marks=pytest.mark.slow) for n in (0, 2))],
)
def test_validation_over_processes_sees_each_image_once(
    packed: Path, processes: int, workers: int
) -> None:
    data = load_data(options_for(packed))
    seen = []
    for rank in range(processes):
        sampler = EpochSampler(
            len(data.val), seed=7, shuffle=False, rank=rank, world_size=processes
        )
        loader = ImageLoader(data.val, sampler, batch_size=3, workers=workers)
        seen += [image for images, _ in loader for image in images]
    expected, _ = epoch_of(val_loader(data, options_for(packed)), 0)
    assert len(seen) == len(expected)
    assert {image.numpy().tobytes() for image in seen} == {
        image.numpy().tobytes() for image in expected
    }


def weights(run: Path) -> bytes:
    return (run / WEIGHTS).read_bytes()


@pytest.fixture(scope="module")
def from_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "folder"
    assert main(["train", "--data", str(folder), "--out", str(out), *TRAIN]) == 0
    return out


def test_the_weights_are_those_of_the_folder(
    packed: Path, from_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Class names with blanks, quotes, a new line and an umlaut among them."""
    for number, more in enumerate(([], ["--workers=2", "--cache", "--load_timeout=60"])):
        run = tmp_path / f"run{number}"
        assert main(["train", "--data", str(packed), "--out", str(run), *TRAIN, *more]) == 0
        assert weights(run) == weights(from_folder)
        assert read_card(run).classes == tuple(sorted(NAMES))
    assert main(["evaluate", str(tmp_path / "run0"), "--json"]) == 0
    capfd.readouterr()


def test_killed_and_resumed_from_shards_ends_with_the_same_bits(
    packed: Path, from_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    last = len(list(packed.glob("train-*.tar"))) - 1
    data = f"{packed}/train-{{0000..{last:04d}}}.tar"
    command = ["train", "--data", data, "--out", run, "--resume", "--workers=1", *TRAIN]
    killed = start(command, tmp_path / "killed", prepare=AFTER_AN_EPOCH).wait()
    assert killed.status == -signal.SIGKILL
    ended = finish(["train", "--out", run, "--resume"], tmp_path / "resumed")
    assert ended.status == 0, ended.err
    assert weights(run) == weights(from_folder)


def test_shards_that_changed_are_not_gone_on_with(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "a", shard_bytes=15_000)
    run = tmp_path / "run"
    command = ["train", "--data", str(tmp_path / "a"), "--out", str(run), *TRAIN]
    killed = start(command, tmp_path / "killed", prepare=AFTER_AN_EPOCH).wait()
    assert killed.status == -signal.SIGKILL
    (tmp_path / "a").rename(tmp_path / "b")
    pack(folder, tmp_path / "a", shard_bytes=30_000)
    ended = finish(["train", "--out", run, "--resume"], tmp_path / "resumed")
    assert ended.status == 2
    assert "the data has changed since the run" in ended.err
    shard = tmp_path / "a" / "train-0000.tar"
    shard.write_bytes(shard.read_bytes()[:-1024])
    ended = finish(["train", "--out", run, "--resume"], tmp_path / "resumed")
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert f"shard {str(shard)!r} is cut short" in line
    assert (run / LAST).exists()


def test_shards_of_others_with_a_pattern_to_validate_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        write_tar(tmp_path / f"s-{number}.tar", samples([0, 1] * 8, start=16 * number))
    run = tmp_path / "run"
    data = ["--data", f"{tmp_path}/s-{{0..1}}.tar", "--val_data", f"{tmp_path}/s-2.tar"]
    assert main(["train", *data, "--out", str(run), *TRAIN]) == 0
    assert "32 images to train on and 16 held out, 2 classes" in capfd.readouterr().out
    assert main(["evaluate", str(run), "--json"]) == 0
    assert '"images": 16' in capfd.readouterr().out
    assert main(["train", "--resume", "--out", str(run), "--val_data", f"{tmp_path}/s-1.tar"]) == 2
    assert "val_data is" in capfd.readouterr().err
    # Moved, those that were trained on must not be taken for those held out.
    (tmp_path / "new").mkdir()
    for number in range(3):
        (tmp_path / f"s-{number}.tar").rename(tmp_path / "new" / f"s-{number}.tar")
    (tmp_path / "s-3.tar").touch()
    assert main(["evaluate", str(run)]) == 2
    moved = ["--data", f"{tmp_path}/new/s-{{0..1}}.tar"]
    assert main(["evaluate", str(run), *moved, "--json"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "was validated on shards of their own" in err.splitlines()[-1]
    there = ["--val_data", f"{tmp_path}/new/s-2.tar"]
    assert main(["evaluate", str(run), *moved, *there, "--json"]) == 0
    assert '"images": 16' in capfd.readouterr().out


def test_val_data_is_for_shards(folder: Path, packed: Path) -> None:
    for data in ("digits", str(folder)):
        with pytest.raises(UserError, match="which is not a pattern of shards"):
            load_data(options_for(data, val_data=str(packed / "val-0000.tar")))


def test_commands_come_from_the_command_line_only(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither a configuration nor a run that a stranger made has a command run."""
    write_tar(tmp_path / "s.tar", samples([0, 1] * 8))
    ran = tmp_path / "ran"
    data = f"pipe:touch {ran}; cat {tmp_path}/s.tar"
    config = tmp_path / "options.yaml"
    config.write_text(f"data: '{data}'\n")
    run = tmp_path / "run"
    assert main(["train", "--config", str(config), "--out", str(run), *TRAIN]) == 2
    assert "commands out of a file are not run" in capfd.readouterr().err
    assert not ran.exists()
    assert main(["train", f"--data={data}", "--out", str(run), *TRAIN]) == 0
    ran.unlink()
    capfd.readouterr()
    (run / WEIGHTS).unlink()  # so that there is something to do
    assert main(["train", "--resume", "--out", str(run)]) == 2
    assert "commands out of a file are not run" in capfd.readouterr().err
    assert not ran.exists()
    assert main(["train", "--resume", "--out", str(run), "--data", data]) == 0
    ran.unlink()
    assert main(["evaluate", str(run)]) == 2
    assert not ran.exists()
    assert main(["evaluate", str(run), "--data", data]) == 0
    assert (run / CARD).exists()


def with_image(path: Path, data: bytes) -> Path:
    """A shard of eight samples, one of which holds ``data`` for an image."""
    members = [*samples([0, 1] * 4), member("odd.cls", b"1"), member("odd.jpg", data)]
    return write_tar(path, members)


def every_image(options: DataOptions) -> None:
    data = load_data(options)
    for images in (data.train, data.val):
        list(images)


def bomb() -> bytes:
    """A picture that says it has 30,000 × 30,000 pixels."""
    data = bytearray(png())
    data[16:24] = struct.pack(">II", 30_000, 30_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GIF89a, it says", "not an image, or a damaged one"),
        (b"", "empty file"),
        (png()[:100], ""),
        (None, r"900000000 pixels\) exceeds limit"),
    ],
)
@pytest.mark.parametrize("cache", [False, True])
def test_images_that_are_none_are_named(
    tmp_path: Path, data: bytes | None, words: str, cache: bool
) -> None:
    path = with_image(tmp_path / "s.tar", bomb() if data is None else data)
    options = options_for(path, cache=cache)
    with pytest.raises(UserError, match=f"cannot read image 'odd.jpg' in shard '{path}'.*{words}"):
        every_image(options)


@pytest.mark.parametrize(
    ("part", "data", "words"),
    [("train", png()[:100], "truncated"), ("val", None, "900000000 pixels")],
    ids=["damaged", "30000x30000"],
)
def test_images_that_are_none_end_training_from_a_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], part: str, data: bytes | None, words: str
) -> None:
    folder = make_image_folder(tmp_path / "set", per_class=2, size=(16, 16))
    odd = folder / part / "cat" / "odd.png"
    odd.write_bytes(bomb() if data is None else data)
    run = tmp_path / "run"
    command = ["train", "--data", str(folder), "--out", str(run), "--epochs=1", "--image_size=16"]
    assert main([*command, "--batch_size=1", "--threads=1"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert repr(str(odd)) in line
    assert words in line


def test_a_shard_that_is_cut_short_or_gone_meanwhile(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", samples([0, 1] * 4))
    data = load_data(options_for(path))
    with path.open("r+b") as file:
        file.truncate(1500)
    with pytest.raises(
        UserError, match=r"cannot read image '.*' in shard .*: the shard is cut short"
    ):
        list(data.train)
    path.unlink()
    with pytest.raises(UserError, match="No such file"):
        list(data.train)


def test_nothing_is_ever_extracted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    names = [f"../../up{n}" for n in range(4)] + [f"{tmp_path}/absolute{n}" for n in range(4)]
    members = [
        part
        for label, name in enumerate(names)
        for part in (member(f"{name}.cls", b"%d" % (label % 2)), member(f"{name}.png", png(label)))
    ]
    path = write_tar(inner / "s.tar", members)
    with tarfile.open(path) as file:
        assert file.getnames()[0] == "../../up0.cls"
    before = sorted(tmp_path.rglob("*"))
    data = load_data(options_for(path))
    assert len(list(data.train)) + len(list(data.val)) == 8
    assert sorted(tmp_path.rglob("*")) == before


def test_the_layout_of_imagenet_is_read_as_it_is(tmp_path: Path) -> None:
    """train/<wnid>/<wnid>_<number>.JPEG and val/<wnid>/ILSVRC2012_val_<number>.JPEG."""
    root = make_image_folder(tmp_path / "set", ("n01440764", "n01443537", "n02102040"), per_class=4)
    for path in sorted(root.rglob("*.png")):
        part, wnid = path.parts[-3:-1]
        stem = f"{wnid}_{path.stem}" if part == "train" else f"ILSVRC2012_val_0000{path.stem}"
        Image.open(path).convert("CMYK" if path.stem == "1" else "RGB").save(
            path.with_name(f"{stem}.JPEG")
        )
        path.unlink()
    data = load_data(options_for(root))
    assert data.classes == ("n01440764", "n01443537", "n02102040")
    assert (len(data.train), len(data.val)) == (12, 6)
    assert all(image.shape == (3, 16, 16) for image, _ in data.train)
    packed = load_data(options_for(pack(root, tmp_path / "packed").directory))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(data.val, packed.val, strict=True))
