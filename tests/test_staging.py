"""senet.staging: a folder of results, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from senet.errors import UserError
from senet.staging import staged


def make(out: Path, name: str = "a.txt", meanwhile: Callable[[], None] = lambda: None) -> None:
    with staged(out, "inspection", {"network": "se"}) as folder:
        (folder / name).write_text("new")
        meanwhile()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_folder_and_those_above_it(tmp_path: Path) -> None:
    out = tmp_path / "x" / "y"
    make(out)
    assert names(out) == ["a.txt", "inspection.json"]
    record = json.loads((out / "inspection.json").read_text())
    assert record == {"kind": "senet inspection", "network": "se", "files": ["a.txt"]}
    assert names(out.parent) == ["y"]


def test_an_empty_folder_and_an_earlier_result_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    make(out, "old.txt")
    make(out, "new.txt")
    assert names(out) == ["inspection.json", "new.txt"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt, UserError])
def test_what_fails_leaves_all_as_it_was(tmp_path: Path, stop: type[BaseException]) -> None:
    def fail() -> None:
        raise stop

    out = tmp_path / "out"
    for before in ([], ["a.txt", "inspection.json"]):
        with pytest.raises(stop):
            make(out, "half", fail)
        assert names(tmp_path) == (["out"] if before else [])
        make(out)
    assert (out / "a.txt").read_text() == "new"


def test_others_files_are_not_touched(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds something else \('mine.txt'\)"):
        make(out)
    assert names(out) == ["mine.txt"]


def test_a_file_put_beside_an_earlier_result_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out)
    (out / "sub").mkdir()
    (out / "sub" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"sub/mine.txt"):
        make(out)
    assert (out / "sub" / "mine.txt").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "other", "files": []}', '{"files": 3}'])
def test_a_record_of_something_else_is_none(tmp_path: Path, text: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "inspection.json").write_text(text)
    with pytest.raises(UserError, match="holds something else"):
        make(out)
    assert names(out) == ["inspection.json"]


def test_a_file_that_comes_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def come() -> None:
        out.mkdir()
        (out / "mine.txt").write_text("mine")

    with pytest.raises(UserError, match="holds something else"):
        make(out, meanwhile=come)
    assert names(tmp_path) == ["out"]


def test_folders_of_others_without_files(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "empty").mkdir(parents=True)
    with pytest.raises(UserError, match="holds folders of something else"):
        make(out)


def test_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="is a file"):
        make(tmp_path / "out")
    with pytest.raises(UserError, match="cannot make"):
        make(tmp_path / "out" / "below")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no /proc")
def test_a_place_that_cannot_be_written() -> None:
    with pytest.raises(UserError, match=r"cannot (make|write)"):
        make(Path("/proc/senet/out"))


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    make(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "real") == ["a.txt", "inspection.json"]
