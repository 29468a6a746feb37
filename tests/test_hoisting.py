"""The gate from the convolution's input is the gate from its output, for any convolution."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from convolutions import convolutions
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from senet import SqueezeExcite
from senet.block import BlockOptions
from senet.functional import ACTIVATIONS, GATES
from senet.hoisting import InputGated, OutputGated, hoisting_pays, visits, window_means


def positions(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@given(drawn=convolutions())
@settings(max_examples=100, deadline=None)
def test_means_of_what_a_convolution_makes(drawn: tuple[Any, Tensor]) -> None:
    conv, h = drawn
    u = conv(h)
    t = window_means(h, conv).unflatten(1, (conv.groups, -1))
    weight = conv.weight.flatten(1).unflatten(0, (conv.groups, -1))
    means = torch.einsum("ngt,gct->ngc", t, weight).flatten(1)
    means = means if conv.bias is None else means + conv.bias
    torch.testing.assert_close(means, u.mean(positions(u)))


blocks = st.builds(
    BlockOptions,
    hidden=st.integers(1, 12),
    bias=st.booleans(),
    gate=st.sampled_from(sorted(GATES)),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    gate_scale=st.sampled_from([1.0, 2.0]),
    bottleneck=st.booleans(),
)


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@given(drawn=convolutions(), options=blocks)
@settings(max_examples=80, deadline=None)
def test_gated_from_the_input_or_composed(drawn: tuple[Any, Tensor], options: BlockOptions) -> None:
    conv, h = drawn
    se = SqueezeExcite(conv.out_channels, options=options).double()
    for parameter in se.parameters():
        nn.init.normal_(parameter)
    gated = InputGated(conv, se)
    torch.testing.assert_close(gated(h), se(conv(h)))
    torch.testing.assert_close(gated.gates(h), se.gates(conv(h)))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bottleneck", [True, False])
@pytest.mark.parametrize(
    ("kernel", "inputs", "outputs", "hidden", "folded"),
    [(1, 8, 32, 4, True), (1, 32, 8, 4, True), (1, 64, 8, 16, False), (3, 8, 8, 16, False)],
)
def test_the_first_layer_is_folded_where_that_is_cheaper(
    kernel: int, inputs: int, outputs: int, hidden: int, folded: bool, groups: int, bottleneck: bool
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, kernel, groups=groups).double()
    options = BlockOptions(hidden=hidden, bottleneck=bottleneck)
    se = SqueezeExcite(outputs, options=options).double()
    gated = InputGated(conv, se)
    width, read = se.fc2.in_features, inputs * kernel**2
    together = width * read
    apart = outputs * read // groups + width * outputs
    if groups == 1 and bottleneck:
        assert folded == (together < apart)
    assert isinstance(gated.mean, nn.Identity) == (together < apart)
    h = torch.randn(2, inputs, 5, 4).double()
    torch.testing.assert_close(gated(h), se(conv(h)))


def test_visits_are_counted() -> None:
    for size, kernel, stride, padding, dilation in [
        (7, 3, 2, 1, 1),
        (9, 2, 3, 0, 4),
        (1, 3, 1, 1, 1),
    ]:
        outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        expected = torch.zeros(kernel, size, dtype=torch.float64)
        for tap in range(kernel):
            for output in range(outputs):
                if 0 <= (at := output * stride + tap * dilation - padding) < size:
                    expected[tap, at] += 1 / outputs
        found = visits(size, kernel, stride=stride, padding=(padding, padding), dilation=dilation)
        torch.testing.assert_close(found, expected)


def test_it_pays_where_less_is_read() -> None:
    expanding, strided = nn.Conv2d(8, 32, 1), nn.Conv2d(32, 32, 1, stride=2)
    assert hoisting_pays(expanding, (1, 8, 7, 7), (1, 32, 7, 7))
    # Of a strided 1×1 convolution's input only the lattice is read: as much as it makes.
    assert not hoisting_pays(strided, (1, 32, 8, 8), (1, 32, 4, 4))
    assert hoisting_pays(nn.Conv2d(31, 32, 1, stride=2), (1, 31, 8, 8), (1, 32, 4, 4))
    assert not hoisting_pays(nn.Conv2d(16, 32, 3, 2, 1), (1, 16, 8, 8), (1, 32, 4, 4))
    assert not hoisting_pays(nn.Conv2d(32, 8, 1), (1, 32, 7, 7), (1, 8, 7, 7))
    # Padding of a 1×1 convolution makes positions that read nothing.
    assert hoisting_pays(nn.Conv2d(8, 8, 1, padding=1), (1, 8, 7, 7), (1, 8, 9, 9))


def test_the_output_is_gated_in_place() -> None:
    torch.manual_seed(0)
    se, u = SqueezeExcite(8), torch.randn(2, 8, 5, 4)
    expected = se(u)
    with torch.no_grad():
        gated = OutputGated(se)(u)
    assert gated is u
    torch.testing.assert_close(u, expected)


@pytest.mark.parametrize("kind", [InputGated, OutputGated])
def test_gradients_pass_to_the_input(kind: type[nn.Module]) -> None:
    """For saliency maps of a deployed network."""
    torch.manual_seed(0)
    conv, se = nn.Conv2d(4, 8, 3, padding=1).double(), SqueezeExcite(8).double()
    gated = InputGated(conv, se) if kind is InputGated else nn.Sequential(conv, OutputGated(se))
    h = torch.randn(2, 4, 5, 6).double()
    gradients = [
        torch.func.grad(lambda h, f=f: f(h).square().sum())(h)
        for f in (gated, lambda h: se(conv(h)))
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("conv_dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("folded", [True, False])
def test_layers_may_be_of_another_type(conv_dtype: torch.dtype, kernel: int, folded: bool) -> None:
    """Norms, and so blocks, are often kept in float32 beside half-precision convolutions."""
    torch.manual_seed(0)
    inputs, outputs, hidden = (4, 32, 2) if folded else (32, 4, 64)
    conv = nn.Conv2d(inputs, outputs, kernel).to(conv_dtype)
    se = SqueezeExcite(outputs, hidden=hidden)
    gated = InputGated(conv, se)
    assert isinstance(gated.mean, nn.Identity) == folded
    h = torch.randn(2, inputs, 9, 9).to(conv_dtype)
    y = gated(h)
    assert y.dtype == conv_dtype
    torch.testing.assert_close(y, se(conv(h)), rtol=8 * torch.finfo(conv_dtype).eps, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_composes_alike(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    conv, se = nn.Conv2d(8, 32, 3), SqueezeExcite(32)
    h = torch.randn(2, 8, 9, 9)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        ours, expected = InputGated(conv, se)(h), se(conv(h))
    assert ours.dtype == expected.dtype == dtype
    torch.testing.assert_close(ours, expected, rtol=8 * torch.finfo(dtype).eps, atol=1e-3)


HOOKS: dict[str, Callable[[nn.Module, list[str]], object]] = {
    "forward": lambda m, seen: m.register_forward_hook(lambda *_: seen.append("called")),
    "forward pre": lambda m, seen: m.register_forward_pre_hook(lambda *_: seen.append("called")),
    "backward": lambda m, seen: m.register_full_backward_hook(lambda *_: seen.append("called")),
    "patched": lambda m, seen: setattr(
        m, "forward", lambda x, old=m.forward: (seen.append("called"), old(x))[1]
    ),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_a_hook_on_a_layer_still_waits_for_its_call(kind: str) -> None:
    torch.manual_seed(0)
    gated, h = InputGated(nn.Conv2d(8, 32, 1), SqueezeExcite(32)), torch.randn(2, 8, 9, 9)
    assert gated.two_steps
    h.requires_grad_()
    expected, seen = gated.gates(h), []
    HOOKS[kind](gated.fc1, seen)
    found = gated.gates(h)
    found.sum().backward()
    torch.testing.assert_close(found, expected)
    assert seen == ["called"]


@pytest.mark.parametrize("kind", HOOKS)
def test_a_hook_on_a_block_that_gates_its_output_waits_too(kind: str) -> None:
    torch.manual_seed(0)
    gated, u = OutputGated(SqueezeExcite(32)), torch.randn(2, 32, 9, 9)
    expected, seen = gated(u.clone()), []
    HOOKS[kind](gated.se.fc1, seen)
    found = gated(u.clone())
    if kind != "backward":
        assert seen == ["called"]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "shape", [(3, 16, 7), (1, 16, 5, 3), (2, 16, 2, 3, 4), (0, 16, 4, 4)], ids=str
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"bottleneck": False},
        {"gate": "tanh", "activation": "silu", "gate_scale": 2.0},
    ],
    ids=str,
)
def test_gated_in_place_it_is_the_block(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    se = SqueezeExcite(16, options=BlockOptions(reduction=4, **options))
    nn.init.normal_(se.fc2.weight)
    u = torch.randn(shape)
    expected = se.double()(u.double())
    found = OutputGated(se.float())(u.clone())
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-6)


def test_under_autocast_a_large_map_stays_finite() -> None:
    """A sum of 64 · 64 positions of 30 is above the largest float16; their mean is not."""
    torch.manual_seed(0)
    conv, se = nn.Conv2d(8, 32, 1), SqueezeExcite(32)
    h = torch.randn(1, 8, 64, 64) + 30
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        gates, expected = InputGated(conv, se).gates(h), se.gates(conv(h))
    torch.testing.assert_close(gates.float(), expected.float(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kernel", [1, 3])
def test_an_empty_batch(kernel: int) -> None:
    gated = InputGated(nn.Conv2d(8, 32, kernel), SqueezeExcite(32))
    assert gated(torch.randn(0, 8, 9, 9)).shape == (0, 32, 10 - kernel, 10 - kernel)


def test_it_answers_as_the_convolution_did() -> None:
    conv = nn.Conv2d(8, 32, 1)
    gated = InputGated(conv, SqueezeExcite(32))
    assert gated.weight is conv.weight
    assert gated.kernel_size == (1, 1)
    assert gated(input=torch.randn(1, 8, 4, 4)).shape == (1, 32, 4, 4)
    with pytest.raises(AttributeError, match="absent"):
        gated.absent  # noqa: B018
    torch.testing.assert_close(copy.deepcopy(gated).weight, conv.weight)


def test_it_can_be_traced_symbolically() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(InputGated(nn.Conv2d(8, 32, 1), SqueezeExcite(32)), nn.ReLU())
    h = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(h), model(h))


@pytest.mark.filterwarnings("ignore:.*deprecated:")
def test_layers_may_be_quantised() -> None:
    torch.manual_seed(0)
    gated = InputGated(nn.Conv2d(8, 32, 1), SqueezeExcite(32)).eval()
    h = torch.randn(2, 8, 9, 9)
    with torch.no_grad():
        expected = gated.gates(h)
        quantised = torch.ao.quantization.quantize_dynamic(gated, {nn.Linear}, torch.qint8)
        assert type(quantised.fc1) is not nn.Linear
        torch.testing.assert_close(quantised.gates(h), expected, atol=0.03, rtol=0)


def test_a_sum_of_halves_does_not_overflow() -> None:
    """64 · 64 positions of 60 sum up to four times the largest float16."""
    torch.manual_seed(0)
    conv, se = nn.Conv2d(8, 32, 1).half(), SqueezeExcite(32).half()
    gates = InputGated(conv, se).gates(torch.full((1, 8, 64, 64), 60.0).half())
    expected = se.float().gates(conv.float()(torch.full((1, 8, 64, 64), 60.0)))
    torch.testing.assert_close(gates.float(), expected, rtol=2e-2, atol=2e-2)


def test_no_random_number_is_drawn() -> None:
    conv, se = nn.Conv2d(8, 32, 1), SqueezeExcite(32)
    before = torch.get_rng_state()
    for kernel in (1, 3):
        InputGated(nn.Conv2d(8, 32, kernel, device="meta"), SqueezeExcite(32, device="meta"))
    InputGated(conv, se)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_convolution_keeps_its_own_weights() -> None:
    conv, se = nn.Conv2d(8, 32, 3), SqueezeExcite(32)
    before = copy.deepcopy(conv.state_dict())
    InputGated(conv, se)(torch.randn(1, 8, 5, 5))
    assert functools.reduce(
        bool.__and__, (torch.equal(t, before[name]) for name, t in conv.state_dict().items())
    )


class _Packed(Tensor):
    """A weight as quantisation leaves it: it can be multiplied by a linear layer, and no more."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.addmm or func is Tensor.t:
            raise NotImplementedError(func)
        return super().__torch_function__(func, types, args, kwargs)


def test_layers_may_hold_weights_of_their_own_kind() -> None:
    torch.manual_seed(0)
    gated, h = InputGated(nn.Conv2d(8, 32, 1), SqueezeExcite(32)), torch.randn(2, 8, 9, 9)
    expected = gated.gates(h)
    for layer in (gated.fc1, gated.fc2):
        layer.weight = nn.Parameter(layer.weight.detach().as_subclass(_Packed))
    assert type(gated.fc1.weight) is not nn.Parameter
    torch.testing.assert_close(gated.gates(h).as_subclass(Tensor), expected)
