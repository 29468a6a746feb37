"""Order and chance: every draw is a function of (seed, epoch, index), never of what ran before.

A batch is therefore the same for any number of worker processes, and after a resumed run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler

__all__ = ["EpochSampler", "SubsetSampler", "drawing_by", "mix", "stratified_split"]

REPEAT = 2**32
"""What the second version of an image adds to its epoch, which no run gets so far as to reach."""


def mix(*words: int | npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """A well-mixed 64-bit number for each tuple of integers (arrays are broadcast).

    SplitMix64's finaliser (Steele, Lea, Flood 2014) over the words in turn: a bijection of each
    word while the others stay, so that no two indices of one epoch share a number.
    """
    state = np.zeros(1, np.uint64)
    for word in words:
        bits = np.asarray(word if isinstance(word, np.ndarray) else word & (2**64 - 1))
        state = (state ^ bits.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


@contextmanager
def drawing_by(number: int) -> Iterator[None]:
    """For a while, have what draws from PyTorch's global generator draw by a number alone.

    Args:
        number: of 63 bits, such as one of `mix` shifted right by one.
    """
    # The generator of the CPU only, which torchvision's transforms use: torch.manual_seed would
    # reset the accelerator's along with it. Afterwards the model's dropout goes on as if nothing
    # had been drawn.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(number)
        yield


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) pairs: shuffled anew in each epoch, or in order.

    Under ``torch.distributed`` each rank takes every world-size-th pair of the common order.
    Shuffled, all ranks get the same number, and up to world size - 1 images, others in each
    epoch, are left out; in order, none is left out and none is repeated.

    Args:
        length: How many images there are.
        seed: Decides the order of every epoch, together with its number.
        shuffle: False gives 0, 1, 2, … in each epoch.
        repeats: How many times in a row an image comes where they are shuffled; so many times
            fewer images come in an epoch. The second time its epoch is ``epoch + REPEAT``, and so
            on, so that each time it is augmented in another way.
        rank: This process; by default what ``torch.distributed`` says when iteration starts.
        world_size: How many processes there are; by default likewise.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int,
        shuffle: bool,
        repeats: int = 1,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.length = length
        self.seed = seed
        self.shuffle = shuffle
        self.repeats = repeats
        self.epoch = 0
        self._rank = rank
        self._world_size = world_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration; Lightning calls this at each epoch's start."""
        self.epoch = epoch

    def _place(self) -> tuple[int, int]:
        running = dist.is_available() and dist.is_initialized()
        rank = self._rank if self._rank is not None else dist.get_rank() if running else 0
        size = self._world_size or (dist.get_world_size() if running else 1)
        return rank, size

    def __len__(self) -> int:
        rank, size = self._place()
        return self.length // size if self.shuffle else len(range(rank, self.length, size))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rank, size = self._place()
        epoch = self.epoch
        if not self.shuffle:
            return ((epoch, index) for index in range(rank, self.length, size))
        generator = torch.Generator().manual_seed(int(mix(self.seed, epoch)[0] >> 1))
        order = torch.randperm(self.length, generator=generator)
        mine = range(rank, self.length // size * size, size)
        if self.repeats == 1:
            return ((epoch, index) for index in order[mine.start : mine.stop : size].tolist())
        images = order[: -(-self.length // self.repeats)].tolist()
        places = (divmod(place, self.repeats) for place in mine)
        return ((epoch + repeat * REPEAT, images[place]) for place, repeat in places)


class SubsetSampler(EpochSampler):
    """Some of the images in their order, as an `EpochSampler` that does not shuffle.

    Args:
        indices: of the images.
    """

    def __init__(self, indices: Sequence[int]) -> None:
        super().__init__(len(indices), seed=0, shuffle=False)
        self.indices = indices

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((epoch, self.indices[place]) for epoch, place in super().__iter__())


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the training and held-out part, in order, ``fraction`` of each class held out.

    ``labels`` is int64 (N,). Of every class at least one image is held out and at least one
    stays; a class with a single image raises ``ValueError``.
    """
    held: list[Tensor] = []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        if len(members) < 2:
            raise ValueError(f"label {label} has one image; holding one out takes two")
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        generator = torch.Generator().manual_seed(int(mix(seed, int(label))[0] >> 1))
        held.append(members[torch.randperm(len(members), generator=generator)[:count]])
    val = torch.cat(held).sort().values
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[val] = False
    return kept.nonzero().flatten(), val
