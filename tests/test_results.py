"""Results on file: read in full or refused in one line, and summed up over seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from senet.errors import UserError
from senet.results import COLUMNS, read_results, summarise

HEAD = ",".join(COLUMNS)
ROWS = (
    "se_resnet20,digits,se,0,0.90,1.0,2026-11-27,CPU",
    "se_resnet20,digits,se,1,0.94,0.98,2026-11-28,CPU",
    "resnet20,digits,plain,0,0.88,,2026-11-27,CPU",
)


def folder_with(folder: Path, *rows: str, head: str = HEAD, name: str = "pair.csv") -> Path:
    (folder / name).write_text("\n".join((head, *rows, "")))
    return folder


def test_means_and_deviations_over_seeds(tmp_path: Path) -> None:
    twin, plain = summarise(read_results(folder_with(tmp_path, *ROWS)))
    assert (twin.network, twin.runs) == ("se_resnet20", 2)
    assert twin.top1 == pytest.approx(8)  # of 10 and 6 %
    assert twin.deviation == pytest.approx(8**0.5)
    assert twin.top5 == pytest.approx(1)
    assert twin.dates == ("2026-11-27", "2026-11-28")
    assert str(twin) == "8.00 ± 2.83 / 1.00 (se_resnet20, digits, 2 runs)"
    assert (plain.deviation, plain.top5) == (None, None)
    assert str(plain) == "12.00 (resnet20, digits, 1 run)"


def test_files_are_not_mixed(tmp_path: Path) -> None:
    folder_with(tmp_path, ROWS[0], name="a.csv")
    folder_with(tmp_path, ROWS[0], name="b.csv")
    assert [one.source for one in summarise(read_results(tmp_path))] == ["a", "b"]


def test_other_columns_and_failed_runs_do_no_harm(tmp_path: Path) -> None:
    rows = [f"ok,{ROWS[0]}", "failed,se_resnet20,digits,se,5,,,2026-11-27,CPU"]
    (found,) = read_results(folder_with(tmp_path, *rows, head=f"status,{HEAD}"))
    assert (found.seed, found.top1) == (0, 0.90)


@pytest.mark.parametrize(
    ("rows", "head", "complaint"),
    [
        (ROWS, HEAD.replace("top1", "accuracy"), "has no column 'top1'"),
        (("a,b,c,zero,0.1,,,",), HEAD, "line 2: seed is 'zero'"),
        (("a,b,c,0,81.5,,,",), HEAD, "line 2: top1 is '81.5', but must be an accuracy"),
        (("a,b,c,0,nan,,,",), HEAD, "top1 is 'nan'"),
        (("a,b,c,0,0.5,none,,",), HEAD, "top5 is 'none'"),
        (("a,b,c,0,0.5",), HEAD, "line 2: 8 values were expected"),
        (("a,b,c,0,0.5,,,,extra",), HEAD, "line 2: 8 values were expected"),
        ((ROWS[0], ROWS[0]), HEAD, "'se' of 'se_resnet20' with seed 0 twice"),
        (('"a,b',), HEAD, "cannot read"),
    ],
)
def test_mistakes(tmp_path: Path, rows: tuple[str, ...], head: str, complaint: str) -> None:
    with pytest.raises(UserError, match=r"pair\.csv") as error:
        read_results(folder_with(tmp_path, *rows, head=head))
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_no_folder_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder"):
        read_results(tmp_path / "none")
    with pytest.raises(UserError, match=r"there is no \.csv in"):
        read_results(tmp_path)
    (tmp_path / "pair.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot read"):
        read_results(tmp_path)
