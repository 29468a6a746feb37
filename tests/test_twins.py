"""senet.twins: how a pair is shown; what is measured has its tests beside training and cost."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from senet import runs
from senet.models import create_model
from senet.runs import ModelCard
from senet.twins import Comparison, Member, compare


def pair(name: str, *, parameters: int, macs: int, saved: int, top1: float | None) -> Comparison:
    plain = Member(name, "runs/x/twin", top1, parameters, macs, 35.0, saved)
    better = None if top1 is None else top1 + 0.0028
    se = Member(f"se_{name}", "runs/x", better, parameters, macs, 1046.2, 2 * saved)
    return Comparison(plain, se, "some/folder/of/images", 224, 32, "cpu", {})


SMALL = pair("resnet20", parameters=269_722, macs=10_138_240, saved=12_072_320, top1=0.9972)
LARGE = pair(
    "timm/resnet152", parameters=60_192_808, macs=11_511_000_000, saved=12 << 30, top1=None
)


@pytest.mark.parametrize("comparison", [SMALL, LARGE], ids=["small", "large"])
def test_the_table_fits_in_80_columns(comparison: Comparison) -> None:
    text = io.StringIO()
    Console(file=text, width=80).print(comparison.to_table())
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for row in comparison.rows():  # a row a line, every figure whole
        (line,) = (line for line in lines if line.split()[:1] == row[0].split()[:1])
        assert line.split() == " ".join(row).split()


def test_figures_have_units_that_fit_their_size() -> None:
    assert SMALL.rows()[0][3:] == ("10.14 M", "35.0", "11.5 MiB")
    assert LARGE.rows()[0][1:] == ("–", "60,192,808", "11.51 G", "35.0", "12.0 GiB")
    assert SMALL.rows()[2] == ("SE / plain", "+0.28 points", "1.000", "1.000", "29.891", "2.000")
    assert LARGE.rows()[2][1] == "–"


def test_as_markdown_and_json() -> None:
    header, rule, *rows, _, caption = SMALL.to_markdown().splitlines()
    assert header.count("|") == rule.count("|") == 7
    assert [row.strip("| ").split(" | ") for row in rows] == [list(row) for row in SMALL.rows()]
    assert "some/folder/of/images at 224×224" in caption
    assert json.loads(SMALL.to_json())["se"]["name"] == "se_resnet20"


def test_fewer_images_are_timed_where_memory_holds_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("resnet20", "se_resnet20"):
        model = create_model(name, num_classes=2)
        card = ModelCard(
            *(name, 2, runs.plan_of(model), ("a", "b"), (0.5,) * 3, (0.5,) * 3, 8, {}, "digits", 0)
        )
        runs.save_model(tmp_path / name, model, card)
    measured: list[int] = []

    def step_seconds(model: Any, x: Any, **_: Any) -> float:
        if len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        measured.append(len(x))
        return 1.0

    monkeypatch.setattr("senet.cost.step_seconds", step_seconds)
    found = compare(tmp_path / "se_resnet20", tmp_path / "resnet20", batch_size=18)
    assert set(measured) == {4}
    assert found.batch_size == 4
