"""The moving average of a network's weights, which is evaluated in their stead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

__all__ = ["WeightAverage"]

_Tensors = tuple[Tensor, ...] | list[Tensor]


class WeightAverage:
    """Exponential moving average over the optimizer's steps, by PyTorch's AveragedModel.

    After the first step it is the weights of that step; after step n + 1,
    average ← d·average + (1 - d)·weights with d = min(decay, (1 + n)/(10 + n)): a growing window
    at first, or a short run would keep its initial weights.

    Buffers are averaged as the parameters are: BatchNorm's running statistics then belong to the
    same stretch of the run as the weights that they normalise for, which those of the last step
    alone do not. Whole numbers (BatchNorm's count of batches) have no mean and are copied.

    (Lightning's WeightAveraging keeps the average of the whole LightningModule, and reads it from
    a checkpoint before anything could be compared; and it came with a later version than 2.5.)

    Args:
        model: whose weights; not touched.
        decay: in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.steps = 0
        self._decay = decay
        self._averaged = AveragedModel(model, multi_avg_fn=self._update_many, use_buffers=True)
        self._averaged.requires_grad_(False)

    def to(self, device: torch.device) -> None:
        """Keep the average on a device."""
        self._averaged.module.to(device)  # and not its counter, which would have to be waited for

    def update(self, model: nn.Module) -> None:
        """Take up the weights after an optimizer step."""
        self._averaged.update_parameters(model)
        self.steps += 1

    def _update_many(self, averaged: _Tensors, current: _Tensors, count: Tensor | int) -> None:
        """Move tensors of one type; ``count`` is ``steps`` on the device, which is not asked."""
        if not averaged[0].is_floating_point():
            torch._foreach_copy_(averaged, current)
            return
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)(averaged, current, self.steps)

    @torch.no_grad()
    def exchange(self, model: nn.Module) -> None:
        """Give the model the averaged weights and keep its own meanwhile, or the other way back."""
        for ours, theirs in zip(_tensors(self._averaged.module), _tensors(model), strict=True):
            kept = ours.clone()
            ours.copy_(theirs)
            theirs.copy_(kept)

    @contextmanager
    def inside(self, model: nn.Module) -> Iterator[None]:
        """For a while, the model has the averaged weights."""
        self.exchange(model)
        try:
            yield
        finally:
            self.exchange(model)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights under the names that they have in the model."""
        state: dict[str, Tensor] = self._averaged.module.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor], *, steps: int) -> None:
        """Take up an average that was made over so many steps."""
        self._averaged.module.load_state_dict(state)
        self._averaged.n_averaged.fill_(steps)
        self.steps = steps


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())
