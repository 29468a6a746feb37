"""Accuracy against what the network costs, with blocks left out, as a picture: ``slimming.png``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .drawing import empty_figure, png_of
from .slim_report import Point, SlimReport

__all__ = ["draw_slimming"]

_LINE, _CHOSEN = "#1f6fb4", "#d9730d"
_AXES: tuple[tuple[str, Callable[[Point], float | None]], ...] = (
    ("parameters (thousands)", lambda point: point.parameters / 1e3),
    ("multiply-adds an image (millions)", lambda point: point.macs / 1e6),
    ("milliseconds an image, deployed", lambda point: point.latency_ms),
)


def draw_slimming(report: SlimReport, title: str) -> bytes:
    """The curve over parameters, multiply-adds and latency, as a PNG; the chosen one is ringed."""
    figure = empty_figure(12, 4.4)
    panels = [axis for axis in _AXES if axis[1](report.points[0]) is not None]
    every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (label, cost) in zip(every, panels, strict=True):
        _panel(axes, report, [cost(point) for point in report.points], label)
    every[0].set_ylabel("top-1 on the calibration images (%)")
    figure.suptitle(title, fontsize=12, fontweight="bold", parse_math=False)  # a path may have $
    handles, labels = every[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return png_of(figure)


def _panel(axes: Any, report: SlimReport, costs: Sequence[float | None], title: str) -> None:
    shares = [100 * point.calibration.top1 for point in report.points]
    label = f"one {report.by} less each"
    axes.plot(costs, shares, "o-", color=_LINE, ms=4, linewidth=1.2, label=label)
    budget = shares[0] - report.max_drop
    if budget >= min(shares) - max(1.0, max(shares) - min(shares)):  # else all of it fits
        axes.axhline(
            budget,
            color="#808080",
            linestyle=":",
            label=f"the budget, {report.max_drop:g} points",
        )
    axes.plot(
        costs[report.chosen],
        shares[report.chosen],
        "o",
        color=_CHOSEN,
        ms=11,
        mfc="none",
        mew=2,
        label=f"chosen, {report.point.blocks} blocks left",
    )
    for number in {0, len(costs) - 1}:
        blocks = report.points[number].blocks
        axes.annotate(
            f"{blocks} blocks" if blocks != 1 else "1 block",
            (costs[number], shares[number]),
            textcoords="offset points",
            xytext=(0, 10 if number else -16),
            ha="center",
            fontsize=8,
        )
    axes.set_xlabel(title)
    axes.margins(x=0.12, y=0.18)
    axes.ticklabel_format(useOffset=False)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(color="#d8d8d8", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
