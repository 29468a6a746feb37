"""senet.shards: where the images of a tar file lie, and each way such a file can be wrong."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest
from tars import member, png, samples, write_tar

from senet.errors import UserError
from senet.shards import MOST_BYTES, Shard, read_shard

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_shard(path)
    text = str(caught.value)
    assert "\n" not in text
    assert repr(str(path)) in text
    return text


def bytes_at(shard: Shard, index: int) -> bytes:
    start = shard.offsets[index]
    return shard.path.read_bytes()[start : start + shard.sizes[index]]


@pytest.mark.parametrize("format", FORMATS)
def test_images_are_where_the_index_says(tmp_path: Path, format: str) -> None:
    long = "deep/" * 40 + "ü 1"
    members = [
        *samples([3, 0]),
        member(f"{long}.json", b'{"label": 4, "name": "cat"}'),
        member(f"{long}.JPEG", png(7)),
    ]
    if format == "ustar":
        members = members[:4]
    shard = read_shard(write_tar(tmp_path / "a.tar", members, FORMATS[format]))
    assert shard.labels == [3, 0, 4][: len(members) // 2]
    assert shard.bytes == (tmp_path / "a.tar").stat().st_size
    with tarfile.open(tmp_path / "a.tar") as file:
        for index, name in enumerate(shard.names):
            extracted = file.extractfile(name)
            assert extracted is not None
            assert bytes_at(shard, index) == extracted.read()


@pytest.mark.parametrize(
    ("name", "text", "label"),
    [
        ("a.cls", b"7", 7),
        ("a.cls", b" 7\n", 7),
        ("a.json", b"7", 7),
        ("a.json", b'{"label": 7}', 7),
        ("a.json", b'{"cls": 7}', 7),
    ],
)
def test_labels(tmp_path: Path, name: str, text: bytes, label: int) -> None:
    members = [member("a.png", png()), member(name, text)]
    assert read_shard(write_tar(tmp_path / "a.tar", members)).labels == [label]


def test_a_label_in_cls_goes_before_one_in_json(tmp_path: Path) -> None:
    members = [member("a.json", b"1"), member("a.png", png()), member("a.cls", b"2")]
    assert read_shard(write_tar(tmp_path / "a.tar", members)).labels == [2]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.cls", b""),
        ("a.cls", b"cat"),
        ("a.cls", b"-1"),
        ("a.cls", b"1.5"),
        ("a.cls", b"1000000"),
        ("a.cls", "٧".encode()),
        ("a.cls", b"\x80\x04K\x07."),  # a pickle of 7: read as text, which it is not
        ("a.json", b"true"),
        ("a.json", b"{}"),
        ("a.json", b"[" * 100_000),
        ("a.json", b"{"),
        ("a.json", b'{"label": "7"}'),
    ],
)
def test_what_is_no_label(tmp_path: Path, name: str, text: bytes) -> None:
    members = [member("a.png", png()), member(name, text)]
    assert "'" + name + "' holds no label" in refusal(write_tar(tmp_path / "a.tar", members))


def test_labels_too_long_to_be_read(tmp_path: Path) -> None:
    members = [member("a.png", png()), member("a.cls", b"1" * 1000)]
    assert "too many for a label" in refusal(write_tar(tmp_path / "a.tar", members))


def test_other_members_are_passed_over(tmp_path: Path) -> None:
    members = [
        member("__meta__", b"{}"),
        member("__info__/a.json", b"{}"),
        member("README", b"about"),
        member("folder", type=tarfile.DIRTYPE),
        *samples([1]),
        member("0000.txt", b"a caption"),
        member("0000.seg.png", png(9)),
    ]
    shard = read_shard(write_tar(tmp_path / "a.tar", members))
    assert (shard.names, shard.labels) == (["0000.png"], [1])


@pytest.mark.parametrize("names", ["../../escaped", "/tmp/senet-escaped", "./a", "~/b", "C:\\d"])
def test_names_are_no_paths(tmp_path: Path, names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a name would lead if it were extracted, nothing is written."""
    inner = tmp_path / "x" / "y"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    members = [member(f"{names}.png", png()), member(f"{names}.cls", b"1")]
    path = write_tar(inner / "a.tar", members)
    before = sorted(tmp_path.rglob("*"))
    assert read_shard(path).names == [f"{names}.png"]
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/senet-escaped.png").exists()


@pytest.mark.parametrize(
    ("type", "words"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a named pipe"),
        (b"Z", "of type"),
    ],
)
def test_what_is_no_plain_file_is_refused(tmp_path: Path, type: bytes, words: str) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png())
    members = [member("a.png", type=type, linkname=str(secret)), member("a.cls", b"1")]
    text = refusal(write_tar(tmp_path / "a.tar", members))
    assert "'a.png' is" in text
    assert words in text


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    members = [member("a.png", type=tarfile.GNUTYPE_SPARSE), *samples([1])]
    assert "a sparse file" in refusal(write_tar(tmp_path / "a.tar", members))
    extended = [member("a.png", png(), pax_headers={"GNU.sparse.size": "9"}), *samples([1])]
    path = write_tar(tmp_path / "b.tar", extended, tarfile.PAX_FORMAT)
    assert "a sparse file" in refusal(path)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([member("a.png", png())], "'a.png' has no label"),
        ([member("a.cls", b"1"), *samples([1])], "'a.cls' has no image"),
        ([member("a.png", png()), member("b.cls", b"1")], "'a.png' has no label"),
        ([member("a.png", png()), member("a.jpg", png())], "sample 'a' has two images"),
        ([member("a.cls", b"1"), member("a.CLS", b"2")], "'a.CLS' is there twice"),
        ([member("README", b"about")], "it holds no images"),
        ([], "it holds no images"),
    ],
)
def test_samples_that_are_not_whole(
    tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]], words: str
) -> None:
    assert words in refusal(write_tar(tmp_path / "a.tar", members))


def test_cut_short_anywhere_is_told(tmp_path: Path) -> None:
    """At every block and in the middle of each: never fewer images without a word."""
    whole = write_tar(tmp_path / "whole.tar", samples([0, 1, 2])).read_bytes()
    path = tmp_path / "a.tar"
    with tarfile.open(tmp_path / "whole.tar") as file:
        end = file.getmembers()[-1].offset_data + 512
    for length in range(0, end + 1, 256):
        path.write_bytes(whole[:length])
        text = refusal(path)
        assert "cut short or damaged" in text or "damaged header" in text, length


def test_a_header_that_was_altered_is_told(tmp_path: Path) -> None:
    data = bytearray(write_tar(tmp_path / "a.tar", samples([0, 1])).read_bytes())
    data[1024 + 3] ^= 1
    (tmp_path / "a.tar").write_bytes(data)
    assert "a damaged header at byte 1,024" in refusal(tmp_path / "a.tar")


def test_a_member_that_claims_more_than_there_is(tmp_path: Path) -> None:
    """Not believed, for a name neither: no memory is taken for it."""
    for type in (tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        header = tarfile.TarInfo("a.png")
        header.size, header.type = 2**50, type
        path = tmp_path / "a.tar"
        path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + b"\0" * 2048)
        assert "cut short or damaged (in 'a.png')" in refusal(path)
    negative = bytearray(tarfile.TarInfo("a.png").tobuf(tarfile.GNU_FORMAT))
    negative[124:136] = b"\xff" * 12
    negative[148:156] = b"%06o\0 " % (sum(negative[:148]) + sum(negative[156:]) + 8 * 32)
    (tmp_path / "b.tar").write_bytes(negative + b"\0" * 2048)
    assert "cut short or damaged (in 'a.png')" in refusal(tmp_path / "b.tar")


def test_a_huge_member_is_refused_before_it_is_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("a.png")
    header.size = MOST_BYTES + 512
    path = tmp_path / "a.tar"
    label, text = member("a.cls", b"1")
    with path.open("wb") as file:  # a hole, which takes no space
        file.write(header.tobuf())
        file.seek(header.size, os.SEEK_CUR)
        file.write(label.tobuf() + text.ljust(512, b"\0") + b"\0" * 1024)
    assert f"{MOST_BYTES + 512:,} bytes; at most" in refusal(path)


def test_long_names_have_a_limit(tmp_path: Path) -> None:
    members = [member("a" * 2_000_000 + ".png", png())]
    path = write_tar(tmp_path / "a.tar", members, tarfile.GNU_FORMAT)
    assert "a name of 2,000,005 bytes" in refusal(path)


@pytest.mark.parametrize("record", [b"9 a", b"12 path=a.png", b"x path=a\n", b"99 path=a\n"])
def test_damaged_extended_headers(tmp_path: Path, record: bytes) -> None:
    members = [member("x", record, type=tarfile.XHDTYPE), *samples([1])]
    assert "damaged extended header" in refusal(write_tar(tmp_path / "a.tar", members))


def test_what_lies_behind_the_end_is_told(tmp_path: Path) -> None:
    first = write_tar(tmp_path / "a.tar", samples([0])).read_bytes()
    (tmp_path / "b.tar").write_bytes(first + first)
    assert "behind its end; two tar files cannot be one shard" in refusal(tmp_path / "b.tar")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(b"x" * 9999, mtime=0), "compressed (gzip)"),
        (b"BZh91AY&SY" + b"x" * 999, "compressed (bzip2)"),
        (b"\xfd7zXZ\0" + b"x" * 999, "compressed (xz)"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 99, "compressed (zstd)"),
        (b"\x89PNG" * 500, "not a tar file"),
        (b"", "cut short or damaged"),
        (b"text", "cut short or damaged"),
    ],
    ids=["gzip", "bzip2", "xz", "zstd", "a picture", "empty", "a text"],
)
def test_files_that_are_no_tar(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    assert words in refusal(tmp_path / "a.tar")


def test_places_that_are_no_file(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "absent.tar")
    assert "not a file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.tar")  # opening it would wait for ever
    assert "not a file" in refusal(tmp_path / "pipe.tar")


def test_webdataset_reads_the_same(tmp_path: Path) -> None:
    """The library's own reader, for the samples of a shard: keys, images and labels."""
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    path = write_tar(tmp_path / "a.tar", samples([2, 0, 1]))
    files = ({**file, "__url__": ""} for file in tar_file_iterator(io.BytesIO(path.read_bytes())))
    shard = read_shard(path)
    for index, sample in enumerate(group_by_keys(files)):
        assert sample["png"] == bytes_at(shard, index)
        assert int(sample["cls"]) == shard.labels[index]
        assert shard.names[index] == f"{sample['__key__']}.png"
