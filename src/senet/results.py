"""Measured accuracies that are kept as CSV files, a row a run, and what they come to."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from .errors import UserError

__all__ = ["COLUMNS", "Measured", "Result", "read_results", "summarise"]

COLUMNS = ("network", "data", "variant", "seed", "top1", "top5", "date", "device")
"""What every file has, among other columns."""


@dataclass(frozen=True)
class Result:
    """One run.

    Args:
        source: the file's path in the folder, without its ending.
        network, data, variant: what was trained, on what, and what the sweep called it.
        seed: of the run.
        top1, top5: accuracies of 1; top-5 is None where there is none.
        date, device: when and on what.
    """

    source: str
    network: str
    data: str
    variant: str
    seed: int
    top1: float
    top5: float | None
    date: str
    device: str


@dataclass(frozen=True)
class Measured:
    """The runs of one file that differ in their seed alone.

    Args:
        source, network, data: as in `Result`.
        runs: how many.
        top1, top5: mean errors in per cent; top-5 is None where a run has none.
        deviation: sample standard deviation of the top-1 error; None for a single run.
        devices, dates: of the runs, each once.
    """

    source: str
    network: str
    data: str
    runs: int
    top1: float
    top5: float | None
    deviation: float | None
    devices: tuple[str, ...]
    dates: tuple[str, ...]

    def __str__(self) -> str:
        error = f"{self.top1:.2f}"
        error += "" if self.deviation is None else f" ± {self.deviation:.2f}"
        error += "" if self.top5 is None else f" / {self.top5:.2f}"
        runs = "1 run" if self.runs == 1 else f"{self.runs} runs"
        return f"{error} ({self.network}, {self.data}, {runs})"


def read_results(folder: Path) -> list[Result]:
    """The runs in all ``*.csv`` of a folder, and in ``results.csv`` of the sweeps in it.

    Those without a top-1, which failed, are left out.

    Raises:
        UserError: no such folder, no CSV in it, a file that cannot be read or lacks a column, a
            value that makes no sense, or the same run twice in a file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"results is {str(folder)!r}, which is no folder")
    files = [*sorted(folder.glob("*.csv")), *sorted(folder.glob("*/results.csv"))]
    if not files:
        raise UserError(
            f"there is no .csv in {str(folder)!r}, nor a sweep's results.csv in a folder of it"
        )
    return [result for file in files for result in _read(file, folder)]


def _read(path: Path, folder: Path) -> list[Result]:
    source = path.relative_to(folder).with_suffix("").as_posix()
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            lacking = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if lacking:
                raise UserError(
                    f"{path} has no column {', '.join(map(repr, lacking))}; results have "
                    f"{', '.join(COLUMNS)}"
                )
            found = list(_parsed(path, source, reader))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    seen: set[tuple[object, ...]] = set()
    for one in found:
        run = (one.network, one.data, one.variant, one.seed)
        if run in seen:
            raise UserError(
                f"{path} has {one.variant!r} of {one.network!r} with seed {one.seed} twice"
            )
        seen.add(run)
    return found


def _parsed(path: Path, source: str, reader: csv.DictReader[str]) -> Iterator[Result]:
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if None in row or None in row.values():
            raise UserError(f"{where}: {len(reader.fieldnames or ())} values were expected")
        if not row["top1"].strip():
            continue
        try:
            seed = int(row["seed"])
        except ValueError:
            raise UserError(
                f"{where}: seed is {row['seed']!r}, but must be a whole number"
            ) from None
        yield Result(
            *(source, row["network"], row["data"], row["variant"], seed),
            top1=_accuracy(where, "top1", row["top1"]),
            top5=_accuracy(where, "top5", row["top5"]) if row["top5"].strip() else None,
            date=row["date"],
            device=row["device"],
        )


def _accuracy(where: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UserError(f"{where}: {name} is {text!r}, but must be an accuracy from 0 to 1")
    return value


def summarise(results: Iterable[Result]) -> tuple[Measured, ...]:
    """Means and deviations over the seeds, for each file, network, data set and variant."""
    groups: dict[tuple[str, str, str, str], list[Result]] = {}
    for one in results:
        groups.setdefault((one.source, one.network, one.data, one.variant), []).append(one)
    return tuple(_summary(group) for group in groups.values())


def _summary(group: list[Result]) -> Measured:
    first = group[0]
    errors = [100 * (1 - one.top1) for one in group]
    fives = [100 * (1 - one.top5) for one in group if one.top5 is not None]
    return Measured(
        *(first.source, first.network, first.data, len(group)),
        top1=fmean(errors),
        top5=fmean(fives) if len(fives) == len(group) else None,
        deviation=stdev(errors) if len(errors) > 1 else None,
        devices=tuple(dict.fromkeys(one.device for one in group)),
        dates=tuple(dict.fromkeys(one.date for one in group)),
    )
