"""Small networks of different shapes for the tests."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """x + F(x), written in one of several ways."""

    def __init__(self, channels: int = 16, *, in_place: bool = False, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=in_place)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            projection = nn.Conv2d(channels, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels))
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.in_place:
            y += self.shortcut(x)
            return self.relu(y)
        return self.relu(y + self.shortcut(x))


class Joined(Residual):
    """A residual block that adds its branch to its input by the function that it is given."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], channels: int = 16) -> None:
        super().__init__(channels)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return self.join(x, y).relu()


def small_resnet(*, in_place: bool = False, classes: int = 5) -> nn.Sequential:
    """A stem, three residual blocks (the second strided) and a head; input (3, H, W)."""
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    blocks = nn.Sequential(
        Residual(in_place=in_place), Residual(in_place=in_place, stride=2), Residual()
    )
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))
    return nn.Sequential(stem, blocks, head)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every affine and running statistic drawn at random, as after training."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.2)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            if module.weight is not None:
                module.weight.data.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
                module.bias.data.copy_(torch.randn(module.num_features, generator=generator) * 0.2)
    return model
