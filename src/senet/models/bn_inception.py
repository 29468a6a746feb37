"""BN-Inception (Ioffe, Szegedy; ICML 2015), without any attention.

Layer by layer the network of the SE authors' Caffe release, from its table: no convolution has a
bias, pools round up, and the average pools count their padding. The last module's pool is a
maximum, as there.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .resnet import conv_norm, initialise_he

__all__ = ["BNInception", "HalvingInception", "HalvingMaxPool", "Inception", "bn_inception"]

_POOLS: dict[str, type[nn.Module]] = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}

# name, 1×1, (3×3 reduce, 3×3), (double reduce, double), pool, pool projection
_WIDTHS: dict[str, tuple[int, tuple[int, int], tuple[int, int], Literal["avg", "max"], int]] = {
    "3a": (64, (64, 64), (64, 96), "avg", 32),
    "3b": (64, (64, 96), (64, 96), "avg", 64),
    "4a": (224, (64, 96), (96, 128), "avg", 128),
    "4b": (192, (96, 128), (96, 128), "avg", 128),
    "4c": (160, (128, 160), (128, 160), "avg", 128),
    "4d": (96, (128, 192), (160, 192), "avg", 128),
    "5a": (352, (192, 320), (160, 224), "avg", 128),
    "5b": (352, (192, 320), (192, 224), "max", 128),
}


class HalvingMaxPool(nn.MaxPool2d):
    """The 3×3/2 max-pool beside convolutions of stride 2: (N, C, H, W) → (N, C, ⌈H/2⌉, ⌈W/2⌉).

    The table's pool has no padding and rounds up, which for odd sides is one position fewer than
    the convolutions have. There the last window starts on the last row or column; at even
    sides (all of them at 224×224) nothing differs from the table.
    """

    def __init__(self) -> None:
        super().__init__(3, stride=2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        """Pad odd sides by one position that never wins, and pool."""
        height, width = x.shape[-2:]
        # not in a branch on the shape, which symbolic tracing could not follow
        return super().forward(F.pad(x, (0, width % 2, 0, height % 2), value=float("-inf")))


def _conv_norm_relu(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1
) -> nn.Sequential:
    layers = conv_norm(in_channels, out_channels, kernel, stride)
    layers.add_module("relu", nn.ReLU(inplace=True))
    return layers


class Inception(nn.Module):
    """Four parallel branches (1×1, 3×3, two 3×3, pool) and their concatenation.

    (N, in, H, W) → (N, ``out_channels``, H, W). Branches are written out as the table's layers,
    so that each module's name is that of its layer.
    """

    def __init__(
        self,
        in_channels: int,
        conv1x1: int,
        conv3x3: tuple[int, int],
        double3x3: tuple[int, int],
        pool: Literal["avg", "max"],
        pool_proj: int,
    ) -> None:
        super().__init__()
        self.conv1x1 = _conv_norm_relu(in_channels, conv1x1, 1)
        self.conv3x3_reduce = _conv_norm_relu(in_channels, conv3x3[0], 1)
        self.conv3x3 = _conv_norm_relu(conv3x3[0], conv3x3[1], 3)
        self.double3x3_reduce = _conv_norm_relu(in_channels, double3x3[0], 1)
        self.double3x3a = _conv_norm_relu(double3x3[0], double3x3[1], 3)
        self.double3x3b = _conv_norm_relu(double3x3[1], double3x3[1], 3)
        self.pool = _POOLS[pool](3, stride=1, padding=1, ceil_mode=True)
        self.pool_proj = _conv_norm_relu(in_channels, pool_proj, 1)
        self.out_channels = conv1x1 + conv3x3[1] + double3x3[1] + pool_proj

    def forward(self, x: Tensor) -> Tensor:
        """Run the branches and concatenate their channels."""
        return torch.cat(
            (
                self.conv1x1(x),
                self.conv3x3(self.conv3x3_reduce(x)),
                self.double3x3b(self.double3x3a(self.double3x3_reduce(x))),
                self.pool_proj(self.pool(x)),
            ),
            dim=1,
        )


class HalvingInception(nn.Module):
    """Three parallel branches of stride 2 (3×3, two 3×3, pool) and their concatenation.

    (N, in, H, W) → (N, ``out_channels``, ⌈H/2⌉, ⌈W/2⌉).
    """

    def __init__(
        self, in_channels: int, conv3x3: tuple[int, int], double3x3: tuple[int, int]
    ) -> None:
        super().__init__()
        self.conv3x3_reduce = _conv_norm_relu(in_channels, conv3x3[0], 1)
        self.conv3x3 = _conv_norm_relu(conv3x3[0], conv3x3[1], 3, stride=2)
        self.double3x3_reduce = _conv_norm_relu(in_channels, double3x3[0], 1)
        self.double3x3a = _conv_norm_relu(double3x3[0], double3x3[1], 3)
        self.double3x3b = _conv_norm_relu(double3x3[1], double3x3[1], 3, stride=2)
        self.pool = HalvingMaxPool()
        self.out_channels = conv3x3[1] + double3x3[1] + in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Run the branches and concatenate their channels."""
        return torch.cat(
            (
                self.conv3x3(self.conv3x3_reduce(x)),
                self.double3x3b(self.double3x3a(self.double3x3_reduce(x))),
                self.pool(x),
            ),
            dim=1,
        )


class BNInception(nn.Module):
    """Two convolutions with pools, ten Inception modules, mean and classifier.

    Initialisation is :func:`senet.models.resnet.initialise_he`, from the global seed.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = _conv_norm_relu(3, 64, 7, stride=2)
        self.pool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2_reduce = _conv_norm_relu(64, 64, 1)
        self.conv2 = _conv_norm_relu(64, 192, 3)
        self.pool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception_3a = Inception(192, *_WIDTHS["3a"])
        self.inception_3b = Inception(256, *_WIDTHS["3b"])
        self.inception_3c = HalvingInception(320, (128, 160), (64, 96))
        self.inception_4a = Inception(576, *_WIDTHS["4a"])
        self.inception_4b = Inception(576, *_WIDTHS["4b"])
        self.inception_4c = Inception(576, *_WIDTHS["4c"])
        self.inception_4d = Inception(608, *_WIDTHS["4d"])
        self.inception_4e = HalvingInception(608, (128, 192), (192, 256))
        self.inception_5a = Inception(1056, *_WIDTHS["5a"])
        self.inception_5b = Inception(1024, *_WIDTHS["5b"])
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(1024, num_classes)
        initialise_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W), with H and W at least 7, → logits (N, num_classes)."""
        x = self.pool1(self.conv1(x))
        x = self.pool2(self.conv2(self.conv2_reduce(x)))
        x = self.inception_3c(self.inception_3b(self.inception_3a(x)))
        x = self.inception_4c(self.inception_4b(self.inception_4a(x)))
        x = self.inception_4e(self.inception_4d(x))
        x = self.inception_5b(self.inception_5a(x))
        return self.classifier(self.flatten(self.global_pool(x)))


def bn_inception(num_classes: int = 1000) -> BNInception:
    """BN-Inception: 11.29M parameters and 2.03 GMACs at 224×224 with 1000 classes."""
    return BNInception(num_classes)
