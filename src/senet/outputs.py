"""The tensors in whatever a forward returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

__all__ = ["floating_tensors"]


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


def _inside(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple | set):
        return list(value)
    if is_dataclass(value):
        return [getattr(value, each.name) for each in fields(value)]
    return list(getattr(value, "__dict__", {}).values())
