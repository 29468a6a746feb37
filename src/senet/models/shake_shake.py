"""Shake-Shake networks for 32×32 images (Gastaldi, 2017, arXiv:1705.07485), without any attention.

A residual unit has two branches of one kind. In training they are mixed at random, image by
image: α·F₁(x) + (1 − α)·F₂(x) with α uniform in [0, 1]; the gradient flows back as if α were β, a
second such number ("Shake-Shake-Image") or ½ ("Shake-Even-Image"). In evaluation α is ½.
26 2×96d is the network of the author's code, whose branches are ReLU and 3×3 convolution, twice.
29 2×4×64d is ResNeXt-29 (Xie et al., CVPR 2017), without pre-activation, with its 8 groups of 64
channels halved between two branches. A stage's number is log₂ of its stride to the image: 0, 1, 2.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .resnet import conv_norm, initialise_he, residual_stage
from .three_stages import ThreeStageNet

__all__ = [
    "GroupedShakeUnit",
    "PlainShakeUnit",
    "Shake",
    "ShakeShakeNeXt",
    "ShakeShakeNet",
    "TwoPathShortcut",
    "shake_shake_26_2x96d",
    "shake_shake_29_2x4x64d",
]

Backward = Literal["shake", "even"]


class Shake(nn.Module):
    """The mean of two branches, mixed at random for each image in training.

    Both (N, C, H, W) → (N, C, H, W). Random numbers come from PyTorch's global generator of the
    branches' device, as those of dropout do.

    Args:
        backward: "shake" gives the gradient random weights of its own, "even" ½ each.
    """

    def __init__(self, backward: Backward) -> None:
        super().__init__()
        self.backward_weights = backward

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Mix the branches."""
        if not self.training:
            return 0.5 * (first + second)
        alpha = self._chance(first)
        beta = self._chance(first) if self.backward_weights == "shake" else 0.5
        difference = first - second
        # has the value of α·(first − second), and of β·(first − second) the gradient
        mixed = beta * difference + ((alpha - beta) * difference).detach()
        return second + mixed

    @staticmethod
    def _chance(like: Tensor) -> Tensor:
        """One uniform number an image, (N, 1, 1, 1)."""
        return torch.rand(like.shape[0], 1, 1, 1, dtype=like.dtype, device=like.device)

    def extra_repr(self) -> str:
        """What the gradient's weights are."""
        return f"backward={self.backward_weights!r}"


class TwoPathShortcut(nn.Module):
    """Two 1×1 convolutions of every ``stride``-th position, the second one of the image moved
    by one position right and down; concatenated and normed.

    (N, in, H, W) → (N, out, ⌈H/stride⌉, ⌈W/stride⌉).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.straight = nn.Conv2d(in_channels, out_channels // 2, 1, bias=False)
        self.moved = nn.Conv2d(in_channels, out_channels - out_channels // 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Subsample twice, project and norm."""
        moved = F.pad(x, (1, -1, 1, -1))
        step = self.stride
        paths = self.straight(x[:, :, ::step, ::step]), self.moved(moved[:, :, ::step, ::step])
        return self.bn(torch.cat(paths, dim=1))


def _plain_branch(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """3×3 convolution, norm, ReLU, 3×3 convolution, norm."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["first"] = conv_norm(in_channels, out_channels, 3, stride)
    layers["relu"] = nn.ReLU(inplace=True)
    layers["second"] = conv_norm(out_channels, out_channels, 3)
    return nn.Sequential(layers)


class PlainShakeUnit(nn.Module):
    """P(x) + mix(F₁(a), F₂(a)) with a = relu(x); where the shape changes P takes a too."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.projects = stride != 1 or in_channels != out_channels
        self.relu = nn.ReLU()
        self.branch1 = _plain_branch(in_channels, out_channels, stride)
        self.branch2 = _plain_branch(in_channels, out_channels, stride)
        self.shake = Shake("shake")
        self.shortcut = (
            TwoPathShortcut(in_channels, out_channels, stride) if self.projects else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) → (N, out, ⌈H/stride⌉, ⌈W/stride⌉)."""
        activated = self.relu(x)
        shortcut = self.shortcut(activated if self.projects else x)
        return self.shake(self.branch1(activated), self.branch2(activated)) + shortcut


def _grouped_branch(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """1×1, 3×3 in four groups and 1×1 convolutions, all as wide as the output, with norms."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["reduce"] = conv_norm(in_channels, out_channels, 1)
    layers["reduce_relu"] = nn.ReLU(inplace=True)
    layers["spatial"] = conv_norm(out_channels, out_channels, 3, stride, 4)
    layers["spatial_relu"] = nn.ReLU(inplace=True)
    layers["increase"] = conv_norm(out_channels, out_channels, 1)
    return nn.Sequential(layers)


class GroupedShakeUnit(nn.Module):
    """relu(P(x) + mix(F₁(x), F₂(x))): (N, in, H, W) → (N, out, ⌈H/stride⌉, ⌈W/stride⌉)."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, shortcut: nn.Module
    ) -> None:
        super().__init__()
        self.branch1 = _grouped_branch(in_channels, out_channels, stride)
        self.branch2 = _grouped_branch(in_channels, out_channels, stride)
        self.shake = Shake("even")
        self.shortcut = shortcut
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Add the mixed branches to the shortcut."""
        branch = self.shake(self.branch1(x), self.branch2(x))
        return self.relu(branch + self.shortcut(x))


class ShakeShakeNet(ThreeStageNet):
    """A 3×3 stem of 16 channels, three stages of plain units, ReLU, mean and classifier.

    Args:
        depth: units in each stage; 6 · depth + 2 layers.
        width: output channels of the first stage; each other has twice those before it.
        num_classes: logits.

    Initialisation is :func:`senet.models.resnet.initialise_he`, from the global seed.
    """

    def __init__(self, depth: int, width: int, num_classes: int = 10) -> None:
        stem = conv_norm(3, 16, 3)
        super().__init__(stem, PlainShakeUnit, depth, width, normed=False, num_classes=num_classes)


class ShakeShakeNeXt(nn.Module):
    """A 3×3 stem of 64 channels, three stages of grouped units, mean and classifier.

    Args:
        depth: units in each stage; 9 · depth + 2 layers.
        num_classes: logits.

    Initialisation is :func:`senet.models.resnet.initialise_he`, from the global seed.
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = conv_norm(3, 64, 3)
        self.stem_relu = nn.ReLU(inplace=True)
        self.stage0 = residual_stage(GroupedShakeUnit, depth, 64, 256, stride=1)
        self.stage1 = residual_stage(GroupedShakeUnit, depth, 256, 512, stride=2)
        self.stage2 = residual_stage(GroupedShakeUnit, depth, 512, 1024, stride=2)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(1024, num_classes)
        initialise_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) → logits (N, num_classes)."""
        x = self.stage2(self.stage1(self.stage0(self.stem_relu(self.stem(x)))))
        return self.classifier(self.flatten(self.global_pool(x)))


def shake_shake_26_2x96d(num_classes: int = 10) -> ShakeShakeNet:
    """Shake-Shake-Image 26 2×96d: 26.2M parameters and 3.78 GMACs at 32×32."""
    return ShakeShakeNet(4, 96, num_classes)


def shake_shake_29_2x4x64d(num_classes: int = 10) -> ShakeShakeNeXt:
    """Shake-Even-Image 29 2×4×64d: 34.4M parameters and 5.39 GMACs at 32×32."""
    return ShakeShakeNeXt(3, num_classes)
