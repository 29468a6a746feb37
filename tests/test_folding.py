"""A norm in the weights of the convolution before it: the same function."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm.layers
import torch
import torchvision
from convolutions import convolutions
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torchvision.models.video.resnet import Conv3DSimple

from senet.folding import affine_of, after_norm, fold, obstacle

_NORMS = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def random_norm(kind: Any, channels: int, **options: Any) -> Any:
    """In evaluation mode, everything that it has drawn at random, in float64."""
    norm = kind(channels, **options).double().eval()
    for name, tensor in (*norm.named_parameters(), *norm.named_buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.2, 2.0) if "var" in name else nn.init.normal_(tensor)
    return norm.requires_grad_(False)


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@given(drawn=convolutions(), affine=st.booleans(), eps=st.sampled_from([1e-5, 0.1]))
@settings(max_examples=80, deadline=None)
def test_folding_is_exact(drawn: tuple[Any, Tensor], affine: bool, eps: float) -> None:
    conv, h = drawn
    norm = random_norm(_NORMS[h.dim()], conv.out_channels, affine=affine, eps=eps)
    expected = norm(conv(h))
    fold(conv, norm)
    torch.testing.assert_close(conv(h), expected)


FOLDING = {
    "linear": (lambda: nn.Linear(3, 5), nn.BatchNorm1d, (4, 3)),
    "same": (lambda: timm.layers.Conv2dSame(3, 5, 3, stride=2), nn.BatchNorm2d, (2, 3, 8, 7)),
    "named": (lambda: Conv3DSimple(3, 5), nn.BatchNorm3d, (2, 3, 4, 5, 6)),
    "sync": (lambda: nn.Conv2d(3, 5, 3), nn.SyncBatchNorm, (2, 3, 8, 7)),
    "frozen": (lambda: nn.Conv2d(3, 5, 3), torchvision.ops.FrozenBatchNorm2d, (2, 3, 8, 7)),
    "frozen_timm": (
        lambda: nn.Conv2d(3, 5, 3, bias=False), timm.layers.FrozenBatchNormAct2d, (2, 3, 8, 7)
    ),
    "activated": (lambda: nn.Conv2d(3, 5, 3), timm.layers.BatchNormAct2d, (2, 3, 8, 7)),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDING)
def test_layers_and_norms_of_others(name: str) -> None:
    torch.manual_seed(0)
    make, kind, shape = FOLDING[name]
    layer, norm = make().double(), random_norm(kind, 5)
    assert not obstacle(layer)
    h = torch.randn(shape).double()
    expected = norm(layer(h))
    fold(layer, norm)
    rest = after_norm(norm)
    torch.testing.assert_close(rest(layer(h)), expected)
    ends = getattr(norm, "act", None)
    assert rest is ends if isinstance(ends, nn.Module) else type(rest) is nn.Identity


def test_the_affine_map_of_a_norm() -> None:
    torch.manual_seed(0)
    norm = random_norm(nn.BatchNorm1d, 5)
    u = torch.randn(7, 5).double()
    alpha, shift = affine_of(norm)
    assert alpha.dtype == shift.dtype == torch.float64
    torch.testing.assert_close(alpha * u + shift, norm(u))


def test_folding_rounds_once() -> None:
    """The folded weights are the nearest float32 numbers to the exact ones."""
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 5, 3), random_norm(nn.BatchNorm2d, 5).float()
    exact_conv, exact_norm = copy.deepcopy(conv).double(), copy.deepcopy(norm).double()
    fold(conv, norm)
    fold(exact_conv, exact_norm)
    assert torch.equal(conv.weight, exact_conv.weight.float())
    assert torch.equal(conv.bias, exact_conv.bias.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precisions_stay_what_they_are(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 5, 3).to(dtype), random_norm(nn.BatchNorm2d, 5).float()
    h = torch.randn(2, 3, 8, 7).to(dtype)
    expected = norm.double()(copy.deepcopy(conv).double()(h.double()))
    fold(conv, norm.float())
    assert conv.weight.dtype == conv.bias.dtype == dtype
    error = (conv(h).double() - expected).abs().max() / expected.abs().max()
    assert error < 4 * torch.finfo(dtype).eps


def test_weights_are_new_and_need_no_gradient() -> None:
    """The weights before may be shared with another layer."""
    conv = nn.Conv2d(3, 5, 3)
    weight, before = conv.weight, conv.weight.clone()
    fold(conv, random_norm(nn.BatchNorm2d, 5))
    assert torch.equal(weight, before)
    assert not conv.weight.requires_grad
    assert not conv.bias.requires_grad


class _Standardised(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight - self.weight.mean(), self.bias)


def _parametrized() -> nn.Module:
    class _Twice(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    conv = nn.Conv2d(3, 5, 3)
    parametrize.register_parametrization(conv, "weight", _Twice())
    return conv


def _hooked() -> nn.Module:
    conv = nn.Conv2d(3, 5, 3)
    conv.register_forward_hook(lambda *_: None)
    return conv


def _patched() -> nn.Module:
    conv = nn.Conv2d(3, 5, 3)
    forward = conv.forward
    conv.forward = lambda input: forward(input).clamp(-1, 1)
    return conv


@pytest.mark.parametrize(
    "make",
    [
        lambda: _Standardised(3, 5, 3),
        lambda: timm.layers.StdConv2d(3, 5, 3),
        lambda: nn.ConvTranspose2d(3, 5, 3),
        lambda: parametrizations.weight_norm(nn.Conv2d(3, 5, 3)),
        _parametrized,
        _hooked,
        _patched,
    ],
    ids=["subclass", "timm_subclass", "transposed", "weight_norm", "parametrized", "hook", "patch"],
)
def test_what_may_not_be_linear_in_its_weight_is_refused(make: Any) -> None:
    assert not obstacle(nn.Conv2d(3, 5, 3))
    assert obstacle(make())
