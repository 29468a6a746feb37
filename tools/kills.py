"""Is a run that was killed the run that was not? A short training, killed at random, N times.

    python tools/kills.py                     # a hundred trials; exits 1 unless all hold
    python tools/kills.py --recipe modern     # AdamW, averaged weights, mixup, two workers

Each trial trains into a directory of its own, is killed with SIGKILL (`kill -9`) at one to three
moments that are drawn over the length of an undisturbed run, is resumed each time, and is
compared in the end, bit for bit, with the run that nothing happened to: the exported weights and
their card, and the weights, momenta and schedule of the last checkpoint and of the best.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from senet.checkpoints import BEST, LAST, TRAINED
from senet.cli import main as senet
from senet.machine import describe
from senet.runs import CARD, WEIGHTS, is_temporary

TRAIN = (
    *("train", "--model=se_resnet20", "--data=digits", "--image_size=8", "--batch_size=32"),
    *("--limit_batches=6", "--epochs=4", "--accelerator=cpu", "--threads=1"),
)
RECIPES = {
    "plain": (),
    "modern": ("--optimizer=adamw", "--ema_decay=0.9", "--mixup=0.2", "--workers=2"),
}
"""What is trained with: SGD, or what has more to remember and to draw."""
MOST_KILLS = 3
_PRELOADED = [
    *("senet.commands.train", "senet.fitting"),
    # What a training imports only where it comes to it.
    *("sklearn.datasets", "matplotlib.figure", "matplotlib.backends.backend_agg"),
]


@dataclass(frozen=True)
class Trial:
    """What became of one run.

    Args:
        kills: how often it was killed.
        half_written: of these, how often a file was being written.
        difference: where it is not the undisturbed run; "" where it is.
    """

    kills: int
    half_written: int
    difference: str


def start(run: Path, recipe: str) -> Any:
    """`senet train --resume` into ``run``, in a process forked from one that has all imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=_train, args=(run, (*TRAIN, *RECIPES[recipe])))
    process.start()
    return process


def _train(run: Path, words: Sequence[str]) -> None:
    os.setsid()  # for `_kill`
    # As in a process of a user's own: else workers of its own would come from a server, too.
    multiprocessing.set_start_method(None, force=True)  # type: ignore[arg-type]
    for stream in (1, 2):
        os.dup2(os.open(f"{run}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    torch.set_num_threads(1)
    sys.exit(senet([*words, "--resume", "--out", str(run)]))


def _kill(process: Any) -> None:
    """Kill a process and its workers, which would otherwise be waited for until they notice."""
    with suppress(ProcessLookupError):  # over meanwhile, or not yet the first of a group
        os.kill(process.pid, signal.SIGKILL)
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


def finish(run: Path, recipe: str = "plain") -> None:
    """Train to the end."""
    process = start(run, recipe)
    process.join()
    if process.exitcode != 0:
        log = Path(f"{run}.log").read_text()
        raise RuntimeError(f"ended with status {process.exitcode}: {log}")


def kill_and_resume(
    run: Path, recipe: str, seconds: float, chance: random.Random
) -> tuple[int, int]:
    """Train, be killed once or more, and train on to the end.

    Args:
        run: the directory.
        recipe: of `RECIPES`.
        seconds: that an undisturbed run takes, its start included.
        chance: decides how often and when.

    Returns:
        how often it was killed, and how often while a file was being written.
    """
    kills = half_written = 0
    for _ in range(chance.randint(1, MOST_KILLS)):
        process = start(run, recipe)
        process.join(chance.uniform(0, seconds))
        while process.exitcode == 0 and not kills:  # over before its moment: once more
            shutil.rmtree(run)
            process = start(run, recipe)
            process.join(chance.uniform(0, seconds))
        if process.exitcode is not None:
            break
        _kill(process)
        kills += process.exitcode == -signal.SIGKILL
        half_written += any(is_temporary(path) for path in run.rglob("*"))
    finish(run, recipe)
    return kills, half_written


def difference(run: Path, whole: Path) -> str:
    """Where the results of two runs are not the same bits; "" where they are."""
    for name in (WEIGHTS, CARD):
        if (run / name).read_bytes() != (whole / name).read_bytes():
            return name
    for name in (LAST, BEST):
        ours, theirs = (torch.load(each / name, weights_only=True) for each in (run, whole))
        if ours.keys() != theirs.keys():
            return str(name)
        for part in {*_PARTS} & ours.keys():
            pairs = zip(leaves(ours[part]), leaves(theirs[part]), strict=True)
            if not all(_same(a, b) for a, b in pairs):
                return f"{name}: {part}"
    return ""


_PARTS = ("state_dict", TRAINED, "optimizer_states", "lr_schedulers", "global_step")


def leaves(value: object) -> Iterator[object]:
    """Keys and values of a state, in order."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield key
            yield from leaves(child)
    elif isinstance(value, list | tuple):
        for child in value:
            yield from leaves(child)
    else:
        yield value


def _same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    return type(a) is type(b) and a == b


def trials(counts: Mapping[str, int], seed: int, place: Path) -> list[Trial]:
    """Run so many of each recipe, in ``place``; what is as it should be is removed."""
    seconds = {}
    for number, recipe in enumerate(counts):
        whole = place / recipe
        if not number:  # starts the server that all others are forked from
            finish(place / "first", recipe)
        began = time.perf_counter()
        finish(whole, recipe)
        seconds[recipe] = time.perf_counter() - began
    done = []
    recipes = [recipe for recipe, count in counts.items() for _ in range(count)]
    for number, recipe in enumerate(track(recipes, "killing", console=Console(stderr=True))):
        run, whole = place / f"{number:03}", place / recipe
        chance = random.Random(f"{seed}/{number}")
        kills, half_written = kill_and_resume(run, recipe, seconds[recipe], chance)
        done.append(Trial(kills, half_written, difference(run, whole)))
        if not done[-1].difference:
            shutil.rmtree(run)
    return done


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 where every run ended as the undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=100, help="runs (default: 100)")
    parser.add_argument(
        "--recipe",
        choices=(*RECIPES, "both"),
        default="plain",
        help="what is trained with; both: one trial in four is of the modern one (default: plain)",
    )
    parser.add_argument("--seed", type=int, default=0, help="decides the moments (default: 0)")
    given = parser.parse_args(argv)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        done = trials(_counts(given.trials, given.recipe), given.seed, Path(place))
    same = sum(not trial.difference for trial in done)
    for number, trial in enumerate(done):
        if trial.difference:
            print(f"trial {number}: {trial.difference} differs after {trial.kills} kills")
    machine = describe()
    print(
        f"{date.today()}, {given.recipe}: {same} of {given.trials} runs ended with the bits of "
        "the undisturbed one; "
        f"{sum(trial.kills for trial in done)} kills, "
        f"{sum(trial.half_written for trial in done)} while a file was being written; "
        f"{time.perf_counter() - began:.0f} s, torch {machine['torch']}"
    )
    return int(same < given.trials)


def _counts(trials: int, recipe: str) -> dict[str, int]:
    if recipe != "both":
        return {recipe: trials}
    modern = max(1, trials // 4)
    return {"plain": trials - modern, "modern": modern}


if __name__ == "__main__":
    sys.exit(main())
