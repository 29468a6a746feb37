"""senet.manifests: what is written is read, and what is damaged or hostile gets a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from senet.errors import UserError
from senet.manifests import Manifest, ShardEntry, read_manifest

MANIFEST = Manifest(
    ("a b", 'c"\n', "ü", "\udcff"),
    (ShardEntry("train-0000.tar", 3, 10240, "0" * 64),),
    (ShardEntry("val-0000.tar", 2, 10240, "f" * 64),),
)


def document() -> dict[str, Any]:
    made: dict[str, Any] = json.loads(MANIFEST.to_json())
    return made


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(MANIFEST.to_json())
    assert read_manifest(path) == MANIFEST
    path.write_text(json.dumps(document() | {"added later": 1}))
    assert read_manifest(path) == MANIFEST


@pytest.mark.parametrize("text", ["{}", "[]", '{"kind": "other"}', "3", '{"shards": ["a.tar"]}'])
def test_json_of_others_is_not_ours(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    assert read_manifest(tmp_path / "manifest.json") is None


def set_in(*path: str | int) -> Callable[[dict[str, Any], Any], None]:
    def change(made: Any, value: Any) -> None:
        for step in path[:-1]:
            made = made[step]
        made[path[-1]] = value

    return change


ROW = ("parts", "train", 0)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("format",), 2, "format 2 is of another version of senet; this reads 1"),
        (("format",), "1", "'format' is \"1\""),
        (("format",), None, "'format' is null"),
        (("format",), True, "'format' is true"),
        (("classes",), ["a"], "a list of two names or more"),
        (("classes",), ["a", ""], "a list of two names"),
        (("classes",), ["a", 1], "a list of two names"),
        (("classes",), ["a", "a"], "a name twice"),
        (("classes",), {"a": 1}, "a list of two names"),
        (("parts",), [], "lists of shards for train and val"),
        (("parts", "train"), [], "lists of shards"),
        (("parts", "val"), None, "lists of shards"),
        (ROW, "train-0000.tar", "is no shard"),
        ((*ROW, "file"), "../train.tar", "'file' of a shard is"),
        ((*ROW, "file"), "/etc/passwd", "'file' of a shard is"),
        ((*ROW, "file"), "..", "'file' of a shard is"),
        ((*ROW, "file"), "a\\b.tar", "'file' of a shard is"),
        ((*ROW, "file"), "a\0.tar", "'file' of a shard is"),
        ((*ROW, "file"), "a\nb.tar", "'file' of a shard is"),
        ((*ROW, "file"), "", "'file' of a shard is"),
        ((*ROW, "file"), "val-0000.tar", "a shard is there twice"),
        ((*ROW, "count"), 0, "'count' of a shard is 0"),
        ((*ROW, "count"), -3, "'count' of a shard is -3"),
        ((*ROW, "count"), 2.5, "'count' of a shard is 2.5"),
        ((*ROW, "count"), True, "'count' of a shard is true"),
        ((*ROW, "count"), 10**30, "'count' of a shard is 1000"),
        ((*ROW, "count"), 6, "6 images cannot be in 10240 bytes"),
        ((*ROW, "count"), float("nan"), "'count' of a shard is NaN"),
        ((*ROW, "bytes"), 10**19, "'bytes' of a shard is"),
        ((*ROW, "bytes"), float("inf"), "'bytes' of a shard is Infinity"),
        ((*ROW, "sha256"), "0" * 63, "64 hexadecimal digits"),
        ((*ROW, "sha256"), "G" * 64, "64 hexadecimal digits"),
        ((*ROW, "sha256"), None, "64 hexadecimal digits"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, path: tuple[str | int, ...], value: Any, words: str
) -> None:
    made = document()
    set_in(*path)(made, value)
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps(made))
    with pytest.raises(UserError) as caught:
        read_manifest(file)
    assert words in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        MANIFEST.to_json().encode()[:200],
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"kind": "senet shards", "format": ' + b"9" * 5000 + b"}",
    ],
    ids=["empty", "a brace", "cut short", "no text", "nested", "a long number"],
)
def test_what_is_no_json_is_damaged(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "manifest.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match="cut short or damaged") as caught:
        read_manifest(file)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_manifest(tmp_path / "manifest.json")
    with pytest.raises(UserError, match="directory"):
        read_manifest(tmp_path)
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(2**29)
    with pytest.raises(UserError, match="too large"):
        read_manifest(tmp_path / "huge.json")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_PLACES = [
    *(("kind",), ("format",), ("classes",), ("classes", 0), ("parts",), ("parts", "train")),
    *(ROW, ("parts", "val"), *((*ROW, key) for key in ("file", "count", "bytes", "sha256"))),
]


def in_a_line(error: UserError) -> None:
    assert "\n" not in str(error)


def read_or_refused(path: Path) -> None:
    """It is read, told to be another's, or refused in a line: no other end is possible."""
    try:
        manifest = read_manifest(path)
    except UserError as error:
        in_a_line(error)
        return
    if manifest is not None:
        for entry in (*manifest.train, *manifest.val):
            assert (path.parent / entry.file).parent == path.parent
            assert entry.count * 2048 <= entry.bytes


def fuzz_values(path: Path, place: tuple[str | int, ...], value: Any) -> None:
    made = document()
    set_in(*place)(made, value)
    path.write_text(json.dumps(made))
    read_or_refused(path)


def fuzz_bytes(path: Path, start: int, removed: int, inserted: bytes) -> None:
    data = MANIFEST.to_json().encode()
    start %= len(data)
    path.write_bytes(data[:start] + inserted + data[start + removed :])
    read_or_refused(path)


VALUES = given(place=st.sampled_from(_PLACES), value=_JSON)
BYTES = given(
    start=st.integers(0, 2000), removed=st.integers(0, 60), inserted=st.binary(max_size=20)
)
FEW = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
MANY = settings(FEW, max_examples=3_000)


@FEW
@VALUES
def test_any_value_anywhere(tmp_path: Path, place: tuple[str | int, ...], value: Any) -> None:
    fuzz_values(tmp_path / "manifest.json", place, value)


@FEW
@BYTES
def test_any_bytes_anywhere(tmp_path: Path, start: int, removed: int, inserted: bytes) -> None:
    fuzz_bytes(tmp_path / "manifest.json", start, removed, inserted)


@pytest.mark.slow
@MANY
@VALUES
def test_any_value_anywhere_for_long(
    tmp_path: Path, place: tuple[str | int, ...], value: Any
) -> None:
    fuzz_values(tmp_path / "manifest.json", place, value)


@pytest.mark.slow
@MANY
@BYTES
def test_any_bytes_anywhere_for_long(
    tmp_path: Path, start: int, removed: int, inserted: bytes
) -> None:
    fuzz_bytes(tmp_path / "manifest.json", start, removed, inserted)
