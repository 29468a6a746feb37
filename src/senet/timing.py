"""Runs timed in turn, and ratios formed pair by pair."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

__all__ = ["clock", "quartiles", "time_in_turn"]


def clock(device: torch.device | str = "cpu") -> float:
    """Seconds, once the device has done what was asked of it."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def time_in_turn(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 2,
    device: torch.device | str = "cpu",
    progress: Callable[[str], None] = lambda _: None,
    until: float = math.inf,
) -> dict[str, list[float]]:
    """Milliseconds of each run in each round; who begins changes from round to round.

    Args:
        runs: name → what is timed.
        rounds: that count.
        warmup: rounds before them, that do not.
        device: whose work a run is.
        progress: is told which round it is.
        until: when to stop, by `time.monotonic`: nothing is begun after it, and the rounds that
            were whole by then count.

    Raises:
        TimeoutError: no round was.
    """
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        progress(f"round {max(number + 1, 0)} of {rounds}")
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if time.monotonic() > until:
                whole = max(number, 0)
                if not whole:
                    raise TimeoutError("no round was whole in time")
                return {name: own[:whole] for name, own in times.items()}
            begin = clock(device)
            runs[name]()
            elapsed = clock(device) - begin
            if number >= 0:
                times[name].append(1000 * elapsed)
    return times


def quartiles(own: Sequence[float], plain: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the ratios own / plain, pair by pair.

    >>> quartiles([3.0, 30.0, 3.0], [2.0, 20.0, 2.0])
    (1.5, 1.5, 1.5)
    """
    ratios = [a / b for a, b in zip(own, plain, strict=True)]
    if len(ratios) < 2:
        return ratios[0], ratios[0], ratios[0]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return low, middle, high
