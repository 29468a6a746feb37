"""Checkpoints written whole or not at all, and the record of a run that travels in them."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from .errors import UserError
from .runs import atomic_write

__all__ = [
    "BEST",
    "LAST",
    "METRICS",
    "EpochRow",
    "RunRecorder",
    "WholeFiles",
    "best_row",
    "read_rows",
    "write_metrics",
]

LAST = Path("checkpoints", "last.ckpt")
BEST = Path("checkpoints", "best.ckpt")
METRICS = Path("metrics.csv")


@dataclass(frozen=True)
class EpochRow:
    """A line of metrics.csv: what one epoch came to.

    Args:
        epoch: counted from 1.
        step: optimizer steps taken since the beginning of the run.
        train_loss: mean over the images of the epoch, as they were trained on.
        val_loss: mean cross-entropy over the validation images, without label smoothing.
        val_top1: share of validation images whose class is the highest logit.
        val_top5: share whose class is among the five highest logits.
        lr: learning rate of the epoch's last step.
        seconds: wall clock of the epoch, validation included.
        images_per_second: training images over the wall clock of training alone.
    """

    epoch: int
    step: int
    train_loss: float
    val_loss: float
    val_top1: float
    val_top5: float
    lr: float
    seconds: float
    images_per_second: float


class WholeFiles(TorchCheckpointIO):
    """Checkpoint files that are replaced whole and read without running anything in them."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write ``checkpoint`` beside ``path``, sync it to the disk and move it over ``path``."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, lambda file: torch.save(checkpoint, file))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint with ``weights_only=True``, whatever is asked for.

        Raises:
            UserError: the file is missing, cut short, not a checkpoint of a run, or holds
                objects that would have to be executed.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: no such checkpoint")
        with path.open("rb") as file:
            if file.read(2) != b"PK":  # what torch.save writes is a zip archive
                raise UserError(f"{path} is not a checkpoint of senet: {_START_AGAIN}")
        try:
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
        except UnpicklingError:
            raise UserError(f"{path} is not a checkpoint of senet: {_START_AGAIN}") from None
        except Exception as error:  # a damaged archive raises nearly every type there is
            raise UserError(f"{path} is cut short or damaged: {_START_AGAIN}") from error
        if not isinstance(checkpoint, dict) or not _records(checkpoint):
            raise UserError(f"{path} is not a checkpoint of senet: {_START_AGAIN}")
        return checkpoint


_START_AGAIN = "restore it from a copy, or train again into another directory"


class RunRecorder(Checkpoint):
    """Keeps a run directory up to date at the end of every epoch.

    In this order, each file whole: ``best.ckpt`` and the exported weights where the epoch is the
    best so far, ``last.ckpt``, ``metrics.csv``. Whatever moment the process dies at, the files
    that `last.ckpt` vouches for are there, and what is newer than it is written again, the same,
    when the epoch is run again. The rows of metrics.csv are kept in ``last.ckpt``, so that a
    resumed run neither repeats nor loses a line. (Lightning's own ModelCheckpoint records
    absolute paths, and forgets the best score of a run whose directory was moved.)

    Args:
        directory: the run directory.
        export: called with the row of a new best epoch, after ``best.ckpt``.
        report: called with each row, for the screen.
    """

    def __init__(
        self,
        directory: Path,
        *,
        export: Callable[[EpochRow], None],
        report: Callable[[EpochRow], None],
    ) -> None:
        self.directory = directory
        self.rows: list[EpochRow] = []
        self._export = export
        self._report = report
        self._epoch_began = 0.0
        self._training_seconds = math.nan

    def state_dict(self) -> dict[str, Any]:
        """The rows so far, as plain numbers."""
        return {"rows": [asdict(row) for row in self.rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the rows of a checkpoint; metrics.csv is made to agree with them."""
        self.rows = _rows_of(state_dict)
        write_metrics(self.directory, self.rows)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the epoch."""
        self._epoch_began = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of training: validation is not counted in images a second."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._training_seconds = time.perf_counter() - self._epoch_began

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files of the epoch; Lightning calls this after validation."""
        measured = pl_module.epoch_metrics()
        row = EpochRow(
            epoch=trainer.current_epoch + 1,
            step=trainer.global_step,
            train_loss=measured.train_loss,
            val_loss=measured.val_loss,
            val_top1=measured.val_top1,
            val_top5=measured.val_top5,
            lr=measured.lr,
            seconds=round(time.perf_counter() - self._epoch_began, 3),
            images_per_second=round(measured.images / self._training_seconds, 1),
        )
        self.rows.append(row)
        if best_row(self.rows) is row:
            trainer.save_checkpoint(self.directory / BEST)
            if trainer.is_global_zero:
                self._export(row)
        trainer.save_checkpoint(self.directory / LAST)
        if trainer.is_global_zero:
            write_metrics(self.directory, self.rows)
            for logger in trainer.loggers:
                values = {k: v for k, v in asdict(row).items() if k not in ("epoch", "step")}
                logger.log_metrics(values, step=row.epoch)
            self._report(row)


def best_row(rows: Sequence[EpochRow]) -> EpochRow:
    """The row of highest top-1, of equals that of the lowest loss, of these the first."""
    return max(rows, key=lambda row: (row.val_top1, -row.val_loss))


def read_rows(run: Path) -> list[EpochRow]:
    """The finished epochs of a run, from its last checkpoint; none where there is none.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    path = run / LAST
    if not path.exists():
        return []
    return _rows_of(_records(WholeFiles().load_checkpoint(path)))


def write_metrics(run: Path, rows: list[EpochRow]) -> None:
    """Write metrics.csv anew from all the rows, whole."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(EpochRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    data = text.getvalue().encode()
    atomic_write(run / METRICS, lambda file: file.writelines([data]))


def _records(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The state of `RunRecorder` in a checkpoint; empty in one that is not ours."""
    state: dict[str, Any] = checkpoint.get("callbacks", {}).get(RunRecorder.__qualname__, {})
    return state


def _rows_of(state: dict[str, Any]) -> list[EpochRow]:
    return [EpochRow(**row) for row in state["rows"]]
