"""Known architectures by name, without memory for their weights, and a few written out here."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

from senet import Plan, plan

__all__ = ["INPUT_SIZES", "OWN", "build_on_meta", "plan_of", "staged"]

INPUT_SIZES = {
    "torchvision/inception_v3": (3, 299, 299),
    "torchvision/r3d_18": (3, 16, 112, 112),
    "torchvision/r2plus1d_18": (3, 16, 112, 112),
    "torchvision/mc3_18": (3, 16, 112, 112),
    "torchvision/s3d": (3, 16, 224, 224),
    "resnet_1d": (12, 256),
    "tdnn": (24, 100),
    "shufflenet_v1": (24, 32, 32),
    "tutorial_cnn": (3, 32, 32),
    "unet_transposed": (3, 32, 32),
    "unet_interpolated": (3, 32, 32),
    "repvgg_bare": (3, 16, 16),
    "densenet_own": (3, 16, 16),
}
"""(C, …) of those that do not take the usual image."""


def build_on_meta(name: str, **options: Any) -> nn.Module:
    """ "timm/NAME", "torchvision/NAME" or a name of `OWN`, untrained, on the meta device."""
    library, _, model = name.rpartition("/")
    with _OnMeta():
        if library == "timm":
            return timm.create_model(model, **options)
        if library == "torchvision":
            if model in ("googlenet", "inception_v3"):
                options["init_weights"] = False  # a truncated normal drawn for seconds
            return torchvision.models.get_model(model, weights=None, **options)
        return OWN[name]()


def plan_of(name: str, **options: Any) -> Plan:
    """Where SE goes in one of them."""
    return plan(build_on_meta(name), input_size=INPUT_SIZES.get(name), **options)


def staged(pattern: str, depths: tuple[int, ...], first: int = 0) -> list[str]:
    """``pattern`` for each stage s (counted from ``first``) and block b of a network."""
    return [pattern.format(s=s, b=b) for s, n in enumerate(depths, first) for b in range(n)]


class _OnMeta(TorchFunctionMode):
    """Layers are made without memory; tensors that a network computes its widths with are real."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones):
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


class _Residual1d(nn.Module):
    """The basic block of a 1-D ResNet, the shortcut as the first term of its sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(inputs, outputs, 7, stride, 3, bias=False)
        self.norm1 = nn.BatchNorm1d(outputs)
        self.conv2 = nn.Conv1d(outputs, outputs, 7, 1, 3, bias=False)
        self.norm2 = nn.BatchNorm1d(outputs)
        same = inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv1d(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (self.shortcut(x) + y).relu()


def _resnet_1d() -> nn.Module:
    """As for electrocardiograms: twelve leads, thousands of samples."""
    return nn.Sequential(
        nn.Sequential(nn.Conv1d(12, 32, 15, 2, 7), nn.BatchNorm1d(32), nn.ReLU()),
        nn.Sequential(_Residual1d(32, 32, 1), _Residual1d(32, 32, 1)),
        nn.Sequential(_Residual1d(32, 64, 2), _Residual1d(64, 64, 1)),
        nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 5)),
    )


class _TimeDelayUnit(nn.Module):
    """Convolution, ReLU and norm, in the order of Snyder et al. 2018."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, dilation=dilation)
        self.relu = nn.ReLU(inplace=True)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.relu(self.conv(x)))


class _Tdnn(nn.Module):
    """An x-vector network: frame-level layers, then mean and deviation over time."""

    def __init__(self) -> None:
        super().__init__()
        layers = [(24, 64, 5, 1), (64, 64, 3, 2), (64, 64, 3, 3), (64, 64, 1, 1), (64, 96, 1, 1)]
        self.frames = nn.Sequential(*(_TimeDelayUnit(*layer) for layer in layers))
        self.segment = nn.Linear(192, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.frames(x)
        return self.segment(torch.cat([x.mean(2), x.std(2)], 1))


class _ShuffleUnit(nn.Module):
    """ShuffleNet v1 with three groups: pooled and concatenated where it is strided, else added."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        made = outputs - inputs if stride > 1 else outputs
        middle, self.stride = outputs // 4, stride
        self.conv1 = nn.Conv2d(inputs, middle, 1, groups=3, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, made, 1, groups=3, bias=False)
        self.bn3 = nn.BatchNorm2d(made)
        self.pool = nn.AvgPool2d(3, stride, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = y.unflatten(1, (3, -1)).transpose(1, 2).flatten(1, 2)  # the channel shuffle
        y = self.bn3(self.conv3(self.bn2(self.conv2(y))))
        return (torch.cat([self.pool(x), y], 1) if self.stride > 1 else x + y).relu()


def _shufflenet_v1() -> nn.Module:
    """The first two stages, from where the stem leaves 24 channels."""
    units = [(24, 240, 2), *((240, 240, 1),) * 3, (240, 480, 2), *((480, 480, 1),) * 3]
    return nn.Sequential(*(_ShuffleUnit(*unit) for unit in units))


class _TutorialCnn(nn.Module):
    """PyTorch's tutorial network: functional ReLUs, one pooling module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 12, 5), nn.Conv2d(12, 16, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc1, self.fc2 = nn.Linear(16 * 5 * 5, 120), nn.Linear(120, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


def _double_convolution(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        convolution = nn.Conv2d(channels, outputs, 3, 1, 1, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class _UNet(nn.Module):
    """Ronneberger et al. 2015 with three levels; ways up are transposed or interpolated."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        widths = (16, 32, 64)
        ins = (3, *widths)
        self.down = nn.ModuleList(_double_convolution(i, o) for i, o in pairwise(ins))
        ways_up: list[nn.Module] = []
        levels: list[nn.Module] = []
        for low, high in pairwise(widths[::-1]):
            ways_up.append(nn.ConvTranspose2d(low, high, 2, 2) if transposed else nn.Identity())
            levels.append(_double_convolution((high if transposed else low) + high, high))
        self.ways_up, self.up = nn.ModuleList(ways_up), nn.ModuleList(levels)
        self.head = nn.Conv2d(widths[0], 2, 1)
        self.transposed = transposed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        passed = []
        for level in self.down:
            x = level(F.max_pool2d(x, 2) if passed else x)
            passed.append(x)
        for way_up, level, beside in zip(self.ways_up, self.up, passed[-2::-1], strict=True):
            x = way_up(x if self.transposed else F.interpolate(x, scale_factor=2.0))
            x = level(torch.cat([beside, x], 1))
        return self.head(x)


class _RepVggBlock(nn.Module):
    """3×3, 1×1 and, where the width stays, a norm, in parallel; no Identity after their sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        norm = nn.BatchNorm2d(outputs)
        self.c3 = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm)
        norm = nn.BatchNorm2d(outputs)
        self.c1 = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm)
        self.idn = nn.BatchNorm2d(outputs) if inputs == outputs and stride == 1 else None
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.c3(x) + self.c1(x)
        if self.idn is not None:
            y = y + self.idn(x)
        return self.relu(y)


def _repvgg_bare() -> nn.Module:
    """Ding et al. 2021 as it is often written."""
    blocks = [_RepVggBlock(*b) for b in ((3, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1))]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))


class _DenseLayer(nn.Module):
    """A dense layer that returns its input and its new features; a 1×1 in front, or not."""

    def __init__(self, inputs: int, growth: int, bottleneck: bool) -> None:
        super().__init__()
        middle = 4 * growth if bottleneck else inputs
        first = [nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, middle, 1, bias=False)]
        self.bottleneck = nn.Sequential(*first) if bottleneck else nn.Identity()
        self.norm, self.relu = nn.BatchNorm2d(middle), nn.ReLU()
        self.conv = nn.Conv2d(middle, growth, 3, 1, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        new = self.conv(self.relu(self.norm(self.bottleneck(x))))
        return torch.cat([x, new], 1)


def _densenet_own() -> nn.Module:
    """Huang et al. 2017 layer by layer: two blocks of two layers, the second with bottlenecks."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1),
        nn.Sequential(_DenseLayer(16, 8, False), _DenseLayer(24, 8, False)),
        nn.Sequential(nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 1), nn.AvgPool2d(2)),
        nn.Sequential(_DenseLayer(16, 8, True), _DenseLayer(24, 8, True)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)),
    )


OWN: dict[str, Callable[[], nn.Module]] = {
    "resnet_1d": _resnet_1d,
    "tdnn": _Tdnn,
    "shufflenet_v1": _shufflenet_v1,
    "tutorial_cnn": _TutorialCnn,
    "unet_transposed": lambda: _UNet(transposed=True),
    "unet_interpolated": lambda: _UNet(transposed=False),
    "repvgg_bare": _repvgg_bare,
    "densenet_own": _densenet_own,
}
"""Networks that neither library has."""
