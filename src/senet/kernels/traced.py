"""The algebra in operators that autograd knows, for a compiler to fuse with its neighbours.

Eager it would save more than `aten` does; under `torch.compile` the partitioner keeps x and
vectors, the statistics join the pass before, and the affine map the pass after.
"""

from __future__ import annotations

from typing import Any

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
    spread = (1,) * len(positions)
    with torch.autocast(x.device.type, enabled=False):
        # All is seen from near each channel's values, so that a large mean cancels no digits.
        if norm.batch_statistics:
            origin = _some_value(x).to(dtype)
            wide = x.to(dtype) - origin.view(1, -1, *spread)
            v, m = torch.var_mean(wide, positions, correction=0)
            mean = m.mean(0)
            var = v.mean(0) + (m - mean).square().mean(0)
            count = x.numel() // x.shape[1]
            update_running(norm, (mean + origin).detach(), var.detach(), count)
        else:  # from no image's value: what is no number in one must not reach the others
            origin, var = norm.fixed_statistics(dtype)
            m = (x.to(dtype) - origin.view(1, -1, *spread)).mean(positions)
            mean = torch.zeros_like(origin)
        a = torch.rsqrt(var + norm.eps)
        a = a if norm.weight is None else a * norm.weight.to(dtype)
        z = a * (m - mean)
        z = z if norm.bias is None else z + norm.bias.to(dtype)
        s = gate.gate(excitation, gate.forward(excitation, z, _linear)[1])
        # Centred by a constant that is nearly μ, and what that leaves out: from x itself, without a
        # cast before it, so that the compiler keeps nothing but x for the backward, and no wider
        # copy of a half-precision one.
        centre = (origin + mean).detach()
        shift = s * a * ((centre - origin) - mean)
        shift = shift if norm.bias is None else shift + s * norm.bias.to(dtype)
        y = (x - centre.view(1, -1, *spread)) * (s * a).view(*s.shape, *spread)
        return (y + shift.view(*s.shape, *spread)).to(x.dtype)


def _linear(z: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = _Product.apply(z, weight)
    return product if bias is None else product + bias


class _Product(torch.autograd.Function):
    """z Wᵀ, whose backward is not autocast: a compiler traces it where the forward was called."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, weight: Tensor) -> Tensor:
        return z @ weight.t()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        z, weight = ctx.saved_tensors
        (g,) = gradients
        with torch.autocast(g.device.type, enabled=False):
            return g @ weight, g.t() @ z


def _some_value(x: Tensor) -> Tensor:
    """One of each channel's values, (C,), a constant to autograd; zeros where there are none."""
    if not x.numel():
        return x.new_zeros(x.shape[1])
    first: tuple[Any, ...] = (0, slice(None), *(0,) * (x.dim() - 2))
    return x.detach()[first]
