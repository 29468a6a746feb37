"""The results of a sweep, results.csv: a row for each run that has ended."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from ..errors import UserError
from ..runs import atomic_write
from .recipe import Sweep

__all__ = [
    "FAILED",
    "FINISHED",
    "RESULTS",
    "RunResult",
    "as_mapping",
    "in_order",
    "read_results",
    "write_results",
]

RESULTS = Path("results.csv")
FINISHED, FAILED = "finished", "failed"


@dataclass(frozen=True)
class RunResult:
    """A line of results.csv: how one run ended.

    Args:
        variant: of the recipe.
        seed: of the run.
        status: finished or failed.
        network: its name.
        data: the data set, or the folder's name.
        image_size: height and width in pixels; None where the run failed before it was known.
        epochs: that were finished.
        top1: share of the held-out images that the last epoch's weights get right, of 1.
        top5: share whose class is among the five highest logits, likewise.
        best_epoch: the epoch with the highest top-1, on these same images.
        best_top1: its top-1.
        best_top5: its top-5.
        parameters: see `senet.cost.count_parameters`.
        macs: multiply-adds for one image; see `senet.cost.count_macs`.
        seconds: wall clock of all epochs, those before an interruption too.
        device: that it was trained on.
        date: on which it ended.
        versions: of what trained it.
        reason: why it failed.
    """

    variant: str
    seed: int
    status: str
    network: str
    data: str
    image_size: int | None = None
    epochs: int = 0
    top1: float | None = None
    top5: float | None = None
    best_epoch: int | None = None
    best_top1: float | None = None
    best_top5: float | None = None
    parameters: int | None = None
    macs: int | None = None
    seconds: float | None = None
    device: str = ""
    date: str = ""
    versions: str = ""
    reason: str = ""


def write_results(directory: Path, sweep: Sweep, rows: Iterable[RunResult]) -> None:
    """Write results.csv, whole."""
    text = io.StringIO()
    names = [field.name for field in fields(RunResult)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in in_order(sweep, rows))
    data = text.getvalue().encode()
    atomic_write(directory / RESULTS, lambda file: file.write(data))


def read_results(directory: Path) -> list[RunResult]:
    """The rows of results.csv; none where there is no such file yet.

    Raises:
        UserError: it cannot be read or is not what `write_results` wrote.
    """
    path = directory / RESULTS
    if not path.exists():
        return []
    types = get_type_hints(RunResult)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            if reader.fieldnames != list(types):
                raise UserError("its first line is not that of a sweep's results")
            rows = list(reader)
        if any(None in row or None in row.values() for row in rows):
            raise UserError("a line is cut short, or too long")
        return [
            RunResult(**{name: _value(types[name], row[name]) for name in types}) for row in rows
        ]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(
            f"cannot read {path}: {' '.join(str(error).split())}; restore it, or remove it to have "
            "it written anew from the runs"
        ) from None


def as_mapping(rows: Iterable[RunResult]) -> Mapping[tuple[str, int], RunResult]:
    """The rows by variant and seed."""
    return {(row.variant, row.seed): row for row in rows}


def _value(kind: Any, text: str) -> Any:
    if kind is str:
        return text
    if text == "" and kind in (int | None, float | None):
        return None
    return int(text) if kind in (int, int | None) else float(text)


def in_order(sweep: Sweep, rows: Iterable[RunResult]) -> list[RunResult]:
    """The rows by variant, as the recipe has them, and seed."""
    variants = list(sweep.options)
    return sorted(rows, key=lambda row: (variants.index(row.variant), sweep.seeds.index(row.seed)))
