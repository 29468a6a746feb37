"""senet.sharded: patterns and packed folders, checked before anything is trained on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from generated import make_image_folder
from processes import server
from tars import member, png, samples, write_tar

from senet.checking import check_bytes
from senet.data import absolute
from senet.errors import UserError
from senet.manifests import MANIFEST
from senet.packing import pack
from senet.sharded import ShardSplit, expand, is_sharded, read_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_folder(tmp_path_factory.mktemp("images") / "set", per_class=12)


@pytest.fixture
def packed(folder: Path, tmp_path: Path) -> Path:
    pack(folder, tmp_path / "packed", shard_bytes=20_000)
    return tmp_path / "packed"


def read(data: object, val_data: object = None, **options: bool) -> ShardSplit:
    val = None if val_data is None else str(val_data)
    return read_shards(str(data), val, val_fraction=0.25, seed=0, **options)


def refusal(data: object, val_data: object = None, **options: bool) -> str:
    with pytest.raises(UserError) as caught:
        read(data, val_data, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pattern(packed: Path, part: str = "train") -> str:
    last = len(list(packed.glob(f"{part}-*.tar"))) - 1
    return f"{packed}/{part}-{{0000..{last:04d}}}.tar"


def test_a_packed_folder_its_manifest_and_its_pattern_are_one(packed: Path) -> None:
    assert len(list(packed.glob("train-*.tar"))) > 2
    splits = [read(data) for data in (packed, packed / MANIFEST, pattern(packed))]
    for split in splits:
        assert split.classes == ("cat", "dog")
        assert split.train.labels.tolist() == [0] * 12 + [1] * 12
        assert split.val.labels.tolist() == [0] * 6 + [1] * 6
        assert split.fingerprint == splits[0].fingerprint
        assert [split.train.name(index) for index in range(24)] == [
            f"{place:08d}.png" for place in range(24)
        ]
    named = read(pattern(packed), pattern(packed, "val"))
    assert named.fingerprint == splits[0].fingerprint


def test_some_of_the_shards(packed: Path) -> None:
    split = read(packed / "train-0001.tar", packed / "val-0000.tar")
    assert 0 < len(split.train) < 24
    assert split.classes == ("cat", "dog")


def test_another_folder_has_the_same_fingerprint(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "copy")
    assert read(tmp_path / "copy").fingerprint == read(packed).fingerprint
    assert read(packed / "train-0000.tar").fingerprint != read(packed).fingerprint


def test_a_shard_that_is_cut_short_is_named(packed: Path) -> None:
    shard = packed / "train-0001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    for data in (packed, pattern(packed)):
        assert f"shard {str(shard)!r} is cut short: it has" in refusal(data)


def test_a_shard_that_was_altered_is_named(packed: Path) -> None:
    """One bit, in the middle of an image."""
    shard = packed / "val-0000.tar"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    for where in (packed, pattern(packed)):
        assert f"shard {str(shard)!r} is altered: its SHA-256" in refusal(where)


def alter(shard: Path) -> None:
    """One bit of an image: nothing that the headers would tell."""
    data = bytearray(shard.read_bytes())
    with tarfile.open(shard) as file:
        data[next(m for m in file if m.name.endswith(".png")).offset_data + 100] ^= 1
    shard.write_bytes(data)


def test_several_processes_share_the_reading_of_all_bytes(packed: Path) -> None:
    """Each shard is read by one of them, whoever that is."""
    alter(packed / "val-0000.tar")
    assert "is altered" in refusal(packed)
    split = read(packed, check=False)
    assert len(split.val) == 12
    shards = sorted(path.name for path, _ in split.unchecked)
    assert shards == sorted(path.name for path in packed.glob("*.tar"))
    for parts in (1, 2, 3):
        faults = []
        for part in range(parts):
            try:
                check_bytes(split.unchecked, part, parts)
            except UserError as error:
                faults.append(str(error))
        (fault,) = faults
        assert "val-0000.tar' is altered" in fault


def test_a_shard_that_is_gone_or_new(packed: Path) -> None:
    (packed / "val-0000.tar").rename(packed / "val-0009.tar")
    assert "val-0000.tar" in refusal(packed)
    assert "is not in the manifest.json beside it" in refusal(
        pattern(packed), packed / "val-0009.tar"
    )
    assert "no such shard" in refusal(packed / "train-{0000..0099}.tar")


def test_counts_and_labels_are_compared_too(packed: Path) -> None:
    made = json.loads((packed / MANIFEST).read_text())
    count = made["parts"]["val"][0]["count"]
    made["parts"]["val"][0]["count"] -= 1
    (packed / MANIFEST).write_text(json.dumps(made))
    assert f"holds {count} images, but {count - 1} by the manifest.json" in refusal(packed)


def test_a_label_without_a_name(packed: Path) -> None:
    import hashlib

    shard = write_tar(packed / "val-0000.tar", samples([0, 5]))
    made = json.loads((packed / MANIFEST).read_text())
    made["parts"]["val"][0] |= {
        "count": 2,
        "bytes": shard.stat().st_size,
        "sha256": hashlib.sha256(shard.read_bytes()).hexdigest(),
    }
    (packed / MANIFEST).write_text(json.dumps(made))
    assert "has label 5, of 2 classes" in refusal(packed)


def test_folders_that_are_not_whole(packed: Path) -> None:
    (packed / MANIFEST).rename(packed / "kept.json")
    assert is_sharded(str(packed))
    assert "no manifest.json in" in refusal(packed)
    (packed / MANIFEST).write_text("{}")
    assert "is not one of `senet pack`" in refusal(packed)
    assert len(read(pattern(packed)).val) == 6  # as the shards of others, a share held out
    (packed / MANIFEST).write_bytes((packed / "kept.json").read_bytes()[:100])
    for data in (packed, pattern(packed)):
        assert "cut short or damaged" in refusal(data)


def test_shards_of_others(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"s-{number}.tar", samples([0, 1, 2, 1] * 2, start=8 * number))
    data = tmp_path / "s-{0..2}.tar"
    split = read(data)
    assert split.classes == ("0", "1", "2")
    assert (len(split.train), len(split.val)) == (17, 7)
    names = {part.name(index) for part in (split.train, split.val) for index in range(len(part))}
    assert names == {f"{number:04d}.png" for number in range(24)}
    assert read(data).fingerprint == split.fingerprint
    named = read(tmp_path / "s-{0,1}.tar", tmp_path / "s-2.tar")
    assert (len(named.train), len(named.val)) == (16, 8)
    both = read(f"{tmp_path}/s-0.tar::{tmp_path}/s-1.tar", tmp_path / "s-2.tar")
    assert both.fingerprint == named.fingerprint
    write_tar(tmp_path / "s-2.tar", samples([0, 1, 2, 0] * 2, start=16))
    assert read(data).fingerprint != split.fingerprint


def test_the_same_key_in_several_shards_is_several_images(tmp_path: Path) -> None:
    for number in range(2):
        write_tar(tmp_path / f"s-{number}.tar", samples([0, 1, 0, 1]))
    split = read(tmp_path / "s-{0..1}.tar")
    assert len(split.train) + len(split.val) == 8


def test_shards_that_make_no_data_set(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "one.tar", samples([0, 0, 0]))
    assert "only one class" in refusal(one)
    few = write_tar(tmp_path / "few.tar", samples([0, 0, 1]))
    assert "has one image only" in refusal(few)
    assert "to train on and to validate on" in refusal(one, one)
    assert "twice" in refusal(tmp_path / "{one,one}.tar")
    damaged = write_tar(tmp_path / "d.tar", [member("a.png", png(), type=tarfile.SYMTYPE)])
    assert "is a link" in refusal(f"{one}::{damaged}")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("s-{0..3.tar", "is no pattern of shards"),
        ("s-{0..99999999999}.tar", "names more than 100,000 shards"),
        ("s-{00000000..1}.tar", "no such shard: 's-00000000.tar' is not a file, nor are 1 more"),
        ("s-{20240101,20240102}.tar", "no such shard: 's-20240101.tar'"),
        ("s-{0..10000000..100}.tar", "names more than 100,000 shards"),
        ("~nobodyhere/s-{0..1}.tar", "no such shard: '~nobodyhere/s-0.tar'"),
        ("{0..999}{0..999}.tar", "names more than 100,000 shards"),
        ("{" * 200 + "}" * 201 + ".tar", "is no pattern of shards"),
        ("{a," * 9000 + ".tar", "longer than any path"),
        ("https://example.com/a.tar", "is not a file; download it, or type --data 'pipe:curl"),
        ("absent-{0..3}.tar", "no such shard: 'absent-0.tar' is not a file, nor are 3 more of 4"),
        ("a.tar.gz", "no such shard"),
    ],
)
def test_patterns_that_name_nothing(data: str, words: str) -> None:
    assert is_sharded(data)
    assert words in refusal(data)


def test_what_is_meant_by_data(tmp_path: Path, packed: Path, folder: Path) -> None:
    for name in ("digits", "cifar10", str(folder), str(tmp_path), "./images"):
        assert not is_sharded(name), name
    braces = make_image_folder(tmp_path / "a{1..2}")
    (braces / MANIFEST).write_text("{}")  # somebody else's, beside class folders
    assert not is_sharded(str(braces))
    for name in (
        "a.tar",
        "a-{0..1}.tar",
        "a.tgz",
        str(packed),
        "pipe:cat a",
        "x::y",
        "manifest.json",
    ):
        assert is_sharded(name), name


def test_patterns_mean_the_same_from_anywhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("s/{0..3}.tar::/b.tar") == f"{tmp_path}/s/{{0..3}}.tar::/b.tar"
    assert absolute("pipe:cat a.tar") == "pipe:cat a.tar"
    assert expand("a\\{b\\}.tar") == ["a{b}.tar"]


def test_a_command_is_run_only_where_it_is_allowed(tmp_path: Path) -> None:
    write_tar(tmp_path / "s-0.tar", samples([0, 1, 0, 1]))
    write_tar(tmp_path / "s-1.tar", samples([0, 1, 0, 1], start=4))
    touch = f"pipe:touch {tmp_path}/ran; cat {tmp_path}/s-{{0..1}}.tar"
    assert "commands out of a file are not run" in refusal(touch)
    assert not (tmp_path / "ran").exists()
    split = read(touch, pipes=True)
    assert (tmp_path / "ran").exists()
    assert len(split.train) + len(split.val) == 8
    assert all(path.is_file() for path in split.train.paths)


def fetch_and_wait(command: str, folder: str, connection: Any) -> None:
    tempfile.tempdir = folder
    split = read(command, pipes=True)
    connection.send(str(split.train.paths[0].parent))
    signal.pause()


def test_what_a_killed_process_fetched_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what a living one has is left alone, as are folders of others."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp" / "senet-piped-not-ours").mkdir(parents=True)
    command = f"pipe:cat {write_tar(tmp_path / 's.tar', samples([0, 1, 0, 1]))}"
    context = server()
    processes, folders = [], []
    for _ in range(2):
        ours, theirs = context.Pipe()
        given = (command, tempfile.gettempdir(), theirs)
        process = context.Process(target=fetch_and_wait, args=given, daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
        assert ours.poll(60)
        folders.append(Path(ours.recv()))
    processes[0].kill()
    processes[0].join()
    assert all(folder.is_dir() for folder in folders)
    mine = read(command, pipes=True).train.paths[0].parent
    again = read(command, pipes=True).train.paths[0].parent
    left = sorted(path.name for path in (tmp_path / "tmp").iterdir())
    assert left == sorted([folders[1].name, mine.name, again.name, "senet-piped-not-ours"])
    processes[1].kill()
    processes[1].join()


def test_folders_of_others_are_not_even_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of mode 0700, as temporary folders are; one that has gone since is none."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "senet-piped-theirs").mkdir()
    (tmp_path / "senet-piped-gone").mkdir()
    real = Path.stat

    def stat(path: Path, **options: Any) -> Any:
        if path.parent.name == "senet-piped-theirs":
            raise PermissionError(13, "Permission denied", str(path))
        if path.name == "senet-piped-gone":
            raise FileNotFoundError(2, "No such file or directory", str(path))
        found = list(real(path, **options))
        found[4] += path.name == "senet-piped-theirs"  # another user's
        return os.stat_result(found)

    monkeypatch.setattr(Path, "stat", stat)
    tar = write_tar(tmp_path / "s.tar", samples([0, 1, 0, 1]))
    assert len(read(f"pipe:cat {tar}", pipes=True).train)


def test_a_disk_too_full_for_what_a_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command ends too, for nobody reads on; it is not the one that failed.

    It prints without end, so that it does not fail by itself before the disk does.
    """
    tar = write_tar(tmp_path / "s.tar", samples([0, 1, 0, 1]))

    def full(source: Any, target: Any, size: int) -> None:
        source.read(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    said = refusal(f"pipe:cat {tar} /dev/zero; exit 3", pipes=True)
    assert "No space left on device; TMPDIR says" in said


def test_a_folder_may_have_two_colons_in_its_name(folder: Path, tmp_path: Path) -> None:
    assert not is_sharded(str(shutil.copytree(folder, tmp_path / "a::b")))


def test_commands_that_fail(tmp_path: Path) -> None:
    assert "the command failed, exit 3" in refusal("pipe:exit 3", pipes=True)
    assert "cut short or damaged" in refusal("pipe:true", pipes=True)
    mixed = f"pipe:true::{tmp_path}/a.tar"
    assert "name one kind only" in refusal(mixed, pipes=True)


def test_unreadable_files_are_told(packed: Path) -> None:
    if os.geteuid() == 0:  # who may read everything
        (packed / "train-0000.tar").unlink()
        (packed / "train-0000.tar").mkdir()
    else:
        (packed / "train-0000.tar").chmod(0)
    assert "train-0000.tar" in refusal(packed)
