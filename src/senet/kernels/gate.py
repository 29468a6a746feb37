"""Equation 3 forwards, and backwards by hand: s = c · σ(W₂ δ(W₁ z + b₁) + b₂)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import ACTIVATIONS, GATES
from .operands import Excitation

__all__ = ["backward", "forward", "gate"]


Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def forward(
    block: Excitation, z: Tensor, linear: Linear = F.linear
) -> tuple[Tensor | None, Tensor]:
    """What stands before each non-linearity.

    Args:
        z: (N, C); the layers compute in its type, whatever the weights have.
        linear: z, W, b ↦ W z + b.

    Returns:
        p = W₁ z + b₁ (N, hidden), or None without a first layer, and q = W₂ δ(p) + b₂ (N, C).
    """
    w1, b1, w2, b2 = _in_type_of(z, block)
    p = None if w1 is None else linear(z, w1, b1)
    assert w2 is not None
    return p, linear(z if p is None else ACTIVATIONS[block.activation](p), w2, b2)


def gate(block: Excitation, q: Tensor) -> Tensor:
    """s = c · σ(q), (N, C)."""
    s = GATES[block.gate](q)
    if block.observer is not None:
        block.observer(s)
    return s if block.gate_scale == 1.0 else s * block.gate_scale


def backward(
    block: Excitation,
    z: Tensor,
    p: Tensor | None,
    q: Tensor,
    d_s: Tensor,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """∂L/∂z (N, C) and, where ``needs`` says so, the gradients of W₁, b₁, W₂, b₂.

    Args:
        z, p, q: the forward's argument and results.
        d_s: ∂L/∂s, (N, C).
    """
    w1, _, w2, _ = _in_type_of(z, block)
    assert w2 is not None
    d_q = _through(GATES[block.gate], q, d_s * block.gate_scale)
    hidden = z if p is None else ACTIVATIONS[block.activation](p)
    d_w2 = (d_q.t() @ hidden).to(block.w2.dtype) if needs[2] else None
    d_b2 = d_q.sum(0).to(block.w2.dtype) if needs[3] else None
    d_hidden = d_q @ w2
    if p is None or w1 is None:
        return d_hidden, None, None, d_w2, d_b2
    d_p = _through(ACTIVATIONS[block.activation], p, d_hidden)
    d_w1 = (d_p.t() @ z).to(block.w2.dtype) if needs[0] else None
    d_b1 = d_p.sum(0).to(block.w2.dtype) if needs[1] else None
    return d_p @ w1, d_w1, d_b1, d_w2, d_b2


def _through(pointwise: Callable[[Tensor], Tensor], at: Tensor, gradient: Tensor) -> Tensor:
    """The gradient before a non-linearity, from the one after it, by PyTorch's derivative."""
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        return torch.autograd.grad(pointwise(at), at, gradient)[0]


def _in_type_of(z: Tensor, block: Excitation) -> list[Tensor | None]:
    return [None if t is None else t.to(z.dtype) for t in block[:4]]
