"""Several runs of a sweep at a time, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from .one_run import RunPlan, failed, train_run
from .results import FAILED, RunResult

__all__ = ["train_at_once"]


@dataclass(frozen=True)
class _Job:
    plan: RunPlan
    title: str
    slot: int
    process: BaseProcess


def train_at_once(
    plans: Sequence[RunPlan], jobs: int, say: Callable[[str], None]
) -> Generator[RunResult, None, None]:
    """Train runs, ``jobs`` at a time; their results as they end.

    The GPUs that this process may use are given out in turn; with more jobs than GPUs several
    share one. Whatever ends this process ends the others. One that dies is a failed run.
    """
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    waiting = list(enumerate(plans, start=1))
    running: dict[Connection, _Job] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                number, plan = waiting.pop(0)
                slot = min(set(range(jobs)) - {job.slot for job in running.values()})
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(plan, _gpu(slot), theirs))
                process.start()
                theirs.close()  # or its end would not be seen
                title = f"[{number}/{len(plans)}] {plan.variant}, seed {plan.seed}: "
                running[ours] = _Job(plan, title, slot, process)
            for ready in wait(list(running)):
                if row := _heard(ready, running[ready], say):  # type: ignore[arg-type,index]
                    del running[ready]  # type: ignore[arg-type]
                    yield row
    finally:
        for job in running.values():
            job.process.kill()  # finished epochs are on the disk, whole
        for job in running.values():
            job.process.join()


def _heard(connection: Connection, job: _Job, say: Callable[[str], None]) -> RunResult | None:
    """Pass on a line, or return how the run ended."""
    try:
        message = connection.recv()
    except EOFError:
        job.process.join()
        message = failed(job.plan, _how_it_died(job.process.exitcode))
    if isinstance(message, str):
        say(job.title + message)
        return None
    row: RunResult = message
    job.process.join()
    connection.close()
    if row.status == FAILED:
        say(f"{job.title}failed: {row.reason}")
    return row


def _how_it_died(status: int | None) -> str:
    if status is not None and status < 0:
        name = signal.Signals(-status).name
        hint = ", as by a machine that is out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with status {status} before the run did"


def _gpu(slot: int) -> str | None:
    """What CUDA_VISIBLE_DEVICES is to be for a job; None where it is not to be changed."""
    count = torch.cuda.device_count()
    if count < 2:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(count)]
    return names[slot % count]


def _work(plan: RunPlan, gpu: str | None, connection: Connection) -> None:
    """Train one run in this process, and tell the one that started it."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # nothing here has asked for CUDA yet
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this
    threading.Thread(target=_end_with_parent, daemon=True).start()
    row = train_run(plan, bar=False, say=connection.send)
    connection.send(row)


def _end_with_parent() -> None:
    """A process left over would write to the run that the next sweep goes on with."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
