"""How the processes of a run find each other, and what they settle before the first step."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from .errors import UserError

__all__ = ["SameRun", "SharedCheck", "ToldMeeting"]


class ToldMeeting:
    """For a strategy of Lightning: that the others do not come is told in a line.

    PyTorch writes some forty lines of its own to standard error meanwhile, from C++; they are held
    back, and come after all where the processes meet.
    """

    global_rank: int
    world_size: int
    _timeout: timedelta

    def setup_environment(self) -> None:
        """Find the other processes.

        Raises:
            UserError: they do not come within ``peer_timeout``.
        """
        base: Any = super()
        try:
            with _stderr_held_back():
                base.setup_environment()
        except (RuntimeError, dist.DistError) as error:
            if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
                raise
            raise UserError(
                f"process {self.global_rank} of {self.world_size} of this run did not find the "
                f"others within {self._timeout.total_seconds():g} s: they ended with words of "
                "their own, were not started, or cannot be reached; mend that, or wait longer with "
                "--peer_timeout, and start all again"
            ) from error


@contextmanager
def _stderr_held_back() -> Iterator[None]:
    """Hold back what is written to standard error; drop it if an exception ends the block."""
    try:
        before = os.dup(2)
    except OSError:  # closed by whoever started us
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)
        held.seek(0)
        if words := held.read():
            os.write(2, words)


class SameRun(Callback):
    """Refuses to train where the processes would not be doing the same.

    Machines that do not share a disk would each find another run directory, and wait for one
    another for ever.

    Args:
        facts: name → what must be the same in every process.
    """

    def __init__(self, facts: Mapping[str, object]) -> None:
        self.facts = facts

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare digests of the facts, as soon as the processes have found each other."""
        if trainer.world_size == 1:
            return
        device = trainer.strategy.root_device
        mine = torch.tensor([_digest(fact) for fact in self.facts.values()], device=device)
        everyone = [torch.empty_like(mine) for _ in range(trainer.world_size)]
        dist.all_gather(everyone, mine)
        differ = (torch.stack(everyone) != everyone[0]).any(0).tolist()
        for name, differs in zip(self.facts, differ, strict=True):
            if differs:
                raise UserError(
                    f"the {trainer.world_size} processes of this run differ in {name}; start all "
                    "with the same command, with --out and --data where all machines find the same"
                )


class SharedCheck(Callback):
    """Has each process compare its part of the data with checksums, before the first step.

    They wait for one another however long that takes, which has nothing to do with
    ``peer_timeout``. What one of them finds wrong ends all, each with that line.

    Args:
        check: (part, parts, bar) ↦ compare one part of the files of this machine.
        bar: whether the first process shows a bar.
    """

    def __init__(self, check: Callable[[int, int, bool], None], *, bar: bool = False) -> None:
        self.check = check
        self.bar = bar

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare, and hear from the others, as soon as the processes have found each other."""
        group = _patient_group() if trainer.world_size > 1 else None
        said = ""
        try:
            self.check(trainer.local_rank, trainer.num_devices, self.bar and trainer.is_global_zero)
        except UserError as error:
            if group is None:
                raise
            said = str(error)
        if group is None:
            return
        everyone = _texts_of_all(said, group)
        dist.destroy_process_group(group)
        if said:
            raise UserError(said)
        for rank, text in enumerate(everyone):
            if text:
                raise UserError(f"process {rank} of {trainer.world_size} of this run found: {text}")


_PATIENCE = timedelta(days=30)
_LONGEST_TEXT = 1000  # bytes


def _patient_group() -> dist.ProcessGroup:
    """All processes, on the CPU, who may be silent for long; that one has died is seen at once."""
    group = dist.new_group(timeout=_PATIENCE, backend="gloo")
    assert isinstance(group, dist.ProcessGroup)  # and not a stranger to it: all take part
    return group


def _texts_of_all(text: str, group: dist.ProcessGroup) -> list[str]:
    """What each process says, without pickles."""
    mine = torch.zeros(_LONGEST_TEXT, dtype=torch.uint8)
    data = text.encode()[:_LONGEST_TEXT]
    mine[: len(data)] = torch.tensor(list(data), dtype=torch.uint8)
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    work = dist.all_gather(parts, mine, group=group, async_op=True)
    while not work.is_completed():  # and not work.wait(), which Ctrl-C could not stop
        time.sleep(0.02)
    work.wait()  # raises where a process is gone
    return [bytes(part.tolist()).rstrip(b"\0").decode(errors="replace") for part in parts]


def _digest(fact: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(fact).encode()).digest()[:7])
