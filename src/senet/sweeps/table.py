"""The table of a sweep: what a variant's runs come to, and its difference to the baseline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from ..runs import atomic_write
from .recipe import Sweep
from .results import FAILED, FINISHED, RunResult, in_order

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "TABLE",
    "Spread",
    "Summary",
    "document",
    "failures",
    "markdown",
    "rich_table",
    "summarise",
    "write_table",
]

TABLE = Path("table.md")


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
    """A summary for each variant of the recipe, those without a run too.

    An optional variant without a run is left out: the network may have no place for it.
    """
    by_variant: dict[str, list[RunResult]] = {name: [] for name in sweep.options}
    for row in in_order(sweep, rows):
        by_variant[row.variant].append(row)
    baseline = _finished(by_variant[sweep.baseline]) if sweep.baseline is not None else {}
    made = []
    for name, options in sweep.options.items():
        if name in sweep.recipe.optional and not by_variant[name]:
            continue
        done = _finished(by_variant[name])
        pairs = [(row, baseline[seed]) for seed, row in done.items() if seed in baseline]
        if name == sweep.baseline:
            pairs = []
        costs = next(iter(by_variant[name]), None)
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
    return {
        "baseline": sweep.baseline,
        "seeds": list(sweep.seeds),
        "variants": [asdict(summary) for summary in summarise(sweep, rows)],
        "runs": [asdict(row) for row in in_order(sweep, rows)],
    }


def _header(sweep: Sweep) -> tuple[str, ...]:
    difference = "difference" if sweep.baseline is None else f"to {sweep.baseline}"
    return ("variant", "runs", "top-1", difference, "best top-1", "parameters", "MACs")


def _line(summary: Summary) -> tuple[str, ...]:
    failed = f", {summary.failed} failed" if summary.failed else ""
    unfinished = f" of {summary.planned}{failed}" if summary.runs < summary.planned else ""
    return (
        summary.variant,
        f"{summary.runs}{unfinished}",
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
    lengths = sorted({options.epochs for options in sweep.options.values()})
    epochs = f"{' or '.join(map(str, lengths))} epoch{'s' * (lengths != [1])}"
    paired = ""
    if sweep.baseline is not None:
        paired = f"; to {sweep.baseline}: difference to the run with the same seed"
    seeds = f"seed{'s' * (len(sweep.seeds) > 1)} {', '.join(map(str, sweep.seeds))}"
    limited = any(options.limit_batches for options in sweep.options.values())
    images = "the first batches of held-out images" if limited else "the held-out images"
    return (
        f"{of}, {epochs}. Top-1 in % of {images} after the last epoch, and at "
        f"the best epoch, chosen on these same images: mean ± standard deviation over "
        f"{seeds}{paired}. MACs for one image."
    )


def _said(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def failures(sweep: Sweep, rows: Iterable[RunResult]) -> list[str]:
    """A line for each run that failed, with its reason."""
    return [
        f"{row.variant}, seed {row.seed}, failed: {row.reason}"
        for row in in_order(sweep, rows)
        if row.status == FAILED
    ]


def write_table(directory: Path, sweep: Sweep, rows: Sequence[RunResult]) -> None:
    """Write table.md, whole."""
    data = markdown(sweep, rows).encode()
    atomic_write(directory / TABLE, lambda file: file.write(data))


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
        show_edge=False,
        collapse_padding=True,
        caption=f"\n{caption(sweep, rows)}",
        caption_justify="left",
    )
    first, *others = _header(sweep)
    table.add_column(first, overflow="fold")
    for title in others:
        table.add_column(title, justify="right", no_wrap=True)
    for summary in summarise(sweep, rows):
        name, ended, *figures = _line(summary)
        table.add_row(name, ended.replace(", ", ",\n"), *figures)  # in 80 columns
    return table
