"""``senet evaluate``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .. import runs
from ..data import ImageData
from ..evaluation import Evaluation, evaluate
from ..loading import ImageLoader
from ..sampling import EpochSampler
from ..watching import workers_told
from .parsing import add_device_and_json, command_parser, parse, pick_device
from .run_data import add_data_options, data_of_run

__all__ = ["main", "parser"]

_MATRIX = 20  # classes up to which the whole confusion matrix is printed, where it fits
_HARDEST = 20  # classes that are listed where it is not


def parser() -> ArgumentParser:
    """The options of the command."""
    made = command_parser(
        "evaluate",
        "Accuracy, confusions and speed of a trained network: the best epoch of a run.",
    )
    made.add_argument("run", type=str, metavar="RUN", help="run directory")
    made.add_argument(
        "--part",
        choices=("val", "train", "all"),
        default="val",
        help="which part of the data: the images held out, those trained on, or both",
    )
    add_data_options(made)
    add_device_and_json(made)
    return made


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    given = parse(parser(), argv)
    device = pick_device(given.device)
    run = Path(given.run)
    card = runs.read_card(run)
    data = data_of_run(run, card, given)
    with workers_told():
        result = evaluate(
            runs.load(run, device=device),
            _batches(data, given),
            classes=card.classes,
            device=device,
            progress=sys.stderr.isatty(),
        )
    if given.json:
        print(result.to_json())
    else:
        where = f"{given.part} of {given.data or card.data}"
        _tell(result, f"{card.name} ({run}) on {where}, {device}")
    return 0


def _batches(data: ImageData, given: Namespace) -> ImageLoader | Iterator[tuple[Tensor, Tensor]]:
    """Batches of the part that was asked for, or of both."""
    loaders = []
    for part, images in (("val", data.val), ("train", data.train)):
        if given.part in (part, "all"):
            sampler = EpochSampler(len(images), seed=0, shuffle=False)
            loader = ImageLoader(
                images, sampler, batch_size=given.batch_size, workers=given.workers
            )
            loaders.append(loader)
    return loaders[0] if len(loaders) == 1 else chain.from_iterable(loaders)


def _tell(result: Evaluation, title: str) -> None:
    top5 = "" if result.top5 is None else f"top-5 {result.top5:.2%}  "
    print(title)
    print(
        f"top-1 {result.top1:.2%}  {top5}loss {result.loss:.4f}  "
        f"{result.images:,} images  {result.images_per_second:,.0f} images/s"
    )
    # The names of classes are shown as they are, also [those] that look like markup.
    console = Console(markup=False, emoji=False, highlight=False)
    names = list(result.per_class)
    matrix = _matrix(result, names) if len(names) <= _MATRIX else None
    if matrix is not None and _fits(matrix, console):
        print("rows: the true class; columns: what was said")
        console.print(matrix)
    else:
        print(f"the {min(_HARDEST, len(names))} classes of lowest accuracy (--json has all)")
        console.print(_hardest(result, names))


def _fits(table: Table, console: Console) -> bool:
    """Whether a table needs no more columns than there are, to show every cell whole."""
    boundless = console.options.update(width=10_000)
    return console.measure(table, options=boundless).maximum <= console.width


def _matrix(result: Evaluation, names: list[str]) -> Table:
    table = Table()
    table.add_column("class")
    table.add_column("accuracy", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    for name, counts in zip(names, result.confusion, strict=True):
        table.add_row(name, _share(result.per_class[name]), *(str(n) if n else "·" for n in counts))
    return table


def _hardest(result: Evaluation, names: list[str]) -> Table:
    table = Table()
    for title in ("class", "accuracy", "most often taken for"):
        table.add_column(title, justify="right" if title == "accuracy" else "left")
    known = [(share, name) for name, share in result.per_class.items() if share is not None]
    for share, name in sorted(known)[:_HARDEST]:
        label = names.index(name)
        wrong = [(n, other) for other, n in enumerate(result.confusion[label]) if other != label]
        count, other = max(wrong)
        table.add_row(name, _share(share), f"{names[other]} ({count})" if count else "–")
    return table


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
