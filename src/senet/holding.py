"""Decoded images held in memory after they were read once, for all processes that load images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import UserError

__all__ = ["HeldPixels", "check_memory", "free_memory"]

_SHARE = 0.8  # of what is free: batches and the network need some too
_CONTROL_GROUP = Path("/sys/fs/cgroup")
_SHARED_FOLDER = Path("/dev/shm")  # where PyTorch keeps tensors that processes share


class HeldPixels:
    """A place for the pixels of each image of a set; uint8 (3, h, w), empty until it was read.

    Worker processes share it: what one has read, the others find in the next epoch. Two that
    read an image at the same time write the same bytes.

    Args:
        extents: Height and width of each image in pixels, upright or not.
        shared: Whether other processes are to see it.
    """

    def __init__(self, extents: Sequence[tuple[int, int]], *, shared: bool) -> None:
        areas = np.array([3 * height * width for height, width in extents], dtype=np.int64)
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(areas)])
        self._shapes = torch.zeros(len(areas), 2, dtype=torch.int32)
        self._labels = torch.zeros(len(areas), dtype=torch.int64)
        self._pixels = torch.empty(int(self._starts[-1]), dtype=torch.uint8)
        if shared:
            for tensor in (self._shapes, self._labels, self._pixels):
                tensor.share_memory_()

    def get(self, index: int) -> tuple[Tensor, int] | None:
        """Pixels, not to be written to, and label; None if the image was not read yet."""
        height, width = self._shapes[index].tolist()
        if height == 0:
            return None
        start = int(self._starts[index])
        pixels = self._pixels[start : start + 3 * height * width].view(3, height, width)
        return pixels, int(self._labels[index])

    def put(self, index: int, pixels: Tensor, label: int) -> None:
        """Keep an image that has now been read."""
        start, end = self._starts[index : index + 2].tolist()
        if pixels.numel() > end - start:  # the file is another than when it was measured
            return
        self._pixels[start : start + pixels.numel()] = pixels.flatten()
        self._labels[index] = label
        self._shapes[index] = torch.tensor(pixels.shape[1:], dtype=torch.int32)


def check_memory(images: int, needed: int, *, shared: bool, processes: int = 1) -> None:
    """Refuse to hold what would not fit.

    Args:
        images: How many they are, for the message.
        needed: Their bytes, decoded.
        shared: Whether a training process and its workers are to share them.
        processes: Training processes on this machine, of which each holds its own.

    Raises:
        UserError: it is more than four fifths of the memory that is free.
    """
    free, where = free_memory(), "memory"
    if shared and (folder := _free_shared()) is not None and folder < free:
        free, where = folder, f"{_SHARED_FOLDER}, through which workers share it,"
    if needed * processes > _SHARE * free:
        each = f" in each of {processes} processes" if processes > 1 else ""
        raise UserError(
            f"cache would hold {images:,} images in {_gb(needed)}{each}, but only {_gb(free)} of "
            f"{where} is free; leave --cache out, or make the images smaller"
        )


def free_memory() -> int:
    """Bytes that this process could still take: the machine's, or those left to its container."""
    return min([_machine_free(), *_container_free()])


def _machine_free() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if "MemAvailable" in line) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _container_free() -> list[int]:
    """What control groups of either version leave; nothing where there is no limit.

    Files that were read, shards say, count as used there, and are let go where memory is wanted.
    """
    free = []
    for limit, used, stat, files in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            *("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
            *("memory/memory.stat", "total_inactive_file"),
        ),
    ):
        try:
            limit_text, used_text, stat_text = (
                (_CONTROL_GROUP / name).read_text().strip() for name in (limit, used, stat)
            )
        except OSError:
            continue
        if limit_text.isdecimal():
            counts = dict(line.split() for line in stat_text.splitlines())
            kept = int(used_text) - int(counts.get(files, 0))
            free.append(max(int(limit_text) - max(kept, 0), 0))
    return free


def _free_shared() -> int | None:
    try:
        status = os.statvfs(_SHARED_FOLDER)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
