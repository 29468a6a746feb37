"""The images of a run, held out as they were in training and framed as its network takes them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from .. import runs
from ..catalogue import CATALOGUE
from ..data import DataOptions, ImageData, load_data
from ..errors import UserError
from ..manifests import MANIFEST
from ..options import TrainOptions, read_options
from ..resumption import CONFIG, advice_where_moved
from ..sharded import is_sharded

__all__ = ["add_data_options", "data_of_run", "name_of_data"]


def add_data_options(parser: ArgumentParser) -> None:
    """Where the images are and how they are loaded, as `data_of_run` takes it."""
    parser.add_argument(
        "--data",
        type=str | None,
        default=None,
        help="data set or folder with the classes of the run; null is what it was trained on",
    )
    parser.add_argument(
        "--val_data",
        type=str | None,
        default=None,
        help="pattern of shards to look at, beside a --data of shards; null is what the run had",
    )
    parser.add_argument(
        "--data_root",
        type=str | None,
        default=None,
        help="where downloaded data sets are kept; null is where the run had them",
    )
    parser.add_argument("--batch_size", type=int, default=64, help="images in a batch")
    parser.add_argument("--workers", type=int, default=0, help="processes that load images")


def name_of_data(card: runs.ModelCard, given: Namespace) -> str:
    """The data set, or the folder without those it lies in: those are nobody else's business."""
    return Path(os.path.abspath(given.data or card.data)).name  # of "." too


def data_of_run(
    run: Path, card: runs.ModelCard, given: Namespace, *, cache: bool = False
) -> ImageData:
    """Both parts of the data that a run was trained on, or of other data with its classes.

    All that this takes is in the card; config.yaml adds where data sets are kept.

    Args:
        run: the directory.
        card: of the run.
        given: with the options of `add_data_options`.
        cache: see `senet.data.DataOptions`.

    Raises:
        UserError: the data cannot be read, or has other classes.
    """
    config = run / CONFIG
    options = read_options(config, whole=True) if config.exists() else TrainOptions()
    if given.data and options.val_data and not given.val_data and _is_pattern(given.data):
        # Without them a share of --data would be looked at, and that the network has seen.
        raise UserError(
            f"{run} was validated on shards of their own, {options.val_data!r}; beside --data add "
            "--val_data PATTERN, where they are now"
        )
    wanted = DataOptions(
        data=given.data or card.data,
        val_data=given.val_data or (None if given.data else options.val_data),
        data_root=Path(given.data_root or options.data_root),
        download=options.download,
        batch_size=given.batch_size,
        workers=given.workers,
        cache=cache,
        image_size=card.image_size,
        mean=card.mean,
        std=card.std,
        augment=False,
        val_fraction=card.val_fraction,
        seed=card.seed,
    )
    try:
        found = load_data(wanted, pipes=given.data is not None, progress=sys.stderr.isatty())
    except UserError as error:
        advice = advice_where_moved(wanted.data, wanted.val_data)
        if given.data is None and given.val_data is None and advice:
            raise UserError(f"{error}; {advice}") from error
        raise
    if found.classes != card.classes:
        raise UserError(
            f"{given.data or card.data} has other classes than {run}: "
            f"{_difference(found.classes, card.classes)}"
        )
    if given.data is None and _is_split_by_us(card.data):
        _tell_of_changes(run, found)
    return found


def _is_split_by_us(data: str) -> bool:
    """Whether it is a folder of images without val/, a part of which is held out by the seed."""
    if data in CATALOGUE or is_sharded(data):
        return False
    path = runs.expanded(data)
    return os.path.isdir(path) and not os.path.isdir(path / "val")


def _tell_of_changes(run: Path, now: ImageData) -> None:
    """Say so where files came or went: others are held out then, which may have been trained on."""
    from ..checkpoints import LAST, read_record  # brings Lightning

    try:
        before = read_record(run / LAST).data
    except UserError:
        return  # damaged, which the weights need not be
    if before is not None and (difference := before.difference(now.record())):
        print(
            f"senet: warning: the data has changed since {run} was trained: {difference}; some of "
            "what is held out now may have been trained on",
            file=sys.stderr,
        )


def _is_pattern(data: str) -> bool:
    """Whether it means shards, and no manifest says which of them are held out."""
    path = runs.expanded(data)
    return is_sharded(data) and not os.path.isdir(path) and path.name != MANIFEST


def _difference(found: tuple[str, ...], expected: tuple[str, ...]) -> str:
    if len(found) != len(expected):
        return f"{len(found)} of them, not {len(expected)}"
    label = next(i for i, pair in enumerate(zip(found, expected, strict=True)) if len({*pair}) > 1)
    return f"class {label} is {found[label]!r} there and {expected[label]!r} in the run"
