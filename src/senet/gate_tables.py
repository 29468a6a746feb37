"""What the gates learned, as tables: a line a block, and every number as CSV."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .gate_statistics import write_rows

if TYPE_CHECKING:
    from .excitations import BlockExcitations, Excitations

__all__ = ["TABLES", "DepthRow", "depth_rows", "write_tables"]


@dataclass(frozen=True)
class DepthRow:
    """A block in one line.

    Args:
        block: Its path in the network.
        stage: log₂ of the stride to the input; None where that is not known.
        depth: Its place in the order of execution, as recorded.
        channels: How many gates it has.
        mean: Mean gate over images and channels.
        deviation: A gate's standard deviation over images, mean over channels.
        low: Share of gates, over images and channels, near the lower end of their range.
        high: Share near the upper end.
        specificity: Between-class share η² of the variance of its gates.
        null: Mean η² with labels shuffled; NaN where they never were.
        null_max: The largest of them.
        p: Share of shuffles with an η² as high, the true labels counted in.
    """

    block: str
    stage: int | None
    depth: int
    channels: int
    mean: float
    deviation: float
    low: float
    high: float
    specificity: float
    null: float
    null_max: float
    p: float

    def document(self) -> dict[str, Any]:
        """For JSON, which has no NaN: None takes its place."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


def depth_rows(excitations: Excitations) -> list[DepthRow]:
    """A row for each block, in the order of execution."""
    return [_depth_row(block) for block in excitations.blocks]


def _depth_row(block: BlockExcitations) -> DepthRow:
    null = block.null_specificity.numpy()
    return DepthRow(
        block=block.path,
        stage=block.stage,
        depth=block.depth,
        channels=len(block.total_mean),
        mean=float(block.total_mean.mean()),
        deviation=float(block.deviation.mean()),
        low=float(block.low.mean()),
        high=float(block.high.mean()),
        specificity=float(block.specificity),
        null=float(null.mean()) if null.size else math.nan,
        null_max=float(null.max()) if null.size else math.nan,
        p=float(block.p_value) if null.size else math.nan,
    )


def _variances(excitations: Excitations) -> Iterator[Sequence[Any]]:
    yield ("block", "channel", *excitations.classes)
    for block in excitations.blocks:
        for channel, values in enumerate(block.variance.T.tolist()):
            yield (block.path, channel, *values)


def _null(excitations: Excitations) -> Iterator[Sequence[Any]]:
    yield ("block", "shuffle", "specificity")
    for block in excitations.blocks:
        for number, value in enumerate(block.null_specificity.tolist()):
            yield (block.path, number, value)


def _images(excitations: Excitations) -> Iterator[Sequence[Any]]:
    yield ("block", "channel", "end", "rank", "image", "gate")
    for block in excitations.blocks:
        for end in ("most", "least"):
            gates, images = getattr(block, end).tolist(), getattr(block, f"{end}_images").tolist()
            for channel, pairs in enumerate(zip(gates, images, strict=True)):
                for rank, (gate, image) in enumerate(zip(*pairs, strict=True)):
                    yield (block.path, channel, end, rank, image, gate)


_RECORDED = {"blocks.csv": "block", "channels.csv": "channel", "means.csv": "class"}
_MORE = {"variances.csv": _variances, "null.csv": _null, "images.csv": _images}
TABLES = (*_RECORDED, *_MORE)
"""The files. Channels, images and shuffles count from 0; the images in the order of the loader."""


def write_tables(excitations: Excitations, folder: Path) -> None:
    """Write all of `TABLES` into a folder: UTF-8, commas, an empty cell where there is no value."""
    for name, of in _RECORDED.items():
        excitations.to_csv(folder / name, of)
    for name, rows in _MORE.items():
        write_rows(folder / name, rows(excitations))
