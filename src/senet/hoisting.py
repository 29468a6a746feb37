"""The gate before the convolution: known from its input, as the mean of what it will make.

With u = W ∗ h + b, and S positions in u, mean(u) = Σ_k W_k · t_k / S + b, where t_k sums h over
the positions that tap k visits: a linear function of window sums of h (``docs/algebra.md``).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .block import BlockOptions, SqueezeExcite
from .errors import UserError
from .functional import ACTIVATIONS, GATES, in_float64, statistics_dtype
from .hooks import is_hooked

__all__ = [
    "InputGated",
    "OutputGated",
    "hoisting_pays",
    "refuse_deployed",
    "visits",
    "window_means",
]

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def visits(
    size: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    dilation: int = 1,
    mode: str = "zeros",
) -> Tensor:
    """How often tap k of a convolution reads position i along one dimension, a mean over outputs.

    Zeros that are padded are no position; the other padding modes repeat positions.

    Returns:
        (kernel, size), float64; multiplied with h it gives t_k / S.

    >>> (4 * visits(4, kernel=3, padding=(1, 1))).int()
    tensor([[1, 1, 1, 0],
            [1, 1, 1, 1],
            [0, 1, 1, 1]], dtype=torch.int32)
    """
    before, after = padding
    outputs = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
    at = torch.arange(kernel)[:, None] * dilation + torch.arange(outputs) * stride - before
    if mode == "circular":
        at = at % size
    elif mode == "replicate":
        at = at.clamp(0, size - 1)
    elif mode == "reflect":
        at = (size - 1) - ((size - 1) - at.abs()).abs()
    inside = (at >= 0) & (at < size)
    counts = torch.zeros(kernel, size, dtype=torch.float64)
    return counts.scatter_add_(1, at.clamp(0, size - 1), inside.double()) / outputs


def window_means(h: Tensor, conv: Convolution) -> Tensor:
    """t / S: for each input channel and tap, the mean over outputs of what the tap reads.

    Args:
        h: (N, C_in, S₁, …, S_d).
        conv: any stride, dilation, groups, padding and padding mode.

    Returns:
        (N, C_in · K) with K taps, in the order of ``conv.weight.flatten(1)``.
    """
    if _is_pointwise(conv):
        every = [slice(None, None, step) for step in conv.stride]
        lattice = h[(slice(None), slice(None), *every)]
        return lattice.mean(tuple(range(2, h.dim())))
    t = h
    for dim, size in enumerate(h.shape[2:]):
        taps = visits(
            size,
            conv.kernel_size[dim],
            stride=conv.stride[dim],
            padding=_padding(conv, dim),
            dilation=conv.dilation[dim],
            mode=conv.padding_mode,
        )
        # The first of the dimensions that are left is summed away, and its taps come last.
        t = torch.tensordot(t, taps.to(t), dims=([2], [1]))
    return t.flatten(1)


def hoisting_pays(conv: Convolution, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> bool:
    """Whether less is read for the gate before the convolution than after: elements of h and u.

    Args:
        inputs, outputs: the shapes of h and u.
    """
    read = inputs[2:]
    if _is_pointwise(conv):
        read = tuple(-(-n // step) for n, step in zip(read, conv.stride, strict=True))
    return inputs[1] * math.prod(read) < math.prod(outputs[1:])


class InputGated(nn.Module):
    """A convolution whose output is gated, the gate computed from its input.

    Takes the place of ``conv`` in conv(h) · se.gates(conv(h)). Where that is cheaper, W₁ is
    folded into the convolution's weights: W₁(W t + b) + b₁ = (W₁W) t + (W₁b + b₁).

    Args:
        conv: with whatever norm followed it folded in.
        se: the block, its squeeze the average.
    """

    def __init__(self, conv: Convolution, se: SqueezeExcite) -> None:
        super().__init__()
        self.conv = conv
        self.options = se.options
        self.whole = _is_pointwise(conv) and all(step == 1 for step in conv.stride)
        weight, taps = conv.weight.detach().flatten(1), conv.weight[0, 0].numel()
        layers = [layer for layer in (se.fc1, se.fc2) if isinstance(layer, nn.Linear)]
        first = layers[0]
        hidden, columns = first.out_features, conv.in_channels * taps
        folded = hidden * columns < weight.numel() + hidden * conv.out_channels
        self.mean: nn.Module = nn.Identity()
        self.two_steps = self.whole and folded and len(layers) == 2
        if folded:
            layers[0] = _compose(first, _dense(weight, conv.groups), conv.bias)
        else:
            self.mean = nn.Conv1d(
                columns, conv.out_channels, 1, groups=conv.groups, device="meta"
            )  # whose own weights are not drawn, for nobody needs them
            self.mean.weight = nn.Parameter(weight.unsqueeze(2), requires_grad=False)
            self.mean.bias = conv.bias
        self.fc1 = layers[0] if len(layers) == 2 else nn.Identity()
        self.fc2 = layers[-1]

    def forward(self, input: Tensor) -> Tensor:
        """conv(h), gated, for the input h (N, C_in, S₁, …, S_d)."""
        s = self.gates(input)
        return _scaled(self.conv(input), s)

    def gates(self, h: Tensor) -> Tensor:
        """s (N, C) for the convolution's input."""
        p = _first_layer_of_mean(self._modules["fc1"], h) if self.two_steps else None
        if p is None:
            t = _means(h) if self.whole else window_means(h, self.conv)
            if isinstance(self.mean, nn.Conv1d):
                t = self.mean(t.unsqueeze(2)).squeeze(2)
            types = (p.dtype for p in self.fc2.parameters())  # a quantised layer has none
            p = self.fc1(t.to(next(types, t.dtype)))
        return _second_layer(p, self.fc2, self.options)

    def __getattr__(self, name: str) -> Any:
        """What else is asked of it, a stride or a weight, is the convolution's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            conv = self.__dict__.get("_modules", {}).get("conv")  # not there while unpickling
            if conv is None or name.startswith("_"):
                raise
            return getattr(conv, name)


class OutputGated(nn.Module):
    """A block after a convolution or concatenation that nothing else reads: it is gated in place.

    Args:
        se: the block, its squeeze the average.
    """

    def __init__(self, se: SqueezeExcite) -> None:
        super().__init__()
        self.se = se

    def forward(self, input: Tensor) -> Tensor:
        """u · s, in the memory of u (N, C, S₁, …, S_d), the input, unless traced.

        It stands in a norm's place, and has its parameter's name.
        """
        se, p = self.se, None
        if se.options.bottleneck and se.observer is None:
            p = _first_layer_of_mean(se._modules["fc1"], input)
        s = se.gates(input) if p is None else _second_layer(p, se.fc2, se.options)
        return _scaled(input, s)


def refuse_deployed(model: nn.Module) -> None:
    """Refuse a network whose gates are not blocks any more.

    Raises:
        UserError: it is one; the message names the first such place.
    """
    for path, module in model.named_modules():
        if isinstance(module, InputGated | OutputGated):
            raise UserError(
                f"the model is deployed: the gate of {path or 'the model itself'} is part of its "
                "convolution; take the network that was deployed"
            )


def _first_layer_of_mean(layer: nn.Module | None, h: Tensor) -> Tensor | None:
    """p (N, hidden) by a sum and a layer that makes a mean of it; None where that is not all.

    With one image each step here counts, Python's too: between convolutions of a millisecond all
    begins with cold caches. Hence no `nn.Module.__getattr__`, and a layer that is read.
    """
    if _is_traced(h) or h.dim() < 3 or type(layer) is not nn.Linear or is_hooked(layer):
        return None
    parameters = layer._parameters
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if type(weight) is not nn.Parameter or bias is None or weight.dtype != h.dtype:
        return None
    # A sum may overflow in half precision, where a mean does not.
    if h.dtype != statistics_dtype(h.dtype) or torch.is_autocast_enabled(h.device.type):
        return None
    share = 1 / h.shape[2:].numel()
    return torch.addmm(bias, h.sum(tuple(range(2, h.dim()))), weight.t(), alpha=share)


def _second_layer(p: Tensor, layer: nn.Module, options: BlockOptions) -> Tensor:
    """s (N, C), from what the first layer, or none, has made."""
    if options.bottleneck:
        p = ACTIVATIONS[options.activation](p)
    s = GATES[options.gate](layer(p))
    return s if options.gate_scale == 1.0 else s * options.gate_scale


@torch.fx.wrap
def _means(h: Tensor) -> Tensor:
    return h.mean(tuple(range(2, h.dim())))


def _is_traced(x: Tensor) -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or isinstance(x, torch.fx.Proxy)


@torch.fx.wrap
def _scaled(u: Tensor, s: Tensor) -> Tensor:
    if s.dtype != u.dtype:  # layers in float32 beside half-precision convolutions
        s = s.to(u.dtype)
    s = s.view(s.shape + (1,) * (u.dim() - 2))
    return u * s if _is_traced(u) else u.mul_(s)


def _compose(first: nn.Linear, weight: Tensor, bias: Any) -> nn.Linear:
    """first(weight · t + bias) as one layer."""
    together = nn.Linear(weight.shape[1], first.out_features, device="meta")
    w1 = in_float64(first.weight)
    shift = torch.zeros_like(w1[:, 0]) if first.bias is None else in_float64(first.bias)
    if bias is not None:
        shift = shift + w1 @ in_float64(bias)
    for name, value in (("weight", w1 @ in_float64(weight)), ("bias", shift)):
        setattr(together, name, nn.Parameter(value.to(first.weight), requires_grad=False))
    return together


def _dense(weight: Tensor, groups: int) -> Tensor:
    """(C, C_in/g · K) of a grouped convolution → (C, C_in · K), zero between groups."""
    return torch.block_diag(*weight.chunk(groups)) if groups > 1 else weight


def _is_pointwise(conv: Convolution) -> bool:
    padded = any(any(_padding(conv, dim)) for dim in range(len(conv.kernel_size)))
    return math.prod(conv.kernel_size) == 1 and not padded


def _padding(conv: Convolution, dim: int) -> tuple[int, int]:
    """What is padded before and after along one spatial dimension."""
    if not isinstance(conv.padding, str):
        return conv.padding[dim], conv.padding[dim]
    total = conv.dilation[dim] * (conv.kernel_size[dim] - 1) if conv.padding == "same" else 0
    return total // 2, total - total // 2
