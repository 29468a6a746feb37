"""What a norm that ends in SE is given, beside the feature map."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:  # not every build of PyTorch has it
    from torch.distributed import ProcessGroup

__all__ = ["Excitation", "Norm"]


class Norm(NamedTuple):
    """A BatchNorm: its tensors, each (C,), and how it takes its statistics.

    Attributes:
        weight, bias: γ and β, or None for 1 and 0.
        running_mean, running_var: None where there are none. Where ``batch_statistics`` are
            used they are updated in place, the variance unbiased; else they are the statistics.
        momentum: the weight of this batch in the running statistics.
        eps: ε, added to the variance.
        batch_statistics: normalise by the statistics of the batch.
        group: the processes whose batches are one batch (SyncBatchNorm), or None.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    momentum: float = 0.1
    eps: float = 1e-5
    batch_statistics: bool = True
    group: ProcessGroup | None = None

    def fixed_statistics(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """μ and σ² where they are not the batch's: the running ones, in ``dtype``."""
        assert self.running_mean is not None
        assert self.running_var is not None
        return self.running_mean.to(dtype), self.running_var.to(dtype)


class Excitation(NamedTuple):
    """Equation 3, z ↦ s, with a constant on the gate; see `senet.functional.excite`.

    Attributes:
        w1, b1: (hidden, C) and (hidden,), each or both None.
        w2, b2: (C, hidden) and (C,), the latter perhaps None.
        gate, activation: names of `senet.functional.GATES` and ``ACTIVATIONS``.
        gate_scale: the constant.
        squeeze: a name of `senet.functional.SQUEEZES`; the algebra is that of "avg".
        observer: is shown σ(…), (N, C), without the constant, once a forward.
    """

    w1: Tensor | None
    b1: Tensor | None
    w2: Tensor
    b2: Tensor | None
    gate: str = "sigmoid"
    activation: str = "relu"
    gate_scale: float = 1.0
    squeeze: str = "avg"
    observer: Callable[[Tensor], object] | None = None
