"""Files of a run that a kill left out of step with each other, and how they are put right.

An epoch writes last.ckpt, then, if it is the best so far, best.ckpt as a copy of it and the
exported network, then metrics.csv. A kill between two of these leaves later ones behind; all are
made again from the first. Training the epoch once more would not do: on a GPU it ends in other
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import runs
from .errors import UserError

if TYPE_CHECKING:
    from .checkpoints import EpochRow, RunRecord

__all__ = ["read_progress", "weights_fault"]


def read_progress(out: Path, *, mend: bool) -> RunRecord:
    """What is finished of a run, by both of its checkpoints.

    Earlier versions wrote best.ckpt first: where they were killed between the two it is ahead of
    last.ckpt, and what to go on from.

    Args:
        out: the run directory.
        mend: make the checkpoint that is behind a copy of the other.

    Raises:
        UserError: last.ckpt cannot be read, or a copy not be written.
    """
    from .checkpoints import BEST, LAST, best_row, copy_checkpoint, read_record

    last = read_record(out / LAST)
    if not last.rows:
        return last
    best = _readable(out / BEST)
    if best is not None and _goes_on(last.rows, best.rows):
        if mend:
            copy_checkpoint(out / BEST, out / LAST)
        return best
    behind = best is None or _goes_on(best.rows, last.rows)  # and not of another run
    if mend and behind and best_row(last.rows) is last.rows[-1]:
        copy_checkpoint(out / LAST, out / BEST)
    return last


def _readable(path: Path) -> RunRecord | None:
    from .checkpoints import read_record

    try:
        return read_record(path) if path.exists() else None
    except UserError:
        return None


def _goes_on(rows: Sequence[EpochRow], others: Sequence[EpochRow]) -> bool:
    """Whether ``others`` are ``rows`` and more."""
    return len(others) > len(rows) and tuple(others[: len(rows)]) == tuple(rows)


def weights_fault(out: Path, rows: Sequence[EpochRow]) -> str | None:
    """What keeps the exported network of a run from being that of its best epoch, in a word.

    Args:
        out: the run directory, its checkpoints as `read_progress` leaves them.
        rows: the finished epochs.
    """
    if not ((out / runs.WEIGHTS).exists() and (out / runs.CARD).exists()):
        return "missing"
    try:
        runs.load(out)
    except UserError:
        return "damaged"
    return "of another epoch" if _is_of_another_epoch(out, rows) else None


def _is_of_another_epoch(out: Path, rows: Sequence[EpochRow]) -> bool:
    """Whether best.ckpt is that of the best epoch, and the exported network another."""
    from .checkpoints import BEST, WholeFiles, best_row, network_weights, record_of

    try:
        checkpoint = WholeFiles().load_checkpoint(out / BEST)
    except UserError:
        return False  # nothing to tell it by, nor to mend it from
    best = best_row(rows)
    if record_of(checkpoint).rows != tuple(rows[: best.epoch]):
        return False
    if runs.read_card(out).top1 != best.val_top1:
        return True
    found, expected = runs.read_weights(out / runs.WEIGHTS), network_weights(checkpoint)
    return found.keys() != expected.keys() or not all(
        torch.equal(found[name], tensor) for name, tensor in expected.items()
    )
