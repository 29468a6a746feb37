"""The tensors in whatever a forward returns, and how far those of two networks are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .functional import in_float64
from .given import copied, preserved_generators

__all__ = ["floating_tensors", "outputs_of", "relative_difference", "tolerance"]


def floating_tensors(output: Any) -> list[Tensor]:
    """The tensors of an output that can carry a gradient and have any elements.

    They may be in sequences, mappings, data classes and other plain objects.
    """
    found: list[Tensor] = []
    seen: set[int] = set()

    def look(value: Any) -> None:
        if id(value) in seen or isinstance(value, nn.Module | type):
            return
        seen.add(id(value))
        if isinstance(value, Tensor):
            found.extend([value] * (value.is_floating_point() and value.numel() > 0))
            return
        for part in _inside(value):
            look(part)

    look(output)
    return found


@torch.no_grad()
def outputs_of(
    model: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any]
) -> list[Tensor]:
    """What a copy of the network makes of values like these; the same for the same model.

    A user's hooks stay behind. Inputs without values, all zeros or on the meta device, get random
    ones. A network without values itself has no outputs.
    """
    tensors = (*model.parameters(), *model.buffers())
    if any(tensor.is_meta for tensor in tensors):
        return []
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    with preserved_generators(model) as seed:
        seed(0)
        arguments = tree_map(lambda value: _with_values(value, device), (inputs, dict(keywords)))
        return floating_tensors(copied(model, hooks=False)(*arguments[0], **arguments[1]))


def relative_difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """max ‖found − expected‖ / ‖expected‖ over tensors of the same shape, in float64.

    A detector's boxes may be more or fewer after a rounding: what has another shape, or is not
    finite, is not compared.
    """
    largest = 0.0
    for one, other in zip(found, expected, strict=False):
        if one.shape == other.shape and other.isfinite().all():
            norm = in_float64(other).norm()
            apart = (in_float64(one) - in_float64(other)).norm()
            largest = max(largest, float(apart / norm if norm > 0 else apart))
            if largest != largest:  # NaN, which is no number's maximum
                return float("inf")
    return largest


def tolerance(outputs: list[Tensor]) -> float:
    """√ε of the coarsest type among the outputs: beyond roundings, and below what is wrong."""
    return max((torch.finfo(each.dtype).eps ** 0.5 for each in outputs), default=0.0)


def _with_values(value: Any, device: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.is_floating_point() and (value.is_meta or not value.any()):
        return torch.randn(value.shape, dtype=value.dtype, device=device)
    if value.is_meta:
        return torch.zeros_like(value, device=device)
    return value.to(device, copy=True)  # a forward may work on it in place


def _inside(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple | set):
        return list(value)
    if is_dataclass(value):
        return [getattr(value, each.name) for each in fields(value)]
    return list(getattr(value, "__dict__", {}).values())
