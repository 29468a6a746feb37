"""The algebra in differentiable operators, for a compiler to fuse with its neighbours.

Eager it would save more than `aten` does; under `torch.compile` the partitioner keeps x and
vectors, the statistics join the pass before, and the affine map the pass after.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional import statistics_dtype
from . import gate
from .operands import Excitation, Norm
from .statistics import update_running

__all__ = ["norm_excite"]


def norm_excite(x: Tensor, norm: Norm, excitation: Excitation) -> Tensor:
    """SE(BN(x)) for x (N, C, S₁, …, S_d); a fresh tensor of x's dtype."""
    dtype = statistics_dtype(x.dtype)
    positions = tuple(range(2, x.dim()))
    with torch.autocast(x.device.type, enabled=False):
        wide = x.to(dtype)
        if norm.batch_statistics:
            v, m = torch.var_mean(wide, positions, correction=0)
            mean = m.mean(0)
            var = v.mean(0) + (m - mean).square().mean(0)
            update_running(norm, mean.detach(), var.detach(), x.numel() // x.shape[1])
        else:
            m = wide.mean(positions)
            mean, var = norm.fixed_statistics(dtype)
        a = torch.rsqrt(var + norm.eps)
        a = a if norm.weight is None else a * norm.weight.to(dtype)
        z = a * (m - mean)
        z = z if norm.bias is None else z + norm.bias.to(dtype)
        s = gate.gate(excitation, gate.forward(excitation, z)[1])
        spread = (1,) * len(positions)
        # Centred first: with a large mean the affine form s·a·x − s·a·μ would cancel digits.
        y = (wide - mean.view(1, -1, *spread)) * (s * a).view(*s.shape, *spread)
        if norm.bias is not None:
            y = y + (s * norm.bias.to(dtype)).view(*s.shape, *spread)
        return y.to(x.dtype)
