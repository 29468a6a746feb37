"""Residual networks for ImageNet (He, Zhang, Ren, Sun; CVPR 2016), without any attention.

The bottleneck networks follow the layer tables of the SE authors' Caffe release: the stride of a
stage is in its first 1×1 convolution, no convolution has a bias, and the stem's 3×3/2 max-pool
has no padding and rounds up. Stages are counted as the paper counts them, 2 to 5, and units from
1, so that ``stage4.unit6`` is the paper's conv4_6.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

from torch import Tensor, nn

from ..errors import UserError

__all__ = [
    "BOTTLENECK_WIDTHS",
    "BasicUnit",
    "BottleneckUnit",
    "ResNet",
    "StrideIn",
    "UnitBuilder",
    "conv_norm",
    "initialise_he",
    "residual_stage",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
]

StrideIn = Literal["1x1", "3x3"]
UnitBuilder = Callable[[int, int, int, nn.Module], nn.Module]
"""(channels in, channels out, stride, shortcut) → a residual unit."""


def conv_norm(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution without bias (``conv``) and its BatchNorm (``bn``).

    An odd ``kernel`` is padded by half of it: (N, in, H, W) → (N, out, ⌈H/stride⌉, ⌈W/stride⌉).
    """
    conv = nn.Conv2d(
        in_channels,
        out_channels,
        kernel,
        stride=stride,
        padding=kernel // 2,
        groups=groups,
        bias=False,
    )
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels)))


def initialise_he(model: nn.Module) -> None:
    """Draw the convolutions of ``model`` in place from the global random state, as He et al. do.

    Weights are normal with variance 2 / fan-out (Kaiming, fan_out, ReLU) and biases zero. Norms
    keep γ = 1, β = 0, and linear layers keep PyTorch's uniform ±1/√fan-in.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class BasicUnit(nn.Module):
    """Two 3×3 convolutions and a shortcut: relu(F(x) + P(x)).

    The stride is in the first convolution. ``shortcut`` is P: a module that takes
    (N, in, H, W) to the branch's (N, out, ⌈H/stride⌉, ⌈W/stride⌉).
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, shortcut: nn.Module
    ) -> None:
        super().__init__()
        self.first = conv_norm(in_channels, out_channels, 3, stride)
        self.first_relu = nn.ReLU(inplace=True)
        self.second = conv_norm(out_channels, out_channels, 3)
        self.shortcut = shortcut
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) → (N, out, ⌈H/stride⌉, ⌈W/stride⌉)."""
        branch = self.second(self.first_relu(self.first(x)))
        return self.relu(branch + self.shortcut(x))


class BottleneckUnit(nn.Module):
    """1×1, 3×3 and 1×1 convolutions and a shortcut: relu(F(x) + P(x)).

    Args:
        in_channels, out_channels, stride, shortcut: as of `BasicUnit`.
        stride_in: the stride is in the first ``"1x1"`` convolution or in the ``"3x3"``.
        narrowing: ``out_channels`` over those of the first 1×1 and of the 3×3 convolution.
        groups: of the 3×3 convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        shortcut: nn.Module,
        *,
        stride_in: StrideIn = "1x1",
        narrowing: tuple[int, int] = (4, 4),
        groups: int = 1,
    ) -> None:
        super().__init__()
        width, spatial_width = (out_channels // n for n in narrowing)
        first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
        self.reduce = conv_norm(in_channels, width, 1, first)
        self.reduce_relu = nn.ReLU(inplace=True)
        self.spatial = conv_norm(width, spatial_width, 3, second, groups)
        self.spatial_relu = nn.ReLU(inplace=True)
        self.increase = conv_norm(spatial_width, out_channels, 1)
        self.shortcut = shortcut
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) → (N, out, ⌈H/stride⌉, ⌈W/stride⌉)."""
        branch = self.reduce_relu(self.reduce(x))
        branch = self.spatial_relu(self.spatial(branch))
        branch = self.increase(branch)
        return self.relu(branch + self.shortcut(x))


def residual_stage(
    unit: UnitBuilder,
    depth: int,
    in_channels: int,
    out_channels: int,
    stride: int,
    *,
    kernel: int = 1,
) -> nn.Sequential:
    """``unit1`` … ``unit{depth}``; the first changes channels and size, if they change.

    Its shortcut is then a projection, of this ``kernel`` where it has a stride, else 1×1.
    """
    same = stride == 1 and in_channels == out_channels
    side = kernel if stride > 1 else 1
    shortcut = nn.Identity() if same else conv_norm(in_channels, out_channels, side, stride)
    units = OrderedDict(unit1=unit(in_channels, out_channels, stride, shortcut))
    for number in range(2, depth + 1):
        units[f"unit{number}"] = unit(out_channels, out_channels, 1, nn.Identity())
    return nn.Sequential(units)


class ResNet(nn.Module):
    """A 7×7/2 stem, a 3×3/2 max-pool, four stages of residual units, mean and classifier.

    Args:
        unit: builds a residual unit.
        depths: units in each of the four stages.
        widths: output channels of each stage.
        num_classes: logits.

    A unit's shortcut is ``Identity``, or a projection (1×1 convolution and norm) where the shape
    changes. Initialisation is :func:`initialise_he`, from the global seed.
    """

    def __init__(
        self,
        unit: UnitBuilder,
        depths: Sequence[int],
        widths: Sequence[int],
        *,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        self.stem = conv_norm(3, 64, 7, stride=2)
        self.stem_relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.stage2 = residual_stage(unit, depths[0], 64, widths[0], stride=1)
        self.stage3 = residual_stage(unit, depths[1], widths[0], widths[1], stride=2)
        self.stage4 = residual_stage(unit, depths[2], widths[1], widths[2], stride=2)
        self.stage5 = residual_stage(unit, depths[3], widths[2], widths[3], stride=2)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(widths[3], num_classes)
        initialise_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W), with H and W at least 3, → logits (N, num_classes)."""
        x = self.pool(self.stem_relu(self.stem(x)))
        x = self.stage5(self.stage4(self.stage3(self.stage2(x))))
        return self.classifier(self.flatten(self.global_pool(x)))


_BASIC_WIDTHS = (64, 128, 256, 512)
BOTTLENECK_WIDTHS = (256, 512, 1024, 2048)


def resnet18(num_classes: int = 1000) -> ResNet:
    """ResNet-18: 11.69M parameters and 1.81 GMACs at 224×224 with 1000 classes."""
    return ResNet(BasicUnit, (2, 2, 2, 2), _BASIC_WIDTHS, num_classes=num_classes)


def resnet34(num_classes: int = 1000) -> ResNet:
    """ResNet-34: 21.80M parameters and 3.66 GMACs at 224×224 with 1000 classes."""
    return ResNet(BasicUnit, (3, 4, 6, 3), _BASIC_WIDTHS, num_classes=num_classes)


def resnet50(num_classes: int = 1000, *, stride_in: StrideIn = "1x1") -> ResNet:
    """ResNet-50: 25.56M parameters and 3.86 GMACs at 224×224 with 1000 classes.

    ``stride_in`` is here and below where a bottleneck has its stride: the first ``"1x1"``
    convolution, as in the original, or the ``"3x3"``, the later variant (4.09 GMACs).

    Raises:
        UserError: for an unknown ``stride_in``.
    """
    return _bottlenecks((3, 4, 6, 3), num_classes, stride_in)


def resnet101(num_classes: int = 1000, *, stride_in: StrideIn = "1x1") -> ResNet:
    """ResNet-101: 44.55M parameters and 7.57 GMACs at 224×224 with 1000 classes."""
    return _bottlenecks((3, 4, 23, 3), num_classes, stride_in)


def resnet152(num_classes: int = 1000, *, stride_in: StrideIn = "1x1") -> ResNet:
    """ResNet-152: 60.19M parameters and 11.28 GMACs at 224×224 with 1000 classes."""
    return _bottlenecks((3, 8, 36, 3), num_classes, stride_in)


def _bottlenecks(depths: Sequence[int], num_classes: int, stride_in: StrideIn) -> ResNet:
    if stride_in not in get_args(StrideIn):
        raise UserError(f"stride_in is {stride_in!r}; it can be '1x1' or '3x3'")
    unit = partial(BottleneckUnit, stride_in=stride_in)
    return ResNet(unit, depths, BOTTLENECK_WIDTHS, num_classes=num_classes)
