"""A layer whose channels are multiplied by a vector, where they come out or where they go in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .functional import in_float64

__all__ = ["SIDES", "scale_input", "scale_output", "scale_statistics"]


@torch.no_grad()
def scale_output(module: Any, s: Tensor) -> None:
    """Make the layer compute s (C,) times what it did: W_c ← s_c·W_c and b ← s·b, or γ and β."""
    weight = in_float64(module.weight)
    s = s.to(weight.device)
    _put(module, "weight", weight * s.reshape(-1, *(1,) * (weight.dim() - 1)))
    if module.bias is not None:
        _put(module, "bias", in_float64(module.bias) * s)


@torch.no_grad()
def scale_input(module: Any, s: Tensor) -> None:
    """Make the layer compute of x what it did of s·x: input channel c of W is multiplied by s_c."""
    weight = in_float64(module.weight)
    s = s.to(weight.device)
    groups = module.groups if not isinstance(module, nn.Linear) else 1
    each = weight.reshape(groups, -1, *weight.shape[1:])
    factors = s.reshape(groups, 1, weight.shape[1], *(1,) * (weight.dim() - 2))
    _put(module, "weight", (each * factors).reshape(weight.shape))


@torch.no_grad()
def scale_statistics(module: Any, s: Tensor) -> None:
    """Make a BatchNorm in evaluation mode compute of x what it did of s·x.

    γ(s·x − μ)/√(σ² + ε) = γ′(x − μ′)/√(σ′² + ε) with γ′ = γ·s·√(σ′² + ε)/√(σ² + ε). The statistics
    μ′ = μ/s and σ′² = σ²/s² are those of x, so that training can go on from there.
    """
    mean, var = in_float64(module.running_mean), in_float64(module.running_var)
    s = s.to(mean.device)
    fitting = var / s.square()
    weight = in_float64(module.weight) * s
    _put(module, "weight", weight * ((fitting + module.eps) / (var + module.eps)).sqrt())
    _put(module, "running_mean", mean / s)
    _put(module, "running_var", fitting)


SIDES: Mapping[str, Callable[[Any, Tensor], None]] = {
    "output": scale_output,
    "input": scale_input,
    "statistics": scale_statistics,
}
"""What a gate does to the layer that takes it in, by where it comes from."""


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    """A new value in the place of a parameter or buffer, of its type."""
    old: Any = getattr(module, name)
    value = value.to(old).contiguous()
    if isinstance(old, nn.Parameter):
        value = nn.Parameter(value, requires_grad=old.requires_grad)
    setattr(module, name, value)
