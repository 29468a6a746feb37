"""senet.sweeps.table and results: figures from rows, checked by hand."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from senet.errors import UserError
from senet.sweeps import (
    RESULTS,
    Recipe,
    RunResult,
    Sweep,
    document,
    read_results,
    resolve,
    rich_table,
    summarise,
)
from senet.sweeps.results import write_results
from senet.sweeps.table import failures, markdown

RECIPE = Recipe(
    Path("recipe.yaml"),
    {"model": "resnet20"},
    (0, 1, 2),
    {"plain": {"se": False}, "se": {"se": True}, "r4": {"se": True, "reduction": 4}},
    "plain",
)


def row(variant: str, seed: int, top1: float, best: float | None = None) -> RunResult:
    network = "resnet20" if variant == "plain" else "se_resnet20"
    best = top1 if best is None else best
    return RunResult(
        *(variant, seed, "finished", network, "digits", 8, 4, top1, 0.9, 3, best, 0.95),
        *(1000, 2_500_000, 1.5, "a device", "2026-01-01", "torch 2"),
    )


@pytest.fixture
def sweep() -> Sweep:
    return resolve(RECIPE, {"epochs": 4})


@pytest.fixture
def rows() -> list[RunResult]:
    lost = replace(row("r4", 0, 0.0), status="failed", top1=None, best_top1=None, reason="a | <b>")
    return [
        *(row("se", 2, 0.86, 0.9), row("se", 0, 0.84), row("plain", 0, 0.80)),
        *(row("plain", 2, 0.80, 0.82), row("plain", 1, 0.70), row("r4", 1, 0.75), lost),
    ]


def test_means_deviations_and_pairs(sweep: Sweep, rows: list[RunResult]) -> None:
    plain, se, r4 = summarise(sweep, rows)
    assert (plain.runs, plain.failed, plain.planned) == (3, 0, 3)
    assert plain.top1 is not None
    assert plain.top1.mean == pytest.approx(2.3 / 3)
    assert plain.top1.deviation == pytest.approx((0.02 / 3) ** 0.5 / 2**0.5)
    assert plain.difference is None
    assert se.top1 is not None
    assert se.difference is not None  # seed 1, which plain alone has, is no pair
    assert se.difference.count == 2
    assert se.difference.mean == pytest.approx(0.05)
    assert se.difference.deviation == pytest.approx(0.01 * 2**0.5)
    assert se.best_difference is not None
    assert se.best_difference.mean == pytest.approx(0.06)
    assert (r4.runs, r4.failed) == (1, 1)
    assert r4.difference is not None
    assert (r4.difference.mean, r4.difference.deviation) == (pytest.approx(0.05), None)


def test_markdown(sweep: Sweep, rows: list[RunResult]) -> None:
    lines = markdown(sweep, rows).splitlines()
    assert lines[0] == "| variant | runs | top-1 | to plain | best top-1 | parameters | MACs |"
    assert lines[2] == "| plain | 3 | 76.67 ± 5.77 | – | 77.33 ± 6.43 | 1,000 | 2.50 M |"
    assert lines[3].startswith("| se | 2 of 3 | 85.00 ± 1.41 | +5.00 ± 1.41 | 87.00 ± 4.24 |")
    assert lines[4].startswith("| r4 | 1 of 3, 1 failed | 75.00 | +5.00 | 75.00 |")
    assert "digits at 8×8, 4 epochs." in lines[6]
    assert "after the last epoch" in lines[6]
    assert "seeds 0, 1, 2; to plain: difference to the run with the same seed" in lines[6]
    assert lines[8] == r"- r4, seed 0, failed: a \| &lt;b>"
    assert lines[10] == "a device; 2026-01-01; torch 2."


def test_the_table_fits_a_terminal(sweep: Sweep, rows: list[RunResult]) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(rich_table(sweep, rows))
    text = console.export_text()
    for cell in ("variant ", "plain ", "85.00 ± 1.41", "+5.00 ± 1.41", "87.00 ± 4.24", "2.50 M"):
        assert cell in text


def test_nothing_yet(sweep: Sweep) -> None:
    assert "| plain | 0 of 3 | – | – | – | – | – |" in markdown(sweep, [])
    assert [s["runs"] for s in document(sweep, [])["variants"]] == [0, 0, 0]


def test_an_optional_variant_shows_when_it_was_trained(rows: list[RunResult]) -> None:
    sweep = resolve(replace(RECIPE, optional=("se", "r4")), {})
    assert [s.variant for s in summarise(sweep, rows)] == ["plain", "se", "r4"]
    assert [s.variant for s in summarise(sweep, rows[2:5])] == ["plain"]


def test_without_a_baseline_there_are_no_differences(rows: list[RunResult]) -> None:
    sweep = resolve(replace(RECIPE, baseline=None), {})
    assert all(s.difference is None for s in summarise(sweep, rows))
    assert "plain:" not in markdown(sweep, rows).partition("\n\n")[2]


def test_the_document_is_json(sweep: Sweep, rows: list[RunResult]) -> None:
    made = json.loads(json.dumps(document(sweep, rows), allow_nan=False))
    assert (made["baseline"], made["seeds"]) == ("plain", [0, 1, 2])
    assert [(r["variant"], r["seed"]) for r in made["runs"]][:4] == [
        *(("plain", 0), ("plain", 1), ("plain", 2), ("se", 0)),
    ]
    assert made["variants"][1]["difference"]["count"] == 2
    assert failures(sweep, rows) == ["r4, seed 0, failed: a | <b>"]


def test_results_come_back_as_they_were(
    sweep: Sweep, rows: list[RunResult], tmp_path: Path
) -> None:
    assert read_results(tmp_path) == []
    write_results(tmp_path, sweep, rows)
    found = read_results(tmp_path)
    assert sorted(found, key=str) == sorted(rows, key=str)
    assert [r.variant for r in found] == ["plain"] * 3 + ["se"] * 2 + ["r4"] * 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("variant,", "name,", 1),
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("0.84", "much"),
        lambda text: "",
        lambda text: text.replace("digits", '"digits'),
    ],
)
def test_damaged_results_are_told(sweep: Sweep, rows, tmp_path: Path, damage) -> None:
    write_results(tmp_path, sweep, rows)
    path = tmp_path / RESULTS
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=r"cannot read .*results.csv: .*; restore it, or remove it"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("options", "images"),
    [({}, "of the held-out images"), ({"limit_batches": 2}, "of the first batches of held-out")],
)
def test_the_caption_says_of_which_images(
    rows: list[RunResult], options: dict[str, object], images: str
) -> None:
    assert f"Top-1 in % {images}" in markdown(resolve(RECIPE, {"epochs": 4, **options}), rows)
