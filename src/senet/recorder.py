"""What keeps a run directory up to date while a network is trained."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from .checkpoints import BEST, LAST, EpochRow, best_row, copy_checkpoint, rows_of, write_metrics
from .data_record import DataRecord
from .options import TrainOptions

__all__ = ["RunRecorder"]


class RunRecorder(Checkpoint):
    """Keeps a run directory up to date at the end of every epoch.

    In this order, each file whole: ``last.ckpt``; where the epoch is the best so far
    ``best.ckpt``, a copy of it, and the exported weights; ``metrics.csv``. Whatever moment the
    process dies at, `senet.mending` makes what is behind ``last.ckpt`` from it. The rows of
    metrics.csv are kept in ``last.ckpt``, so that a resumed run neither repeats nor loses a line.
    (Lightning's own ModelCheckpoint records absolute paths, and forgets the best score of a run
    whose directory was moved.)

    Args:
        directory: the run directory.
        options: what is trained with, to be kept with the rows.
        data: what is trained on, likewise.
        export: called with the row of a new best epoch, after ``best.ckpt``.
        report: called with each row, for the screen.
    """

    def __init__(
        self,
        directory: Path,
        *,
        options: TrainOptions | None = None,
        data: DataRecord | None = None,
        export: Callable[[EpochRow], None],
        report: Callable[[EpochRow], None],
    ) -> None:
        self.directory = directory
        self.options = options
        self.data = data
        self.rows: list[EpochRow] = []
        self._export = export
        self._report = report
        self._epoch_began = 0.0
        self._training_seconds = math.nan

    def state_dict(self) -> dict[str, Any]:
        """The rows so far, as plain numbers, and what they were trained on and with."""
        data = None if self.data is None else asdict(self.data)
        options = None if self.options is None else asdict(self.options)
        return {"rows": [asdict(row) for row in self.rows], "data": data, "options": options}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the rows of a checkpoint; metrics.csv is made to agree with them."""
        self.rows = rows_of(state_dict)
        write_metrics(self.directory, self.rows)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the epoch."""
        self._epoch_began = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of training: validation is not counted in images a second."""
        if (device := trainer.strategy.root_device).type != "cpu":
            torch.accelerator.synchronize(device)
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
            train_top1=measured.train_top1,
        )
        self.rows.append(row)
        trainer.save_checkpoint(self.directory / LAST)
        if trainer.is_global_zero:
            if best_row(self.rows) is row:
                copy_checkpoint(self.directory / LAST, self.directory / BEST)
                with pl_module.evaluated_weights():
                    self._export(row)
            write_metrics(self.directory, self.rows)
            for logger in trainer.loggers:
                values = {k: v for k, v in asdict(row).items() if k not in ("epoch", "step")}
                logger.log_metrics(values, step=row.epoch)
            self._report(row)
