"""The four passes where the positions of a channel lie together, on the CPU: (N, C, S) in memory.

Seen as (1, N·C, S), BatchNorm's own kernels work on one sample and channel at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["affine", "combine", "moments", "sums"]

CHUNK = 1 << 20
"""Elements of a temporary: what stays in the caches and is not handed back to the system."""


def moments(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and population variance of each sample and channel, (N, C) each."""
    rows = x.reshape(-1, x[0, 0].numel())
    mean = rows.mean(1, keepdim=True, dtype=dtype)
    norm = torch.empty_like(mean)
    # The deviations are formed a chunk at a time: as exact as two passes, read from memory once.
    for part, centre, out in _chunks(rows, mean, norm):
        torch.linalg.vector_norm(part - centre, dim=1, keepdim=True, out=out)
    var = norm.square_().div_(rows.shape[1])
    return mean.view(x.shape[:2]), var.view(x.shape[:2])


def affine(x: Tensor, scale: Tensor, shift: Tensor, centre: Tensor) -> Tensor:
    """scale · (x − centre) + shift, fresh and in x's dtype. (N, C), (N, C), (C,)."""
    centres = centre.repeat(len(x))
    flat = x.reshape(1, -1, x[0, 0].numel())
    out = torch.native_batch_norm(
        flat, scale.reshape(-1), shift.reshape(-1), centres, torch.ones_like(centres),
        False, 0.0, 0.0,
    )[0]  # fmt: skip
    # Not a view to autograd, which would forbid the network to add to it in place.
    return torch.ops.aten._unsafe_view(out, x.shape)


def sums(g: Tensor, x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """S₀ = Σ g and S₁ = Σ g·(x − centre) over positions, (N, C) each; centre (C,)."""
    n, c = x.shape[:2]
    centres = centre.repeat(
        n
    )  # the kernels take vectors for contiguous, which expanded ones are not
    ones = torch.ones_like(centres)
    flat = (1, -1, x[0, 0].numel())
    _, products, totals = torch.ops.aten.native_batch_norm_backward(
        g.reshape(flat), x.reshape(flat), ones, centres, ones, centres, ones, True, 0.0,
        [False, True, True],
    )  # fmt: skip
    return totals.view(n, c), products.view(n, c)


def combine(
    g: Tensor, scale: Tensor, x: Tensor, slope: Tensor, shift: Tensor, centre: Tensor
) -> Tensor:
    """scale · g + slope · (x − centre) + shift, fresh and in g's dtype.

    Vectors (N, C), (C,), (N, C), (C,).
    """
    shift = shift - slope * centre
    n, c = x.shape[:2]
    rows, slopes = x.reshape(n * c, -1), slope.repeat(n).unsqueeze(1)
    if g.dtype == scale.dtype:
        zero = torch.zeros_like(slope)
        out = affine(g, scale, shift, zero)
        out.view(rows.shape).addcmul_(rows, slopes)
        return out
    # In half precision the first of the two steps would round before the second is added.
    out = torch.empty_like(g)
    flat = g.reshape(rows.shape), rows, scale.reshape(-1, 1), slopes, shift.reshape(-1, 1)
    for part, g_, x_, a, b, c_ in _chunks(out.view(rows.shape), *flat):
        part.copy_(torch.addcmul(c_, g_.to(a.dtype), a).addcmul_(x_.to(b.dtype), b))
    return out


def _chunks(rows: Tensor, *others: Tensor) -> zip[tuple[Tensor, ...]]:
    size = max(1, CHUNK // rows.shape[1])
    return zip(*(t.split(size) for t in (rows, *others)), strict=True)
