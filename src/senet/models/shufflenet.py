"""ShuffleNet v1 (Zhang, Zhou, Lin, Sun; CVPR 2018), without any attention: 1×, three groups.

By the paper's table 1 and figure 2: units with a bottleneck of a quarter of their output's
channels, a shuffle after the first grouped 1×1 convolution, no activation after the depthwise one.
A strided unit concatenates its branch with the pooled input. The first 1×1 convolution of the
first unit, which has 24 channels, is not grouped.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from .resnet import conv_norm, initialise_he

__all__ = ["ShuffleNet", "ShuffleUnit", "StridedShuffleUnit", "shufflenet"]

_GROUPS = 3


class _Branch(nn.Module):
    """Grouped 1×1, shuffle, depthwise 3×3 and grouped 1×1 convolutions, each with its norm."""

    def __init__(
        self, in_channels: int, width: int, out_channels: int, stride: int, *, first_groups: int
    ) -> None:
        super().__init__()
        self.reduce = conv_norm(in_channels, width, 1, groups=first_groups)
        self.reduce_relu = nn.ReLU(inplace=True)
        self.shuffle = nn.ChannelShuffle(_GROUPS)
        self.depthwise = conv_norm(width, width, 3, stride, width)
        self.increase = conv_norm(width, out_channels, 1, groups=_GROUPS)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) → (N, out, ⌈H/stride⌉, ⌈W/stride⌉)."""
        x = self.shuffle(self.reduce_relu(self.reduce(x)))
        return self.increase(self.depthwise(x))


class ShuffleUnit(nn.Module):
    """relu(F(x) + x): (N, channels, H, W) → the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = _Branch(channels, channels // 4, channels, 1, first_groups=_GROUPS)
        self.shortcut = nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to its input."""
        return self.relu(self.branch(x) + self.shortcut(x))


class StridedShuffleUnit(nn.Module):
    """relu(x pooled ‖ F(x)): (N, in, H, W) → (N, out, ⌈H/2⌉, ⌈W/2⌉)."""

    def __init__(self, in_channels: int, out_channels: int, *, first_groups: int = _GROUPS) -> None:
        super().__init__()
        made, width = out_channels - in_channels, out_channels // 4
        self.shortcut = nn.AvgPool2d(3, stride=2, padding=1)
        self.branch = _Branch(in_channels, width, made, 2, first_groups=first_groups)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the pooled input and the branch."""
        return self.relu(torch.cat((self.shortcut(x), self.branch(x)), dim=1))


def _stage(
    depth: int, in_channels: int, out_channels: int, *, first_groups: int = _GROUPS
) -> nn.Sequential:
    """``unit1`` … ``unit{depth}``; the first changes channels and size."""
    units: OrderedDict[str, nn.Module] = OrderedDict()
    units["unit1"] = StridedShuffleUnit(in_channels, out_channels, first_groups=first_groups)
    for number in range(2, depth + 1):
        units[f"unit{number}"] = ShuffleUnit(out_channels)
    return nn.Sequential(units)


class ShuffleNet(nn.Module):
    """A 3×3/2 stem, a 3×3/2 max-pool, three stages of shuffle units, mean and classifier.

    A stage's number is log₂ of its stride to the image, 3 to 5 (the paper counts from 2).
    Initialisation is :func:`senet.models.resnet.initialise_he`, from the global seed.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.stem = conv_norm(3, 24, 3, stride=2)
        self.stem_relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stage3 = _stage(4, 24, 240, first_groups=1)
        self.stage4 = _stage(8, 240, 480)
        self.stage5 = _stage(4, 480, 960)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(960, num_classes)
        initialise_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) → logits (N, num_classes)."""
        x = self.pool(self.stem_relu(self.stem(x)))
        x = self.stage5(self.stage4(self.stage3(x)))
        return self.classifier(self.flatten(self.global_pool(x)))


def shufflenet(num_classes: int = 1000) -> ShuffleNet:
    """ShuffleNet 1× (g = 3): 1.87M parameters and 137 MMACs at 224×224 with 1000 classes."""
    return ShuffleNet(num_classes)
