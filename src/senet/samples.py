"""The arguments of a forward as a trial gives them: several samples, and no two the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["are_distinct", "several"]


def several(x: Any, dtype: torch.dtype | None) -> Any:
    """A single sample becomes four, and equal samples slightly different ones.

    Batch statistics need several, and a branch that is alive tells samples apart. Tensors that
    are arguments are batches, the first of images says of how many samples; what is in lists (a
    detector's images and boxes) is samples.

    Args:
        x: a tensor, a tuple of positional or a mapping of keyword arguments; not touched.
        dtype: of its floating-point tensors; None leaves each its own.
    """
    batches = _batches(x)
    images = [value for value in batches if value.is_floating_point() and value.dim() > 1]
    single = all(len(value) == 1 for value in images[:1] or batches[:1])
    repeated = {id(value) for value in batches if single and len(value) == 1}
    return tree_map(lambda value: _varied(value, dtype, id(value) in repeated), x)


def are_distinct(x: Any) -> bool:
    """Whether the samples of every tensor among arguments differ."""
    return all(_differ(value) for value in tree_leaves(x) if isinstance(value, Tensor))


def _batches(x: Any) -> list[Tensor]:
    """The tensors with a first dimension among arguments, by position, by name or in a dict."""
    if isinstance(x, Tensor):
        return [x] if x.dim() else []
    parts = x.values() if isinstance(x, Mapping) else x if isinstance(x, tuple) else ()
    return [tensor for part in parts for tensor in _batches(part)]


def _varied(value: Any, dtype: torch.dtype | None, single: bool) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.is_floating_point():
        value = value.detach().to(dtype or value.dtype, copy=True)
    if single:
        value = value.repeat(4, *(1,) * (value.dim() - 1))
    if not value.is_floating_point() or value.dim() < 2 or _differ(value):
        return value
    if len(value) < 2:  # of several arguments not all are single: it is shared by the samples
        return value
    scale = max(1.0, float(value.abs().max()))  # or the noise would be lost to rounding
    return value + 0.1 * scale * torch.randn_like(value)


def _differ(value: Tensor) -> bool:
    return bool((value != value[:1]).any()) if value.dim() else False
