"""ResNeXt for ImageNet (Xie, Girshick, Dollár, Tu, He; CVPR 2017), without any attention.

ResNet with bottlenecks whose 3×3 convolution is grouped and half as wide as the unit's output:
32 groups of 4 channels in the first stage. As in the layer tables of the SE authors' Caffe
release, the stride of a stage is in its first 3×3 convolution, and the stem's max-pool has no
padding and rounds up (torchvision's and timm's have a padding of 1; at even sizes only the place
of its windows differs).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from .resnet import BOTTLENECK_WIDTHS, BottleneckUnit, ResNet

__all__ = ["resnext50_32x4d", "resnext101_32x4d"]


def resnext50_32x4d(num_classes: int = 1000) -> ResNet:
    """ResNeXt-50 (32×4d): 25.03M parameters and 4.23 GMACs at 224×224 with 1000 classes."""
    return _resnext((3, 4, 6, 3), num_classes)


def resnext101_32x4d(num_classes: int = 1000) -> ResNet:
    """ResNeXt-101 (32×4d): 44.18M parameters and 7.97 GMACs at 224×224 with 1000 classes."""
    return _resnext((3, 4, 23, 3), num_classes)


def _resnext(depths: Sequence[int], num_classes: int) -> ResNet:
    unit = partial(BottleneckUnit, stride_in="3x3", narrowing=(2, 2), groups=32)
    return ResNet(unit, depths, BOTTLENECK_WIDTHS, num_classes=num_classes)
