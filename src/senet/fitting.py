"""The training loop: Lightning around a network, an optimizer and a schedule."""

from __future__ import annotations

import logging
import os
import random
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from .checkpoints import LAST, EpochRow, RunRecorder, WholeFiles, mismatch, refuse
from .data import DataRecord
from .devices import SameRun, check_launcher, make_strategy, peers_told, plugins_for
from .errors import UserError
from .optimization import make_optimizer, make_schedule, unfit_moment
from .options import TrainOptions, deciding
from .runs import differences
from .sampling import mix

__all__ = ["Classifier", "fit", "make_trainer", "seed_everything"]


@dataclass(frozen=True)
class EpochMetrics:
    """What `Classifier` measured in an epoch, over all devices."""

    train_loss: float
    val_loss: float
    val_top1: float
    val_top5: float
    lr: float
    images: int


def seed_everything(*words: int) -> None:
    """Make Python's, NumPy's and PyTorch's global generators a function of ``words``."""
    seed = int(mix(*words)[0] >> np.uint64(32))
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class Classifier(LightningModule):
    """A network that learns to classify images.

    Batches are (images, labels): float (N, 3, H, W) and int64 (N,). The state holds the network
    only, under ``model.``.

    Args:
        model: (N, 3, H, W) → logits (N, classes).
        options: optimizer, schedule and loss are taken from them.
        classes: how many there are.
    """

    def __init__(self, model: nn.Module, options: TrainOptions, *, classes: int) -> None:
        super().__init__()
        self.model = model
        self.options = options
        self.top1 = MulticlassAccuracy(classes, average="micro", validate_args=False)
        self.top5 = MulticlassAccuracy(
            classes, average="micro", top_k=min(5, classes), validate_args=False
        )
        self._train = _Losses()
        self._val = _Losses()
        self._lr = 0.0
        self._resumed: dict[str, Any] = {}
        self._states: dict[str, Tensor] = {}

    def setup(self, stage: str) -> None:
        """Note names and shapes of the state, which a strategy may take apart."""
        self._states = {name: tensor.to("meta") for name, tensor in self.state_dict().items()}

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W)."""
        logits: Tensor = self.model(images)
        return logits

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer of the options and its schedule, stepped after every batch."""
        optimizer = make_optimizer(self.model, self.options)
        # Known only now: with several devices each takes its share of an epoch's steps.
        steps = int(self.trainer.estimated_stepping_batches) // self.options.epochs
        schedule = make_schedule(optimizer, self.options, steps)
        self._check_resumed(optimizer, schedule)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare a checkpoint's weights and loops with those here, before Lightning takes them.

        Raises:
            UserError: it is another network's, or damaged.
        """
        path = self.trainer.ckpt_path
        other = differences(self._states, checkpoint["state_dict"])
        if other:
            raise refuse(path, f"it does not fit {self.options.model}: it {other}")
        expected = {
            "state_dict": self._states,
            "loops": {"fit_loop": self.trainer.fit_loop.state_dict()},
        }
        if (place := mismatch(expected, checkpoint)) is not None:
            raise refuse(path, f"its {place!r} is missing or damaged")
        counts = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
        epochs = {counts[name] for name in ("ready", "started", "processed")}
        if epochs != {checkpoint["epoch"] + 1}:
            raise refuse(path, "its loops count other epochs than its rows of metrics.csv")
        self._resumed = checkpoint

    def _check_resumed(
        self, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler
    ) -> None:
        """The same for the states of optimizer and schedule, as soon as there are both."""
        if not self._resumed:
            return
        expected = {
            "optimizer_states": [optimizer.state_dict()],
            "lr_schedulers": [schedule.state_dict()],
        }
        place = mismatch(expected, self._resumed, flags_may_miss=True)
        if place is None:
            place = unfit_moment(optimizer, self._resumed["optimizer_states"][0])
        if place is not None:
            raise refuse(self.trainer.ckpt_path, f"its {place!r} is missing or damaged")
        self._resumed = {}

    def on_train_epoch_start(self) -> None:
        """Begin the mean of the epoch's loss anew."""
        self._train = _Losses()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the epoch's chance (dropout, drop path) from its number alone.

        Here and not at the epoch's start, because the loader's iterator draws from the global
        generator too, in a resumed run before the epoch starts and otherwise after.
        """
        if batch_idx == 0:
            seed_everything(self.options.seed, self.current_epoch, self.global_rank)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch; the one before must have been finite.

        One step late, because asking a GPU for a number makes it wait. Nothing is written
        between two batches, so no file ever sees the damage.
        """
        self._train.check_last("training loss", self.global_step)
        images, labels = batch
        loss = F.cross_entropy(self(images), labels, label_smoothing=self.options.label_smoothing)
        self._train.add(loss, len(images))
        self._lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        if self.trainer.progress_bar_callback is not None and batch_idx % 10 == 0:
            self.log("loss", loss, prog_bar=True, logger=False)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Look at the last training loss of the epoch, and begin the validation's anew."""
        self._train.check_last("training loss", self.global_step)
        self._val = _Losses()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count loss and accuracy of a batch."""
        images, labels = batch
        logits = self(images)
        self._val.add(F.cross_entropy(logits.float(), labels), len(images))
        self.top1.update(logits, labels)
        self.top5.update(logits, labels)

    def epoch_metrics(self) -> EpochMetrics:
        """What the epoch came to, and the start of the next count; call on all devices alike.

        Raises:
            UserError: the validation loss is not finite.
        """
        train_sum, images = self._over_devices(self._train.totals())
        val_sum, val_images = self._over_devices(self._val.totals())
        if not np.isfinite(val_sum):
            raise _not_finite("validation loss", self.global_step)
        metrics = EpochMetrics(
            train_loss=train_sum / images,
            val_loss=val_sum / val_images,
            val_top1=self.top1.compute().item(),
            val_top5=self.top5.compute().item(),
            lr=self._lr,
            images=int(images),
        )
        self.top1.reset()
        self.top5.reset()
        return metrics

    def _over_devices(self, totals: tuple[float, int]) -> tuple[float, float]:
        if self.trainer.world_size == 1:
            return totals
        summed = self.trainer.strategy.reduce(
            torch.tensor(totals, device=self.device, dtype=torch.float64), reduce_op="sum"
        )
        return summed[0].item(), summed[1].item()


class _Losses:
    """Mean losses of batches, left on the device until they are asked for."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._counts: list[int] = []

    def add(self, loss: Tensor, count: int) -> None:
        self._losses.append(loss.detach())
        self._counts.append(count)

    def check_last(self, what: str, step: int) -> None:
        """Raise `UserError` where the last loss is not finite."""
        if self._losses and not torch.isfinite(self._losses[-1]):
            raise _not_finite(what, step)

    def totals(self) -> tuple[float, int]:
        """The sum over the images, and their number."""
        losses = torch.stack(self._losses).double().cpu()
        return float(losses @ torch.tensor(self._counts).double()), sum(self._counts)


def _not_finite(what: str, step: int) -> UserError:
    return UserError(
        f"{what} is not finite at step {step}: stopped, and the best epoch so far is as it was; "
        "try a lower --lr, a longer --warmup_epochs, --clip_norm 1, or look at the data"
    )


def make_trainer(
    options: TrainOptions,
    directory: Path,
    *,
    data: DataRecord | None = None,
    export: Callable[[EpochRow], None],
    report: Callable[[EpochRow], None],
    bar: bool = False,
    finished: int = 0,
) -> Trainer:
    """Lightning's trainer, which keeps a run directory up to date.

    Args:
        options: the run's.
        directory: the run directory.
        data: what is trained on, for the checkpoints.
        export: called with the row of every new best epoch, to write the model's weights.
        report: called with the row of every epoch.
        bar: show Lightning's progress bar.
        finished: the epochs that this process finds in ``directory``; all must find as many.

    Raises:
        UserError: no such accelerator, strategy or number of devices, or not here.
    """
    recorder = RunRecorder(directory, options=options, data=data, export=export, report=report)
    limit = options.limit_batches
    facts = {
        "the last finished epoch": finished,
        "the data": data,
        "options": {k: v for k, v in deciding(options).items() if k not in ("data", "init")},
    }
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
                limit_train_batches=limit,
                limit_val_batches=limit,
                num_sanity_val_steps=0,
                use_distributed_sampler=False,
                benchmark=True,
                logger=_tensorboard(directory) if options.tensorboard else False,
                callbacks=[SameRun(facts), recorder, *([_Bar(refresh_rate=4)] if bar else [])],
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
    if (taken := trainer.precision_plugin.precision) != options.precision:
        raise UserError(
            f"precision {options.precision} is not to be had on "
            f"{trainer.strategy.root_device.type}; use {taken}"
        )
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
        # Without its weights_only=, which came with Lightning 2.6: `WholeFiles` insists on it.
        ckpt_path = last if last.exists() else None
        trainer.fit(module, train_loader, val_loader, ckpt_path=ckpt_path)
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
