"""Which implementation runs, and why: the one place where that is decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UserError, nearest
from . import aten, reference, traced
from .operands import Excitation, Norm

__all__ = ["IMPLEMENTATIONS", "Choice", "norm_excite", "select"]

Implementation = Callable[[Tensor, Norm, Excitation], Tensor]

IMPLEMENTATIONS: Mapping[str, Implementation] = MappingProxyType(
    {
        "aten": aten.norm_excite,
        "traced": traced.norm_excite,
        "reference": reference.norm_excite,
    }
)
"""Name → (x, norm, excitation) ↦ SE(BN(x))."""

SMALL = 1 << 19
"""Values of a map on the CPU below which starting the operators of the one operation takes longer
than what it saves (`docs/benchmarks.md`). The two keep one more map, below 2 MiB in float32."""


class Choice(NamedTuple):
    """What runs, and why: why not the faster one, where there is a reason."""

    implementation: str
    reason: str


def select(
    x: Tensor, norm: Norm, excitation: Excitation, implementation: str | None = None
) -> Choice:
    """Choose, from what the arguments are (never from their values).

    Args:
        x: (N, C, S₁, …, S_d).
        implementation: a name of `IMPLEMENTATIONS`; None chooses.

    Raises:
        UserError: an unknown name, or the implementation cannot run; the message says why.
    """
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        known = nearest(implementation, IMPLEMENTATIONS)
        raise UserError(f"unknown implementation {implementation!r}; {known}")
    if torch.compiler.is_compiling():
        fast, why = "traced", "a compiler fuses it"
        against = _against_the_algebra(x, norm, excitation) or _against_traced(norm)
    else:
        fast, why = "aten", "norm and scale are one affine write"
        against = _against_the_algebra(x, norm, excitation) or _against_aten(x, norm, excitation)
    if implementation is None:
        if fast == "aten" and not against:
            against = _is_small(x, norm, excitation)
        return Choice("reference", against) if against else Choice(fast, why)
    if implementation != "reference":
        against = _against_the_algebra(x, norm, excitation) or (
            _against_traced(norm)
            if implementation == "traced"
            else _against_aten(x, norm, excitation)
        )
        if against:
            raise UserError(f"implementation {implementation!r} cannot run here: {against}")
    elif norm.group is not None:
        raise UserError("implementation 'reference' cannot run here: it knows one process only")
    return Choice(implementation, "asked for")


def norm_excite(
    x: Tensor, norm: Norm, excitation: Excitation, implementation: str | None = None
) -> Tensor:
    """SE(BN(x)) by the implementation that `select` chooses; a fresh tensor of x's dtype.

    Args:
        x: (N, C, S₁, …, S_d), floating point.
        norm, excitation: see `Norm` and `Excitation`.
        implementation: a name of `IMPLEMENTATIONS`; None chooses.

    Raises:
        UserError: see `select`.
        ValueError: batch statistics of one value a channel, as `F.batch_norm` has it.
    """
    choice = select(x, norm, excitation, implementation)
    if choice.implementation == "reference" and norm.group is not None:
        raise UserError(f"statistics over processes cannot be taken here: {choice.reason}")
    if norm.batch_statistics and norm.group is None and x.numel() == x.shape[1]:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {x.shape}"
        )
    return IMPLEMENTATIONS[choice.implementation](x, norm, excitation)


def _against_the_algebra(x: Tensor, norm: Norm, excitation: Excitation) -> str:
    """Why SE(BN(x)) cannot be computed from moments, or nothing."""
    if excitation.squeeze != "avg":
        return f"the algebra is that of average pooling, the squeeze is {excitation.squeeze!r}"
    if x.dim() < 2 or not x.is_floating_point():
        return f"x is {x.dtype} of shape {tuple(x.shape)}, not a floating-point (N, C, …)"
    if x.dim() == 2:
        return "there are no positions to squeeze, BatchNorm is all"
    if x.numel() == 0 and norm.group is None:
        return "the batch is empty"
    widths = (norm.weight, norm.bias, norm.running_mean, norm.running_var, excitation.b2)
    for vector in widths:
        if vector is not None and len(vector) != x.shape[1]:
            return f"{x.shape[1]} channels, but a vector of {len(vector)}"
    if excitation.w2.shape[0] != x.shape[1]:
        return f"{x.shape[1]} channels, but {excitation.w2.shape[0]} gates"
    for vector in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        if vector is not None and vector.dtype not in (x.dtype, torch.float32):
            return f"x is {x.dtype}, the norm {vector.dtype}"
    return ""


def _is_small(x: Tensor, norm: Norm, excitation: Excitation) -> str:
    """Why the two one after the other are faster for this map, or nothing."""
    if x.device.type != "cpu" or norm.group is not None or x.numel() >= SMALL:
        return ""
    if not norm.batch_statistics and torch.is_grad_enabled():
        return ""  # PyTorch's backward would read statistics that training may have moved since
    tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var, *excitation[:4])
    types = {x.dtype, *(t.dtype for t in tensors if t is not None)}
    if len(types) > 1 or x.itemsize < 4 or torch.is_autocast_enabled("cpu"):
        return ""  # only the one operation computes in a wider type
    return f"of a map of {x.numel():,} values; below {SMALL:,} the two in turn are faster"


def _against_traced(norm: Norm) -> str:
    if norm.group is not None:
        return "statistics over processes are not traced"
    return "" if torch.compiler.is_compiling() else _against_forward_derivatives()


def _against_aten(x: Tensor, norm: Norm, excitation: Excitation) -> str:
    """Why the hand-written backward cannot run, or nothing."""
    tensors = (x, norm.weight, norm.bias, *excitation[:4])
    if any(type(t) not in (Tensor, torch.nn.Parameter) for t in tensors if t is not None):
        return "a tensor is of a class of its own"
    if x.is_meta:
        return "there is nothing to compute on the meta device"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "torch.func transforms the operators, not a backward written by hand"
    return _against_forward_derivatives()


def _against_forward_derivatives() -> str:
    if torch.autograd.forward_ad._current_level >= 0:
        return "a backward written by hand has no forward derivative"
    return ""
