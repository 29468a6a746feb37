"""What gates do over images: statistics of each block by class, and tables of them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from .errors import UserError, nearest
from .runs import atomic_write

__all__ = ["HIGH", "LOW", "TABLES", "BlockExcitations", "Excitations", "write_rows"]

LOW, HIGH = 0.05, 0.95
"""A gate below the one or above the other share of its range is saturated."""

TABLES = ("block", "channel", "class")
"""What `Excitations.table` has a row for; "class" is a row a channel and a column a class."""

_CONSTANT = 1e-7
"""A deviation of less than this share of the mean is rounding: float32 has 24 bits."""

_ACTIVE = ("=", "+", "-", "@", "\t", "\r", "\n", "'")
"""With these a cell begins that a spreadsheet may take for a formula; and the mark against that."""


@dataclass(frozen=True, eq=False)
class BlockExcitations:
    """The gates of one block over N images of K classes; C channels.

    Args:
        path: of the `SqueezeExcite` in the network.
        stage: log₂ of the stride to the network's input, as the plan has it or, without a plan,
            as the sizes say; None where neither does.
        depth: its place in the order of execution, from 0.
        counts: (K,), int64, images of each class.
        mean: (K, C), float64, mean gate of each class; NaN for a class without images.
        variance: (K, C), float64, population variance within each class; NaN likewise.
        low: (C,), share of images whose gate is in the lowest twentieth of its range (`LOW`): below
            0.05 for the sigmoids, below −0.9 for tanh, at 0 for ReLU.
        high: (C,), share in the highest (`HIGH`); a ReLU has no upper end, and none.
        null: (P, C), η² of each channel under P random assignments of the labels.
        most, most_images: (C, T), the T highest gates of each channel, highest first, and the
            numbers of their images, from 0 in the order of the loader. Of equal ones any.
        least, least_images: (C, T), likewise the lowest.
    """

    path: str
    stage: int | None
    depth: int
    counts: Tensor
    mean: Tensor
    variance: Tensor
    low: Tensor
    high: Tensor
    null: Tensor
    most: Tensor
    most_images: Tensor
    least: Tensor
    least_images: Tensor

    @property
    def channels(self) -> int:
        """C."""
        return self.mean.shape[1]

    @cached_property
    def total_mean(self) -> Tensor:
        """(C,), mean gate over all images."""
        return (self._shares * self._came(self.mean)).sum(0)

    @cached_property
    def between_variance(self) -> Tensor:
        """(C,), Σ_k n_k / N (mean_k − mean)²."""
        return (self._shares * (self._came(self.mean) - self.total_mean).square()).sum(0)

    @cached_property
    def total_variance(self) -> Tensor:
        """(C,), population variance over all images: within classes and between them."""
        return (self._shares * self._came(self.variance)).sum(0) + self.between_variance

    @property
    def deviation(self) -> Tensor:
        """(C,), standard deviation over all images: what a constant in the gate's place is off."""
        return self.total_variance.sqrt()

    @cached_property
    def constant(self) -> Tensor:
        """(C,), bool: the gate is the same for all images, up to the rounding of float32."""
        return self.deviation <= _CONSTANT * self.total_mean.abs()

    @cached_property
    def eta_squared(self) -> Tensor:
        """(C,), η²: the share of a gate's variance that lies between classes, 0 to 1.

        Where a gate is constant there is no variance to share out; it tells no class from another,
        so 0.
        """
        return torch.where(self.constant, 0.0, self.between_variance / self.total_variance)

    @property
    def specificity(self) -> float:
        """η² of the block as a whole: Σ_c between variance / Σ_c total variance."""
        return self._pooled(self.eta_squared)

    @property
    def null_specificity(self) -> Tensor:
        """(P,), likewise under each random assignment."""
        return torch.tensor([self._pooled(each) for each in self.null], dtype=torch.float64)

    @property
    def p_value(self) -> float:
        """(1 + random assignments that are as specific or more) / (P + 1).

        Equal up to the float32 in which they are summed counts as equal.
        """
        reached = self.null_specificity >= self.specificity * (1 - 1e-6)
        return (1 + int(reached.sum())) / (len(self.null) + 1)

    @property
    def _shares(self) -> Tensor:
        counts = self.counts[self.counts > 0, None].double()
        return counts / counts.sum()

    def _came(self, by_class: Tensor) -> Tensor:
        return by_class[self.counts > 0]

    def _pooled(self, eta_squared: Tensor) -> float:
        variance = torch.where(self.constant, 0.0, self.total_variance)
        total = float(variance.sum())
        return float((eta_squared * variance).sum()) / total if total else 0.0


@dataclass(frozen=True, eq=False)
class Excitations:
    """The gates of a network's blocks over the same images.

    Args:
        blocks: those that ran, in order of execution.
        classes: names by label.
        images: N.
        never_ran: paths of the blocks that did not, such as those of a part for training alone.
        permuted: the random assignments are permutations of the labels, whose numbers were known
            beforehand; else they were drawn, to groups of nearly the classes' sizes.
    """

    blocks: tuple[BlockExcitations, ...]
    classes: tuple[str, ...]
    images: int
    never_ran: tuple[str, ...] = ()
    permuted: bool = False

    def block(self, path: str) -> BlockExcitations:
        """The block at a path, its own or that of the wrapper it is in.

        Raises:
            UserError: there is none, or it never ran.
        """
        for block in self.blocks:
            if path in (block.path, block.path.removesuffix(".se")):
                return block
        if path in self.never_ran:
            raise UserError(f"the block {path!r} never ran in evaluation mode")
        known = nearest(path, [block.path for block in self.blocks])
        raise UserError(f"no block {path!r} was recorded; {known}")

    def table(self, of: str = "channel") -> Iterator[list[object]]:
        """The statistics as rows, the first with the names of the columns.

        Args:
            of: "block": a row a block, means over its channels. "channel": a row a channel.
                "class": a row a channel with its mean gate for each class, a column each.

        Raises:
            UserError: it is none of these.
        """
        if of not in TABLES:
            raise UserError(f"there is no table of {of!r}; {nearest(str(of), TABLES)}")
        return {"block": self._blocks, "channel": self._channels, "class": self._classes}[of]()

    def to_csv(self, path: Path | str, of: str = "channel") -> None:
        """Write `table` to a file, whole or not at all; what is not a number stays empty.

        Raises:
            UserError: the file cannot be written.
        """
        write_rows(Path(path), self.table(of))

    def _blocks(self) -> Iterator[list[object]]:
        yield ["block", "stage", "depth", "channels", "mean", "deviation", "low", "high",
               "specificity", "null_specificity", "p_value"]  # fmt: skip
        for b in self.blocks:
            means = [t.mean().item() for t in (b.total_mean, b.deviation, b.low, b.high)]
            null = b.null_specificity.mean().item()
            p = b.p_value if len(b.null) else math.nan
            yield [*_place(b), b.channels, *means, b.specificity, null, p]

    def _channels(self) -> Iterator[list[object]]:
        yield ["block", "stage", "depth", "channel", "mean", "deviation", "eta_squared",
               "null_eta_squared", "low", "high"]  # fmt: skip
        for b in self.blocks:
            columns = b.total_mean, b.deviation, b.eta_squared, b.null.mean(0), b.low, b.high
            for channel, values in enumerate(torch.stack(columns, dim=1).tolist()):
                yield [*_place(b), channel, *values]

    def _classes(self) -> Iterator[list[object]]:
        yield ["block", "stage", "depth", "channel", *self.classes]
        for b in self.blocks:
            for channel in range(b.channels):
                yield [*_place(b), channel, *b.mean[:, channel].tolist()]


def write_rows(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write a table to a CSV file, whole or not at all; what is not a number stays empty.

    Names may be a stranger's: one that could be a formula gets an apostrophe before it, by which
    spreadsheets know text, and so does one that begins with an apostrophe, so that all stay apart.

    Raises:
        UserError: the file cannot be written.
    """

    def write(file: BinaryIO) -> None:
        # A class named by bytes that are no UTF-8 is written with them escaped.
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
        csv.writer(text, lineterminator="\n").writerows([*map(_cell, row)] for row in rows)
        text.detach()

    atomic_write(path, write)


def _place(block: BlockExcitations) -> list[object]:
    return [block.path, "" if block.stage is None else block.stage, block.depth]


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.7g}"
    return f"'{value}" if isinstance(value, str) and value.startswith(_ACTIVE) else value
