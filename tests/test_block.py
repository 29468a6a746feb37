"""SqueezeExcite: options, shapes, types, compilers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from senet import BlockOptions, SqueezeExcite, UserError, functional
from senet.block import hidden_width

OPTIONS = st.builds(
    BlockOptions,
    reduction=st.sampled_from([1, 2, 3.5, 16]),
    hidden=st.none() | st.integers(1, 5),
    divisor=st.none() | st.sampled_from([1, 8]),
    bias=st.booleans(),
    gate=st.sampled_from(sorted(functional.GATES)),
    activation=st.sampled_from(sorted(functional.ACTIVATIONS)),
    squeeze=st.sampled_from(functional.SQUEEZES),
    gate_scale=st.sampled_from([1.0, 2.0]),
)


@settings(deadline=None, max_examples=60)
@given(
    OPTIONS,
    st.integers(1, 3),
    st.integers(1, 20),
    st.lists(st.integers(1, 4), max_size=3),
    st.booleans(),
)
def test_module_is_the_function(options, batch, channels, positions, channels_last):
    block = SqueezeExcite(channels, options=options, channels_last=channels_last).double()
    u = torch.randn(batch, channels, *positions, dtype=torch.float64)
    expected = functional.squeeze_excite(
        u,
        block.fc1.weight,
        block.fc2.weight,
        block.fc1.bias,
        block.fc2.bias,
        gate=options.gate,
        activation=options.activation,
        squeeze_kind=options.squeeze,
        gate_scale=options.gate_scale,
    )
    got = block(u.movedim(1, -1)).movedim(-1, 1) if channels_last else block(u)
    torch.testing.assert_close(got, expected)


@settings(deadline=None)
@given(st.integers(1, 4096), st.sampled_from([1, 2, 4, 8, 16, 32]), st.sampled_from([1, 8]))
def test_divisor_is_timms(channels, reduction, divisor):
    from timm.layers import make_divisible

    expected = make_divisible(channels / reduction, divisor, round_limit=0.9)
    assert hidden_width(channels, reduction, divisor=divisor) == expected


@settings(deadline=None)
@given(st.integers(1, 4096), st.integers(1, 64), st.integers(1, 8))
def test_width_is_the_papers(channels, reduction, least):
    expected = max(channels // reduction, least)
    assert hidden_width(channels, reduction, min_hidden=least) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_half_precision_and_layout(dtype, layout):
    torch.manual_seed(0)
    block = SqueezeExcite(32, 4)
    u = torch.randn(2, 32, 9, 7)
    y = block.to(dtype)(u.to(dtype).contiguous(memory_format=layout))
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y.float(), block.float()(u), atol=0.05, rtol=0.02)


def test_autocast_keeps_the_tensors_type():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert SqueezeExcite(16, 4)(torch.randn(1, 16, 3, 3)).dtype == torch.float32


def test_output_is_fresh():
    u = torch.ones(1, 16, 2, 2)
    y = SqueezeExcite(16, 4)(u)
    y += 1  # residual blocks add in place
    assert u.eq(1).all()


def test_zero_init_with_its_constant_is_the_identity():
    for gate in ("sigmoid", "hard_sigmoid"):
        scale = BlockOptions(gate=gate).warm_start_scale()
        block = SqueezeExcite(16, 4, gate=gate, gate_scale=scale)
        block.zero_init()
        u = torch.randn(3, 16, 5)
        assert torch.equal(block(u), u)


@pytest.mark.slow  # whole networks are compiled in test_ordinary
def test_compile_fullgraph_gives_the_same():
    torch.manual_seed(0)
    block = SqueezeExcite(16, 4)
    u = torch.randn(2, 16, 5, 3)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(u), block(u))


def test_export():
    block = SqueezeExcite(16, 4).eval()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(block, (torch.randn(2, 16, 5, 3),), dynamic_shapes=({0: batch},))
    u = torch.randn(3, 16, 5, 3)
    torch.testing.assert_close(program.module()(u), block(u))


def test_initialisation_follows_the_seed():
    def weights(seed):
        torch.manual_seed(seed)
        return SqueezeExcite(16, 4).fc1.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SqueezeExcite(8, 16, min_hidden=0), "leave no hidden unit"),
        (lambda: SqueezeExcite(8, 0), "reduction=0 is not a number above 0"),
        (lambda: SqueezeExcite(8, hidden=0), "hidden=0"),
        (lambda: SqueezeExcite(8, gate="sigmod"), "nearest: 'sigmoid'"),
        (lambda: SqueezeExcite(8, squeeze="mean"), "squeeze 'mean'"),
        (lambda: SqueezeExcite(8, gate_scale=float("nan")), "gate_scale=nan"),
        (lambda: SqueezeExcite(8, gate_scale="2"), "gate_scale='2' is not a finite number"),
        (lambda: SqueezeExcite(8, "16"), "reduction='16' is not a number above 0"),
        (lambda: SqueezeExcite(8, hidden=2.5), "hidden=2.5 is no width; use a whole number"),
        (lambda: SqueezeExcite(8, divisor=2.5), "divisor=2.5 cannot be rounded to; use a whole"),
        (lambda: SqueezeExcite(8, min_hidden=2.5), "min_hidden=2.5 is not a whole number"),
        (lambda: SqueezeExcite(8, min_hidden=-3), "min_hidden=-3 is not a whole number of 0"),
        (lambda: SqueezeExcite(8, min_hidden=True), "min_hidden=True is not a whole number"),
        (lambda: SqueezeExcite(8, bias="no"), "bias='no' is not True or False"),
        (lambda: SqueezeExcite(8, gate=["sigmoid"]), r"unknown gate \['sigmoid'\]"),
        (lambda: BlockOptions(gate="tanh").warm_start_scale(), "not zero at zero"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_wrong_number_of_channels_is_named():
    with pytest.raises(ValueError, match=r"gates 16 channels, got a tensor \(1, 8, 2, 2\)"):
        SqueezeExcite(16)(torch.ones(1, 8, 2, 2))
