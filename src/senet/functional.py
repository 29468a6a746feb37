"""Squeeze, excitation and scale in plain PyTorch: the truth every other path is tested against.

Shapes: u is (N, C, S₁, …, S_d) with d ≥ 0 spatial dimensions; z and s are (N, C).
The equations are those of Hu, Shen, Sun, "Squeeze-and-Excitation Networks" (CVPR 2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "ACTIVATIONS",
    "GATES",
    "SQUEEZES",
    "excite",
    "in_float64",
    "scale",
    "squeeze",
    "squeeze_excite",
    "statistics_dtype",
]

Pointwise = Callable[[Tensor], Tensor]

GATES: Mapping[str, Pointwise] = MappingProxyType(
    {
        "sigmoid": torch.sigmoid,
        "hard_sigmoid": F.hardsigmoid,
        "tanh": torch.tanh,
        "relu": torch.relu,
    }
)
"""σ, the non-linearity of the gate; the paper's is the sigmoid, tanh and ReLU are its ablation."""

ACTIVATIONS: Mapping[str, Pointwise] = MappingProxyType(
    {"relu": torch.relu, "silu": F.silu, "gelu": F.gelu, "hard_swish": F.hardswish}
)
"""δ, the non-linearity between the two layers; the paper's is ReLU."""

SQUEEZES: tuple[str, ...] = ("avg", "max", "none")
"""F_sq: average pooling (eq. 2), max pooling (ablation), or none at all (ablation)."""


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type to take means of ``dtype`` in: float32 for half precisions, else itself.

    Summing 56 · 56 halves in half precision loses digits and, in float16, overflows.
    """
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def in_float64(tensor: Tensor) -> Tensor:
    """The tensor in float64, detached; on the CPU where its device has none, as Apple's GPUs."""
    tensor = tensor.detach()
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def squeeze(u: Tensor, kind: str = "avg") -> Tensor:
    """Equation 2: z_c = 1/(H·W) · Σ_ij u_c(i, j), a mean over all positions of each channel.

    Args:
        u: (N, C, S₁, …, S_d), d ≥ 0.
        kind: "avg" as in the equation; "max" the largest value instead; "none" leaves u as it
            is, so that excitation acts at every position by itself (the paper's "NoSqueeze").

    Returns:
        (N, C) in u's dtype, half precisions accumulated in float32; for "none" u itself.

    Raises:
        ValueError: u has fewer than two dimensions, or ``kind`` is not one of `SQUEEZES`.

    >>> squeeze(torch.tensor([[[1.0, 3.0], [2.0, 6.0]]]))
    tensor([[2., 4.]])
    """
    if u.dim() < 2:
        raise ValueError(f"squeeze needs a tensor (N, C, …), got shape {tuple(u.shape)}")
    if kind == "none" or (u.dim() == 2 and kind in SQUEEZES):
        return u
    positions = tuple(range(2, u.dim()))
    if kind == "avg":
        return u.mean(positions, dtype=statistics_dtype(u.dtype)).to(u.dtype)
    if kind == "max":
        return u.amax(positions)
    raise ValueError(f"squeeze {kind!r} is not one of {', '.join(SQUEEZES)}")


def excite(
    z: Tensor,
    w1: Tensor | None,
    w2: Tensor,
    b1: Tensor | None = None,
    b2: Tensor | None = None,
    *,
    gate: str = "sigmoid",
    activation: str = "relu",
) -> Tensor:
    """Equation 3: s = σ(W₂ δ(W₁ z + b₁) + b₂).

    Args:
        z: (N, C), or (N, C, S₁, …) where nothing was squeezed; then each position has a gate.
        w1: W₁, (hidden, C) with hidden = C / r. None leaves the first layer and δ out, as
            effective SE does (Lee and Park 2020): s = σ(W₂ z + b₂).
        w2: W₂, (C, hidden).
        b1: (hidden,) or None; the equation has no biases, the released networks do.
        b2: (C,) or None.
        gate: σ, a name of `GATES`.
        activation: δ, a name of `ACTIVATIONS`.

    Returns:
        s, of z's shape.
    """
    channels_last = z if z.dim() == 2 else z.movedim(1, -1)
    hidden = channels_last
    if w1 is not None:
        hidden = ACTIVATIONS[activation](F.linear(channels_last, w1, b1))
    s = GATES[gate](F.linear(hidden, w2, b2))
    return s if z.dim() == 2 else s.movedim(-1, 1)


def scale(u: Tensor, s: Tensor) -> Tensor:
    """Equation 4: x̃_c = s_c · u_c, every position of a channel multiplied by its gate.

    Args:
        u: (N, C, S₁, …, S_d).
        s: (N, C), or of u's shape where nothing was squeezed.

    >>> scale(torch.ones(1, 2, 2), torch.tensor([[0.5, 2.0]]))
    tensor([[[0.5000, 0.5000],
             [2.0000, 2.0000]]])
    """
    if s.dim() != u.dim():
        s = s.reshape(*s.shape, *(1,) * (u.dim() - s.dim()))
    return u * s


def squeeze_excite(
    u: Tensor,
    w1: Tensor | None,
    w2: Tensor,
    b1: Tensor | None = None,
    b2: Tensor | None = None,
    *,
    gate: str = "sigmoid",
    activation: str = "relu",
    squeeze_kind: str = "avg",
    gate_scale: float = 1.0,
) -> Tensor:
    """Equations 2 to 4 in a row: x̃ = scale(u, gate_scale · excite(squeeze(u))).

    ``gate_scale`` is 1 in the paper; 2 makes a block with W₂ = 0 and b₂ = 0 the identity,
    since σ(0) = ½ (a warm start). Argument shapes as in `squeeze` and `excite`.
    """
    s = excite(squeeze(u, squeeze_kind), w1, w2, b1, b2, gate=gate, activation=activation)
    return scale(u, s if math.isclose(gate_scale, 1.0) else s * gate_scale)
