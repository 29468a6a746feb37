"""What the gates learned, as pictures: mean gates by channel, specificity and saturation by depth.

The first is the paper's figure of the role of excitation (journal version, section 7.2): the mean
gate of a few classes over sampled channels, a panel a block. The other two put its findings, early
blocks alike for all classes and late ones near their ends, into a number a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .drawing import empty_figure
from .errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .excitations import BlockExcitations, Excitations

__all__ = [
    "CLASSES",
    "FIGURES",
    "LAST_BLOCKS",
    "activation_figure",
    "default_blocks",
    "saturation_figure",
    "short_names",
    "specificity_figure",
    "spread",
]

CLASSES = 5
"""Classes drawn where none were named."""
LAST_BLOCKS = 3
"""Blocks at the end of the network that always get a panel: in the paper those of conv5_x."""
FIGURES = ("activations", "specificity", "saturation")
"""Names of the files, each with .png and .svg."""

# Okabe and Ito's colours, without the two that are too pale on white.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DASHES = ("-", "--", ":", "-.")
_ALL = "#222222"
_BAND = "#c9ced6"
_LONGEST = 28  # letters of a name in a legend


def spread(of: int, count: int) -> list[int]:
    """Up to ``count`` of the numbers 0 … ``of`` − 1, evenly spaced, both ends among them.

    >>> spread(10, 4), spread(3, 5)
    ([0, 3, 6, 9], [0, 1, 2])
    """
    return sorted({round(float(at)) for at in np.linspace(0, of - 1, min(of, count))})


def short_names(paths: Sequence[str]) -> list[str]:
    """Paths of blocks without the ending that all of them have, from a dot on.

    >>> short_names(["layer1.0.bn3.se", "layer1.1.bn3.se"]), short_names(["layer1.0.se"])
    (['layer1.0', 'layer1.1'], ['layer1.0'])
    """
    names = [path.removesuffix(".se").split(".") for path in paths]
    while len(names) > 1 and min(map(len, names)) > 1 and len({name[-1] for name in names}) == 1:
        names = [name[:-1] for name in names]
    return [".".join(name) for name in names]


def default_blocks(excitations: Excitations) -> list[int]:
    """Numbers of the blocks that get a panel: the last of each stage, and the network's last three.

    Blocks of which no stage is known count as one stage.
    """
    blocks = excitations.blocks
    last = {block.stage: number for number, block in enumerate(blocks)}
    return sorted({*last.values(), *range(max(0, len(blocks) - LAST_BLOCKS), len(blocks))})


def activation_figure(
    excitations: Excitations, blocks: Sequence[int], classes: Sequence[int], *, channels: int = 50
) -> Figure:
    """The mean gate of some classes over sampled channels, a panel a block.

    Args:
        excitations: What was recorded.
        blocks: Numbers of the blocks, in this order.
        classes: Numbers of the classes that get a line; the mean over all images has one too, and
            the range of all classes' means is a band.
        channels: Evenly spaced channels of a block that are drawn; all where it has fewer.

    Raises:
        UserError: no block, or fewer than two channels.
    """
    if not blocks:
        raise UserError("no block to draw; name at least one")
    if channels < 2:
        raise UserError(f"channels is {channels}; a line takes at least 2")
    columns = min(3, len(blocks))
    rows = -(-len(blocks) // columns)
    figure = empty_figure(4.2 * columns + 0.4, 2.5 * rows + 0.9)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    handles: list[Any] = []
    titles = _names(excitations.blocks)
    for axes, number in zip(grid.flat, blocks, strict=False):
        handles = _panel(axes, excitations.blocks[number], classes, channels)
        axes.set_title(titles[number], fontsize=10, parse_math=False)
    for axes in list(grid.flat)[len(blocks) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("mean gate")
    grid.flat[0].set_ylim(*_gate_range([excitations.blocks[number] for number in blocks]))
    names = [_shown(excitations.classes[label]) for label in classes]
    _legend(figure, handles, [*names, "all images", "range over all classes"])
    return figure


def _panel(axes: Any, block: BlockExcitations, classes: Sequence[int], channels: int) -> list[Any]:
    drawn = spread(block.channels, channels)
    means = block.mean.numpy()[:, drawn]
    known = means[~np.isnan(means).all(axis=1)]
    low, high = (known.min(0), known.max(0)) if len(known) else (means[0], means[0])
    band = axes.fill_between(drawn, low, high, color=_BAND, alpha=0.55, linewidth=0)
    handles = []
    for slot, label in enumerate(classes):
        style = _DASHES[slot // len(_COLOURS) % len(_DASHES)]
        colour = _COLOURS[slot % len(_COLOURS)]
        handles += axes.plot(drawn, means[label], style, color=colour, linewidth=1.2)
    total = block.total_mean.numpy()[drawn]
    handles += axes.plot(drawn, total, color=_ALL, linewidth=1.8, alpha=0.9)
    of = block.channels
    axes.set_xlabel(f"channel ({len(drawn)} of {of:,})" if len(drawn) < of else "channel")
    axes.margins(x=0.01)
    _finish(axes)
    return [*handles, band]


def _gate_range(blocks: Sequence[BlockExcitations]) -> tuple[float, float]:
    """0 to 1 for gates that stay there, as sigmoids do; what holds them otherwise."""
    ends = [block.mean.numpy()[np.isfinite(block.mean.numpy())] for block in blocks]
    values = np.concatenate([[0.0, 1.0], *ends])
    low, high = float(values.min()), float(values.max())
    margin = 0.03 * (high - low)
    return low - margin, high + margin


def specificity_figure(excitations: Excitations) -> Figure:
    """The share of a block's gate variance that lies between classes, and with labels shuffled."""
    figure = empty_figure(8, 3.8)
    axes = figure.subplots()
    blocks = excitations.blocks
    depth = np.arange(1, len(blocks) + 1)
    null = [block.null_specificity.numpy() for block in blocks]
    low, high = ([float(f(n)) if n.size else np.nan for n in null] for f in (np.min, np.max))
    band = axes.fill_between(depth, low, high, color=_BAND, linewidth=0)
    edge = axes.plot(depth, high, color="#7a8290", linewidth=0.9, linestyle="--")[0]
    line = axes.plot(depth, [b.specificity for b in blocks], "o-", color=_COLOURS[0], ms=5)[0]
    axes.set_ylabel("specificity η²")
    axes.set_ylim(bottom=0)
    times = max((n.size for n in null), default=0)
    labels = ["between classes", f"labels shuffled ({times} times): range"]
    _over_depth(axes, blocks)
    _legend(figure, [line, (band, edge)], labels)
    return figure


def saturation_figure(excitations: Excitations) -> Figure:
    """The share of a block's gates near the lower and the upper end of their range."""
    figure = empty_figure(8, 3.8)
    axes = figure.subplots()
    blocks = excitations.blocks
    depth = np.arange(1, len(blocks) + 1)
    handles = []
    for name, marker, colour in (("low", "v", _COLOURS[0]), ("high", "^", _COLOURS[1])):
        shares = [100 * float(getattr(block, name).mean()) for block in blocks]
        handles += axes.plot(depth, shares, marker + "-", color=colour, ms=6)
    axes.set_ylabel("% of gates")
    axes.set_ylim(bottom=0)
    _over_depth(axes, blocks)
    _legend(figure, handles, ["in the lowest twentieth of their range", "in the highest"])
    return figure


def _names(blocks: Sequence[BlockExcitations]) -> list[str]:
    return list(map(_shown, short_names([block.path for block in blocks])))


def _over_depth(axes: Any, blocks: Sequence[BlockExcitations]) -> None:
    """The x axis of a figure by depth: names of blocks, and where stages begin."""
    shown = spread(len(blocks), 24)
    axes.set_xticks([number + 1 for number in shown])
    names = _names(blocks)
    axes.set_xticklabels(
        [names[number] for number in shown], rotation=40, ha="right", fontsize=8, parse_math=False
    )
    axes.set_xlim(0.5, len(blocks) + 0.5)
    for number, block in enumerate(blocks):
        new = number == 0 or block.stage != blocks[number - 1].stage
        if not new or block.stage is None:
            continue
        if number:
            axes.axvline(number + 0.5, color="#b5bac2", linewidth=0.8, linestyle=":")
        place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        axes.annotate(
            f"stage {block.stage}", (number + 0.5, 1.0), (4, 3), fontsize=8, color="#555", **place
        )
    _finish(axes)


def _legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    # Labels are set afterwards: matplotlib leaves out those that begin with an underscore.
    legend = figure.legend(
        handles,
        [str(number) for number in range(len(handles))],
        loc="outside lower center",
        ncols=min(4, len(handles)),
        frameon=False,
        fontsize=9,
    )
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(label)
        text.set_parse_math(False)  # a dollar sign in a name is a dollar sign, and no formula


def _shown(name: str) -> str:
    printable = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
    return printable if len(printable) <= _LONGEST else printable[: _LONGEST - 1] + "…"


def _finish(axes: Any) -> None:
    axes.grid(color="#e3e5e8", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
