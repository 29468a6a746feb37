"""The training loop: Lightning around a network, an optimizer and a schedule."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader

from .checkpoints import LAST, EpochRow, WholeFiles
from .classifier import Classifier
from .data_record import DataRecord
from .devices import check_launcher, make_strategy, peers_told, plugins_for
from .errors import UserError
from .meeting import SameRun, SharedCheck
from .options import TrainOptions, deciding
from .recorder import RunRecorder

__all__ = ["fit", "make_trainer"]

_PLACES = ("data", "val_data", "init")
"""Options that say where files lie, which may be elsewhere on each machine; what they hold is
compared itself."""


def make_trainer(
    options: TrainOptions,
    directory: Path,
    *,
    data: DataRecord | None = None,
    export: Callable[[EpochRow], None],
    report: Callable[[EpochRow], None],
    bar: bool = False,
    finished: int = 0,
    check: Callable[[int, int, bool], None] | None = None,
) -> Trainer:
    """Lightning's trainer, which keeps a run directory up to date.

    Args:
        options: the run's.
        directory: the run directory.
        data: what is trained on, for the checkpoints.
        export: called with the row of every new best epoch, to write the model's weights.
        report: called with the row of every epoch.
        bar: show Lightning's progress bar.
        check: compares a part of the data with its checksums, see `senet.data.ImageData`.
        finished: the epochs that this process finds in ``directory``; all must find as many.

    Raises:
        UserError: no such accelerator, strategy or number of devices, or not here.
    """
    recorder = RunRecorder(directory, options=options, data=data, export=export, report=report)
    limit = options.limit_batches
    facts = {
        "the last finished epoch": finished,
        "the data": data,
        "options": {k: v for k, v in deciding(options).items() if k not in _PLACES},
    }
    callbacks: list[Callback] = [SameRun(facts)]
    if check is not None:
        callbacks.append(SharedCheck(check, bar=bar))
    callbacks.append(recorder)
    if bar:
        callbacks.append(_Bar(refresh_rate=4))
    with _quiet_lightning():
        try:
            trainer = Trainer(
                accelerator=options.accelerator,
                devices=options.devices,
                num_nodes=options.nodes,
                strategy=make_strategy(options),
                precision=options.precision,
                max_epochs=options.epochs,
                gradient_clip_val=options.clip_norm,
                accumulate_grad_batches=options.accumulate,
                limit_train_batches=limit,
                limit_val_batches=limit,
                num_sanity_val_steps=0,
                use_distributed_sampler=False,
                benchmark=True,
                logger=_tensorboard(directory) if options.tensorboard else False,
                callbacks=callbacks,
                enable_progress_bar=bar,
                enable_model_summary=False,
                default_root_dir=directory,
                plugins=[WholeFiles(), *plugins_for(options)],
            )
            check_launcher(trainer)
        except (MisconfigurationException, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"cannot train with accelerator={options.accelerator}, devices={options.devices}, "
                f"nodes={options.nodes}, strategy={options.strategy}, "
                f"precision={options.precision}: {reason}"
            ) from error
    cores = os.cpu_count() or 1
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > 4 * cores:
        raise UserError(
            f"devices is {trainer.num_devices}, each a process of its own on this CPU, which has "
            f"{cores} cores; use at most {cores}, or {4 * cores} to try things out"
        )
    place, taken = trainer.strategy.root_device.type, trainer.precision_plugin.precision
    if place == "mps" and taken == "64-true":  # Lightning does not know
        taken = "32-true"
    if taken != options.precision:
        raise UserError(f"precision {options.precision} is not to be had on {place}; use {taken}")
    return trainer


def fit(
    trainer: Trainer,
    model: nn.Module,
    train_loader: DataLoader[Any],
    val_loader: DataLoader[Any],
    options: TrainOptions,
    directory: Path,
    *,
    classes: int,
) -> list[EpochRow]:
    """Train ``model``, from the last checkpoint in ``directory`` if there is one.

    Args:
        trainer: as `make_trainer` made it for the same directory.
        model: (N, 3, H, W) → logits (N, classes); trained in place.
        train_loader: batches (images, labels); its sampler's ``set_epoch`` is called.
        val_loader: batches (images, labels).
        options: the run's.
        directory: the run directory.
        classes: how many there are.

    Returns:
        The row of every epoch of the run, those before a resumption too.

    Raises:
        UserError: a loss that is not finite, a checkpoint that cannot be read, another process of
            the run that ended.
        KeyboardInterrupt: Ctrl-C or SIGTERM; what was finished is on the disk.
    """
    module = Classifier(model.train(), options, classes=classes)
    # Lightning would do so later, when it has read a checkpoint's float64 into float32.
    trainer.precision_plugin.convert_module(module)
    last = directory / LAST
    with _quiet_lightning(), _interruptible(), peers_told(trainer):
        if options.compile:  # in place, so that no name changes
            model.compile()
        # Without its weights_only=, which came with Lightning 2.6: `WholeFiles` insists on it.
        ckpt_path = last if last.exists() else None
        try:
            trainer.fit(module, train_loader, val_loader, ckpt_path=ckpt_path)
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo.", "torch._inductor.")):
                raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"torch.compile cannot do {options.model} here: {reason}; leave --compile out"
            ) from error
    (recorder,) = (c for c in trainer.callbacks if isinstance(c, RunRecorder))
    rows: list[EpochRow] = recorder.rows
    return rows


class _Bar(RichProgressBar):
    """Lightning's bar with epochs counted from 1, as in metrics.csv."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch {current_epoch + 1}/{self.trainer.max_epochs}"


def _tensorboard(directory: Path) -> TensorBoardLogger:
    return TensorBoardLogger(directory, name="tensorboard", version="")


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Leave Lightning's errors and drop its notes: which devices there are, tips, advice on
    worker processes, which are an option here, and on directories, which are checked here.
    """
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in _NOTES:
            warnings.filterwarnings("ignore", message)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


_NOTES = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 with torch ≥ 2.11
    ".*does not have many workers",
    ".*The number of training batches .* is smaller than the logging interval",
    ".*Checkpoint directory .* exists and is not empty",
    ".*AMP with fp16 is not supported on CPU",  # refused in `make_trainer`
)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn Lightning's exit on Ctrl-C and SIGTERM back into KeyboardInterrupt."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        raise KeyboardInterrupt from stop
    finally:
        # Lightning ignores the signal from the first Ctrl-C on, for good.
        if handler is not None and signal.getsignal(signal.SIGINT) is not handler:
            signal.signal(signal.SIGINT, handler)
