"""The table of networks that SE goes into, and the tool that writes it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm

REPOSITORY = Path(__file__).resolve().parents[1]
TOOL = REPOSITORY / "tools" / "coverage.py"
PAGE = REPOSITORY / "docs" / "coverage.md"

# A residual one, linear channels-last blocks, and one that has SE in every block.
SMALL = ("resnet", "senet")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    return subprocess.run(
        [sys.executable, str(TOOL), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=REPOSITORY,
        check=False,
    )


def _rows(*arguments: str) -> list[dict]:
    done = _run("--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_small_families_attach_run_and_verify():
    rows = _rows("--only", *SMALL)
    assert [row["family"] for row in rows] == list(SMALL)
    results = {row["family"]: row["result"] for row in rows}
    assert results == dict.fromkeys(SMALL, "attached") | {"senet": "adopted"}
    for row in rows:
        assert row["sites"] > 0
        assert row["forward_seconds"] > 0


@pytest.mark.slow
def test_some_families_are_printed_and_no_page_is_written():
    before = PAGE.read_bytes()
    done = _run("--only", "resnet")
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^\| resnet \| test_resnet \| 3×\d+×\d+ \| 4 \| 4 residual ", done.stdout, re.M
    )
    assert PAGE.read_bytes() == before


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("resnett", "no family 'resnett'; nearest: 'resnet'"),
        pytest.param("deit", "deit has no model with 10", marks=pytest.mark.slow),
    ],
)
def test_unknown_families_are_told_in_one_line(family, message):
    done = _run("--only", family)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


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
def test_all_families_and_classifiers():
    rows = _rows()
    timm_rows = [row for row in rows if row["family"] != "torchvision"]
    assert len(timm_rows) >= 72
    assert sum(row["result"] in ("attached", "adopted") for row in timm_rows) >= 66
    others = [row for row in rows if row["family"] == "torchvision"]
    assert {row["result"] for row in others} == {"attached", "adopted"}
    assert [row["model"] for row in rows if not row["in_time"]] == []
