"""`senet.record` beside plain inference of the same network: images a second, in turn.

    python benchmarks/recording.py

Three copies of one network run over the same batches, each batch through one after the other: two
by themselves, in evaluation and inference mode, the second as a control (A/A), and one that is
recorded, with ten classes and with a thousand. A round gives each the ratio to plain inference of
the same round; the table and ``results/recording.csv`` have medians, with quartiles. What is timed
goes from the second batch to the last, by default 128 images, whose gates are looked at once, and
which are the first and dearest of a recording: every channel has new extremes. What recording takes
once, however many images come (its arrays before, the null at the end), is in a column of its own,
as are the bytes that it keeps. The ratio by this process's CPU time stands beside that by the
clock: on a shared machine it is the steadier of the two, with several threads the less telling. The
bar is 0.95 by the clock.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import senet
from senet.benchmarking import CONTROL, PLAIN, as_csv, ratio_columns
from senet.gate_streams import GateStream
from senet.machine import describe
from senet.runs import atomic_write

RESULTS = Path(__file__).parent / "results" / "recording.csv"
BAR = 0.95
RECORDED = "recorded"
CLASSES = 10, 1000
COLUMNS = {
    "threads": "threads",
    "classes": "classes",
    "plain_images_per_second": "plain",
    "images_per_second": "recorded",
    "ratio": "ratio",
    "ratio_quartiles": "quartiles",
    "control": "A/A",
    "control_quartiles": "quartiles",
    "cpu_ratio": "CPU ratio",
    "once_seconds": "once, s",
    "kept_mb": "kept, MB",
}


class Turns:
    """Batches with labels that data sets would know beforehand; each runs through ``beside`` too.

    Args:
        beside: networks that run for themselves, before a batch is given out or after.
        count, batch, size, classes: batches, images in each, pixels a side, and labels.
    """

    def __init__(
        self, beside: dict[str, nn.Module], count: int, batch: int, size: int, classes: int
    ) -> None:
        random = torch.Generator().manual_seed(0)
        # Four batches in turn: an image's values are nothing to the time.
        self.images = [torch.randn(batch, 3, size, size, generator=random) for _ in range(4)]
        self.labels = torch.randint(classes, (count * batch,), generator=random)
        self.dataset = SimpleNamespace(labels=self.labels)
        self.beside = beside
        self.batch = batch
        self.timed = (count - 1) * batch
        self.seconds = dict.fromkeys((*beside, RECORDED), 0.0)
        self.cpu_seconds = dict(self.seconds)
        self.all_seconds = dict(self.seconds)  # the first batch's too

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number, labels in enumerate(self.labels.split(self.batch)):
            images = self.images[number % len(self.images)]
            order = [*self.beside, RECORDED]
            first = number % len(order)
            for name in order[first:] + order[:first]:
                begun, cpu_begun = time.perf_counter(), time.process_time()
                if name == RECORDED:
                    yield images, labels  # until the next is asked for
                else:
                    with torch.inference_mode():
                        self.beside[name](images)
                seconds = time.perf_counter() - begun
                self.all_seconds[name] += seconds
                if number:
                    self.seconds[name] += seconds
                    self.cpu_seconds[name] += time.process_time() - cpu_begun

    @property
    def of_forwards(self) -> float:
        """Seconds of all forwards; the first recorded one counts as the mean of the others."""
        recorded = self.seconds[RECORDED] * len(self.labels) / self.timed
        return recorded + sum(self.all_seconds[name] for name in self.beside)


def kept_bytes(model: nn.Module, classes: int) -> int:
    """Of the stream's arrays, which are made on the meta device for it."""
    gates = sum(m.channels for m in model.modules() if isinstance(m, senet.SqueezeExcite))
    bounds = torch.zeros(gates, device="meta")
    return GateStream(
        classes, gates, low=bounds, high=bounds, permutations=20, examples=9, expected=None, seed=0
    ).nbytes


def speed(runs: list[Turns], name: str) -> float:
    """Images a second, the median over rounds."""
    return statistics.median(run.timed / run.seconds[name] for run in runs)


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
    beside = {PLAIN: copy.deepcopy(model), CONTROL: copy.deepcopy(model)}
    rows: list[dict[str, object]] = []
    for threads, classes in itertools.product(given.threads, CLASSES):
        torch.set_num_threads(threads)
        runs, once = [], []
        for number in range(-1, given.rounds):  # the first round warms up
            turns = Turns(beside, given.batches, given.batch, given.size, classes)
            begun = time.perf_counter()
            senet.record(model, turns, classes=[f"class {k}" for k in range(classes)])
            took = time.perf_counter() - begun
            if number >= 0:
                runs.append(turns)
                once.append(took - turns.of_forwards)
        seconds = {name: [run.seconds[name] for run in runs] for name in runs[0].seconds}
        cpu_seconds = {name: [run.cpu_seconds[name] for run in runs] for name in seconds}
        rows.append(
            {
                **describe(),
                "network": given.network,
                "image_size": given.size,
                "batch_size": given.batch,
                "rounds": given.rounds,
                "classes": classes,
                "plain_images_per_second": round(speed(runs, PLAIN), 1),
                "images_per_second": round(speed(runs, RECORDED), 1),
                # Of speeds, which are one over the seconds.
                **ratio_columns("ratio", seconds[PLAIN], seconds[RECORDED]),
                **ratio_columns("control", seconds[PLAIN], seconds[CONTROL]),
                **ratio_columns("cpu_ratio", cpu_seconds[PLAIN], cpu_seconds[RECORDED]),
                "once_seconds": round(statistics.median(once), 2),
                "kept_mb": round(kept_bytes(model, classes) / 1e6, 1),
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
