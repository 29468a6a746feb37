"""`senet.record` beside plain inference of the same network: images a second, in turn.

    python benchmarks/recording.py

The network runs over the same batches: by itself, in evaluation and inference mode; recorded, with
ten classes and with a thousand; and by itself once more as a control (A/A). A round gives each the
ratio to plain inference of the same round; the table and ``results/recording.csv`` have medians,
with quartiles. What is timed goes from the second batch to the last, by default 128 images, the
first and dearest of a recording: nearly every channel has new extremes. What recording takes once,
however many images come (its arrays before, the null at the end), is in a column of its own, as are
the bytes that it keeps. The ratio of images a second of this process's CPU time stands beside that
by the clock: on a shared machine it is the steadier of the two, with several threads the less
telling. The bar is 0.95 by the clock.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import senet
from senet.benchmarking import as_csv
from senet.gate_streams import GateStream
from senet.machine import describe
from senet.runs import atomic_write
from senet.timing import quartiles

RESULTS = Path(__file__).parent / "results" / "recording.csv"
BAR = 0.95
COLUMNS = {
    "threads": "threads",
    "recorded": "recorded",
    "plain_images_per_second": "plain",
    "images_per_second": "recorded",
    "ratio": "ratio",
    "ratio_quartiles": "quartiles",
    "cpu_ratio": "CPU ratio",
    "cpu_ratio_quartiles": "quartiles",
    "once_seconds": "once, s",
    "kept_mb": "kept, MB",
}


class Batches:
    """Images with labels that data sets would know beforehand; notes when they are asked for."""

    def __init__(self, count: int, batch: int, size: int, classes: int) -> None:
        random = torch.Generator().manual_seed(0)
        # Four batches in turn: an image's values are nothing to the time.
        self.images = [torch.randn(batch, 3, size, size, generator=random) for _ in range(4)]
        self.labels = torch.randint(classes, (count * batch,), generator=random)
        self.dataset = SimpleNamespace(labels=self.labels)
        self.count, self.batch = count, batch
        self.begun = self.ended = self.cpu_begun = self.cpu_ended = 0.0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number, labels in enumerate(self.labels.split(self.batch)):
            if number == 1:
                self.begun, self.cpu_begun = time.perf_counter(), time.process_time()
            yield self.images[number % len(self.images)], labels
        self.ended, self.cpu_ended = time.perf_counter(), time.process_time()

    @property
    def images_per_second(self) -> float:
        return (self.count - 1) * self.batch / (self.ended - self.begun)

    @property
    def images_per_cpu_second(self) -> float:
        return (self.count - 1) * self.batch / (self.cpu_ended - self.cpu_begun)


def plain(model: nn.Module, batches: Batches) -> float:
    with torch.inference_mode():
        for images, _ in batches:
            model(images)
    return 0.0


def recorded(model: nn.Module, batches: Batches, classes: int) -> float:
    """Seconds that recording took before and after the images."""
    start = time.perf_counter()
    senet.record(model, batches, classes=[f"class {k}" for k in range(classes)])
    took = time.perf_counter() - start
    return took - (batches.ended - batches.begun) * batches.count / (batches.count - 1)


def kept_bytes(model: nn.Module, classes: int) -> int:
    """Of the stream's arrays, which are made on the meta device for it."""
    gates = sum(m.channels for m in model.modules() if isinstance(m, senet.SqueezeExcite))
    bounds = torch.zeros(gates, device="meta")
    return GateStream(
        classes, gates, low=bounds, high=bounds, permutations=20, examples=9, expected=None, seed=0
    ).nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--network", default="se_resnet50")
    parser.add_argument("--size", type=int, default=128, help="pixels a side")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batches", type=int, default=17, help="a run; the first is not timed")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[torch.get_num_threads()], help="CPU threads"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="the CSV file")
    given = parser.parse_args()
    model = senet.create_model(given.network, num_classes=1000).eval()
    rows: list[dict[str, object]] = []
    for threads in given.threads:
        torch.set_num_threads(threads)
        kinds = {"10 classes": 10, "1,000 classes": 1000}
        speeds: dict[str, list[float]] = {}
        cpu_speeds: dict[str, list[float]] = {}
        once: dict[str, list[float]] = {}
        runs: dict[str, tuple[int, Callable[[Batches], float]]] = {
            "plain": (10, lambda b: plain(model, b)),
            "nothing (A/A)": (10, lambda b: plain(model, b)),
        }
        for name, classes in kinds.items():
            runs[name] = (classes, lambda b, k=classes: recorded(model, b, k))  # type: ignore[misc]
        names = list(runs)
        for number in range(-1, given.rounds):  # the first round warms up
            first = number % len(names)
            for name in names[first:] + names[:first]:
                classes, run = runs[name]
                batches = Batches(given.batches, given.batch, given.size, classes)
                seconds = run(batches)
                if number >= 0:
                    speeds.setdefault(name, []).append(batches.images_per_second)
                    cpu_speeds.setdefault(name, []).append(batches.images_per_cpu_second)
                    once.setdefault(name, []).append(seconds)
        for name in names[1:]:
            low, ratio, high = quartiles(speeds[name], speeds["plain"])
            cpu_low, cpu_ratio, cpu_high = quartiles(cpu_speeds[name], cpu_speeds["plain"])
            is_recorded = name in kinds
            rows.append(
                {
                    **describe(),
                    "network": given.network,
                    "image_size": given.size,
                    "batch_size": given.batch,
                    "rounds": given.rounds,
                    "recorded": name,
                    "plain_images_per_second": round(statistics.median(speeds["plain"]), 1),
                    "images_per_second": round(statistics.median(speeds[name]), 1),
                    "ratio": round(ratio, 4),
                    "ratio_quartiles": f"{low:.4f}-{high:.4f}",
                    "cpu_ratio": round(cpu_ratio, 4),
                    "cpu_ratio_quartiles": f"{cpu_low:.4f}-{cpu_high:.4f}",
                    "once_seconds": round(statistics.median(once[name]), 2) if is_recorded else "",
                    "kept_mb": (
                        round(kept_bytes(model, kinds[name]) / 1e6, 1) if is_recorded else ""
                    ),
                }
            )
    table = Table(title=f"images a second; the bar is {BAR} of plain inference")
    for head in COLUMNS.values():
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(*(str(row[name]) for name in COLUMNS))
    Console(width=140).print(table)
    text = as_csv(rows).encode()
    atomic_write(given.out, lambda file: file.write(text))
    print(f"written: {given.out}")


if __name__ == "__main__":
    main()
