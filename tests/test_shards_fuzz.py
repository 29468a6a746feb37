"""The reader of shards on altered tar files: each is read right or refused in a line."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tars import member, png, samples, write_tar

from senet.errors import UserError
from senet.shards import MOST_BYTES, MOST_CLASSES, read_shard


def _long(name: str, label: str) -> list[tuple[tarfile.TarInfo, bytes]]:
    """A sample whose name needs a header of its own."""
    return [*samples([0]), member(f"{name}{label}", b"1"), member(f"{name}.png", png())]


SEEDS = {
    "ustar": (samples([0, 1, 2]), tarfile.USTAR_FORMAT),
    "gnu": (_long("b" * 150, ".cls"), tarfile.GNU_FORMAT),
    "pax": (_long("ü" * 99, ".json"), tarfile.PAX_FORMAT),
}

EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "insert", "number"]),
        st.integers(0, 12_000),
        st.binary(min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=3,
)


def altered(data: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    """The bytes after some edits; ``number`` puts octal digits into a header's size and mends
    its checksum, so that it is believed."""
    changed = bytearray(data)
    for kind, place, some in edits:
        place %= max(len(changed), 1)
        if kind == "set":
            changed[place : place + len(some)] = some
        elif kind == "cut":
            del changed[place : place + 64 * len(some)]
        elif kind == "insert":
            changed[place:place] = some
        else:
            start = place // 512 * 512
            header = changed[start : start + 512]
            if len(header) == 512 and any(header):
                header[124:136] = bytes(48 + byte % 8 for byte in some).rjust(11, b"0")[:11] + b"\0"
                header[156:157] = b"01256LKxg\0"[place % 10 : place % 10 + 1]
                header[148:156] = b" " * 8
                header[148:156] = b"%06o\0 " % (sum(header) & 0o777777)
                changed[start : start + 512] = header
    return bytes(changed)


def in_a_line(error: UserError) -> bool:
    """False, for what was not read, and certainly in one line."""
    assert "\n" not in str(error)
    return False


def read_or_refused(path: Path, data: bytes) -> bool:
    """Whether it was read; then everything that the index says lies within the file."""
    path.write_bytes(data)
    try:
        shard = read_shard(path)
    except UserError as error:
        return in_a_line(error)
    assert len(shard.names) == len(shard.labels) == len(shard.offsets) == len(shard.sizes) > 0
    for offset, size, label in zip(shard.offsets, shard.sizes, shard.labels, strict=True):
        assert 512 <= offset <= offset + size <= len(data)
        assert size <= MOST_BYTES
        assert 0 <= label < MOST_CLASSES
    return True


FUZZ = given(seed=st.sampled_from(sorted(SEEDS)), edits=EDITS)
FEW = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def fuzz(folder: Path, seed: str, edits: list[tuple[str, int, bytes]]) -> None:
    path = folder / f"{seed}.tar"
    if not path.exists():
        write_tar(path, *SEEDS[seed])
    read_or_refused(folder / "altered.tar", altered(path.read_bytes(), edits))


@FEW
@FUZZ
def test_altered_shards(tmp_path: Path, seed: str, edits: list[tuple[str, int, bytes]]) -> None:
    fuzz(tmp_path, seed, edits)


@pytest.mark.slow
@settings(FEW, max_examples=20_000)
@FUZZ
def test_altered_shards_for_long(
    tmp_path: Path, seed: str, edits: list[tuple[str, int, bytes]]
) -> None:
    fuzz(tmp_path, seed, edits)


@pytest.mark.parametrize("seed", sorted(SEEDS))
def test_the_fuzz_begins_with_what_can_be_read(tmp_path: Path, seed: str) -> None:
    data = write_tar(tmp_path / "a.tar", *SEEDS[seed]).read_bytes()
    assert read_or_refused(tmp_path / "b.tar", data)
