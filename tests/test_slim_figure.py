"""The curve as a picture: that it is one, and shows latency only where it was timed."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from senet.slim_figure import draw_slimming
from senet.slim_report import Point, Score, SlimReport

ORANGE = (0xD9, 0x73, 0x0D)


def report(
    drops: tuple[float, ...], *, max_drop: float = 0.5, ms: float | None = 2.0
) -> SlimReport:
    points = tuple(
        Point(
            tuple(f"block {n}" for n in range(count)),
            len(drops) - 1 - count,
            10_000 - 100 * count,
            100 * (len(drops) - 1 - count),
            1_000_000 - 1000 * count,
            None if ms is None else ms - 0.1 * count,
            Score(0.9 - drop / 100, 0.99, 0.3, 1000),
            drop,
        )
        for count, drop in enumerate(drops)
    )
    score = points[0].calibration
    return SlimReport("block", max_drop, (), {}, points, 1, score, score, ())


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def rings(image: np.ndarray) -> int:
    """Separate columns of panels in which the chosen point's colour is, the legend left out."""
    upper = image[: int(image.shape[0] * 0.85)]
    marked = (np.abs(upper.astype(int) - ORANGE).max(axis=2) < 12).any(axis=0)
    columns = np.flatnonzero(marked)
    return 1 + int((np.diff(columns) > 100).sum()) if len(columns) else 0


@pytest.mark.parametrize(("ms", "panels"), [(2.0, 3), (None, 2)])
def test_a_panel_for_each_cost(ms: float | None, panels: int) -> None:
    image = pixels(draw_slimming(report((0.0, 0.2, 3.0), ms=ms), "se_resnet20 on a/$\\frac$/[b]"))
    assert image.shape[1] > image.shape[0] > 300
    assert rings(image) == panels


@pytest.mark.parametrize(
    ("drops", "max_drop"),
    [
        ((0.0, -0.4, 90.0), 0.1),
        pytest.param((0.0, 0.0), 0.0, marks=pytest.mark.slow),
        pytest.param((0.0, -0.4, 90.0), 100.0, marks=pytest.mark.slow),
    ],
)
def test_any_curve_is_drawn(drops: tuple[float, ...], max_drop: float) -> None:
    made = report(drops, max_drop=max_drop)
    assert rings(pixels(draw_slimming(made, "x"))) == 3
    other = draw_slimming(replace(made, chosen=0), "x")
    assert other != draw_slimming(made, "x")
