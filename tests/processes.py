"""Real `senet` processes for the tests, without seconds of imports for each.

A server process (multiprocessing's fork server) imports everything once; each command runs in a
process forked from it, which can be stopped, interrupted and killed like any other.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "Finished",
    "Running",
    "call_group",
    "finish",
    "free_port",
    "server",
    "start",
    "start_group",
    "wait_until",
]

_PRELOADED = [
    *("senet.cli", "senet.commands.train", "senet.fitting", "senet.twins", "senet.cost"),
    # What Lightning imports on its way to several processes.
    *("torch.distributed.optim", "torch.distributed.algorithms.model_averaging.averagers"),
    # What a training imports only where it comes to it: two fifths of a short one's time.
    *("sklearn.datasets", "matplotlib.figure", "matplotlib.backends.backend_agg"),
]


_NONE: Mapping[str, str] = {}


@dataclass(frozen=True)
class Finished:
    """How a process ended: its exit status (negative: killed by that signal) and its words."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Running:
    """A process that was started, and the files its words go to."""

    process: Any
    out: Path
    err: Path

    @property
    def pid(self) -> int:
        pid: int = self.process.pid
        return pid

    def alive(self) -> bool:
        alive: bool = self.process.is_alive()
        return alive

    def wait(self, seconds: float = 120) -> Finished:
        self.process.join(seconds)
        assert not self.alive(), f"still running after {seconds} s"
        return Finished(self.process.exitcode, self.out.read_text(), self.err.read_text())


def start(
    arguments: Sequence[str | Path],
    log: Path,
    environment: Mapping[str, str] | None = None,
    *,
    file_size: int | None = None,
) -> Running:
    """Start ``senet ARGUMENTS`` with one thread; its words go to ``log.out`` and ``log.err``.

    ``environment`` is added to that of the tests; a file that grows beyond ``file_size`` bytes
    cannot be written, as on a full disk.
    """
    context = server()
    out, err = log.with_suffix(".out"), log.with_suffix(".err")
    words = [str(argument) for argument in arguments]
    given = (words, out, err, dict(environment or {}), file_size)
    process = context.Process(target=_command, args=given)
    process.start()
    return Running(process, out, err)


def start_group(
    arguments: Sequence[str | Path], log: Path, world: int, variables: Mapping[str, str] = _NONE
) -> list[Running]:
    """Start ``senet ARGUMENTS`` once for each of ``world`` devices, as Lightning's launcher does.

    ``variables`` takes the place of the launcher's: names and values, in which {rank}, {world}
    and {port} are filled in.
    """
    port = str(free_port())
    variables = variables or {
        "LOCAL_RANK": "{rank}",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "{port}",
    }
    return [
        start(
            arguments,
            log.with_name(f"{log.name}-{rank}"),
            {k: v.format(rank=rank, world=world, port=port) for k, v in variables.items()},
        )
        for rank in range(world)
    ]


def call_group(function: Callable[..., Any], world: int, folder: Path, *arguments: Any) -> Any:
    """What ``function(rank, world, *arguments)`` returns in each of ``world`` processes.

    Their environment is that of `start_group`; results are what `torch.save` can keep without
    code. ``folder`` is for the results.
    """
    port, context = free_port(), server()
    processes = [
        context.Process(target=_call, args=(function, rank, world, port, folder, arguments))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * world
    import torch

    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def is_running(pid: int) -> bool:
    """Whether the process is there, and not only waiting for somebody to ask how it ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def finish(arguments: Sequence[str | Path], log: Path) -> Finished:
    """Run ``senet ARGUMENTS`` to its end."""
    return start(arguments, log).wait()


def wait_until(
    condition: Callable[[], bool], running: Running, *, seconds: float = 60, pause: float = 0.0
) -> bool:
    """Ask until ``condition`` holds; False if the process ends before it does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        if not running.alive():
            return False
        time.sleep(pause)
    raise AssertionError(f"waited {seconds} s: {running.err.read_text()}")


def server() -> Any:
    """The context whose processes are forked from a server that has imported torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _call(
    function: Callable[..., Any],
    rank: int,
    world: int,
    port: int,
    folder: Path,
    arguments: tuple[Any, ...],
) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.save(function(rank, world, *arguments), folder / f"{rank}.pt")


def _command(
    arguments: list[str],
    out: Path,
    err: Path,
    environment: dict[str, str],
    file_size: int | None,
) -> None:
    import torch

    from senet.cli import main

    # As in a process of a user's own: else workers of its own would come from a server, too.
    multiprocessing.set_start_method(None, force=True)  # type: ignore[arg-type]
    os.environ.update(environment)
    for path, stream in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    for stream in (sys.stdout, sys.stderr):
        # What a new process would take its encoding from.
        stream.reconfigure(line_buffering=True, encoding=environment.get("PYTHONIOENCODING"))
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    torch.set_num_threads(1)
    sys.exit(main(arguments))
