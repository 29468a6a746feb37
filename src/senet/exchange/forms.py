"""Gates written so that a runtime that keeps feature maps in channel blocks can leave them there.

ONNX Runtime convolves in such a layout (NCHWc). Means by ReduceMean, matrix products and products
of tensors of different shapes do not know it: around each, the map is copied out and back. Pooling,
1×1 convolutions, nearest Upsample, and sums and products of equal shapes do, where channels fill
whole blocks: a narrower hidden layer gets units that nobody listens to.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..block import BlockOptions, SqueezeExcite
from ..functional import ACTIVATIONS, GATES
from ..given import copied
from ..hoisting import InputGated, OutputGated
from ..norm import Recalibrated

_BLOCK = 16
"""Channels in a block of the layout, at most."""

__all__ = ["BlockedGate", "GatedConvolution", "GatedMap", "in_blocks"]


class BlockedGate(nn.Module):
    """The gates of a feature map: pooling, then 1×1 convolutions.

    Args:
        options: of the block.
        layers: what is left of (u's mean from h's, W₁, W₂), as layers of any dimension.
        stride: of the positions whose mean is taken.
    """

    def __init__(
        self, options: BlockOptions, layers: list[nn.Module], stride: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.options = options
        self.stride = stride
        *before, self.fc2 = [_pointwise(layer) for layer in layers]
        # With a bottleneck the layer before the last is W₁; what comes before that is no layer
        # of the block, and has no activation.
        self.mean = nn.Sequential(*(before[:-1] if options.bottleneck else before))
        self.fc1 = before[-1] if options.bottleneck else None
        if isinstance(self.fc1, nn.Conv2d):
            spare = -self.fc1.out_channels % _BLOCK
            self.fc1 = _padded(self.fc1, rows=spare)
            self.fc2 = _padded(self.fc2, columns=spare)

    def forward(self, h: Tensor) -> Tensor:
        """s (N, C, 1, 1) for h (N, C_in, H, W), H and W the same each time."""
        if any(step > 1 for step in self.stride):
            h = F.avg_pool2d(h, 1, self.stride)
        z = self.mean(F.avg_pool2d(h, h.shape[2:]))
        if self.fc1 is not None:
            z = ACTIVATIONS[self.options.activation](self.fc1(z))
        s = GATES[self.options.gate](self.fc2(z))
        return s if self.options.gate_scale == 1.0 else s * self.options.gate_scale


class GatedConvolution(nn.Module):
    """`InputGated` with its gate a `BlockedGate`; the convolution is 1×1 and not padded."""

    def __init__(self, gated: InputGated) -> None:
        super().__init__()
        self.conv = gated.conv
        layers = [layer for layer in (gated.mean, gated.fc1, gated.fc2) if _has_weight(layer)]
        self.gate = BlockedGate(gated.options, layers, gated.conv.stride)

    def forward(self, h: Tensor) -> Tensor:
        """conv(h), gated. h: (N, C_in, H, W)."""
        s = self.gate(h)
        return _scaled(self.conv(h), s)


class GatedMap(nn.Module):
    """A block that squeezes by the mean, its gate a `BlockedGate`."""

    def __init__(self, se: SqueezeExcite) -> None:
        super().__init__()
        layers = [layer for layer in (se.fc1, se.fc2) if _has_weight(layer)]
        self.gate = BlockedGate(se.options, layers, (1, 1))
        self.se = se

    def forward(self, u: Tensor) -> Tensor:
        """u, gated; any other than (N, C, H, W) by the block as it was."""
        return self.se(u) if u.dim() != 4 else _scaled(u, self.gate(u))


def in_blocks(model: nn.Module) -> nn.Module:
    """A copy in which the gates of 2-D feature maps are in this form; it computes the same.

    `InputGated` before a k×k convolution stays as it is, as do blocks with another squeeze.
    """
    made = copied(model)
    if (whole := _form(made)) is not None:
        return whole
    for parent in list(made.modules()):
        for name, child in list(parent.named_children()):
            if (form := _form(child)) is not None:
                setattr(parent, name, form)
                if isinstance(parent, Recalibrated):
                    parent.implementation = "reference"  # norm and block as two modules
    return made


def _form(module: nn.Module) -> nn.Module | None:
    """The module in blocked form, if there is one."""
    if isinstance(module, OutputGated):
        return _form(module.se)
    if isinstance(module, SqueezeExcite):
        known = module.options.squeeze == "avg" and not module.channels_last
        # Layers may be wrapped (adapters) or quantised; only what is known can be rewritten.
        plain = all(type(m) in (nn.Linear, nn.Identity) for m in (module.fc1, module.fc2))
        return GatedMap(module) if known and plain else None
    if isinstance(module, InputGated):
        conv = module.conv
        flat = isinstance(conv, nn.Conv2d) and {*conv.kernel_size} == {1}
        padded = conv.padding != "valid" and {0} != {*conv.padding} and conv.padding != "same"
        return GatedConvolution(module) if flat and not padded else None
    return None


def _has_weight(layer: nn.Module) -> bool:
    return not isinstance(layer, nn.Identity)


def _pointwise(layer: Any) -> nn.Conv2d:
    """A linear layer or pointwise convolution as a 1×1 convolution of maps."""
    weight, groups = layer.weight.detach(), getattr(layer, "groups", 1)
    rows, columns = weight.shape[:2]
    made = nn.Conv2d(columns * groups, rows, 1, groups=groups, bias=layer.bias is not None)
    made.weight = nn.Parameter(weight.reshape(rows, columns, 1, 1), requires_grad=False)
    made.bias = layer.bias
    return made


def _padded(conv: nn.Conv2d, *, rows: int = 0, columns: int = 0) -> nn.Conv2d:
    """A 1×1 convolution with more outputs and inputs, whose weights and biases are zero."""
    weight = F.pad(conv.weight.detach(), (0, 0, 0, 0, 0, columns, 0, rows))
    made = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=conv.bias is not None)
    made.weight = nn.Parameter(weight, requires_grad=False)
    if conv.bias is not None:
        made.bias = nn.Parameter(F.pad(conv.bias.detach(), (0, rows)), requires_grad=False)
    return made


def _scaled(u: Tensor, s: Tensor) -> Tensor:
    """u · s, with s (N, C, 1, 1) brought to u's shape (N, C, H, W) first."""
    height, width = u.shape[2:]
    if height * width > 1:
        s = F.interpolate(s, scale_factor=(float(height), float(width)), mode="nearest")
    return u * s
