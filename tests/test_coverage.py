"""The table of networks that SE goes into, and the tool that writes it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import timm

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "coverage.md"

# A residual one, and one that has SE in every block.
SMALL = ("resnet", "senet")


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "tools"))
    monkeypatch.delitem(sys.modules, "coverage", raising=False)
    import coverage

    return coverage


def _rows(tool: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict]:
    assert tool.main(["--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_small_families_attach_run_and_verify(tool, capsys):
    rows = _rows(tool, capsys, "--only", *SMALL)
    assert [row["family"] for row in rows] == list(SMALL)
    results = {row["family"]: row["result"] for row in rows}
    assert results == dict.fromkeys(SMALL, "attached") | {"senet": "adopted"}
    for row in rows:
        assert row["sites"] > 0
        assert row["forward_seconds"] > 0


@pytest.mark.slow
def test_some_families_are_printed_and_no_page_is_written(tool, capsys):
    before = PAGE.read_bytes()
    assert tool.main(["--only", "resnet"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^\| resnet \| test_resnet \| 3×\d+×\d+ \| 4 \| 4 residual ", out, re.M)
    assert PAGE.read_bytes() == before


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("resnett", "no family 'resnett'; nearest: 'resnet'"),
        pytest.param("deit", "deit has no model with 10", marks=pytest.mark.slow),
    ],
)
def test_unknown_families_are_told_in_one_line(tool, capsys, family, message):
    assert tool.main(["--only", family]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def _counts(page: str, library: str) -> dict[str, int]:
    line = re.search(rf"^- \*\*{library}\*\*: .*$", page, re.M).group()
    return {word: int(n) for n, word in re.findall(r"(\d+) (attached|adopted|left|failed)", line)}


def test_page_holds_the_counts_that_are_promised():
    page = PAGE.read_text()
    modules, with_convolutions = map(
        int, re.search(r"(\d+) model modules, of which (\d+) have", page).groups()
    )
    assert modules == len(timm.list_modules())
    assert with_convolutions >= 72
    works = _counts(page, "timm")
    assert works["attached"] + works["adopted"] >= 66
    assert "left" not in _counts(page, "torchvision")
    assert "failed" not in _counts(page, "torchvision")
    assert not re.search(r"longer: ", page)


@pytest.mark.slow
def test_all_families_and_classifiers(tool, capsys):
    rows = _rows(tool, capsys)
    timm_rows = [row for row in rows if row["family"] != "torchvision"]
    assert len(timm_rows) >= 72
    assert sum(row["result"] in ("attached", "adopted") for row in timm_rows) >= 66
    others = [row for row in rows if row["family"] == "torchvision"]
    assert {row["result"] for row in others} == {"attached", "adopted"}
    assert [row["model"] for row in rows if not row["in_time"]] == []
