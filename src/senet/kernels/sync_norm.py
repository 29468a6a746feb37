"""BatchNorm over the batches of several processes, from the passes of the fused norm.

PyTorch's SyncBatchNorm has no kernels for the CPU. Here they are those of a norm that ends in SE,
with a gate of one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .aten import laid_out_like, passes_for, sample_moments
from .operands import Norm
from .statistics import batch_moments, sum_over, unversioned, update_running

__all__ = ["sync_norm"]


def sync_norm(x: Tensor, norm: Norm) -> Tensor:
    """BN(x) of x (N, C, …) by the statistics of all processes in ``norm.group``.

    The running statistics are updated. Each process returns its own ∂γ and ∂β, which
    DistributedDataParallel averages.
    """
    with_positions = x if x.dim() > 2 else x[..., None]
    y: Tensor = _SyncNorm.apply(with_positions, norm.weight, norm.bias, norm)
    return y.view(x.shape) if x.dim() == 2 else y


class _SyncNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Norm) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            passes, m, v = sample_moments(x, norm.eps)
            mean, var, count = batch_moments(m, v, x.numel() // x.shape[1], norm.group)
            update_running(unversioned(norm), mean, var, count)
            r = torch.rsqrt(var + norm.eps).to(v.dtype)
            a = r if weight is None else r * weight.to(r.dtype)
            beta = torch.zeros_like(r) if bias is None else bias.to(r.dtype)
            y = passes.affine(x, a.expand_as(m), beta.expand_as(m), mean)
        ctx.save_for_backward(x, weight, bias, mean, r, a)
        ctx.count, ctx.group = count, norm.group
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, r, a = ctx.saved_tensors
        g = laid_out_like(gradients[0], x)
        passes = passes_for(x, mean.dtype)
        with torch.autocast(x.device.type, enabled=False):
            s0, s1 = passes.sums(g, x, mean)
            d_beta, d_gamma = s0.sum(0), (s1 * r).sum(0)
            # Every process needs the sums of all; its own gradients it leaves to DDP.
            beta_sum, gamma_sum = sum_over(ctx.group, d_beta, d_gamma)
            slope = -a * r * gamma_sum / ctx.count
            shift = (-a * beta_sum / ctx.count).expand_as(s0)
            d_x = passes.combine(g, a.expand_as(s0), x, slope, shift, mean)
        d_weight = None if weight is None else d_gamma.to(weight.dtype)
        d_bias = None if bias is None else d_beta.to(bias.dtype)
        return d_x, d_weight, d_bias, None
