"""senet.packing and `senet pack`: whole or not at all, the same to the byte, nothing re-encoded."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from generated import make_image_folder
from processes import is_stopped, start, wait_until, when_synced

from senet import packing
from senet.cli import main
from senet.errors import UserError
from senet.folders import read_folder
from senet.images import decode_image
from senet.manifests import MANIFEST, read_manifest
from senet.packing import STAGING, pack
from senet.shards import read_shard

NAMES = ("a b", 'q"uote', "new\nline", "ünï", "it's")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_folder(tmp_path_factory.mktemp("images") / "set", NAMES, per_class=6)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def images_in(out: Path, part: str) -> dict[int, tuple[bytes, int]]:
    """Key → the file and label, by tarfile alone."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(out.glob(f"{part}-*.tar")):
        with tarfile.open(path) as file:
            for member in file:
                key, _, field = member.name.partition(".")
                extracted = file.extractfile(member)
                assert extracted is not None
                assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
                assert not member.pax_headers  # 1 KiB each
                found.setdefault(key, {})[field] = extracted.read()
    return {int(key): (sample["png"], int(sample["cls"])) for key, sample in found.items()}


def test_the_files_go_in_as_they_are(folder: Path, tmp_path: Path) -> None:
    packed = pack(folder, tmp_path / "out", shard_bytes=20_000)
    split = read_folder(folder, val_fraction=0.2, seed=7)
    assert packed.manifest.classes == split.classes == tuple(sorted(NAMES))
    for part, paths, labels in (
        ("train", split.train_paths, split.train_labels),
        ("val", split.val_paths, split.val_labels),
    ):
        expected = {
            place: (path.read_bytes(), label)
            for place, (path, label) in enumerate(zip(paths, labels.tolist(), strict=True))
        }
        assert images_in(tmp_path / "out", part) == expected
    assert len(packed.manifest.train) > 2
    manifest = read_manifest(tmp_path / "out" / MANIFEST)
    assert manifest == packed.manifest
    names = {entry.file for entry in (*manifest.train, *manifest.val)} | {MANIFEST}
    assert set(os.listdir(tmp_path / "out")) == names


def test_the_shards_are_shuffled_for_those_who_read_in_order(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "out")
    labels = read_shard(tmp_path / "out" / "train-0000.tar").labels
    assert labels != sorted(labels)
    held_out = read_shard(tmp_path / "out" / "val-0000.tar").labels
    assert held_out == sorted([0, 1, 2, 3, 4] * 3)


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    images = make_image_folder(tmp_path / "set", per_class=2)
    os.mkfifo(images / "train" / "cat" / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png': not a file"):
        pack(images, tmp_path / "out")


def test_the_same_to_the_byte(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "one", shard_bytes=20_000)
    for path in folder.rglob("*.png"):
        os.utime(path)
    pack(folder, tmp_path / "two", shard_bytes=20_000)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    pack(folder, tmp_path / "three", shard_bytes=20_000, seed=8)
    assert contents(tmp_path / "one") != contents(tmp_path / "three")


# The library leaves the files that it reads to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_trains_from_them(folder: Path, tmp_path: Path) -> None:
    """The library's usual pipeline sees every image with its label."""
    import webdataset

    packed = pack(folder, tmp_path / "out", shard_bytes=20_000)
    last = len(packed.manifest.train) - 1
    urls = f"{tmp_path}/out/train-{{0000..{last:04d}}}.tar"
    seen = webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("png", "cls")
    labels = [label for image, label in seen if image.size == (40, 36)]
    assert sorted(labels) == [label for label in range(5) for _ in range(6)]


def test_a_folder_that_is_not_split_is_split_by_seed(tmp_path: Path) -> None:
    make_image_folder(tmp_path / "set", per_class=10, split=False)
    packed = pack(tmp_path / "set", tmp_path / "out", val_fraction=0.3, seed=3)
    assert [
        sum(e.count for e in part) for part in (packed.manifest.train, packed.manifest.val)
    ] == [14, 6]
    split = read_folder(tmp_path / "set", val_fraction=0.3, seed=3)
    held = {data for data, _ in images_in(tmp_path / "out", "val").values()}
    assert held == {path.read_bytes() for path in split.val_paths}


@pytest.mark.parametrize("there", [False, True])
def test_unreadable_images_are_named_and_nothing_is_left(tmp_path: Path, there: bool) -> None:
    make_image_folder(tmp_path / "set", per_class=8)
    out = tmp_path / "out"
    if there:
        out.mkdir()
    broken = [tmp_path / "set" / "train" / "dog" / f"{number}.png" for number in (0, 1, 2, 3)]
    for path in broken:
        path.write_bytes(path.read_bytes()[:200])
    lost = tmp_path / "set" / "val" / "cat" / "lost.png"
    lost.symlink_to("nowhere")
    with pytest.raises(UserError) as caught:
        pack(tmp_path / "set", out)
    text = str(caught.value)
    assert "(and 2 more); mend or remove" in text
    assert "\n" not in text
    assert sum(str(path) in text for path in broken) == 3
    assert out.exists() is there
    assert not there or not list(out.iterdir())
    for path in broken:
        path.unlink()
    with pytest.raises(UserError, match=r"lost\.png'.*no such file"):
        pack(tmp_path / "set", out)


@pytest.mark.parametrize("name", ["thesis.tex", "train-0000.tar", MANIFEST])
def test_what_else_is_in_out_is_left_alone(folder: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("precious")
    with pytest.raises(UserError, match=f"(?s)holds.*{name}"):
        pack(folder, out)
    assert contents(out) == {name: b"precious"}


def test_places_that_cannot_be(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        pack(folder, tmp_path / "file")
    with pytest.raises(UserError, match="is inside of"):
        pack(folder, folder / "packed")
    assert not (folder / "packed").exists()
    with pytest.raises(UserError, match="no such image folder"):
        pack(tmp_path / "absent", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("moved", [False, True])
def test_what_an_interrupted_call_left_is_no_obstacle(
    folder: Path, tmp_path: Path, moved: bool
) -> None:
    """Killed while shards were written, or while they were moved into their place."""
    out = tmp_path / "out"
    (out / STAGING).mkdir(parents=True)
    (out / STAGING / "train-0001.tar").write_bytes(b"half")
    if moved:
        (out / "train-0000.tar").write_bytes(b"whole, but of a call that was killed")
        (out / "train-0077.tar").write_bytes(b"likewise")
        (out / ".senet-1-abc.tmp").touch()
    pack(folder, out)
    pack(folder, tmp_path / "other")
    assert contents(out) == contents(tmp_path / "other")


def kill_between(folder: Path, out: Path, log: Path, signal_number: int) -> int:
    """Start packing and end it with a signal after the first shards; its exit status."""
    words = ["pack", folder, "--out", out, "--shard_size=0.02"]
    return start(words, log, prepare=when_synced(signal_number, 3)).wait().status


def test_killed_and_run_again(tmp_path: Path) -> None:
    """A real process, killed at work: no manifest, and the next call makes the same shards."""
    folder = make_image_folder(tmp_path / "set", per_class=12, size=(64, 64))
    out = tmp_path / "out"
    assert kill_between(folder, out, tmp_path / "log", signal.SIGKILL) == -signal.SIGKILL
    assert (out / STAGING).exists()
    assert not (out / MANIFEST).exists()
    pack(folder, out, shard_bytes=20_000)
    pack(folder, tmp_path / "whole", shard_bytes=20_000)
    assert contents(out) == contents(tmp_path / "whole")


def test_two_at_once_do_not_meet(tmp_path: Path) -> None:
    folder = make_image_folder(tmp_path / "set", per_class=12, size=(64, 64))
    out = tmp_path / "out"
    words = ["pack", folder, "--out", out, "--shard_size=0.02"]
    running = start(words, tmp_path / "log", prepare=when_synced(signal.SIGSTOP))
    assert wait_until(lambda: is_stopped(running.pid), running)
    with pytest.raises(UserError, match="another senet pack is under way in"):
        pack(folder, out)
    os.kill(running.pid, signal.SIGCONT)
    assert running.wait().status == 0
    pack(folder, tmp_path / "alone", shard_bytes=20_000)
    assert contents(out) == contents(tmp_path / "alone")


def test_ctrl_c_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    folder = make_image_folder(tmp_path / "set", per_class=12, size=(64, 64))
    assert kill_between(folder, tmp_path / "out", tmp_path / "log", signal.SIGINT) == 130
    (line,) = (tmp_path / "log.err").read_text().splitlines()
    assert line == "senet: interrupted; nothing was packed, run it again"
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 30,000 bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_is_told(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError) as caught:
        pack(folder, out)
    assert f"cannot write to {str(out)!r}: File too large; nothing is left" in str(caught.value)
    assert not out.exists()
    # `caught` still holds what was being read: its threads have ended all the same.
    assert not [thread for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name]


def test_a_bar_on_standard_error(
    folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For whoever looks on; without a terminal the command shows none (`test_the_command`)."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal
    pack(folder, tmp_path / "out", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "packing train" in err
    assert "packing val" in err
    assert "100%" in err
    pack(folder, tmp_path / "silent")
    assert capfd.readouterr() == ("", "")


def test_the_command(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", str(folder), "--out", str(tmp_path / "a"), "--shard_size=0.02"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "train: 30 images in" in out
    assert f"next: senet train --data {tmp_path / 'a'}" in out
    assert main(["pack", str(folder), "--out", str(tmp_path / "b"), "--json"]) == 0
    document = json.load(io.StringIO(capfd.readouterr().out))
    assert document["classes"] == sorted(NAMES)
    assert (document["train"]["shards"], document["train"]["images"]) == (1, 30)
    assert document["val"]["bytes"] == (tmp_path / "b" / "val-0000.tar").stat().st_size


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--shard_size=0", "shard_size is 0 MB, but must be"),
        ("--shard_size=nan", "shard_size is nan, but must be a number"),
        ("--val_fraction=1", "val_fraction is 1, but must be above 0"),
        ("--seed=-1", "seed is -1, but must be at least 0"),
    ],
)
def test_options_out_of_range(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], option: str, words: str
) -> None:
    assert main(["pack", str(folder), "--out", str(tmp_path / "out"), option]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert words in line


def test_shards_are_written_while_images_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in memory is a few dozen images at a time, of however many there are."""
    folder = make_image_folder(tmp_path / "set", per_class=80, size=(16, 16))
    staged = tmp_path / "out" / STAGING
    begun: list[int] = []

    def noted(data: bytes, name: str) -> object:
        begun.append(len(list(staged.glob("train-*.tar"))))
        return decode_image(data, name)

    monkeypatch.setattr(packing, "decode_image", noted)
    pack(folder, tmp_path / "out", shard_bytes=10_000)
    whole = len(list((tmp_path / "out").glob("train-*.tar")))
    assert begun[0] == 0
    assert whole > 5
    assert any(0 < count < whole for count in begun[:160])  # of images to train on
