"""The four passes where the channels of a position lie together, on the CPU: (N, S, C) in memory.

Statistics go sample by sample through BatchNorm's own channels-last kernels; vectors (N, C)
broadcast along the contiguous dimension, so that affine maps are single vectorised passes.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["affine", "combine", "moments", "sums"]


def moments(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and population variance of each sample and channel, (N, C) each."""
    # Only with running statistics of their type do half precisions accumulate in float32.
    unused = torch.zeros(x.shape[1], dtype=dtype), torch.ones(x.shape[1], dtype=dtype)
    each = [torch.batch_norm_update_stats(sample, *unused, 0.0) for sample in x.split(1)]
    mean, var = zip(*each, strict=True)
    return torch.stack(mean), torch.stack(var)


def affine(x: Tensor, scale: Tensor, shift: Tensor, centre: Tensor) -> Tensor:
    """scale · (x − centre) + shift, fresh and in x's dtype. (N, C), (N, C), (C,)."""
    return _multiply_add(x, scale, shift - scale * centre)


def sums(g: Tensor, x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """S₀ = Σ g and S₁ = Σ g·(x − centre) over positions, (N, C) each; centre (C,)."""
    ones = torch.ones_like(centre)
    each = [
        torch.ops.aten.native_batch_norm_backward(
            g_, x_, ones, centre, ones, centre, ones, True, 0.0, [False, True, True]
        )
        for g_, x_ in zip(g.split(1), x.split(1), strict=True)
    ]
    _, products, totals = zip(*each, strict=True)
    return torch.stack(totals), torch.stack(products)


def combine(
    g: Tensor, scale: Tensor, x: Tensor, slope: Tensor, shift: Tensor, centre: Tensor
) -> Tensor:
    """scale · g + slope · (x − centre) + shift, fresh and in g's dtype.

    Vectors (N, C), (C,), (N, C), (C,).
    """
    shift = shift - slope * centre
    if g.dtype == scale.dtype:
        out = _multiply_add(g, scale, shift)
        return out.addcmul_(x, _spread(slope[None], x))
    out = torch.empty_like(g)
    slope = _spread(slope[None], x)
    for part, g_, a, x_, c in zip(
        *(t.split(1) for t in (out, g, _spread(scale, x), x, _spread(shift, x))), strict=True
    ):
        part.copy_(torch.addcmul(c, g_.to(a.dtype), a).addcmul_(x_.to(a.dtype), slope))
    return out


def _multiply_add(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    scale, shift = _spread(scale, x), _spread(shift, x)
    if x.dtype == scale.dtype:
        return torch.addcmul(shift, x, scale)
    out = torch.empty_like(x)
    for part, x_, a, b in zip(*(t.split(1) for t in (out, x, scale, shift)), strict=True):
        part.copy_(torch.addcmul(b, x_.to(a.dtype), a))
    return out


def _spread(vector: Tensor, x: Tensor) -> Tensor:
    return vector.reshape(*vector.shape, *(1,) * (x.dim() - 2))
