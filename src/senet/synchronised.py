"""BatchNorms whose batch is that of all processes, on the CPU too, where PyTorch's own refuses."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .fusing import norm_operands
from .kernels import batch_norm, sync_norm

__all__ = ["SynchronisedBatchNorm", "synchronise"]


class SynchronisedBatchNorm(_BatchNorm):
    """`torch.nn.SyncBatchNorm` for any device, and for a norm that ends in its own activation.

    In training the statistics are those of all processes' batches; in evaluation, in a single
    process or without process group it is BatchNorm, and no process waits for another.
    PyTorch's class refuses the CPU, and DistributedDataParallel refuses that class there.

    Args:
        norm: the BatchNorm that it stands for, whose parameters and buffers it takes over.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(
            norm.num_features, norm.eps, norm.momentum, affine=False, track_running_stats=False
        )
        self.affine, self.track_running_stats = norm.affine, norm.track_running_stats
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self._buffers[name] = getattr(norm, name)
        self.process_group = None  # the whole world, as `senet.fusing` takes it
        for name in ("drop", "act"):  # timm's norms end in them
            if isinstance(child := getattr(norm, name, None), nn.Module):
                self.add_module(name, child)
        self.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, …) normalised, of the same shape; batches may differ in N between processes."""
        norm = norm_operands(self, input)
        y = batch_norm(input, norm) if norm.group is None else sync_norm(input, norm)
        for name in ("drop", "act"):
            if (child := self._modules.get(name)) is not None:
                y = child(y)
        return y


def synchronise(model: nn.Module) -> nn.Module:
    """Put a `SynchronisedBatchNorm` in the place of every BatchNorm of a network.

    In place, except for a model that is itself a norm; keys and parameters stay the same, and SE
    blocks where they are.
    """
    if isinstance(model, _BatchNorm) and not isinstance(model, SynchronisedBatchNorm):
        return SynchronisedBatchNorm(model)
    for name, child in model.named_children():
        if (changed := synchronise(child)) is not child:
            model.add_module(name, changed)
    return model
