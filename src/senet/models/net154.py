"""The network under SENet-154 (Hu et al., section 6.5 of the journal), without any attention.

Layer by layer the SE authors' Caffe release, from its table: ResNeXt-152 (64×4d) with first 1×1
convolutions half as wide, a stem of three 3×3 convolutions, 3×3 projections where a stage has a
stride, and dropout before the classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from .resnet import BOTTLENECK_WIDTHS, BottleneckUnit, conv_norm, initialise_he, residual_stage

__all__ = ["Net154", "net154"]


class Net154(nn.Module):
    """A stem of three 3×3 convolutions, four stages of grouped bottlenecks, mean and classifier.

    Args:
        depths: units in each of the four stages.
        num_classes: logits.

    Initialisation is :func:`senet.models.resnet.initialise_he`, from the global seed.
    """

    def __init__(self, depths: Sequence[int], num_classes: int = 1000) -> None:
        super().__init__()
        unit = partial(BottleneckUnit, stride_in="3x3", narrowing=(2, 1), groups=64)
        widths = BOTTLENECK_WIDTHS
        self.stem1 = conv_norm(3, 64, 3, stride=2)
        self.stem1_relu = nn.ReLU(inplace=True)
        self.stem2 = conv_norm(64, 64, 3)
        self.stem2_relu = nn.ReLU(inplace=True)
        self.stem3 = conv_norm(64, 128, 3)
        self.stem3_relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.stage2 = residual_stage(unit, depths[0], 128, widths[0], stride=1)
        self.stage3 = residual_stage(unit, depths[1], widths[0], widths[1], stride=2, kernel=3)
        self.stage4 = residual_stage(unit, depths[2], widths[1], widths[2], stride=2, kernel=3)
        self.stage5 = residual_stage(unit, depths[3], widths[2], widths[3], stride=2, kernel=3)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(widths[3], num_classes)
        initialise_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W), with H and W at least 3, → logits (N, num_classes)."""
        x = self.stem2_relu(self.stem2(self.stem1_relu(self.stem1(x))))
        x = self.pool(self.stem3_relu(self.stem3(x)))
        x = self.stage5(self.stage4(self.stage3(self.stage2(x))))
        return self.classifier(self.flatten(self.dropout(self.global_pool(x))))


def net154(num_classes: int = 1000) -> Net154:
    """SENet-154 without its blocks: 108.46M parameters and 20.68 GMACs at 224×224."""
    return Net154((3, 8, 36, 3), num_classes)
