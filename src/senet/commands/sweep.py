"""``senet sweep``."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ..errors import UserError
from ..options import TrainOptions
from ..sweeps import (
    FAILED,
    SHARED,
    SWEEP,
    Recipe,
    RunResult,
    Sweep,
    document,
    failures,
    pick,
    read_recipe,
    resolve,
    rich_table,
    run_sweep,
    with_seeds,
)
from .parsing import OPTION_GROUPS, add_dataclass_options, command_parser, parse
from .stopping import terminable

__all__ = ["main", "parser"]

_EPILOG = """
Options of training take the place of those in the recipe's base, also of defaults; what a variant
says itself stays. In OUT: sweep.yaml, the whole recipe; VARIANT/seed-N, the run directories;
results.csv, a line a run; table.md. The same command again goes on: finished runs are kept, one
that was interrupted resumes after its last finished epoch. Exit status: 0 all runs asked for are
finished, 1 some failed, 2 a mistake that is named, 130 interrupted (Ctrl-C), 143 terminated.
"""


def parser() -> ArgumentParser:
    """The options of the command."""
    made = command_parser(
        "sweep", "Train variants of a network with several seeds each; one table.", epilog=_EPILOG
    )
    made.add_argument(
        "recipe", type=str, metavar="RECIPE", help="YAML file with base, seeds and variants"
    )
    made.add_argument("--out", type=str, required=True, help="directory of the sweep to be made")
    made.add_argument(
        "--variants",
        type=str | None,
        default=None,
        help="train only these now, with commas between them; null is all",
    )
    made.add_argument(
        "--seeds",
        type=str | None,
        default=None,
        help="seeds instead of the recipe's, with commas between them",
    )
    made.add_argument(
        "--retry",
        action="store_true",
        help="train runs that failed once more, from their last finished epoch",
    )
    made.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="runs to train at the same time, each in a process of its own, on the GPUs in turn",
    )
    made.add_argument(
        "--progress",
        choices=("auto", "bar", "lines"),
        default="auto",
        help="a bar, or a line an epoch; auto draws a bar on a terminal",
    )
    made.add_argument(
        "--json", action="store_true", help="one JSON document on standard output, nothing else"
    )
    add_dataclass_options(made, TrainOptions, OPTION_GROUPS, only=SHARED)
    return made


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    given, recipe = _parse(argv)
    if given.seeds is not None:
        recipe = with_seeds(recipe, given.seeds)
    if not 1 <= given.jobs <= 64:
        raise UserError(f"jobs is {given.jobs}, but must be at least 1 and at most 64")
    sweep = resolve(recipe, {name: given[name] for name in SHARED})
    wanted = pick(sweep, given.variants)
    on_terminal = sys.stdout.isatty() and not given.json
    bar = given.progress == "bar" or (given.progress == "auto" and on_terminal)
    if bar and given.json:
        raise UserError("--progress bar writes to standard output, where --json wants nothing else")
    say = partial(print, file=sys.stderr if given.json else sys.stdout, flush=True)
    terminated: list[int] = []
    try:
        with terminable(terminated):
            rows = run_sweep(
                sweep,
                given.out,
                variants=wanted,
                retry=given.retry,
                jobs=given.jobs,
                bar=bar,
                say=say,
            )
    except KeyboardInterrupt:
        word, status = ("terminated", 143) if terminated else ("interrupted", 130)
        print(f"senet: {word}{_how_to_go_on(given)}", file=sys.stderr)
        return status
    if given.json:
        print(json.dumps(document(sweep, rows), indent=2))
    else:
        _show(sweep, rows)
    failed = [row for row in rows if row.status == FAILED and row.variant in wanted]
    return 1 if failed else 0


def _parse(argv: Sequence[str]) -> tuple[Namespace, Recipe]:
    """The command line; what it does not mention is as the recipe's base says."""
    made = parser()
    recipe = read_recipe(Path(parse(made, argv).recipe))
    made.set_defaults({name: recipe.base[name] for name in SHARED if name in recipe.base})
    return parse(made, argv), recipe


def _how_to_go_on(given: Namespace) -> str:
    path = Path(given.out) / SWEEP
    if not path.exists():
        return " before the sweep began; nothing was written"
    words = ["senet", "sweep", str(path), "--out", given.out]
    if given.variants is not None:
        words += ["--variants", given.variants]
    if given.retry:
        words.append("--retry")
    if given.jobs > 1:
        words += ["--jobs", str(given.jobs)]
    return f"; finished runs and epochs are saved, to go on: {shlex.join(words)}"


def _show(sweep: Sweep, rows: Sequence[RunResult]) -> None:
    from rich.console import Console

    Console(markup=False, emoji=False).print(rich_table(sweep, rows))
    for line in failures(sweep, rows):
        print(line)
