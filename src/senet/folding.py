"""A norm folded into the convolution before it: the same function, one module less."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .functional import in_float64

__all__ = ["affine_of", "after_norm", "fold", "is_convolution", "obstacle"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PADS_BY_ITSELF = "timm.layers.conv2d_same.Conv2dSame"


def is_convolution(module: nn.Module) -> bool:
    """Whether the module convolves just as PyTorch's own, also where its class is another."""
    return any(
        isinstance(module, kind)
        and type(module).forward is kind.forward
        and type(module)._conv_forward is kind._conv_forward
        for kind in _CONVOLUTIONS
    )


def obstacle(module: nn.Module) -> str:
    """Why the module's output is not known to be linear in ``weight`` (C, …) and ``bias`` (C,).

    A subclass may standardise its weight, a parametrization compute it, a hook see the output.
    Nothing where it is linear: a convolution, or a layer that takes in an affine map as one does.
    """
    kind = type(module)
    linear = isinstance(module, nn.Linear) and kind.forward is nn.Linear.forward
    padded = f"{kind.__module__}.{kind.__qualname__}" == _PADS_BY_ITSELF
    if not (linear or padded or is_convolution(module)):
        return f"a {kind.__name__} is not known to be a convolution"
    if module._parameters.get("weight") is None or "bias" not in module._parameters:
        return f"the {kind.__name__}'s weight or bias is computed anew each time"
    if module._forward_hooks or module._forward_pre_hooks:
        return f"a hook is on the {kind.__name__}"
    return f"the {kind.__name__}'s forward was replaced" if "forward" in vars(module) else ""


def affine_of(norm: Any) -> tuple[Tensor, Tensor]:
    """α and β′ (C,) in float64 with BN(u) = α·u + β′, for a BatchNorm in evaluation mode.

    α = γ / √(σ² + ε) and β′ = β − α·μ, with the running statistics μ and σ².
    """
    mean, var = in_float64(norm.running_mean), in_float64(norm.running_var)
    alpha = torch.rsqrt(var + norm.eps)
    if norm.weight is not None:
        alpha = alpha * in_float64(norm.weight)
    shift = -alpha * mean
    return alpha, shift if norm.bias is None else shift + in_float64(norm.bias)


def fold(conv: Any, norm: nn.Module, channels: slice = slice(None)) -> None:
    """Make ``conv``, in place, compute norm(conv(h)): W_c ← α_c·W_c, b ← α·b + β′.

    Args:
        channels: the norm's that are the convolution's, where it normalises a concatenation.
    """
    alpha, shift = (each[channels] for each in affine_of(norm))
    weight = conv.weight
    bias = 0.0 if conv.bias is None else in_float64(conv.bias)
    scaled = in_float64(weight) * alpha.reshape(-1, *(1,) * (weight.dim() - 1))
    for name, value in (("weight", scaled), ("bias", alpha * bias + shift)):
        setattr(conv, name, nn.Parameter(value.to(weight), requires_grad=False))


def after_norm(norm: nn.Module) -> nn.Module:
    """What is left of a folded norm: the activation that it ends in, or nothing."""
    act = getattr(norm, "act", None)
    return act if isinstance(act, nn.Module) else nn.Identity()
