"""The SE block as a module, and the options that describe one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from . import functional
from .errors import UserError, nearest

__all__ = ["BlockOptions", "SqueezeExcite", "hidden_width"]

_GATE_AT_ZERO: Mapping[str, float] = {"sigmoid": 0.5, "hard_sigmoid": 0.5}


def hidden_width(
    channels: int, reduction: float = 16, *, min_hidden: int = 1, divisor: int | None = None
) -> int:
    """The width C / r of the bottleneck, and how it is rounded.

    Without ``divisor`` the paper's C / r rounded down, but at least ``min_hidden``. With it,
    timm's rule: C / r rounded to the nearest multiple of ``divisor``, at least ``divisor``, and
    never more than a tenth below C / r.

    Raises:
        UserError: ``channels`` or ``reduction`` is not positive, or no hidden unit is left.

    >>> hidden_width(256, 16), hidden_width(16, 16, min_hidden=4), hidden_width(40, 4, divisor=8)
    (16, 4, 16)
    """
    if channels < 1 or reduction <= 0:
        raise UserError(f"need channels ≥ 1 and reduction > 0, got {channels} and {reduction}")
    width = channels / reduction
    if math.isinf(width):
        raise UserError(f"{channels} channels with reduction {reduction:g} have no width")
    if divisor is not None:
        rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
        width = rounded + divisor if rounded < 0.9 * width else rounded
    hidden = max(int(width), min_hidden)
    if hidden < 1:
        raise UserError(
            f"{channels} channels with reduction {reduction:g} leave no hidden unit; "
            f"use a reduction of at most {channels} or min_hidden=1"
        )
    return hidden


@dataclass(frozen=True)
class BlockOptions:
    """What an SE block looks like, apart from how many channels it gates.

    Args:
        reduction: r in C / r, the width of the bottleneck.
        hidden: the width itself; overrides ``reduction`` and the rounding.
        min_hidden: the least width; with 1, 16 channels and r = 16 leave one unit, and once
            its ReLU is dead the gate is frozen.
        divisor: round the width to a multiple of this, as timm does; None keeps the paper's C / r.
        bias: biases in the two layers, as the released networks have; the journal's
            ablations have none.
        gate: "sigmoid", "hard_sigmoid", "tanh" or "relu".
        activation: "relu", "silu", "gelu" or "hard_swish".
        squeeze: "avg", "max", or "none" (a gate for every position).
        gate_scale: a constant on the gate; `warm_start_scale` for a warm start.
        bottleneck: False leaves the first layer out, as effective SE does.
    """

    reduction: float = 16
    hidden: int | None = None
    min_hidden: int = 1
    divisor: int | None = None
    bias: bool = True
    gate: str = "sigmoid"
    activation: str = "relu"
    squeeze: str = "avg"
    gate_scale: float = 1.0
    bottleneck: bool = True

    def __post_init__(self) -> None:
        choices = (
            ("gate", self.gate, functional.GATES),
            ("activation", self.activation, functional.ACTIVATIONS),
            ("squeeze", self.squeeze, functional.SQUEEZES),
        )
        for option, value, known in choices:
            if not (isinstance(value, str) and value in known):
                raise UserError(f"unknown {option} {value!r}; {nearest(str(value), known)}")
        for option in ("bias", "bottleneck"):
            if not isinstance(value := getattr(self, option), bool):
                raise UserError(f"{option}={value!r} is not True or False")
        if not (_is_number(self.reduction) and self.reduction > 0):
            raise UserError(f"reduction={self.reduction!r} is not a number above 0")
        if not _is_number(self.gate_scale):
            raise UserError(f"gate_scale={self.gate_scale!r} is not a finite number")
        if not (_is_whole(self.min_hidden) and self.min_hidden >= 0):
            raise UserError(f"min_hidden={self.min_hidden!r} is not a whole number of 0 or more")
        for option, why in (("hidden", "is no width"), ("divisor", "cannot be rounded to")):
            value = getattr(self, option)
            if value is not None and not (_is_whole(value) and value >= 1):
                raise UserError(
                    f"{option}={value!r} {why}; use a whole number of 1 or more, or None"
                )

    def width(self, channels: int) -> int:
        """The hidden width of a block over ``channels`` channels."""
        if not self.bottleneck:
            return channels
        if self.hidden is not None:
            return self.hidden
        return hidden_width(
            channels, self.reduction, min_hidden=self.min_hidden, divisor=self.divisor
        )

    def warm_start_scale(self) -> float:
        """The constant that makes a block with W₂ = 0 and b₂ = 0 the identity, 1 / σ(0).

        Raises:
            UserError: the gate is zero at zero (tanh, ReLU): no constant makes it one.
        """
        if self.gate not in _GATE_AT_ZERO:
            raise UserError(
                f"a warm start needs a gate that is not zero at zero, got {self.gate!r}; "
                f"use {' or '.join(map(repr, _GATE_AT_ZERO))}"
            )
        return 1.0 / _GATE_AT_ZERO[self.gate]


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


# `torch.fx` knows no ranks: the two steps that ask for one are single nodes of its graphs.


@torch.fx.wrap
def _squeeze(u: Tensor, kind: str) -> Tensor:
    return functional.squeeze(u, kind)


@torch.fx.wrap
def _scale(u: Tensor, s: Tensor) -> Tensor:
    return functional.scale(u, s)


class SqueezeExcite(nn.Module):
    """The SE block: x̃ = u · σ(W₂ δ(W₁ squeeze(u) + b₁) + b₂), equations 2 to 4 of the paper.

    Input and output are (N, C, S₁, …, S_d) with any number d ≥ 0 of spatial dimensions, in any
    memory format; half precisions squeeze in float32. With ``channels_last=True`` the channels
    are the last dimension, (N, S₁, …, S_d, C), as inside ConvNeXt's blocks.

    W₁ and W₂ start He-normal (fan out, gain √2) and biases zero, drawn from the global
    generator; ``zero_init()`` makes W₂ zero as well.

    Args:
        channels: C.
        reduction: r; the hidden width is C / r rounded down (see `hidden_width`).
        options: everything at once, instead of single options.
        hidden, min_hidden, divisor, bias, gate, activation, squeeze, gate_scale: see
            `BlockOptions`.
        channels_last: channels are the last dimension.

    Raises:
        UserError: an unknown option, or no hidden unit left.

    >>> SqueezeExcite(64, reduction=8)(torch.randn(2, 64, 7, 7)).shape
    torch.Size([2, 64, 7, 7])
    """

    observer: Callable[[Tensor], object] | None = None
    """Is shown each σ(…) that is computed, without the constant: (N, C), or u's shape where nothing
    is squeezed. A hook would wait for calls that an operation of norm and block does not make."""

    def __init__(
        self,
        channels: int,
        reduction: float = 16,
        *,
        hidden: int | None = None,
        min_hidden: int = 1,
        divisor: int | None = None,
        bias: bool = True,
        gate: str = "sigmoid",
        activation: str = "relu",
        squeeze: str = "avg",
        gate_scale: float = 1.0,
        options: BlockOptions | None = None,
        channels_last: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.options = options or BlockOptions(
            reduction=reduction,
            hidden=hidden,
            min_hidden=min_hidden,
            divisor=divisor,
            bias=bias,
            gate=gate,
            activation=activation,
            squeeze=squeeze,
            gate_scale=gate_scale,
        )
        self.channels = channels
        self.channels_last = channels_last
        width = self.options.width(channels)
        bias = self.options.bias
        self.fc1: nn.Module = nn.Identity()
        if self.options.bottleneck:
            self.fc1 = nn.Linear(channels, width, bias=bias, device=device, dtype=dtype)
        self.fc2 = nn.Linear(width, channels, bias=bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He et al. (2015) for both layers, as the paper initialises its networks."""
        for layer in (self.fc1, self.fc2):
            if not isinstance(layer, nn.Linear):
                continue
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def zero_init(self) -> None:
        """W₂ = 0 and b₂ = 0: every gate is gate_scale · σ(0), whatever the input."""
        nn.init.zeros_(self.fc2.weight)
        if self.fc2.bias is not None:
            nn.init.zeros_(self.fc2.bias)

    def forward(self, u: Tensor) -> Tensor:
        """Gate ``u``; the result is a fresh tensor of u's shape and memory format."""
        if self.channels_last:
            return self._recalibrate(u.movedim(-1, 1)).movedim(1, -1)
        return self._recalibrate(u)

    def _recalibrate(self, u: Tensor) -> Tensor:
        return _scale(u, self.gates(u))

    def gates(self, u: Tensor) -> Tensor:
        """s for u of (N, C, S₁, …): (N, C), or u's shape where nothing is squeezed."""
        # In a jit trace a comparison of shapes is a warning, on a symbolic tensor an error.
        tracing = torch.jit.is_tracing() or isinstance(u, torch.fx.Proxy)
        if not tracing and (u.dim() < 2 or u.shape[1] != self.channels):
            raise ValueError(
                f"this SE block gates {self.channels} channels, got a tensor {tuple(u.shape)}"
            )
        options = self.options
        everywhere = options.squeeze == "none"
        z = _squeeze(u, options.squeeze)
        z = z.movedim(1, -1) if everywhere else z
        if not tracing:  # norms kept in float32 between half-precision layers have float32 blocks
            types = (p.dtype for p in self.fc2.parameters() if p.is_floating_point())
            z = z.to(next(types, z.dtype))
        # The layers are called, not their weights read, so that whatever is hung on them or put
        # in their place (hooks, sharding, low-rank adapters) takes part.
        hidden = self.fc1(z)
        if options.bottleneck:
            hidden = functional.ACTIVATIONS[options.activation](hidden)
        s = functional.GATES[options.gate](self.fc2(hidden))
        s = s.movedim(-1, 1) if everywhere else s
        if self.observer is not None:
            self.observer(s)
        # Under autocast the linear layers come out in half precision; the gate takes u's dtype.
        s = s.to(u.dtype)
        return s if options.gate_scale == 1.0 else s * options.gate_scale

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        # Others write the two layers as 1×1 convolutions; their weights are ours, (out, in, 1, 1).
        for name in (f"{prefix}fc1.weight", f"{prefix}fc2.weight"):
            if name in state_dict and state_dict[name].dim() > 2:
                state_dict[name] = state_dict[name].flatten(1)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        """Channels, hidden width, and the options that differ from the paper's."""
        shown = [str(self.channels), f"hidden={self.options.width(self.channels)}"]
        plain = BlockOptions()
        for name in ("bias", "gate", "activation", "squeeze", "gate_scale"):
            if (value := getattr(self.options, name)) != getattr(plain, name):
                shown.append(f"{name}={value}")
        return ", ".join(shown + ["channels_last=True"] * self.channels_last)
