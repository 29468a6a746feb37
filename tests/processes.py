"""Real `senet` processes for the tests, without seconds of imports for each.

A server process (multiprocessing's fork server) imports everything once; each command runs in a
process forked from it, which can be stopped, interrupted and killed like any other.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

__all__ = [
    "Finished",
    "Running",
    "call_group",
    "finish",
    "free_port",
    "is_running",
    "is_stopped",
    "kill_what_is_left",
    "server",
    "start",
    "start_group",
    "wait_until",
    "when_placed",
    "when_stepped",
    "when_synced",
]

_PRELOADED = [
    *("senet.cli", "senet.commands.train", "senet.fitting", "senet.twins", "senet.cost"),
    # What Lightning imports on its way to several processes.
    *("torch.distributed.optim", "torch.distributed.algorithms.model_averaging.averagers"),
    # What a training imports only where it comes to it: two fifths of a short one's time.
    *("sklearn.datasets", "matplotlib.figure", "matplotlib.backends.backend_agg"),
]


_NONE: Mapping[str, str] = {}
_STARTED: list[Any] = []
_COUNT = itertools.count()
_FIRST_PORT = 37 * os.getpid()  # as far as can be from those of other workers, and other suites
Prepare = Callable[[], None]


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
    prepare: Prepare | None = None,
) -> Running:
    """Start ``senet ARGUMENTS`` with one thread; its words go to ``log.out`` and ``log.err``.

    ``environment`` is added to that of the tests; a file that grows beyond ``file_size`` bytes
    cannot be written, as on a full disk; ``prepare`` is called there first.
    """
    context = server()
    out, err = log.with_suffix(".out"), log.with_suffix(".err")
    words = [str(argument) for argument in arguments]
    given = (words, out, err, dict(environment or {}), file_size, prepare)
    process = context.Process(target=_command, args=given)
    process.start()
    _STARTED.append(process)
    return Running(process, out, err)


def when_placed(name: str, number: int, count: int = 1) -> Prepare:
    """The process signals itself once a file whose path ends so is in its place, so many times.

    Nobody else has to be quick enough, however busy the machine is; the same of those below.
    """
    return partial(_signal_after, "os", "replace", name, number, count)


def when_synced(number: int, count: int = 1) -> Prepare:
    """Once it has handed so many files over to the disk."""
    return partial(_signal_after, "os", "fsync", "", number, count)


def when_stepped(number: int, count: int) -> Prepare:
    """Once it has gone forward so many times in training; also a process that writes no files."""
    return partial(_signal_after, "senet.classifier.Classifier", "training_step", "", number, count)


def _signal_after(owner: str, function: str, name: str, number: int, count: int) -> None:
    import pkgutil

    place = pkgutil.resolve_name(owner)
    done, seen = getattr(place, function), 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal seen
        result = done(*arguments, **options)
        if str(arguments[-1]).endswith(name):
            seen += 1
            if seen == count:
                os.kill(os.getpid(), number)
        return result

    setattr(place, function, counted)


def kill_what_is_left() -> None:
    """End every process that a test has started and, having failed, left."""
    for process in _STARTED:
        if process.is_alive():
            process.kill()
            process.join()
    _STARTED.clear()


def start_group(
    arguments: Sequence[str | Path],
    log: Path,
    world: int,
    variables: Mapping[str, str] = _NONE,
    *,
    prepare: Mapping[int, Prepare] | None = None,
) -> list[Running]:
    """Start ``senet ARGUMENTS`` once for each of ``world`` devices, as Lightning's launcher does.

    ``variables`` takes the place of the launcher's: names and values, in which {rank}, {world}
    and {port} are filled in. ``prepare`` is what `start` takes, by rank.
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
            prepare=(prepare or {}).get(rank),
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
        _STARTED.append(process)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * world
    import torch

    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def is_running(pid: int) -> bool:
    """Whether the process is there, and not only waiting for somebody to ask how it ended."""
    return _state(pid) not in "ZX"


def is_stopped(pid: int) -> bool:
    """Whether the process was stopped, and waits for SIGCONT."""
    return _state(pid) == "T"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "X"


def finish(arguments: Sequence[str | Path], log: Path) -> Finished:
    """Run ``senet ARGUMENTS`` to its end."""
    return start(arguments, log).wait()


def wait_until(
    condition: Callable[[], bool], running: Running, *, seconds: float = 60, pause: float = 0.005
) -> bool:
    """Ask until ``condition`` holds; False if the process ends before it does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        if not running.alive():
            return False
        time.sleep(pause)
    said = running.err.read_text() if running.err.exists() else "it has not begun"
    raise AssertionError(f"waited {seconds} s: {said}")


def server() -> Any:
    """The context whose processes are forked from a server that has imported torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def free_port() -> int:
    """One that no other worker of the suite takes, and the system gives to nobody by itself."""
    for _ in range(1000):
        port = 20_000 + (_FIRST_PORT + next(_COUNT)) % 10_000
        with socket.socket() as free:
            try:
                free.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("no port is free")


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
    prepare: Prepare | None,
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
    if prepare is not None:
        prepare()
    sys.exit(main(arguments))
