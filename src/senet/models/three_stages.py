"""What the networks for 32×32 images that end in a ReLU have in common."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

from .resnet import initialise_he

__all__ = ["ThreeStageNet"]


class ThreeStageNet(nn.Module):
    """A stem, three stages of units, norm if wanted, ReLU, mean and classifier.

    Args:
        stem: images (N, 3, H, W) → (N, 16, H, W).
        unit: (channels in, channels out, stride) → a unit.
        depth: units in each stage.
        width: output channels of the first stage; each other has twice those before it.
        normed: a norm before the last ReLU.
        num_classes: logits.

    Initialisation is :func:`senet.models.resnet.initialise_he`, from the global seed.
    """

    def __init__(
        self,
        stem: nn.Module,
        unit: Callable[[int, int, int], nn.Module],
        depth: int,
        width: int,
        *,
        normed: bool,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.normed = normed
        self.stem = stem
        self.stage0 = _stage(unit, depth, 16, width, stride=1)
        self.stage1 = _stage(unit, depth, width, 2 * width, stride=2)
        self.stage2 = _stage(unit, depth, 2 * width, 4 * width, stride=2)
        if normed:
            self.bn = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(4 * width, num_classes)
        initialise_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) → logits (N, num_classes)."""
        x = self.stage2(self.stage1(self.stage0(self.stem(x))))
        if self.normed:
            x = self.bn(x)
        return self.classifier(self.flatten(self.global_pool(self.relu(x))))


def _stage(
    unit: Callable[[int, int, int], nn.Module],
    depth: int,
    in_channels: int,
    out_channels: int,
    stride: int,
) -> nn.Sequential:
    """``unit1`` … ``unit{depth}``; the first changes channels and size."""
    units = OrderedDict(unit1=unit(in_channels, out_channels, stride))
    for number in range(2, depth + 1):
        units[f"unit{number}"] = unit(out_channels, out_channels, 1)
    return nn.Sequential(units)
