"""The images of a run, held out as they were in training and framed as its network takes them."""

from __future__ import annotations

import sys
from pathlib import Path

from .. import runs
from ..data import DataOptions, ImageData, load_data
from ..errors import UserError
from ..image_sets import Framing
from ..options import TrainOptions, read_options
from ..training import CONFIG

__all__ = ["data_of_run"]


def data_of_run(
    run: Path,
    card: runs.ModelCard,
    *,
    data: str | None,
    data_root: str | None,
    batch_size: int,
    workers: int,
    cache: bool = False,
) -> ImageData:
    """Both parts of the data that a run was trained on, or of other data with its classes.

    All that this takes is in the card; config.yaml adds where data sets are kept.

    Args:
        run: the directory.
        card: of the run.
        data: a data set or folder; None is what the run was trained on.
        data_root: where downloaded data sets are kept; None is where the run had them.
        batch_size, workers, cache: see `senet.data.DataOptions`.

    Raises:
        UserError: the data cannot be read, or has other classes.
    """
    config = run / CONFIG
    options = read_options(config, whole=True) if config.exists() else TrainOptions()
    found = load_data(
        DataOptions(
            data=data or card.data,
            val_data=None if data else options.val_data,
            data_root=Path(data_root or options.data_root),
            download=options.download,
            batch_size=batch_size,
            workers=workers,
            cache=cache,
            image_size=card.image_size,
            augment=False,
            val_fraction=card.val_fraction,
            seed=card.seed,
        ),
        pipes=data is not None,
        progress=sys.stderr.isatty(),
    )
    if found.classes != card.classes:
        raise UserError(
            f"{data or card.data} has other classes than {run}: "
            f"{_difference(found.classes, card.classes)}"
        )
    for images in (found.train, found.val):  # whatever the data set's own normalisation is
        images.framing = Framing(card.image_size, card.mean, card.std)
    return found


def _difference(found: tuple[str, ...], expected: tuple[str, ...]) -> str:
    if len(found) != len(expected):
        return f"{len(found)} of them, not {len(expected)}"
    label = next(i for i, pair in enumerate(zip(found, expected, strict=True)) if len({*pair}) > 1)
    return f"class {label} is {found[label]!r} there and {expected[label]!r} in the run"
