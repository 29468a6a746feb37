"""Statistics of a stream of labelled vectors, in memory that does not grow with the stream."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

__all__ = ["MOST_NULL_BYTES", "ClassMoments", "Extremes", "GateStream", "RandomAssignments"]

MOST_NULL_BYTES = 1_300_000_000
"""What the class sums of random assignments take, unless more are asked for: twenty times 1,000
classes by 15,104 gates in float32 are 1.21 GB."""

_USUAL = 20
"""Random assignments: with 19 or more a p-value can come below 0.05."""

_MOST_KNOWN = 10**9
"""The most labels that numpy's hypergeometric distribution takes."""

_AT_ONCE = 1024
"""Channels whose arrays are looked at together: they stay in the cache, and copies small."""


class ClassMoments:
    """Count, mean and sum of squared deviations of each class and channel, in float64.

    A batch has its own mean and squares (two passes), and two such triples join into one
    (Chan, Golub, LeVeque 1979): with δ = m_b − m_a, m = m_a + δ·n_b / n and
    M = M_a + M_b + δ²·n_a·n_b / n. Nothing cancels, whatever the mean and the order.

    Args:
        classes: K.
        channels: C.
        device: where the arrays are.
    """

    def __init__(self, classes: int, channels: int, device: torch.device) -> None:
        self.counts = torch.zeros(classes, dtype=torch.int64, device=device)
        self.mean = torch.zeros(classes, channels, dtype=torch.float64, device=device)
        self.squares = torch.zeros_like(self.mean)

    def add(self, x: Tensor, labels: Tensor) -> None:
        """Take vectors x (n, C) with their labels (n,) in."""
        present, of_row = labels.unique(return_inverse=True)
        count = torch.bincount(of_row, minlength=len(present))
        new = count[:, None].double()
        old = self.counts[present, None].double()
        self.counts[present] += count
        of_new, of_both = new / (old + new), old * new / (old + new)
        # Whole rows come and go: PyTorch adds to parts of rows one element after the other.
        change = self.mean.index_select(0, present)
        squares = torch.empty_like(change)
        columns = (t.split(_AT_ONCE, dim=1) for t in (x, change, squares))
        for part, change_part, squares_part in zip(*columns, strict=True):
            wide = part.double()
            mean = wide.new_zeros(len(present), wide.shape[1]).index_add_(0, of_row, wide)
            mean /= new
            deviation = wide - mean.index_select(0, of_row)
            within = torch.zeros_like(mean).index_add_(0, of_row, deviation.square_())
            delta = mean.sub_(change_part)
            torch.addcmul(within, delta.square(), of_both, out=squares_part)
            torch.mul(delta, of_new, out=change_part)
        self.mean.index_add_(0, present, change)
        self.squares.index_add_(0, present, squares)

    def total_squares(self) -> Tensor:
        """Σ (x − mean)² over all vectors of each channel, (C,)."""
        weights = self.counts[:, None].double()
        parts = []
        for own, within in zip(
            *(t.split(_AT_ONCE, 1) for t in (self.mean, self.squares)), strict=True
        ):
            mean = (weights * own).sum(0) / weights.sum()
            parts.append(within.sum(0) + (weights * (own - mean).square()).sum(0))
        return torch.cat(parts)


class Extremes:
    """The vectors with the largest values of each channel, by their number.

    Args:
        channels: C.
        count: T, how many are kept; of equal values any.
        sign: −1 keeps the smallest.
        dtype, device: of the values.
    """

    def __init__(
        self, channels: int, count: int, sign: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.sign = sign
        self._values = torch.full((channels, count), -torch.inf, dtype=dtype, device=device)
        self._numbers = torch.zeros(channels, count, dtype=torch.int64, device=device)

    def add(self, x: Tensor, first: int) -> None:
        """Take vectors x (n, C) in, numbered from ``first``."""
        count = self._values.shape[1]
        if not count:
            return
        largest = self.sign > 0
        peaks = x.amax(0) if largest else -x.amin(0)
        # As the stream goes on fewer and fewer channels have anything new.
        found = (peaks > self._values[:, -1]).nonzero()[:, 0]
        # Where most have, to leave the others out costs more than it saves.
        moved = slice(None) if 2 * len(found) > len(peaks) else found
        new = x[:, moved].t().topk(min(count, len(x)), dim=1, largest=largest)
        values = torch.cat([self._values[moved], new.values * self.sign], dim=1)
        numbers = torch.cat([self._numbers[moved], new.indices + first], dim=1)
        best = values.topk(count, dim=1)
        self._values[moved] = best.values
        self._numbers[moved] = numbers.gather(1, best.indices)

    def results(self, seen: int) -> tuple[Tensor, Tensor]:
        """Values and numbers, (C, min(T, seen)) each, the most extreme first."""
        kept = slice(min(seen, self._values.shape[1]))
        return self._values[:, kept] * self.sign, self._numbers[:, kept]


class RandomAssignments:
    """How much classes would differ if labels had nothing to do with the vectors.

    P times every vector gets a random label, the same in all channels, and P sets of class sums
    are kept; the total variance is the same for every assignment. Where it is known how many of
    each label will come, they are drawn without replacement (by the hypergeometric distribution,
    a batch at a time): each assignment is a uniformly random permutation of the labels. Else
    each is one of K cells with equal chance, and in the end cells make groups, as many as classes
    came and nearly of their sizes. The between-group share of the variance has the expectation
    (k − 1) / (N − 1), k the groups that are not empty, whatever their sizes; so a few empty
    groups are allowed for by a factor.

    Args:
        classes: K.
        channels: C.
        count: P; None is 20, or as many as `MOST_NULL_BYTES` hold.
        expected: how many of each label will come, (K,), or None.
        seed: of the assignments.
        device: where the sums are.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        count: int | None,
        expected: Tensor | None,
        seed: int,
        device: torch.device,
    ) -> None:
        each = classes * channels
        if count is None:
            count = max(1, min(_USUAL, MOST_NULL_BYTES // (4 * each)))
        dtype = torch.float64 if 8 * count * each <= MOST_NULL_BYTES else torch.float32
        self.sums = torch.zeros(count, classes, channels, dtype=dtype, device=device)
        self.sizes = torch.zeros(count, classes, dtype=torch.int64)
        self.origin: Tensor | None = None
        self._random = np.random.default_rng(seed)
        self._left: np.ndarray | None = None
        if expected is not None and int(expected.sum()) < _MOST_KNOWN:
            self._left = expected.expand(count, -1).numpy().copy()

    def add(self, x: Tensor) -> None:
        """Take vectors x (n, C) in."""
        if self.origin is None:  # so that sums are of small numbers
            self.origin = x.to(self.sums.dtype).mean(0)
        centred = x.to(self.sums.dtype) - self.origin
        for sums, sizes, labels in zip(self.sums, self.sizes, self._drawn(len(x)), strict=True):
            sums.index_add_(0, labels.to(x.device), centred)
            sizes += torch.bincount(labels, minlength=len(sizes))

    def _drawn(self, count: int) -> Iterator[Tensor]:
        """The labels of the next vectors in each assignment."""
        classes = self.sizes.shape[1]
        if self._left is not None and len(self._left) and self._left[0].sum() < count:
            self._left = None  # more came than was said
        for number in range(len(self.sizes)):
            if self._left is None:
                labels = self._random.integers(classes, size=count)
            else:
                taken = self._random.multivariate_hypergeometric(self._left[number], count)
                self._left[number] -= taken
                labels = np.repeat(np.arange(classes), taken)
                self._random.shuffle(labels)
            yield torch.from_numpy(labels)

    def are_permutations(self, counts: Tensor) -> bool:
        """Whether each assignment has as many of each label as there were, (K,)."""
        return len(self.sizes) > 0 and bool((self.sizes == counts).all())

    def between(self, counts: Tensor) -> Tensor:
        """Σ_k n_k (mean_k − mean)² of each assignment and channel, (P, C), float64.

        Args:
            counts: how many vectors of each class there were, (K,).
        """
        counts = counts.cpu()
        permutations = self.are_permutations(counts)
        cells = torch.arange(len(counts)) if permutations else group_cells(counts)
        groups = int(cells.max()) + 1
        wanted = int((counts > 0).sum())
        found = self.sums.new_zeros(len(self.sums), self.sums.shape[2], dtype=torch.float64)
        for sums, sizes, squares in zip(self.sums, self.sizes, found, strict=True):
            size = torch.zeros(groups, dtype=torch.int64).index_add_(0, cells, sizes)
            filled = size > 0
            n = size[filled, None].to(sums.device).double()
            missed = (wanted - 1) / (len(n) - 1) if len(n) > 1 else 1.0
            for part, into in zip(sums.split(_AT_ONCE, 1), squares.split(_AT_ONCE), strict=True):
                total = part.new_zeros(groups, part.shape[1], dtype=torch.float64)
                total.index_add_(0, cells.to(part.device), part.double())
                total = total[filled.to(part.device)]
                into += missed * (n * (total / n - total.sum(0) / n.sum()).square()).sum(0)
        return found


def group_cells(counts: Tensor) -> Tensor:
    """K cells of equal size shared out among the classes that came: the group of each cell, (K,).

    Each class gets one, and of the others its share.

    >>> group_cells(torch.tensor([30, 0, 10, 0, 0, 0]))
    tensor([0, 0, 0, 0, 1, 1])
    """
    came = counts[counts > 0].double()
    spare = len(counts) - len(came)
    share = spare * came / came.sum()
    given = share.floor()
    given[(share - given).argsort(descending=True, stable=True)[: spare - int(given.sum())]] += 1
    return torch.arange(len(came)).repeat_interleave(1 + given.long())


class GateStream:
    """All that is kept of gates while they come.

    Args:
        classes: K.
        channels: C, of all blocks together.
        low, high: the values below and above which a gate counts as low and high, (C,).
        permutations: P, or None, see `RandomAssignments`.
        examples: T.
        expected: how many of each label will come, (K,), or None.
        seed: of the random assignments.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        *,
        low: Tensor,
        high: Tensor,
        permutations: int | None,
        examples: int,
        expected: Tensor | None,
        seed: int,
    ) -> None:
        device = low.device
        self.images = 0
        self.bounds = low, high
        self.low = torch.zeros(channels, dtype=torch.int64, device=device)
        self.high = torch.zeros_like(self.low)
        self.moments = ClassMoments(classes, channels, device)
        self.assignments = RandomAssignments(
            classes, channels, permutations, expected, seed, device
        )
        self.most, self.least = (
            Extremes(channels, examples, sign, low.dtype, device) for sign in (1, -1)
        )

    def add(self, x: Tensor, labels: Tensor) -> None:
        """Take the gates x (n, C) of the next images in, with their labels (n,)."""
        low, high = self.bounds
        self.low += (x < low).sum(0, dtype=torch.int32)
        self.high += (x > high).sum(0, dtype=torch.int32)
        self.most.add(x, self.images)
        self.least.add(x, self.images)
        self.moments.add(x, labels)
        self.assignments.add(x)
        self.images += len(x)

    def null(self) -> Tensor:
        """η² of each assignment and channel, (P, C); 0 where nothing varies."""
        between = self.assignments.between(self.moments.counts)
        total = self.moments.total_squares()
        return torch.where(total > 0, between / total, 0.0).clamp(max=1.0)

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors that are kept."""
        parts = (self, self.moments, self.assignments, self.most, self.least)
        held = [t for part in parts for t in vars(part).values() if isinstance(t, Tensor)]
        return sum(t.numel() * t.element_size() for t in (*held, *self.bounds))
