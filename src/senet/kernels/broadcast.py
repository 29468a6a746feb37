"""The four passes in broadcasting operators: any device, any strides, any mean.

Means come in float64 where the device has it: if a channel's mean is far beyond its deviation,
float32 has no digits for the difference that matters. x less the mean's first 24 bits is exact
there; the remaining bits, ρ, go into the vectors, which are small. So no map is ever wider than its
statistics.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional import statistics_dtype

__all__ = ["affine", "combine", "means_dtype", "moments", "sums"]


def moments(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean, in `means_dtype`, and population variance of each sample and channel, (N, C) each."""
    wide = means_dtype(x.device, dtype)
    if not x.numel():  # a process without images; the operator would warn of no values
        none = x.new_zeros(x.shape[:2], dtype=dtype)
        return none.to(wide), none
    var = torch.var(x.to(dtype), _positions(x), correction=0)
    return x.mean(_positions(x), dtype=wide), var


def means_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """float64, or ``dtype`` on Apple's GPUs, which have none.

    >>> means_dtype(torch.device("cpu"), torch.float32)
    torch.float64
    >>> means_dtype(torch.device("mps"), torch.float32)
    torch.float32
    """
    return dtype if device.type == "mps" else torch.float64


def affine(x: Tensor, scale: Tensor, shift: Tensor, centre: Tensor) -> Tensor:
    """scale · (x − centre) + shift, fresh and in x's dtype. (N, C), (N, C), (C,)."""
    near, rest = _centred(x, centre)
    shift = (shift - scale * rest).to(near.dtype)
    return torch.addcmul(_spread(shift, x), near, _spread(scale, x)).to(x.dtype)


def sums(g: Tensor, x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """S₀ = Σ g and S₁ = Σ g·(x − centre) over positions, (N, C) each; centre (C,)."""
    near, rest = _centred(x, centre)
    wide = g.to(near.dtype)
    total = wide.sum(_positions(x))
    return total, (wide * near).sum(_positions(x)) - total * rest


def combine(
    g: Tensor, scale: Tensor, x: Tensor, slope: Tensor, shift: Tensor, centre: Tensor
) -> Tensor:
    """scale · g + slope · (x − centre) + shift, fresh and in g's dtype.

    Vectors (N, C), (C,), (N, C), (C,).
    """
    near, rest = _centred(x, centre)
    wide = torch.addcmul(_spread(shift - slope * rest, x), g.to(near.dtype), _spread(scale, x))
    return wide.addcmul_(near, _spread(slope[None], x)).to(g.dtype)


def _centred(x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """x less the centre as the statistics' type has it, and ρ, what of the centre that leaves."""
    dtype = statistics_dtype(x.dtype)
    first = centre.to(dtype)
    return x.to(dtype) - _spread(first[None], x), (centre - first).to(dtype)


def _positions(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))


def _spread(vector: Tensor, x: Tensor) -> Tensor:
    return vector.reshape(*vector.shape, *(1,) * (x.dim() - 2))
