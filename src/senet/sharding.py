"""Weights shared out over devices (FSDP), in runs and checkpoints like those of one device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.distributed.fsdp import (
    FullOptimStateDictConfig,
    FullStateDictConfig,
    FullyShardedDataParallel,
    OptimStateKeyType,
    StateDictType,
)

from .meeting import ToldMeeting

__all__ = ["Sharded"]


class Sharded(ToldMeeting, FSDPStrategy):
    """Lightning's FSDP, whose checkpoints hold the whole network in the form of one device.

    They are written whole and read without running anything in them, as all of a run's, which
    Lightning's own way round `CheckpointIO` does not see to. Validation gathers the weights once
    and lets each process go through its share alone: a process with a batch less waits for nobody.
    """

    def _setup_model(self, model: nn.Module) -> nn.Module:
        if self.root_device.type != "cpu":
            wrapped: nn.Module = super()._setup_model(model)
            return wrapped
        # The device has to be named, or PyTorch looks for another.
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **self.kwargs)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write the whole state, which the first process has put together."""
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read it, in every process."""
        checkpoint: dict[str, Any] = self.checkpoint_io.load_checkpoint(checkpoint_path)
        return checkpoint

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning hands the momenta on, since `load_checkpoint` only reads."""
        return True

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Each takes its part of the weights."""
        with self._whole():
            self.model.load_state_dict(checkpoint["state_dict"], strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Each takes its part of the momenta."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            with self._whole():
                named = FullyShardedDataParallel.rekey_optim_state_dict(
                    state, OptimStateKeyType.PARAM_NAME, self.model
                )
                mine = FullyShardedDataParallel.optim_state_dict_to_load(
                    self.model, optimizer, named
                )
                optimizer.load_state_dict(mine)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        with FullyShardedDataParallel.state_dict_type(
            self.model,
            StateDictType.FULL_STATE_DICT,
            FullStateDictConfig(rank0_only=False),
            FullOptimStateDictConfig(rank0_only=False),
        ):
            yield

    def on_validation_start(self) -> None:
        """Gather the weights in every process, and the first one's statistics of norms."""
        self._gathered = ExitStack()
        self._gathered.enter_context(
            FullyShardedDataParallel.summon_full_params(self.model, writeback=False)
        )
        for buffer in self.model.buffers():
            dist.broadcast(buffer, 0)

    def on_validation_end(self) -> None:
        """Let go of the others' parts."""
        self._gathered.close()

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """A step of one process alone."""
        with self.precision_plugin.val_step_context():
            return self.lightning_module.validation_step(*args, **kwargs)
