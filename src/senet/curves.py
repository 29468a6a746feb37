"""The learning curves of a run, or of a pair, as a picture: ``curves.png``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .checkpoints import EpochRow, best_row
from .drawing import empty_figure, png_of
from .runs import atomic_write

__all__ = ["CURVES", "write_curves"]

CURVES = Path("curves.png")

# Blue and orange tell themselves apart for nearly all eyes, and in grey.
_COLOURS = ("#1f6fb4", "#d9730d")
_MARKED = 12
"""With no more epochs than this, each of them is marked: one alone would be no line."""

_BESIDE = {"left": 0.065, "right": 0.985, "wspace": 0.15, "top": 0.86}
_MARGINS = (_BESIDE | {"bottom": 0.19}, _BESIDE | {"bottom": 0.22})
"""Around the axes, for a legend of one row and of two: a layout found out anew for every
picture takes as long as drawing it."""


def write_curves(run: Path, runs: Mapping[str, Sequence[EpochRow]]) -> None:
    """Draw loss and top-1 by epoch, of training and of validation, and write the picture whole.

    Args:
        run: the directory for it.
        runs: name of a network → its rows, of one network or of a pair; none without rows.

    Raises:
        UserError: it cannot be written.
    """
    figure = empty_figure(10, 4.6, layout=None)
    losses, shares = figure.subplots(1, 2, gridspec_kw=_MARGINS[len(runs) > 1])
    for (name, rows), colour in zip(runs.items(), _COLOURS, strict=False):
        prefix = f"{name}, " if len(runs) > 1 else ""
        _lines(losses, rows, "loss", colour, prefix, scale=1)
        _lines(shares, rows, "top1", colour, prefix, scale=100)
        best = best_row(rows)
        label = f"{prefix}best: {best.val_top1:.2%}, epoch {best.epoch}"
        shares.plot(
            [best.epoch], [100 * best.val_top1], "o", color=colour, ms=8, mfc="none", label=label
        )
    losses.set_title("Loss: cross-entropy (nats)", y=1.02)
    shares.set_title("Top-1 accuracy (% of the images)", y=1.02)
    epochs = max(len(rows) for rows in runs.values())
    for axes in (losses, shares):
        _finish(axes, epochs)
    figure.suptitle(" and ".join(runs), fontsize=12, fontweight="bold", y=0.985)
    entries = shares.get_legend_handles_labels()
    # Column by column, three to a network: a network a row.
    handles, labels = ([of for n in range(3) for of in kind[n::3]] for kind in entries)
    size = 8 if len(runs) > 1 else 10
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False, fontsize=size)
    picture = png_of(figure)
    atomic_write(run / CURVES, lambda file: file.write(picture))


def _lines(
    axes: Any, rows: Sequence[EpochRow], what: str, colour: str, prefix: str, *, scale: float
) -> None:
    """Validation drawn through, training dashed and paler; a row without the value has a gap."""
    epochs = [row.epoch for row in rows]
    marker = "." if len(rows) <= _MARKED else ""
    for part, word, style, alpha in (
        ("val", "validation", "-", 1.0),
        ("train", "training", "--", 0.6),
    ):
        values = [getattr(row, f"{part}_{what}") for row in rows]
        values = [float("nan") if value is None else scale * value for value in values]
        axes.plot(
            epochs,
            values,
            linestyle=style,
            marker=marker,
            color=colour,
            alpha=alpha,
            linewidth=1.6,
            label=f"{prefix}{word}",
        )


def _finish(axes: Any, epochs: int) -> None:
    axes.set_xlabel("epoch")
    axes.set_xlim(0.5, epochs + 0.5) if epochs < 3 else axes.margins(x=0.02)
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    axes.grid(color="#d8d8d8", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
