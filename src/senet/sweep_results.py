"""The results of a sweep: a row for each run, and what the rows of a variant come to."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, get_type_hints

from .errors import UserError
from .runs import atomic_write
from .sweep_recipes import Sweep

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "FAILED",
    "FINISHED",
    "RESULTS",
    "TABLE",
    "RunResult",
    "Spread",
    "Summary",
    "as_mapping",
    "document",
    "failures",
    "markdown",
    "read_results",
    "rich_table",
    "summarise",
    "write_results",
]

RESULTS = Path("results.csv")
TABLE = Path("table.md")
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
    """Write results.csv and table.md, each whole."""
    text = io.StringIO()
    names = [field.name for field in fields(RunResult)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    in_order = _in_order(sweep, rows)
    writer.writerows(asdict(row) for row in in_order)
    for path, data in (
        (directory / RESULTS, text.getvalue().encode()),
        (directory / TABLE, markdown(sweep, in_order).encode()),
    ):
        atomic_write(path, lambda file, data=data: file.write(data))  # type: ignore[misc]


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
            return [
                RunResult(**{name: _value(types[name], row[name]) for name in types})
                for row in reader
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


def _in_order(sweep: Sweep, rows: Iterable[RunResult]) -> list[RunResult]:
    variants = list(sweep.options)
    return sorted(rows, key=lambda row: (variants.index(row.variant), sweep.seeds.index(row.seed)))


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n − 1) over seeds; no deviation of one."""

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class Summary:
    """What the runs of a variant come to. Accuracies are shares of 1.

    Args:
        variant: of the recipe.
        network: its name.
        runs: that are finished.
        failed: runs that failed.
        planned: all its runs.
        top1: of the last epoch.
        best_top1: of the best epoch.
        difference: of the last epoch's top-1 to that of the baseline's run with the same seed.
        best_difference: the same for the best epochs.
        parameters: of the network.
        macs: multiply-adds for one image.
    """

    variant: str
    network: str
    runs: int
    failed: int
    planned: int
    top1: Spread | None
    best_top1: Spread | None
    difference: Spread | None
    best_difference: Spread | None
    parameters: int | None
    macs: int | None


def summarise(sweep: Sweep, rows: Iterable[RunResult]) -> list[Summary]:
    """A summary for each variant of the recipe, those without a run too."""
    by_variant: dict[str, list[RunResult]] = {name: [] for name in sweep.options}
    for row in _in_order(sweep, rows):
        by_variant[row.variant].append(row)
    baseline = _finished(by_variant[sweep.baseline]) if sweep.baseline is not None else {}
    made = []
    for name, options in sweep.options.items():
        done = _finished(by_variant[name])
        pairs = [(row, baseline[seed]) for seed, row in done.items() if seed in baseline]
        if name == sweep.baseline:
            pairs = []
        costs = next(iter(done.values()), None)
        made.append(
            Summary(
                variant=name,
                network=options.model,
                runs=len(done),
                failed=len(by_variant[name]) - len(done),
                planned=len(sweep.seeds),
                top1=_spread([row.top1 for row in done.values()]),
                best_top1=_spread([row.best_top1 for row in done.values()]),
                difference=_spread([_minus(a.top1, b.top1) for a, b in pairs]),
                best_difference=_spread([_minus(a.best_top1, b.best_top1) for a, b in pairs]),
                parameters=None if costs is None else costs.parameters,
                macs=None if costs is None else costs.macs,
            )
        )
    return made


def _finished(rows: Iterable[RunResult]) -> dict[int, RunResult]:
    return {row.seed: row for row in rows if row.status == FINISHED}


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(mean(known), stdev(known) if len(known) > 1 else None, len(known))


def document(sweep: Sweep, rows: Sequence[RunResult]) -> dict[str, Any]:
    """Everything as one JSON document."""
    summaries = summarise(sweep, rows)
    return {
        "baseline": sweep.baseline,
        "seeds": list(sweep.seeds),
        "complete": all(s.runs == s.planned for s in summaries),
        "variants": [asdict(summary) for summary in summaries],
        "runs": [asdict(row) for row in _in_order(sweep, rows)],
    }


def _header(sweep: Sweep) -> tuple[str, ...]:
    difference = "difference" if sweep.baseline is None else f"to {sweep.baseline}"
    return ("variant", "runs", "top-1", difference, "best top-1", "parameters", "MACs")


def _line(summary: Summary) -> tuple[str, ...]:
    failed = f", {summary.failed} failed" if summary.failed else ""
    runs = (
        f"{summary.runs}"
        if summary.runs == summary.planned
        else (f"{summary.runs} of {summary.planned}{failed}")
    )
    return (
        summary.variant,
        runs,
        _percent(summary.top1),
        _percent(summary.difference, sign="+"),
        _percent(summary.best_top1),
        "–" if summary.parameters is None else f"{summary.parameters:,}",
        "–" if summary.macs is None else _macs(summary.macs),
    )


def _percent(spread: Spread | None, *, sign: str = "") -> str:
    if spread is None:
        return "–"
    around = "" if spread.deviation is None else f" ± {100 * spread.deviation:.2f}"
    return f"{100 * spread.mean:{sign}.2f}{around}"


def _macs(macs: int) -> str:
    return f"{macs / 1e6:.2f} M" if macs < 1e9 else f"{macs / 1e9:,.3f} G"


def caption(sweep: Sweep, rows: Sequence[RunResult]) -> str:
    """What the columns are, and of what."""
    of = _said(
        row.data + (f" at {row.image_size}×{row.image_size}" if row.image_size else "")
        for row in rows
    )
    epochs = _said(str(options.epochs) for options in sweep.options.values())
    paired = (
        ""
        if sweep.baseline is None
        else (f"; to {sweep.baseline}: difference to the run with the same seed")
    )
    return (
        f"{of}, {epochs} epochs. Top-1 in % of the held-out images after the last epoch, and at "
        f"the best epoch, chosen on these same images: mean ± standard deviation over seeds "
        f"{', '.join(map(str, sweep.seeds))}{paired}. MACs for one image."
    )


def _said(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def failures(sweep: Sweep, rows: Iterable[RunResult]) -> list[str]:
    """A line for each run that failed, with its reason."""
    return [
        f"{row.variant}, seed {row.seed}, failed: {row.reason}"
        for row in _in_order(sweep, rows)
        if row.status == FAILED
    ]


def markdown(sweep: Sweep, rows: Sequence[RunResult]) -> str:
    """table.md: the table, what it is of, the runs that failed, and what computed it."""
    header = _header(sweep)
    lines = [header, ("---", *("---:" for _ in header[1:])), *map(_line, summarise(sweep, rows))]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    failed = "".join(f"- {_escaped(line)}\n" for line in failures(sweep, rows))
    done = [row for row in rows if row.status == FINISHED]
    made = (
        f"{_said(row.device for row in done)}; {_said(row.date for row in done)}; "
        f"{_said(row.versions for row in done)}.\n"
        if done
        else ""
    )
    parts = (f"{table}\n", f"{caption(sweep, rows)}\n", failed, made)
    return "\n".join(part for part in parts if part)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def rich_table(sweep: Sweep, rows: Sequence[RunResult]) -> Table:
    """The table for a terminal."""
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE,
        pad_edge=False,
        collapse_padding=True,
        caption=caption(sweep, rows),
        caption_justify="left",
    )
    first, *others = _header(sweep)
    table.add_column(first, overflow="fold")
    for title in others:
        table.add_column(title, justify="right", no_wrap=True)
    for summary in summarise(sweep, rows):
        table.add_row(*_line(summary))
    return table
