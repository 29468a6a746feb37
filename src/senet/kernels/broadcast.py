"""The four passes in broadcasting operators: any device, any strides."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["affine", "combine", "moments", "sums"]


def moments(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and population variance of each sample and channel, (N, C) each."""
    if not x.numel():  # a process without images; the operator would warn of no values
        none = x.new_zeros(x.shape[:2], dtype=dtype)
        return none, none
    var, mean = torch.var_mean(x.to(dtype), _positions(x), correction=0)
    return mean, var


def affine(x: Tensor, scale: Tensor, shift: Tensor, centre: Tensor) -> Tensor:
    """scale · (x − centre) + shift, fresh and in x's dtype. (N, C), (N, C), (C,)."""
    wide = x.to(scale.dtype) - _spread(centre[None], x)  # else a large centre cancels digits
    return torch.addcmul(_spread(shift, x), wide, _spread(scale, x)).to(x.dtype)


def sums(g: Tensor, x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """S₀ = Σ g and S₁ = Σ g·(x − centre) over positions, (N, C) each; centre (C,)."""
    wide = g.to(centre.dtype)
    products = wide * (x.to(centre.dtype) - _spread(centre[None], x))
    return wide.sum(_positions(x)), products.sum(_positions(x))


def combine(g: Tensor, scale: Tensor, x: Tensor, slope: Tensor, shift: Tensor) -> Tensor:
    """scale · g + slope · x + shift, fresh and in g's dtype. Vectors (N, C), (C,), (N, C)."""
    wide = torch.addcmul(_spread(shift, x), g.to(scale.dtype), _spread(scale, x))
    return wide.addcmul_(x.to(slope.dtype), _spread(slope[None], x)).to(g.dtype)


def _positions(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))


def _spread(vector: Tensor, x: Tensor) -> Tensor:
    return vector.reshape(*vector.shape, *(1,) * (x.dim() - 2))
