"""`senet train`'s loop against a bare PyTorch loop and timm's: images a second, in turn.

    python benchmarks/trainer.py

All train the same network from the same weights on the same images, in batches of the same size
with the same augmentation, by the same kind of optimizer and schedule (fused in senet's and the
bare loop, in timm's as its factory makes it); validation and checkpoints are outside the clock of
all. timm has no trainer to import: its contender is the loop of its training script, with timm's
factories for loader, optimizer and scheduler. Digits are in memory, which timm's loader does not
know, so there timm's loop gets our batches; on the folder of JPEG files, which is made for the
purpose, each reads, crops and flips by itself, in two workers. They, and the bare loop once more as
a control (A/A), take a step each in turn, fetching and training: the others whenever senet's asks
for its next batch. Each round trains anew and gives one ratio, of the median steps between the
first and the last (after workers are forked, steps copy the pages that they share with them). The
table and ``results/trainer.csv`` have the medians of the rounds, with the quartiles as spread. The
bars are 0.95 of the bare loop, and timm's speed.

The loaders are timed by themselves too, on the same JPEG files, beside the training that they
feed: ``results/trainer-loading.csv``. Where a loader's ratio to training is above 1, it is not what
training waits for.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
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

from senet.benchmarking import as_csv, ratio_columns
from senet.classifier import seed_everything
from senet.data import ImageData, load_data, train_loader, val_loader
from senet.fitting import fit, make_trainer
from senet.machine import describe
from senet.optimization import make_optimizer, make_schedule
from senet.options import TrainOptions
from senet.run_network import build
from senet.runs import atomic_write
from senet.training import data_options_of

RESULTS = Path(__file__).parent / "results" / "trainer.csv"
LOADING = "trainer-loading.csv"
BAR = 0.95
OURS, BARE, TIMM, AGAIN = "senet", "bare", "timm", "again"
CLASSES, EACH = 4, 128
"""The folder of JPEG files: so many classes, so many training images of each."""
JPEGS = TrainOptions(
    model="timm/resnet18",
    data="JPEG",
    batch_size=32,
    epochs=1,
    image_size=64,
    workers=2,
    limit_batches=8,
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


class Turns:
    """The loader of senet's loop, which has the others take a step before each batch.

    Args:
        loader: gives the batches.
        others: the other loops, each of which yields when it is ready, and after each step.
        limit: steps, or None for all batches.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        others: dict[str, Generator[None, None, None]],
        limit: int | None,
    ) -> None:
        self.loader, self.sampler = loader, loader.sampler
        self.others = others
        self.length = min(limit or len(loader), len(loader))
        self.seconds: dict[str, list[float]] = {name: [] for name in (*others, OURS)}

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        # All workers are forked before the first step: the pages that the loops share with them
        # from then on are copied when they are first written to.
        for other in self.others.values():
            next(other)
        batches = iter(self.loader)
        for number in range(self.length):
            first = number % len(self.others)
            names = list(self.others)
            for name in names[first:] + names[:first]:
                with self._clock(name):
                    next(self.others[name])
            with self._clock(OURS):  # until the next batch is asked for
                yield next(batches)

    @contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[name].append(time.perf_counter() - begun)


def ours(case: Case, loader: Turns) -> None:
    """`senet train`'s loop."""
    with tempfile.TemporaryDirectory() as place:
        trainer = make_trainer(
            case.options, Path(place), export=lambda row: None, report=lambda row: None
        )
        fit(
            trainer,
            copy.deepcopy(case.model),
            loader,  # type: ignore[arg-type]
            val_loader(case.data, data_options_of(case.options)),
            case.options,
            Path(place),
            classes=len(case.data.classes),
        )


def bare(case: Case) -> Generator[None, None, None]:
    """The loop one writes by hand."""
    loader = train_loader(case.data, data_options_of(case.options))
    model = copy.deepcopy(case.model).train()
    optimizer = make_optimizer(model, case.options)
    schedule = make_schedule(optimizer, case.options, len(loader))
    batches = iter(loader)
    yield
    for x, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
        schedule.step()
        yield


def of_timm(case: Case) -> Generator[None, None, None]:
    """The loop in timm's training script, for one process on the CPU."""
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
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=options.epochs,
        step_on_epochs=False,
        updates_per_epoch=len(loader),
    )
    loss_fn, losses = nn.CrossEntropyLoss(), AverageMeter()
    batches = iter(loader)
    yield
    for number, (x, target) in enumerate(batches):
        x, target = x.to("cpu"), target.to("cpu")
        loss = loss_fn(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.update(loss.item(), x.size(0))
        scheduler.step_update(num_updates=number + 1, metric=losses.avg)
        yield


def training(case: Case, rounds: int) -> dict[str, list[float]]:
    """Images a second of each loop in each round."""
    speeds: dict[str, list[float]] = {OURS: [], BARE: [], TIMM: [], AGAIN: []}
    for number in range(-1, rounds):  # the first round warms up
        for name, seconds in _epoch(case).items():
            if number >= 0:
                speeds[name].append(case.options.batch_size / statistics.median(seconds))
        gc.collect()  # else workers of this round would be looked after in those of the next
    return speeds


def _epoch(case: Case) -> dict[str, list[float]]:
    """The seconds of each loop's steps but for the first and the last."""
    others = {BARE: bare(case), TIMM: of_timm(case), AGAIN: bare(case)}
    loader = train_loader(case.data, data_options_of(case.options))
    turns = Turns(loader, others, case.options.limit_batches)
    ours(case, turns)
    for other in others.values():
        other.close()
    # The last of ours ends in validation, and has no time.
    return {name: seconds[1 : len(turns) - 1] for name, seconds in turns.seconds.items()}


def _timms_loader(case: Case) -> DataLoader[Any]:
    """timm's loader of the folder of JPEG files, with the crops and flips of ours."""
    assert case.folder is not None
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


def loading(case: Case, rounds: int) -> dict[str, list[float]]:
    """Images a second of the two loaders in each round, one after the other."""
    speeds: dict[str, list[float]] = {OURS: [], TIMM: []}
    loaders = {OURS: our_loading, TIMM: timms_loading}
    for number in range(-1, rounds):  # the first round warms up
        for name in list(loaders)[:: 1 if number % 2 else -1]:
            speed = loaders[name](case)
            if number >= 0:
                speeds[name].append(speed)
    return speeds


def row_of(case: Case, speeds: dict[str, list[float]], rounds: int) -> dict[str, object]:
    return {
        **_what(case, rounds),
        "bare_images_per_second": round(statistics.median(speeds[BARE]), 1),
        "timm_images_per_second": round(statistics.median(speeds[TIMM]), 1),
        "senet_images_per_second": round(statistics.median(speeds[OURS]), 1),
        **ratio_columns("ratio", speeds[OURS], speeds[BARE]),
        **ratio_columns("timm_ratio", speeds[OURS], speeds[TIMM]),
        **ratio_columns("control", speeds[AGAIN], speeds[BARE]),
    }


def loading_row_of(
    case: Case, trained: list[float], speeds: dict[str, list[float]], rounds: int
) -> dict[str, object]:
    return {
        **_what(case, rounds),
        "workers": case.options.workers,
        "training_images_per_second": round(statistics.median(trained), 1),
        "senet_images_per_second": round(statistics.median(speeds[OURS]), 1),
        "timm_images_per_second": round(statistics.median(speeds[TIMM]), 1),
        "ratio": round(statistics.median(speeds[OURS]) / statistics.median(trained), 4),
        **ratio_columns("timm_ratio", speeds[OURS], speeds[TIMM]),
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
    rows, loading_rows = [], []
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
                speeds = training(case, given.rounds)
                rows.append(row_of(case, speeds, given.rounds))
                print({name: rows[-1][name] for name in COLUMNS}, file=sys.stderr, flush=True)
                if folder:
                    alone = loading(case, given.rounds)
                    loading_rows.append(loading_row_of(case, speeds[OURS], alone, given.rounds))
    show(f"images a second; the bar is {BAR} of the bare loop, and timm's speed", COLUMNS, rows)
    show("loading alone, images a second, beside training", LOADING_COLUMNS, loading_rows)
    for path, table in ((given.out, rows), (given.out.with_name(LOADING), loading_rows)):
        text = as_csv(table).encode()
        atomic_write(path, lambda file, text=text: file.write(text))
        print(f"written: {path}")


if __name__ == "__main__":
    main()
