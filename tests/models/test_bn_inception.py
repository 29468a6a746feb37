from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from senet.models.bn_inception import HalvingInception, HalvingMaxPool, Inception, bn_inception


@pytest.mark.parametrize("size", [(28, 14), (14, 28), (2, 2)])
def test_halving_pool_is_the_tables_at_even_sides(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    pool = HalvingMaxPool()
    assert torch.equal(pool(x), nn.MaxPool2d(3, 2, ceil_mode=True)(x))


@pytest.mark.parametrize("size", [(7, 7), (7, 4), (1, 3), (4, 5)])
def test_halving_pool_fits_beside_a_convolution(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size) - 10  # all negative: padding with zeros would win
    y = HalvingMaxPool()(x)
    assert y.shape == nn.Conv2d(3, 3, 3, stride=2, padding=1)(x).shape
    for row in range(y.shape[2]):
        for column in range(y.shape[3]):
            window = x[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            assert torch.equal(y[:, :, row, column], window.amax((2, 3)))


def test_module_output_is_the_concatenation_in_the_tables_order() -> None:
    torch.manual_seed(0)
    module = Inception(8, 2, (3, 4), (3, 5), "avg", 6).eval()
    x = torch.randn(1, 8, 5, 5)
    y = module(x)
    assert y.shape[1] == module.out_channels == 17
    branches = (
        module.conv1x1(x),
        module.conv3x3(module.conv3x3_reduce(x)),
        module.double3x3b(module.double3x3a(module.double3x3_reduce(x))),
        module.pool_proj(module.pool(x)),
    )
    for piece, branch in zip(y.split((2, 4, 5, 6), dim=1), branches, strict=True):
        assert torch.equal(piece, branch)


def test_halving_module_passes_its_pooled_input_on() -> None:
    module = HalvingInception(8, (3, 4), (3, 5)).eval()
    x = torch.randn(1, 8, 5, 4)
    y = module(x)
    assert y.shape == (1, module.out_channels, 3, 2)
    assert torch.equal(y[:, 9:], module.pool(x))


def test_channels_of_the_modules_follow_each_other() -> None:
    seen: list[tuple[int, int]] = []

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((inputs[0].shape[1], output.shape[1]))

    with torch.device("meta"):
        model = bn_inception().eval()
    for module in model.children():
        if isinstance(module, Inception | HalvingInception):
            module.register_forward_hook(hook)
    model(torch.empty(1, 3, 224, 224, device="meta"))
    widths = [192, 256, 320, 576, 576, 576, 608, 608, 1056, 1024, 1024]
    assert seen == list(pairwise(widths))


def test_average_pools_count_their_padding() -> None:
    """As Caffe divides: a corner's window has four values, and is divided by nine."""
    pool = bn_inception().inception_3a.pool
    assert pool(torch.ones(1, 1, 3, 3))[0, 0, 0, 0].item() == pytest.approx(4 / 9)
