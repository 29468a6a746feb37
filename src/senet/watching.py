"""Processes that load images, watched from outside: which file each is at, and how one ended."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import Tensor

from .errors import UserError

__all__ = ["Watch", "note_reading", "workers_told"]


class _Named(Protocol):
    def name(self, index: int) -> str:
        """What messages call an image."""
        ...


_own_place: Tensor | None = None  # in a worker: where it notes the index it is reading
_watches: WeakSet[Watch] = WeakSet()


def note_reading(index: int) -> None:
    """In a worker, note which image is about to be read; -1 is none."""
    if _own_place is not None:
        _own_place[0] = index


class Watch:
    """Notes, for each worker of a loader, which image it is reading.

    Args:
        images: Whose images they are.
        workers: How many there are.
    """

    def __init__(self, images: _Named, workers: int) -> None:
        self.images = images
        self.reading = torch.full((workers,), -1, dtype=torch.int64).share_memory_()
        self.processes: Sequence[Any] = ()
        _watches.add(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"images": None, "reading": self.reading, "processes": ()}

    def begin(self, worker: int) -> None:
        """In the worker of that number, take its place."""
        global _own_place
        _own_place = self.reading[worker : worker + 1]

    def told(self, error: RuntimeError, seconds: float) -> UserError | None:
        """What an error of PyTorch's loader means; None if it is another's.

        Args:
            error: What was raised.
            seconds: That a batch may take.
        """
        if "DataLoader timed out" in str(error):
            return self._late(seconds)
        return self.died(error)

    def _late(self, seconds: float) -> UserError:
        """The error for a batch that did not come in time."""
        names = [self._at(worker) for worker in range(len(self.reading))]
        known = ", ".join(dict.fromkeys(name for name in names if name))
        return UserError(
            f"no batch for {seconds:g} s (load_timeout): the workers were reading "
            f"{known or 'no file'}; look at that file and its disk, or allow more time"
        )

    def died(self, error: RuntimeError) -> UserError | None:
        """The error for a worker that PyTorch says has ended; None if it says something else."""
        pids = [int(pid) for pid in re.findall(r"\d+", _pids_in(str(error)))]
        for worker, process in enumerate(self.processes):
            if process.pid in pids:
                process.join(1.0)  # so that its exit status is known
                ended, place = _how(process.exitcode), self._at(worker)
                return UserError(
                    f"a process that loads images {ended}"
                    f"{f' while reading {place}' if place else ''}; where memory is short, try "
                    "fewer --workers; --workers=0 reads in the training process"
                )
        return None

    def end(self) -> None:
        """Kill the workers that did not end when they were asked to: Python would wait for them."""
        for process in self.processes:
            if process.is_alive():
                process.kill()

    def _at(self, worker: int) -> str:
        index = int(self.reading[worker])
        return self.images.name(index) if index >= 0 else ""


def _pids_in(message: str) -> str:
    found = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", message)
    return found[1] if found else ""


def _how(status: int | None) -> str:
    if status is not None and status < 0:
        try:
            return f"was killed ({signal.Signals(-status).name})"
        except ValueError:
            return f"was killed (signal {-status})"
    return f"ended (exit status {status})"


@contextmanager
def workers_told() -> Iterator[None]:
    """Have the end of a worker, which PyTorch may raise anywhere, told in a line."""
    try:
        yield
    except RuntimeError as error:
        if not _pids_in(str(error)):
            raise
        known = (watch.died(error) for watch in list(_watches))
        told = next((told for told in known if told is not None), None)
        raise (told or UserError(" ".join(str(error).split()))) from error
