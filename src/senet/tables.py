"""The paper's tables beside ours: printed, counted, the difference, and what explains it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .errors import UserError, nearest
from .models.published import PUBLISHED, PublishedRow, PublishedTable
from .results import Measured, Result, summarise
from .tallies import Tally, tally, tally_element_wise

__all__ = ["UNEXPLAINED", "Explanation", "Figure", "Row", "Table", "count_table", "pick_tables"]

UNITS = {"G": 1e9, "M": 1e6}

UNEXPLAINED = "not explained"
_ELEMENT_WISE = (
    "the printed figure lies between the multiply-adds and these plus one operation for each "
    "element of norms, activations, sums, pooling and gates, of which the paper does not say what "
    "it counts"
)
_STATISTICS = (
    "counted with the norms' running means and variances, which are stored but not trained, it is "
    "the printed figure"
)
_IN_EVERY = ("plain", "se")  # variants of any sweep: without SE, and with the paper's block
_CUT_OFF = "cut off after the printed digits, not rounded, it is the printed figure"


@dataclass(frozen=True)
class Explanation:
    """Why a counted figure is not the printed one.

    Args:
        reason: what holds for the row, shared by the rows that it explains.
        numbers: the row and its figures.
    """

    reason: str
    numbers: str


@dataclass(frozen=True)
class Figure:
    """A quantity, printed and counted.

    Args:
        printed: as in the paper; empty where it prints none.
        counted: ours, in the printed figure's unit.
        explanation: None where they agree or nothing is printed.
    """

    printed: str
    counted: float
    explanation: Explanation | None = None

    @property
    def difference(self) -> float | None:
        """Counted less printed; None where nothing is printed."""
        return self.counted - float(self.printed) if self.printed else None


@dataclass(frozen=True)
class Row:
    """A row of a table, in the table's units.

    Args:
        published: what the paper prints.
        macs, parameters: multiply-adds; parameters in millions.
        file: MiB; None where no file was released.
        measured: what results on file say.
    """

    published: PublishedRow
    macs: Figure
    parameters: Figure
    file: Figure | None
    measured: tuple[Measured, ...] = ()

    @property
    def explanations(self) -> tuple[Explanation, ...]:
        """Those of its figures, from left to right."""
        figures = (self.macs, self.parameters, *([self.file] if self.file else []))
        return tuple(figure.explanation for figure in figures if figure.explanation)


@dataclass(frozen=True)
class Table:
    """A table with its counts."""

    published: PublishedTable
    rows: tuple[Row, ...]


def pick_tables(names: Sequence[str]) -> tuple[PublishedTable, ...]:
    """The tables of these names, in the paper's order and each once; of no name all.

    Raises:
        UserError: there is no such table.

    >>> [table.key for table in pick_tables(["gate", "2"])]
    ['2', 'gate']
    """
    for name in names:
        if name not in PUBLISHED:
            close = nearest(name, PUBLISHED)
            known = close if close.startswith("known") else f"{close}; all: {', '.join(PUBLISHED)}"
            raise UserError(f"there is no table {name!r} to count; {known}")
    return tuple(table for key, table in PUBLISHED.items() if not names or key in names)


def count_table(
    published: PublishedTable,
    results: Iterable[Result] = (),
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> Table:
    """Count every row of a table, and set beside it what was measured.

    Args:
        published: the table.
        results: runs on file.
        progress: is told each row before it is counted.

    Raises:
        UserError: a network does not exist or does not run on the meta device.
    """
    known = list(results)
    swept = _ablations_by_file(known)
    rows = []
    for row in published.rows:
        progress(row.label)
        beside = [one for one in known if _is_of(one, published, row, swept[one.source])]
        rows.append(_row(published, row, beside))
    return Table(published, tuple(rows))


def _row(table: PublishedTable, row: PublishedRow, results: list[Result]) -> Row:
    counts = tally(row.network, table.num_classes, row.options)
    unit = UNITS[table.unit]
    macs = Figure(row.macs, counts.macs / unit)
    if not _agrees(macs):
        macs = Figure(macs.printed, macs.counted, _of_macs(table, row, macs.counted))
    parameters = Figure(row.parameters, counts.parameters / 1e6)
    if not _agrees(parameters):
        why = _of_parameters(row, counts)
        parameters = Figure(parameters.printed, parameters.counted, why)
    file = Figure(row.file, counts.file_mebibytes) if row.file else None
    if file is not None and not _agrees(file):
        numbers = f"{row.label} {file.counted:.2f} MiB, printed {row.file}"
        file = Figure(
            file.printed, file.counted, Explanation(row.file_remark or UNEXPLAINED, numbers)
        )
    return Row(row, macs, parameters, file, summarise(results))


def _of_macs(table: PublishedTable, row: PublishedRow, counted: float) -> Explanation:
    digits = table.decimals[0]
    numbers = f"{row.label} {counted:.{digits}f}"
    if row.macs_remark:
        return Explanation(row.macs_remark, f"{numbers}, printed {row.macs}")
    more = tally_element_wise(row.network, table.num_classes, row.options) / UNITS[table.unit]
    half = _half(row.macs)
    if counted - half <= float(row.macs) <= counted + more + half:
        both = f"{numbers} to {counted + more:.{digits}f}"
        return Explanation(_ELEMENT_WISE, f"{both}, printed {row.macs}")
    return Explanation(UNEXPLAINED, f"{numbers}, printed {row.macs}")


def _of_parameters(row: PublishedRow, counts: Tally) -> Explanation:
    stored = (counts.parameters + counts.statistics) / 1e6
    numbers = f"{row.label} {counts.parameters / 1e6:.3f}"
    if row.parameters_remark:
        return Explanation(row.parameters_remark, f"{numbers}, printed {row.parameters}")
    if _agrees(Figure(row.parameters, stored)):
        return Explanation(
            _STATISTICS, f"{numbers}, with them {stored:.3f}, printed {row.parameters}"
        )
    if 0 <= counts.parameters / 1e6 - float(row.parameters) < 2 * _half(row.parameters):
        return Explanation(_CUT_OFF, f"{numbers}, printed {row.parameters}")
    return Explanation(UNEXPLAINED, f"{numbers}, printed {row.parameters}")


def _agrees(figure: Figure) -> bool:
    """Whether the counted figure, rounded, is the printed one, or none is printed."""
    difference = figure.difference
    return difference is None or abs(difference) <= _half(figure.printed) + 1e-9


def _half(printed: str) -> float:
    """Half a unit of the last digit of a printed figure.

    >>> _half("3.86"), _half("569")
    (0.005, 0.5)
    """
    return 0.5 * 10.0 ** -len(printed.partition(".")[2])


def _is_of(result: Result, table: PublishedTable, row: PublishedRow, swept: set[str]) -> bool:
    """Whether a run belongs beside a row; ``swept`` are the ablations that its file is of.

    An ablation's runs are of any network and stand by variant; those of the other tables are of
    files without an ablation, whose blocks may be others, and stand by network.
    """
    if table.ablation:
        return table.key in swept and result.variant in row.variants
    if swept or (table.data is not None and result.data != table.data):
        return False
    return result.network == row.network and result.variant in ("", *_IN_EVERY, row.network)


def _ablations_by_file(results: Iterable[Result]) -> dict[str, set[str]]:
    """The ablations that each file is of: those of which it has a variant that no other has."""
    of_variant = {
        variant: table.key
        for table in PUBLISHED.values()
        for row in table.rows
        for variant in row.variants
        if variant not in _IN_EVERY
    }
    found: dict[str, set[str]] = {}
    for one in results:
        keys = found.setdefault(one.source, set())
        if one.variant in of_variant:
            keys.add(of_variant[one.variant])
    return found
