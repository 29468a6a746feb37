"""``senet tables``."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.progress import Progress

from ..errors import UserError
from ..models.published import PUBLISHED, PublishedTable
from ..results import COLUMNS, Result, read_results
from ..runs import atomic_write
from ..table_formats import FORMATS, as_csv, as_markdown, print_tables, records
from ..tables import Table, count_table, pick_tables
from .parsing import command_parser, parse

__all__ = ["main", "parser"]

_EPILOG = f"""
Tables: {", ".join(PUBLISHED)}. Figures that are not what the paper prints are noted, and explained
below their table. Results are a sweep's directory, one of several, or CSV files with the columns
{", ".join(COLUMNS)}, top1 and top5 from 0 to 1. Those of ablations stand beside the rows by
variant, others by network.
"""
_WIDTH = 160  # columns of text that no terminal breaks


def parser() -> ArgumentParser:
    """The options of the command."""
    made = command_parser(
        "tables",
        "The paper's tables: what it prints, what is counted, the difference, what was measured.",
        epilog=_EPILOG,
    )
    made.add_argument(
        "tables", type=str, nargs="*", default=[], metavar="TABLE", help="which tables; none is all"
    )
    made.add_argument("--format", type=str, default="console", help=f"one of {', '.join(FORMATS)}")
    made.add_argument(
        "--results",
        type=Path | None,
        default=None,
        help="folder of measured results, or of sweeps, to show beside the paper's; null is none",
    )
    made.add_argument(
        "--out",
        type=Path | None,
        default=None,
        help="file to write to; null prints",
    )
    made.add_argument(
        "--json", action="store_true", help="one JSON document on standard output, nothing else"
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    given = parse(parser(), argv)
    wanted = pick_tables(given.tables)
    if given.format not in FORMATS:
        raise UserError(f"format is {given.format!r}, but must be one of {', '.join(FORMATS)}")
    if given.json and given.format != "console":
        raise UserError(f"json and format {given.format!r} are two forms; give one of them")
    if given.out is not None and not given.out.parent.is_dir():
        raise UserError(f"out is {str(given.out)!r}, but {str(given.out.parent)!r} is no folder")
    if given.out is not None and given.out.is_dir():
        raise UserError(f"out is {str(given.out)!r}, which is a folder; give a file")
    results = [] if given.results is None else read_results(given.results)
    tables = _counted(wanted, results)
    if results and not any(row.measured for table in tables for row in table.rows):
        print(
            f"senet: none of the {len(results)} results in {given.results} belongs beside a row of "
            "these tables; docs/reproduce.md says by which network and variant they do",
            file=sys.stderr,
        )
    form = "json" if given.json else given.format
    if given.out is not None:
        data = _text(tables, form).encode()
        atomic_write(given.out, lambda file: file.write(data))
    elif form == "console" and sys.stdout.isatty():
        print_tables(tables, Console())
    else:
        print(_text(tables, form), end="")
    return 0


def _counted(wanted: Sequence[PublishedTable], results: Sequence[Result]) -> list[Table]:
    """The tables, with a bar on standard error, where it is a terminal, while they are counted."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("counting", total=sum(len(table.rows) for table in wanted))

        def tell(label: str) -> None:
            progress.update(task, advance=1, description=label)

        return [count_table(table, results, progress=tell) for table in wanted]


def _text(tables: Sequence[Table], form: str) -> str:
    if form == "json":
        return json.dumps(records(tables), indent=2, ensure_ascii=False) + "\n"
    if form == "csv":
        return as_csv(tables)
    if form == "markdown":
        return as_markdown(tables)
    out = io.StringIO()
    print_tables(tables, Console(file=out, width=_WIDTH))
    return out.getvalue()
