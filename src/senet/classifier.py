"""A network that learns to classify images: its steps, its losses, its part of a checkpoint."""

from __future__ import annotations

import math
import random
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from .averaging import WeightAverage
from .checkpoints import TRAINED, mismatch, refuse
from .errors import UserError
from .mixing import BatchMixing
from .optimization import lengths, make_optimizer, make_schedule, unfit_moment
from .options import TrainOptions
from .runs import differences
from .sampling import mix

__all__ = ["Classifier", "EpochMetrics", "seed_everything"]


@dataclass(frozen=True)
class EpochMetrics:
    """What `Classifier` measured in an epoch, over all devices."""

    train_loss: float
    train_top1: float
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
    only, under ``model.``. With ``ema_decay`` it is the averaged weights that are validated and
    that a checkpoint has there; those that are trained are beside them then, under `TRAINED`.

    Args:
        model: (N, 3, H, W) → logits (N, classes).
        options: optimizer, schedule, loss, mixing and averaging are taken from them.
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
        self.train_top1 = MulticlassAccuracy(classes, average="micro", validate_args=False)
        self._mixing = BatchMixing(options, classes=classes)
        self._average: WeightAverage | None = None
        self._train = _Losses()
        self._val = _Losses()
        self._lr = 0.0
        self._resumed: dict[str, Any] = {}
        self._states: dict[str, Tensor] = {}

    def setup(self, stage: str) -> None:
        """Begin the average, and note names and shapes of the state.

        A checkpoint is read into the one; of the others a strategy may make parts.
        """
        if self.options.ema_decay is not None:
            self._average = WeightAverage(self.model, self.options.ema_decay)
        self._states = {name: tensor.to("meta") for name, tensor in self.state_dict().items()}

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W)."""
        logits: Tensor = self.model(images)
        return logits

    def on_fit_start(self) -> None:
        """Have the average where the network is by now."""
        if self._average is not None:
            self._average.to(self.device)

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer of the options and its schedule, stepped after every batch."""
        optimizer = make_optimizer(self.model, self.options)
        # Known only now: with several devices each takes its share of an epoch's steps.
        steps = int(self.trainer.estimated_stepping_batches) // self.options.epochs
        schedule = make_schedule(optimizer, self.options, steps)
        self._check_resumed(optimizer, schedule, steps)
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
        states = ["state_dict"] if self._average is None else ["state_dict", TRAINED]
        for name in states:
            if name not in checkpoint:
                raise refuse(path, f"its {name!r} is missing")
            if other := differences(self._states, checkpoint[name]):
                raise refuse(path, f"it does not fit {self.options.model}: it {other}")
        expected: dict[str, Any] = dict.fromkeys(states, self._states)
        expected["loops"] = {"fit_loop": self.trainer.fit_loop.state_dict()}
        if (place := mismatch(expected, checkpoint)) is not None:
            raise refuse(path, f"its {place!r} is missing or damaged")
        counts = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
        epochs = {counts[name] for name in ("ready", "started", "processed")}
        if epochs != {checkpoint["epoch"] + 1}:
            raise refuse(path, "its loops count other epochs than its rows of metrics.csv")
        self._resumed = checkpoint
        if self._average is not None:
            averaged = {
                name.removeprefix("model."): tensor
                for name, tensor in checkpoint["state_dict"].items()
            }
            self._average.load_state_dict(averaged, steps=checkpoint["global_step"])
            checkpoint["state_dict"] = checkpoint[TRAINED]  # which Lightning loads next

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the averaged weights in the place of those that are trained, and these beside."""
        if self._average is not None:
            averaged = self._average.state_dict()
            checkpoint[TRAINED] = checkpoint["state_dict"]
            checkpoint["state_dict"] = {f"model.{name}": t for name, t in averaged.items()}

    def _check_resumed(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        steps: int,
    ) -> None:
        """The same for the states of optimizer and schedule, as soon as there are both."""
        if not self._resumed:
            return
        expected = {
            "optimizer_states": [optimizer.state_dict()],
            "lr_schedulers": [schedule.state_dict()],
        }
        place = mismatch(expected, self._resumed, flags_may_miss=True)
        trained = self._resumed["global_step"] // (self._resumed["epoch"] + 1)
        other_steps = place is not None and place.startswith("lr_schedulers") and trained != steps
        if place is None:
            state = self._resumed["optimizer_states"][0]
            # In float16 the scale of the loss is found by steps that are left out, perhaps all.
            if state["state"] or self.options.precision != "16-mixed":
                place = unfit_moment(optimizer, state)
        if place is not None and not other_steps:
            raise refuse(self.trainer.ckpt_path, f"its {place!r} is missing or damaged")
        if other_steps or (
            lengths(expected["lr_schedulers"]) != lengths(self._resumed["lr_schedulers"])
        ):
            raise UserError(
                f"the run in {self.trainer.ckpt_path} was trained with another number of steps an "
                "epoch, by another number of devices; resume it with --devices as it began, or "
                "train into another directory"
            )
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
        place = {"epoch": self.current_epoch, "batch": batch_idx, "rank": self.global_rank}
        images, labels = self._mixing(*batch, **place)
        logits = self(images)
        mixed = labels.is_floating_point()
        if mixed:  # probabilities have to be of the type of the logits, but not in 16 bits
            labels = labels.to(torch.promote_types(logits.dtype, torch.float32))
        loss = F.cross_entropy(logits, labels, label_smoothing=self.options.label_smoothing)
        self._train.add(loss, len(images))
        self.train_top1.update(logits, labels.argmax(1) if mixed else labels)
        self._lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        if self.trainer.progress_bar_callback is not None and batch_idx % 10 == 0:
            self.log("loss", loss, prog_bar=True, logger=False)
        return loss * self._share_of_step(batch_idx)

    def _share_of_step(self, batch_idx: int) -> float:
        """What makes a step the mean of its batches, also an epoch's last one, which has fewer.

        Lightning divides each loss by ``accumulate``, however many batches a step comes to.
        """
        accumulate, batches = self.options.accumulate, self.trainer.num_training_batches
        rest = 0 if math.isinf(batches) else batches % accumulate
        return accumulate / rest if rest and batch_idx >= batches - rest else 1.0

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Average the weights where the batch ended in a step of the optimizer."""
        if self._average is not None and self._average.steps < self.global_step:
            self._average.update(self.model)

    def on_validation_epoch_start(self) -> None:
        """Look at the last training loss of the epoch, and begin the validation's anew."""
        self._train.check_last("training loss", self.global_step)
        self._val = _Losses()
        if self._average is not None:
            self._average.exchange(self.model)

    def on_validation_epoch_end(self) -> None:
        """Have the network go on with the weights that are trained."""
        if self._average is not None:
            self._average.exchange(self.model)

    def evaluated_weights(self) -> AbstractContextManager[None]:
        """For a while, the network has the weights that were validated."""
        return nullcontext() if self._average is None else self._average.inside(self.model)

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
            train_top1=self.train_top1.compute().item(),
            val_loss=val_sum / val_images,
            val_top1=self.top1.compute().item(),
            val_top5=self.top5.compute().item(),
            lr=self._lr,
            images=int(images),
        )
        for metric in (self.train_top1, self.top1, self.top5):
            metric.reset()
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
        self._finite: Tensor | None = None
        self._known: torch.cuda.Event | None = None

    def add(self, loss: Tensor, count: int) -> None:
        self._losses.append(loss.detach())
        self._counts.append(count)
        # Sent for now: asked for later, a GPU would first end all that it was given since.
        self._finite = loss.detach().isfinite().to("cpu", non_blocking=loss.is_cuda)
        if loss.is_cuda:
            self._known = torch.cuda.Event()
            self._known.record()

    def check_last(self, what: str, step: int) -> None:
        """Raise `UserError` where the last loss is not finite."""
        if self._known is not None:
            self._known.synchronize()
        if self._finite is not None and not self._finite:
            raise _not_finite(what, step)

    def totals(self) -> tuple[float, int]:
        """The sum over the images, and their number."""
        losses = torch.stack(self._losses).cpu().double()
        return float(losses @ torch.tensor(self._counts).double()), sum(self._counts)


def _not_finite(what: str, step: int) -> UserError:
    return UserError(
        f"{what} is not finite at step {step}: stopped, and the best epoch so far is as it was; "
        "try a lower --lr, a longer --warmup_epochs, --clip_norm 1, or look at the data"
    )
