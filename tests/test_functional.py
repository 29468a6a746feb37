"""The equations, against their text in loops and against torchvision and timm."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import SEModule
from torchvision.ops import SqueezeExcitation

from senet import SqueezeExcite, functional


def _by_the_book(u, w1, w2, b1, b2):
    """Equations 2 to 4 element by element."""
    out = torch.empty_like(u)
    for n in range(u.shape[0]):
        z = torch.stack([u[n, c].sum() / u[n, c].numel() for c in range(u.shape[1])])
        hidden = torch.clamp(w1 @ z + b1, min=0)
        s = 1 / (1 + torch.exp(-(w2 @ hidden + b2)))
        for c in range(u.shape[1]):
            out[n, c] = s[c] * u[n, c]
    return out


def _weights(channels, hidden, dtype=torch.float64):
    generator = torch.Generator().manual_seed(channels * 31 + hidden)
    shapes = ((hidden, channels), (channels, hidden), (hidden,), (channels,))
    return [torch.randn(s, generator=generator, dtype=dtype) for s in shapes]


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 5),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
)
def test_equations_in_loops(batch, channels, hidden, positions):
    u = torch.randn(batch, channels, *positions, dtype=torch.float64)
    w1, w2, b1, b2 = _weights(channels, hidden)
    expected = _by_the_book(u, w1, w2, b1, b2)
    torch.testing.assert_close(functional.squeeze_excite(u, w1, w2, b1, b2), expected)


@pytest.mark.parametrize("gate", functional.GATES)
@pytest.mark.parametrize("squeeze", functional.SQUEEZES)
@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(gate, squeeze, bias):
    torch.manual_seed(3)
    u = torch.randn(2, 5, 3, 2, dtype=torch.float64, requires_grad=True)
    w1, w2, b1, b2 = (w.requires_grad_() for w in _weights(5, 3))
    inputs = (u, w1, w2, b1, b2) if bias else (u, w1, w2)

    def apply(*tensors):
        return functional.squeeze_excite(*tensors, gate=gate, squeeze_kind=squeeze)

    assert torch.autograd.gradcheck(apply, inputs)


@pytest.mark.parametrize("shape", [(2, 32, 7, 5), (1, 32, 1, 1), (3, 32, 8, 8)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_agrees_with_torchvision_and_timm(shape, channels_last):
    torch.manual_seed(1)
    ours = SqueezeExcite(32, reduction=4)
    theirs = [SqueezeExcitation(32, 8), SEModule(32, rd_channels=8)]
    for other in theirs:
        for layer in ("fc1", "fc2"):
            weight, bias = getattr(ours, layer).weight, getattr(ours, layer).bias
            getattr(other, layer).weight.data.copy_(weight.data[:, :, None, None])
            getattr(other, layer).bias.data.copy_(bias.data)
    u = torch.randn(shape)
    u = u.to(memory_format=torch.channels_last) if channels_last else u
    direction = torch.randn(shape)
    results = []
    for block in (ours, *theirs):
        x = u.clone().requires_grad_()
        y = block(x)
        y.backward(direction)
        grads = [x.grad, block.fc1.weight.grad.flatten(), block.fc2.weight.grad.flatten()]
        results.append([y, *grads, block.fc1.bias.grad, block.fc2.bias.grad])
    for other in results[1:]:
        for got, expected in zip(results[0], other, strict=True):
            torch.testing.assert_close(got, expected)


def test_half_precision_squeeze_accumulates_in_float32():
    # 4096 · 32 = 131072 overflows a float16 sum; the mean does not.
    u = torch.full((1, 2, 64, 64), 32.0, dtype=torch.float16)
    assert functional.squeeze(u).tolist() == [[32.0, 32.0]]
    # In bfloat16 a running sum of ones stops at 256.
    ones = torch.ones(1, 1, 64, 64, dtype=torch.bfloat16)
    assert functional.squeeze(ones).item() == 1.0


def test_no_squeeze_gates_every_position_by_itself():
    u = torch.randn(2, 6, 4, 3, dtype=torch.float64)
    w1, w2, b1, b2 = _weights(6, 2)
    whole = functional.squeeze_excite(u, w1, w2, b1, b2, squeeze_kind="none")
    corner = functional.squeeze_excite(u[:, :, 2:3, 1:2], w1, w2, b1, b2)
    torch.testing.assert_close(whole[:, :, 2:3, 1:2], corner)


@pytest.mark.parametrize(("u", "kind"), [(torch.ones(3), "avg"), (torch.ones(1, 2, 3), "median")])
def test_squeeze_refuses(u, kind):
    with pytest.raises(ValueError, match="squeeze"):
        functional.squeeze(u, kind)
