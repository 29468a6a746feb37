"""Counted tables as text for a terminal, Markdown, CSV, or records for JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from .tables import Explanation, Figure, Row, Table

__all__ = ["COUNTED", "FORMATS", "as_csv", "as_markdown", "print_tables", "records"]

FORMATS = ("console", "markdown", "csv")

COUNTED = (
    "Counted are the multiply-adds of convolutions and matrix products for one image, without "
    "biases, pooling, norms, activations and element-wise work, and all trained parameters. In the "
    "paper's tables the blocks have no biases. docs/reproduce.md says more."
)


def print_tables(tables: Sequence[Table], console: Console) -> None:
    """Print tables with their notes, and what is counted."""
    for table in tables:
        shown = RichTable(
            box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False, show_edge=False
        )
        heads, rows = _grid(table)
        for place, head in enumerate(heads):
            side: Literal["left", "right"] = "right" if place else "left"
            shown.add_column(Text(head), justify=side, vertical="bottom", overflow="fold")
        for cells in rows:
            shown.add_row(*map(Text, cells))
        console.print(Text(table.published.title, style="bold"))
        console.print(shown)
        for mark, reason, numbers in _notes(table):
            console.print(Text(f"{mark}: {reason}"))
            for line in numbers:
                console.print(Text(f"   {line}"))
        for remark in table.published.remarks:
            console.print(Text(remark))
        console.print()
    console.print(Text(COUNTED))


def as_markdown(tables: Sequence[Table]) -> str:
    """A heading, a table and its notes for each, and what is counted."""
    parts: list[str] = []
    for table in tables:
        heads, rows = _grid(table)
        rule = ["---"] + ["---:"] * (len(heads) - 1)
        lines = [
            f"| {' | '.join(cells)} |"
            for cells in (map(_on_a_line, heads), rule, *map(_escaped, rows))
        ]
        parts.append(f"## {table.published.title}\n\n" + "\n".join(lines) + "\n")
        for mark, reason, numbers in _notes(table):
            parts.append(f"{mark}: {reason}\n\n" + "".join(f"- {line}\n" for line in numbers))
        parts += [f"{remark}\n" for remark in table.published.remarks]
    return "\n".join((*parts, COUNTED)) + "\n"


def _escaped(cells: Iterable[str]) -> list[str]:
    return [cell.replace("|", r"\|").replace("\n", "<br>") for cell in cells]


def _on_a_line(head: str) -> str:
    return " ".join(head.split())


def _grid(table: Table) -> tuple[list[str], list[list[str]]]:
    """Headings and cells; columns that would be empty are not there."""
    published, marks = table.published, _marks(table)
    errors = [
        "/".join(filter(None, (row.published.top1, row.published.top5))) for row in table.rows
    ]
    two = any(row.published.top5 for row in table.rows)
    columns = [
        ("network", [row.published.label for row in table.rows]),
        ("top-1/5\nerror, %" if two else "top-1\nerror, %", errors),
    ]
    digits = published.decimals
    columns += _columns(f"{published.unit}MACs", table, "macs", digits[0])
    columns += _columns("params", table, "parameters", digits[1], "M")
    columns += _columns("MiB", table, "file", 1)
    measured = ["\n".join(map(str, row.measured)) for row in table.rows]
    columns.append(("measured top-1 [/ top-5]\nerror, %", measured))
    noted = [" ".join(dict.fromkeys(marks[e] for e in _keys(row))) for row in table.rows]
    columns.append(("note", noted))
    kept = [(head, cells) for head, cells in columns if any(cells)]
    heads = [head for head, _ in kept]
    return heads, [list(cells) for cells in zip(*(cells for _, cells in kept), strict=True)]


def _columns(
    what: str, table: Table, name: str, digits: int, suffix: str = ""
) -> list[tuple[str, list[str]]]:
    figures: list[Figure | None] = [getattr(row, name) for row in table.rows]
    printed = [f"{one.printed}{suffix}" if one and one.printed else "" for one in figures]
    counted = [f"{one.counted:.{digits}f}{suffix}" if one else "" for one in figures]
    apart = [_signed(figure, digits) for figure in figures]
    return [(f"{what}\nprinted", printed), (f"{what}\ncounted", counted), ("\ndiff.", apart)]


def _signed(figure: Figure | None, digits: int) -> str:
    if figure is None or figure.difference is None:
        return ""
    rounded = round(figure.difference, digits)
    return f"{rounded + 0.0:+.{digits}f}"  # + 0.0, for there is no -0


def _keys(row: Row) -> list[str]:
    return [explanation.reason for explanation in row.explanations]


def _marks(table: Table) -> dict[str, str]:
    """Reason → a, b, …, in the order of appearance."""
    reasons = dict.fromkeys(reason for row in table.rows for reason in _keys(row))
    return dict(zip(reasons, "abcdefghijklmnopqrstuvwxyz", strict=False))


def _notes(table: Table) -> list[tuple[str, str, list[str]]]:
    """The mark, the reason, and the figures of each row that it explains."""
    explanations = [one for row in table.rows for one in row.explanations]
    return [
        (mark, reason, [one.numbers for one in explanations if one.reason == reason])
        for reason, mark in _marks(table).items()
    ]


def records(tables: Iterable[Table]) -> list[dict[str, Any]]:
    """A record a row; what is not printed, released or measured is None or empty."""
    return [_record(table, row) for table in tables for row in table.rows]


def _record(table: Table, row: Row) -> dict[str, Any]:
    published = row.published
    found: dict[str, Any] = {
        "table": table.published.key,
        "row": published.label,
        "network": published.network,
        "options": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in published.options.items()
        },
        "top1_error": _number(published.top1),
        "top5_error": _number(published.top5),
        "macs_unit": table.published.unit,
    }
    for name, figure in (
        ("macs", row.macs),
        ("parameters", row.parameters),
        ("file_mebibytes", row.file),
    ):
        found[f"{name}_{'printed' if name != 'file_mebibytes' else 'released'}"] = (
            _number(figure.printed) if figure else None
        )
        found[f"{name}_counted"] = figure.counted if figure else None
        found[f"{name}_difference"] = figure.difference if figure else None
        found[f"{name}_explanation"] = _told(figure.explanation) if figure else ""
    found["measured"] = [
        {
            "source": one.source,
            "network": one.network,
            "data": one.data,
            "runs": one.runs,
            "top1_error": one.top1,
            "top1_deviation": one.deviation,
            "top5_error": one.top5,
            "devices": list(one.devices),
            "dates": list(one.dates),
        }
        for one in row.measured
    ]
    return found


def _told(explanation: Explanation | None) -> str:
    return "" if explanation is None else f"{explanation.numbers}: {explanation.reason}"


def _number(text: str) -> float | None:
    return float(text) if text else None


def as_csv(tables: Iterable[Table]) -> str:
    """A line a row of all tables, with a heading; nested values are JSON."""
    rows = records(tables)
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        nested = {
            name: json.dumps(value, ensure_ascii=False) if value else ""
            for name, value in row.items()
            if isinstance(value, dict | list)
        }
        writer.writerow({**row, **nested})
    return out.getvalue()
