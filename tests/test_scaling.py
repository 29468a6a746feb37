"""Layers whose channels are multiplied by a vector, beside the multiplication itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from convolutions import convolutions
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from senet.scaling import scale_input, scale_output, scale_statistics

SEEDS = st.integers(0, 1000)


def factors(channels: int, seed: int) -> Tensor:
    """Of either sign, none of them near 0."""
    rng = torch.Generator().manual_seed(seed)
    size = 0.2 + torch.rand(channels, generator=rng, dtype=torch.float64)
    return size * torch.randint(0, 2, (channels,), generator=rng).mul(2).sub(1)


def along(x: Tensor, s: Tensor, axis: int = 1) -> Tensor:
    return x * s.reshape(-1, *(1,) * (x.dim() - 1 - axis))


def assert_same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@settings(max_examples=60, deadline=None)
@given(case=convolutions(), seed=SEEDS)
def test_convolutions_of_all_kinds(case: tuple[Any, Tensor], seed: int) -> None:
    conv, h = case
    with torch.no_grad():
        out, into = factors(conv.out_channels, seed), factors(conv.in_channels, seed + 1)
        wanted = along(conv(along(h, into)), out)
        scale_output(conv, out)
        scale_input(conv, into)
        assert_same(conv(h), wanted)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer(bias: bool) -> None:
    layer = nn.Linear(6, 4, bias=bias).double()
    x, out, into = torch.randn(2, 5, 6).double(), factors(4, 0), factors(6, 1)
    with torch.no_grad():
        wanted = layer(x * into) * out
        scale_output(layer, out)
        scale_input(layer, into)
        assert_same(layer(x), wanted)
    assert layer.weight.requires_grad


@pytest.mark.parametrize(
    ("norm", "shape", "axis"),
    [
        (nn.BatchNorm1d(6), (3, 6, 5), 1),
        (nn.GroupNorm(2, 6), (3, 6, 4, 4), 1),
        (nn.LayerNorm(6), (3, 4, 6), 2),
        (nn.LayerNorm(6, bias=False), (3, 4, 6), 2),
    ],
    ids=["batch", "group", "layer", "layer without bias"],
)
def test_what_a_norm_makes(norm: Any, shape: tuple[int, ...], axis: int) -> None:
    norm.double().eval()
    x, s = torch.randn(shape).double(), factors(6, 0)
    nn.init.normal_(norm.weight)
    with torch.no_grad():
        wanted = along(norm(x), s, axis)
        scale_output(norm, s)
        assert_same(norm(x), wanted)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, eps=st.sampled_from([1e-5, 1e-2, 1.0]))
def test_what_a_batch_norm_is_given(seed: int, eps: float) -> None:
    """Whatever ε is, and for factors below 0 too."""
    torch.manual_seed(seed)
    norm, s = nn.BatchNorm2d(6, eps=eps).double().eval(), factors(6, seed)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.01, 2)
    x = torch.randn(2, 6, 3, 3).double()
    with torch.no_grad():
        wanted = norm(along(x, s))
        scale_statistics(norm, s)
        assert_same(norm(x), wanted)


def test_types_and_gradients_stay() -> None:
    conv = nn.Conv2d(4, 4, 1).to(torch.bfloat16)
    conv.weight.requires_grad_(False)
    scale_output(conv, factors(4, 0))
    assert conv.weight.dtype == torch.bfloat16
    assert [p.requires_grad for p in conv.parameters()] == [False, True]
