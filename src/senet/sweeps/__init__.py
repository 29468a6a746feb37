"""Sweeps: variants of a training run × seeds, resumable, and one table of them."""

from __future__ import annotations

from .directory import SWEEP
from .recipe import SHARED, Recipe, Sweep, pick, read_recipe, resolve, with_seeds
from .results import FAILED, FINISHED, RESULTS, RunResult, read_results
from .running import run_sweep
from .table import TABLE, Spread, Summary, document, failures, rich_table, summarise

__all__ = [
    "FAILED",
    "FINISHED",
    "RESULTS",
    "SHARED",
    "SWEEP",
    "TABLE",
    "Recipe",
    "RunResult",
    "Spread",
    "Summary",
    "Sweep",
    "document",
    "failures",
    "pick",
    "read_recipe",
    "read_results",
    "resolve",
    "rich_table",
    "run_sweep",
    "summarise",
    "with_seeds",
]
