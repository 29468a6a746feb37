"""The directory of a sweep: the whole recipe, results so far, and whether they belong together."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from .. import runs
from ..errors import UserError
from .recipe import Sweep, read_recipe, resolve, sweep_yaml
from .results import RESULTS, RunResult, as_mapping, read_results, write_results
from .table import write_table

__all__ = ["SWEEP", "begin", "keep", "results_so_far"]

SWEEP = Path("sweep.yaml")


def results_so_far(sweep: Sweep, out: Path) -> dict[tuple[str, int], RunResult]:
    """The results in ``out`` by variant and seed; none where there is no sweep yet.

    Raises:
        UserError: ``out`` is a file, holds something else, or another sweep.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a directory for the sweep")
    path = out / SWEEP
    if not path.exists():
        if out.is_dir() and any(not runs.is_temporary(entry) for entry in out.iterdir()):
            raise UserError(f"{out} is not empty and holds no sweep; name another directory")
        return {}
    if difference := resolve(read_recipe(path), {}).difference(sweep):
        raise UserError(
            f"{out} holds another sweep ({difference}); name another directory, or go on with it: "
            + shlex.join(["senet", "sweep", str(path), "--out", str(out)])
        )
    rows = as_mapping(read_results(out))
    for variant, seed in rows:
        if variant not in sweep.options or seed not in sweep.seeds:
            raise UserError(
                f"{out / RESULTS} has variant {variant}, seed {seed}, which is not in {SWEEP}; "
                "one of them was edited: put it back"
            )
    return dict(rows)


def begin(sweep: Sweep, out: Path) -> None:
    """Make the directory with its sweep.yaml, or clear it of what a killed process left."""
    runs.make_directory(out)
    for leftover in [entry for entry in out.iterdir() if runs.is_temporary(entry)]:
        leftover.unlink(missing_ok=True)
    if not (out / SWEEP).exists():
        text = sweep_yaml(sweep).encode()
        runs.atomic_write(out / SWEEP, lambda file: file.write(text))


def keep(sweep: Sweep, out: Path, rows: Mapping[tuple[str, int], RunResult]) -> None:
    """Write results.csv and table.md, each whole."""
    write_results(out, sweep, rows.values())
    write_table(out, sweep, list(rows.values()))
