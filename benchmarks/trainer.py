"""`senet train`'s loop against a bare PyTorch loop: images a second, in turn, in one process.

    python benchmarks/trainer.py

Both train the same network from the same weights on the same batches, from the same kind of
loader, with the same optimizer and schedule; validation and checkpoints are outside the clock of
both. The two, and the bare loop once more as a control (A/A), run in turn, about a
second each; a round gives one ratio. The table and ``results/trainer.csv`` have the medians
of the rounds, with the quartiles as spread. The bar is a ratio of 0.95.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from senet.benchmarking import as_csv
from senet.data import ImageData, load_data, train_loader, val_loader
from senet.fitting import fit, make_trainer, seed_everything
from senet.machine import describe
from senet.optimization import make_optimizer, make_schedule
from senet.options import TrainOptions
from senet.runs import atomic_write
from senet.timing import quartiles
from senet.training import build, data_options_of

RESULTS = Path(__file__).parent / "results" / "trainer.csv"
BAR = 0.95
CASES = (
    TrainOptions(model="resnet20", batch_size=32, epochs=1, limit_batches=16),
    TrainOptions(model="se_resnet20", batch_size=64, epochs=1, limit_batches=8),
    TrainOptions(model="se_resnet20", batch_size=32, epochs=1, limit_batches=8, image_size=32),
)
COLUMNS = {
    "threads": "threads",
    "model": "model",
    "image_size": "px",
    "batch_size": "batch",
    "bare_images_per_second": "bare",
    "senet_images_per_second": "senet",
    "ratio": "ratio",
    "ratio_quartiles": "quartiles",
    "control": "A/A",
    "control_quartiles": "quartiles",
}


@dataclass(frozen=True)
class Case:
    """What both loops are given."""

    options: TrainOptions
    data: ImageData
    model: nn.Module


def ours(case: Case) -> float:
    """Images a second of `senet train`'s loop, as its metrics.csv has it."""
    options = data_options_of(case.options)
    with tempfile.TemporaryDirectory() as place:
        trainer = make_trainer(
            case.options, Path(place), export=lambda row: None, report=lambda row: None
        )
        (row,) = fit(
            trainer,
            copy.deepcopy(case.model),
            train_loader(case.data, options),
            val_loader(case.data, options),
            case.options,
            Path(place),
            classes=len(case.data.classes),
        )
    return row.images_per_second


def bare(case: Case) -> float:
    """Images a second of the loop one writes by hand."""
    model = copy.deepcopy(case.model).train()
    loader = train_loader(case.data, data_options_of(case.options))
    optimizer = make_optimizer(model, case.options)
    schedule = make_schedule(optimizer, case.options, case.options.limit_batches or len(loader))
    seed_everything(case.options.seed, 0, 0)
    images = 0
    begin = time.perf_counter()
    for x, labels in islice(loader, case.options.limit_batches):
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
        schedule.step()
        images += len(x)
    return images / (time.perf_counter() - begin)


def measure(case: Case, rounds: int) -> dict[str, list[float]]:
    """Images a second of each contestant in each round; the order turns with the rounds."""
    contestants: dict[str, Callable[[Case], float]] = {"ours": ours, "bare": bare, "again": bare}
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for number in range(-1, rounds):  # the first round warms up
        for name in names[number % 3 :] + names[: number % 3]:
            speed = contestants[name](case)
            if number >= 0:
                speeds[name].append(speed)
    return speeds


def row_of(case: Case, speeds: dict[str, list[float]], rounds: int) -> dict[str, object]:
    low, ratio, high = quartiles(speeds["ours"], speeds["bare"])
    control_low, control, control_high = quartiles(speeds["again"], speeds["bare"])
    return {
        **describe(),
        "lightning": version("lightning"),
        "model": case.options.model,
        "image_size": case.data.image_size,
        "batch_size": case.options.batch_size,
        "rounds": rounds,
        "bare_images_per_second": round(statistics.median(speeds["bare"]), 1),
        "senet_images_per_second": round(statistics.median(speeds["ours"]), 1),
        "ratio": round(ratio, 4),
        "ratio_quartiles": f"{low:.4f}-{high:.4f}",
        "control": round(control, 4),
        "control_quartiles": f"{control_low:.4f}-{control_high:.4f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=31, help="rounds a case")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, torch.get_num_threads()], help="CPU threads"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="the CSV file")
    given = parser.parse_args()
    rows = []
    for threads in dict.fromkeys(given.threads):
        torch.set_num_threads(threads)
        for options in CASES:
            options = replace(options, accelerator="cpu", threads=threads)
            data = load_data(data_options_of(options))
            seed_everything(options.seed)
            case = Case(options, data, build(options, num_classes=len(data.classes)))
            rows.append(row_of(case, measure(case, given.rounds), given.rounds))
    table = Table(title=f"senet train over a bare loop (images a second); the bar is {BAR}")
    for title in COLUMNS.values():
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(*(str(row[name]) for name in COLUMNS))
    Console(width=110).print(table)
    atomic_write(given.out, lambda file: file.write(as_csv(rows).encode()))
    print(f"written: {given.out}")


if __name__ == "__main__":
    main()
