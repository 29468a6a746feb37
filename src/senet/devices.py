"""Several devices and machines: how Lightning is asked for them, and what their processes check."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import LayerSync
from lightning.pytorch.strategies import DDPStrategy
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from .errors import UserError
from .meeting import ToldMeeting
from .options import TrainOptions
from .ranks import processes_here
from .sharding import Sharded
from .synchronised import synchronise

__all__ = [
    "SynchronisedNorms",
    "check_launcher",
    "check_shares",
    "make_strategy",
    "peers_told",
    "plugins_for",
]


def make_strategy(options: TrainOptions) -> DDPStrategy | Sharded | str:
    """The strategy of the options, with their patience; "auto" where one device is enough."""
    here = processes_here(options.devices, options.accelerator)
    if options.strategy == "auto" and options.nodes == 1 and here == 1:
        return "auto"
    patience = timedelta(seconds=options.peer_timeout)
    if options.strategy == "fsdp":
        return _sharded(options, here, patience)
    on_cpu = options.accelerator == "cpu" or not torch.accelerator.is_available()
    return (InRankOrder if on_cpu else Replicated)(
        timeout=patience,
        find_unused_parameters=options.strategy == "ddp_find_unused_parameters_true",
    )


def _sharded(options: TrainOptions, here: int, patience: timedelta) -> Sharded:
    if options.clip_norm is not None:
        raise UserError(
            "strategy fsdp cannot clip the norm of gradients that are in parts; use ddp"
        )
    if not options.decay_norms:
        raise UserError(
            "strategy fsdp flattens the weights, and cannot tell those of norms, which decay_norms "
            "leaves out, from others; use ddp"
        )
    for name in ("ema_decay", "layer_decay"):
        if getattr(options, name) is not None:
            raise UserError(
                f"strategy fsdp keeps the weights in parts, which {name} needs whole; use ddp"
            )
    if options.accelerator == "cpu" and options.precision.endswith("-mixed"):
        raise UserError(
            f"strategy fsdp on the CPU computes in the weights' own type, and precision is "
            f"{options.precision}; use 32-true, or ddp"
        )
    if options.nodes == 1 and here == 1:
        raise UserError("strategy fsdp shares weights out over several devices; give --devices")
    return Sharded(timeout=patience)


def check_launcher(trainer: Trainer) -> None:
    """ValueError where torchrun or SLURM started another number of processes than is asked for.

    Lightning asks only where there are to be several: each of those that a launcher started would
    otherwise train a network of its own.
    """
    numbers = {"num_devices": trainer.num_devices, "num_nodes": trainer.num_nodes}
    if TorchElasticEnvironment.detect():
        TorchElasticEnvironment().validate_settings(**numbers)
    elif SLURMEnvironment.detect():
        SLURMEnvironment(auto_requeue=False).validate_settings(**numbers)


class Replicated(ToldMeeting, DDPStrategy):
    """Lightning's DDP."""


class InRankOrder(Replicated):
    """Lightning's DDP, with gradients that are added in the order of the processes.

    The collective operation adds each element in an order that depends on its place in a bucket,
    and PyTorch lays the buckets out anew after a process's first step: three processes that
    resume would add the same numbers in another order than ones that were never stopped.
    """

    def configure_ddp(self) -> None:
        """Wrap the model, and tell it how to average."""
        super().configure_ddp()
        self.model.register_comm_hook(None, _mean_in_rank_order)


def _mean_in_rank_order(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    mine = bucket.buffer()
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    work = dist.all_gather(parts, mine, async_op=True)

    def mean(gathered: torch.futures.Future[list[Tensor]]) -> Tensor:
        gathered.value()  # raises where a process is gone
        total = parts[0]
        for part in parts[1:]:
            total += part
        return total.div_(len(parts))

    return work.get_future().then(mean)


# PyTorch compares the annotations, of which `from __future__ import annotations` makes texts.
_mean_in_rank_order.__annotations__ = {
    "bucket": dist.GradBucket,
    "return": torch.futures.Future[Tensor],
}


def plugins_for(options: TrainOptions) -> list[Any]:
    """What Lightning is given for the devices of the options, beside the strategy.

    Under SLURM it would save a checkpoint of its own in the midst of an epoch when the time is
    up, and go on from that one: here a job that is started again goes on with --resume.
    """
    plugins: list[Any] = []
    if options.sync_batchnorm:
        plugins.append(SynchronisedNorms())
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return plugins


class SynchronisedNorms(LayerSync):
    """Norms over the batches of all devices, SE blocks and activations kept.

    Lightning's own converts by PyTorch's function, which drops the activation at the end of
    timm's norms and has nothing for the CPU.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Convert the norms of a `LightningModule`, in place."""
        assert isinstance(model, LightningModule)
        if model.trainer.strategy.root_device.type == "cpu":
            return synchronise(model)
        converted: nn.Module = convert_sync_batchnorm(model)
        return converted

    def revert(self, model: nn.Module) -> nn.Module:
        """Leave the norms as they are: a single process makes BatchNorms of them by itself."""
        return model


def check_shares(trainer: Trainer, options: TrainOptions, *, train: int, val: int) -> None:
    """Refuse more processes than there are images for.

    Args:
        trainer: as `senet.fitting.make_trainer` made it.
        options: the run's.
        train: number of training images.
        val: number of held-out images.

    Raises:
        UserError: a process would have no batch, in training or in validation.
    """
    world = trainer.world_size
    if world == 1:
        return
    share = train // world
    for count, what in ((train, "training"), (val, "held-out")):
        if count < world:
            raise UserError(
                f"{world} devices, but {count} {what} images; each device needs at least one"
            )
    if train >= options.batch_size > share:
        raise UserError(
            f"batch_size is {options.batch_size} on each of {world} devices, but each has only "
            f"{share} of the {train:,} training images; use at most {share}"
        )


@contextmanager
def peers_told(trainer: Trainer) -> Iterator[None]:
    """Have the end of another process of the run told in a line, and not as a traceback.

    Raises:
        UserError: another process ended, or was silent for longer than ``peer_timeout``.
    """
    logger = logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script")
    handler = _LastWords(os.dup(2))
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # or Lightning would say it too, over several lines
    try:
        yield
    except (RuntimeError, dist.DistError) as error:
        if trainer.world_size == 1 or not (reason := _of_a_peer(error)):
            raise
        raise UserError(
            f"process {trainer.global_rank} of {trainer.world_size} lost another of its run "
            f"({reason}): it was killed, ended with words of its own, or was silent for longer "
            "than peer_timeout; to go on from the last finished epoch, start all again with "
            "--resume"
        ) from error
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
        os.close(handler.words)


class _LastWords(logging.Handler):
    """Says in a line what Lightning's watch over its processes only logs before it ends them.

    Args:
        words: file descriptor for it; standard error may be held back at that moment, and what was
            held back is lost.
    """

    def __init__(self, words: int) -> None:
        super().__init__()
        self.words = words

    def emit(self, record: logging.LogRecord) -> None:
        found = re.search(r"PID (\d+) terminated with code (-?\d+)", record.getMessage())
        if found:
            line = (
                f"senet: error: a process of this run ended (PID {found[1]}, status {found[2]}), "
                "and the others with it; to go on from the last finished epoch, start it again "
                "with --resume\n"
            )
            os.write(self.words, line.encode())


def _of_a_peer(error: Exception) -> str:
    """What of an error says that a peer is gone, in a few words; "" where it is about us."""
    text = " ".join(str(error).split())
    if not isinstance(error, dist.DistError) and not re.search(r"gloo|NCCL|ncclComm", text):
        return ""
    known = re.search(
        r"Connection (closed|reset) by (remote )?peer|Broken pipe|[Tt]imed out[^.\[]*|"
        r"Connection refused|Socket \w+|remote process exited",
        text,
    )
    return known[0].strip() if known else text[:80]
