"""Residual networks for 32×32 images (He et al., CVPR 2016, section 4.2), without any attention.

A 3×3 stem of 16 channels, three stages of n basic units with 16, 32 and 64 channels, mean and
classifier: 6n + 2 weighted layers. Shortcuts have no parameters (the paper's option A). A stage's
number is log₂ of its stride to the image, as everywhere in senet: here 0, 1 and 2.
"""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from .resnet import BasicUnit, conv_norm, initialise_he

__all__ = ["CifarResNet", "PadShortcut", "resnet20", "resnet56", "resnet110"]


class PadShortcut(nn.Module):
    """Option A: every ``stride``-th position, and zeros for the channels that are not there.

    (N, in, H, W) → (N, out, ⌈H/stride⌉, ⌈W/stride⌉), the new channels last.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.added = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and pad."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))

    def extra_repr(self) -> str:
        """The two numbers that define it."""
        return f"stride={self.stride}, added={self.added}"


def _stage(depth: int, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """``unit1`` … ``unit{depth}``; the first changes channels and size, if they change."""
    shortcut = PadShortcut(in_channels, out_channels, stride) if stride > 1 else nn.Identity()
    units: OrderedDict[str, nn.Module] = OrderedDict()
    units["unit1"] = BasicUnit(in_channels, out_channels, stride, shortcut)
    for number in range(2, depth + 1):
        units[f"unit{number}"] = BasicUnit(out_channels, out_channels, 1, nn.Identity())
    return nn.Sequential(units)


class CifarResNet(nn.Module):
    """ResNet-(6n + 2) with ``depth`` n units in each of its three stages.

    Initialisation is :func:`senet.models.resnet.initialise_he`, from the global seed.
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = conv_norm(3, 16, 3)
        self.stem_relu = nn.ReLU(inplace=True)
        self.stage0 = _stage(depth, 16, 16, stride=1)
        self.stage1 = _stage(depth, 16, 32, stride=2)
        self.stage2 = _stage(depth, 32, 64, stride=2)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(64, num_classes)
        initialise_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) → logits (N, num_classes)."""
        x = self.stem_relu(self.stem(x))
        x = self.stage2(self.stage1(self.stage0(x)))
        return self.classifier(self.flatten(self.global_pool(x)))


def resnet20(num_classes: int = 10) -> CifarResNet:
    """ResNet-20: 0.27M parameters and 41 MMACs at 32×32."""
    return CifarResNet(3, num_classes)


def resnet56(num_classes: int = 10) -> CifarResNet:
    """ResNet-56: 0.85M parameters and 125 MMACs at 32×32."""
    return CifarResNet(9, num_classes)


def resnet110(num_classes: int = 10) -> CifarResNet:
    """ResNet-110: 1.73M parameters and 253 MMACs at 32×32."""
    return CifarResNet(18, num_classes)
