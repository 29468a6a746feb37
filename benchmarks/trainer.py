"""`senet train`'s loop against a bare PyTorch loop and timm's: images a second, in turn.

    python benchmarks/trainer.py

All train the same network from the same weights on the same images, in batches of the same size
with the same augmentation, by the same kind of optimizer and schedule; validation and checkpoints
are outside the clock of all. timm has no trainer to import: its contender is the loop of its
training script, with timm's factories for loader, optimizer and scheduler. Digits are in memory,
which timm's loader does not know, so there timm's loop gets our batches; on the folder of JPEG
files, which is made for the purpose, each reads, crops and flips by itself, in two workers.
They, and the bare loop once more as a control (A/A), run in turn, a few seconds each, in one
process; a round gives one ratio. The table and ``results/trainer.csv`` have the medians of the
rounds, with the quartiles as spread. The bars are 0.95 of the bare loop, and timm's speed.

The loaders are timed by themselves too, on the same JPEG files, beside the training that they
feed: ``results/trainer-loading.csv``. Where a loader's ratio to training is above 1, it is not what
training waits for.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from timm.data import create_loader
from timm.data.dataset import ImageDataset
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from senet.benchmarking import as_csv
from senet.classifier import seed_everything
from senet.data import ImageData, load_data, train_loader, val_loader
from senet.fitting import fit, make_trainer
from senet.machine import describe
from senet.optimization import make_optimizer, make_schedule
from senet.options import TrainOptions
from senet.run_network import build
from senet.runs import atomic_write
from senet.timing import quartiles
from senet.training import data_options_of

RESULTS = Path(__file__).parent / "results" / "trainer.csv"
LOADING = "trainer-loading.csv"
BAR = 0.95
CLASSES, EACH = 4, 128
"""The folder of JPEG files: so many classes, so many training images of each."""
JPEGS = TrainOptions(
    model="timm/resnet18", data="JPEG", batch_size=32, epochs=1, image_size=64, workers=2
)
CASES = (
    TrainOptions(model="resnet20", batch_size=32, epochs=1, limit_batches=16),
    TrainOptions(model="se_resnet20", batch_size=64, epochs=1, limit_batches=8),
    TrainOptions(model="se_resnet20", batch_size=32, epochs=1, limit_batches=8, image_size=32),
)
COLUMNS = {
    "threads": "threads",
    "model": "model",
    "data": "data",
    "image_size": "px",
    "batch_size": "batch",
    "bare_images_per_second": "bare",
    "timm_images_per_second": "timm",
    "senet_images_per_second": "senet",
    "ratio": "/bare",
    "ratio_quartiles": "quartiles",
    "timm_ratio": "/timm",
    "timm_ratio_quartiles": "quartiles",
    "control": "A/A",
    "control_quartiles": "quartiles",
}
LOADING_COLUMNS = {
    "threads": "threads",
    "workers": "workers",
    "image_size": "px",
    "training_images_per_second": "training",
    "senet_images_per_second": "senet's loader",
    "timm_images_per_second": "timm's loader",
    "ratio": "senet's / training",
    "timm_ratio": "senet's / timm's",
    "timm_ratio_quartiles": "quartiles",
}


@dataclass(frozen=True)
class Case:
    """What all loops are given; ``folder`` is where the images are files."""

    options: TrainOptions
    data: ImageData
    model: nn.Module
    folder: Path | None = None


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


def of_timm(case: Case) -> float:
    """Images a second of the loop in timm's training script, for one process on the CPU."""
    model, options = copy.deepcopy(case.model).train(), case.options
    loader = (
        _timms_loader(case) if case.folder else train_loader(case.data, data_options_of(options))
    )
    optimizer = create_optimizer_v2(
        model,
        opt="sgd",
        lr=options.peak_lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
    )
    batches = options.limit_batches or len(loader)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=options.epochs,
        step_on_epochs=False,
        updates_per_epoch=batches,
    )
    loss_fn, losses = nn.CrossEntropyLoss(), AverageMeter()
    seed_everything(options.seed, 0, 0)
    images = 0
    begin = time.perf_counter()
    for number, (x, target) in enumerate(islice(loader, options.limit_batches)):
        x, target = x.to("cpu"), target.to("cpu")
        loss = loss_fn(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.update(loss.item(), x.size(0))
        scheduler.step_update(num_updates=number + 1, metric=losses.avg)
        images += len(x)
    return images / (time.perf_counter() - begin)


def _timms_loader(case: Case) -> DataLoader[Any]:
    """timm's loader of the folder of JPEG files, with the crops and flips of ours."""
    loader: DataLoader[Any] = create_loader(
        ImageDataset(str(case.folder / "train")),
        input_size=(3, case.data.image_size, case.data.image_size),
        batch_size=case.options.batch_size,
        is_training=True,
        color_jitter=None,
        mean=case.data.mean,
        std=case.data.std,
        num_workers=case.options.workers,
        device=torch.device("cpu"),
        use_prefetcher=False,
    )
    return loader


def our_loading(case: Case) -> float:
    """Images a second of our loader, nothing done with them; its workers' start is not counted."""
    return _loading(train_loader(case.data, data_options_of(case.options)))


def timms_loading(case: Case) -> float:
    """Images a second of timm's, likewise."""
    return _loading(_timms_loader(case))


def _loading(loader: DataLoader[Any]) -> float:
    for _ in loader:  # starts the workers, which persist
        pass
    begin = time.perf_counter()
    images = sum(len(x) for x, _ in loader)
    return images / (time.perf_counter() - begin)


def measure(
    case: Case, rounds: int, contestants: Mapping[str, Callable[[Case], float]]
) -> dict[str, list[float]]:
    """Images a second of each contestant in each round; the order turns with the rounds."""
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for number in range(-1, rounds):  # the first round warms up
        first = number % len(names)
        for name in names[first:] + names[:first]:
            speed = contestants[name](case)
            if number >= 0:
                speeds[name].append(speed)
    return speeds


def row_of(case: Case, speeds: dict[str, list[float]], rounds: int) -> dict[str, object]:
    return {
        **_what(case, rounds),
        "bare_images_per_second": round(statistics.median(speeds["bare"]), 1),
        "timm_images_per_second": round(statistics.median(speeds["timm"]), 1),
        "senet_images_per_second": round(statistics.median(speeds["ours"]), 1),
        **_ratio("ratio", speeds["ours"], speeds["bare"]),
        **_ratio("timm_ratio", speeds["ours"], speeds["timm"]),
        **_ratio("control", speeds["again"], speeds["bare"]),
    }


def loading_row_of(
    case: Case, training: list[float], speeds: dict[str, list[float]], rounds: int
) -> dict[str, object]:
    return {
        **_what(case, rounds),
        "workers": case.options.workers,
        "training_images_per_second": round(statistics.median(training), 1),
        "senet_images_per_second": round(statistics.median(speeds["ours"]), 1),
        "timm_images_per_second": round(statistics.median(speeds["timm"]), 1),
        "ratio": round(statistics.median(speeds["ours"]) / statistics.median(training), 4),
        **_ratio("timm_ratio", speeds["ours"], speeds["timm"]),
    }


def _what(case: Case, rounds: int) -> dict[str, object]:
    return {
        **describe(),
        "lightning": version("lightning"),
        "model": case.options.model,
        "data": "JPEG files" if case.folder else case.options.data,
        "image_size": case.data.image_size,
        "batch_size": case.options.batch_size,
        "rounds": rounds,
    }


def _ratio(name: str, own: list[float], other: list[float]) -> dict[str, object]:
    low, ratio, high = quartiles(own, other)
    return {name: round(ratio, 4), f"{name}_quartiles": f"{low:.4f}-{high:.4f}"}


def make_jpegs(folder: Path) -> Path:
    """A folder of photographs' size and smoothness: random patterns, 160 × 120, quality 90."""
    rng = np.random.default_rng(0)
    for part, each in (("train", EACH), ("val", 8)):
        for label in range(CLASSES):
            place = folder / part / f"class{label}"
            place.mkdir(parents=True)
            for number in range(each):
                rough = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
                rough.resize((160, 120), Image.Resampling.BICUBIC).save(
                    place / f"{number:04}.jpg", quality=90
                )
    return folder


def show(title: str, columns: Mapping[str, str], rows: Sequence[dict[str, object]]) -> None:
    table = Table(title=title)
    for head in columns.values():
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(*(str(row[name]) for name in columns))
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=31, help="rounds a case")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, torch.get_num_threads()], help="CPU threads"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="the CSV file")
    given = parser.parse_args()
    rows, loading = [], []
    loops = {"ours": ours, "bare": bare, "timm": of_timm, "again": bare}
    loaders = {"ours": our_loading, "timm": timms_loading}
    with tempfile.TemporaryDirectory() as place:
        jpegs = make_jpegs(Path(place, "jpegs"))
        for threads in dict.fromkeys(given.threads):
            torch.set_num_threads(threads)
            for options in (*CASES, replace(JPEGS, data=str(jpegs))):
                options = replace(options, accelerator="cpu", threads=threads)
                data = load_data(data_options_of(options))
                seed_everything(options.seed)
                model = build(options, num_classes=len(data.classes))
                folder = jpegs if options.data == str(jpegs) else None
                case = Case(options, data, model, folder)
                speeds = measure(case, given.rounds, loops)
                rows.append(row_of(case, speeds, given.rounds))
                if folder:
                    alone = measure(case, given.rounds, loaders)
                    loading.append(loading_row_of(case, speeds["ours"], alone, given.rounds))
    show(f"images a second; the bar is {BAR} of the bare loop, and timm's speed", COLUMNS, rows)
    show("loading alone, images a second, beside training", LOADING_COLUMNS, loading)
    for path, table in ((given.out, rows), (given.out.with_name(LOADING), loading)):
        text = as_csv(table).encode()
        atomic_write(path, lambda file, text=text: file.write(text))
        print(f"written: {path}")


if __name__ == "__main__":
    main()
