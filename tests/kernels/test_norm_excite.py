"""Every implementation of SE(BN(x)) against float64 autograd through the equations."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from operations import Case, answers, draw, error, rounded

from senet.functional import ACTIVATIONS, GATES
from senet.kernels import Excitation, Norm, aten, broadcast, channels_last, gate, norm_excite, rows

FAST = ("aten", "traced")
FORMS = (*FAST, "aten on a GPU", "aten in chunks")
SHAPES = [
    (3, 5, 7),
    (2, 7, 3, 5),
    (1, 3, 9, 4),
    (4, 1, 2, 2),
    (5, 6, 1, 1),
    (2, 11, 2, 3, 4),
    (1, 2, 1, 2),
]


@pytest.fixture
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An implementation; "aten on a GPU" is the form that it takes there, on the CPU.

    "aten in chunks" takes small maps a few rows at a time, and single ones longer than a chunk.
    """
    if request.param == "aten on a GPU":
        monkeypatch.setattr(aten, "passes_for", lambda *_: broadcast)
    if request.param == "aten in chunks":
        monkeypatch.setattr(rows, "CHUNK", 16)
    return request.param.partition(" ")[0]


def cases() -> st.SearchStrategy[Case]:
    dims = st.lists(st.integers(1, 6), min_size=1, max_size=3)
    shapes = st.tuples(st.integers(1, 4), st.integers(1, 13), dims).map(
        lambda shape: (shape[0], shape[1], *shape[2])
    )
    return st.builds(
        Case,
        shape=shapes.filter(lambda s: torch.Size(s).numel() > s[1]),
        channels_last=st.booleans(),
        batch_statistics=st.booleans(),
        affine=st.booleans(),
        bias=st.booleans(),
        bottleneck=st.booleans(),
        gate=st.sampled_from(sorted(GATES)),
        activation=st.sampled_from(sorted(ACTIVATIONS)),
        running=st.booleans(),
        gate_scale=st.sampled_from([1.0, 2.0]),
    ).filter(lambda case: case.running or case.batch_statistics)


@pytest.mark.parametrize("name", FORMS, indirect=True)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=cases(), seed=st.integers(0, 1000))
def test_output_statistics_and_gradients_are_those_of_the_equations(
    name: str, case: Case, seed: int
) -> None:
    drawn = draw(case, seed)
    truth, found = answers(case, drawn, "reference"), answers(case, drawn, name)
    assert found.keys() == truth.keys()
    for answer, expected in truth.items():
        torch.testing.assert_close(found[answer], expected, rtol=1e-8, atol=1e-9, msg=answer)


@pytest.mark.parametrize("name", FORMS, indirect=True)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("batch_statistics", [False, True])
def test_float32_is_as_close_to_the_truth_as_composed(
    name: str, shape: tuple[int, ...], channels_last: bool, batch_statistics: bool
) -> None:
    case = Case(shape, channels_last, batch_statistics)
    drawn = rounded(draw(case), torch.float32)
    truth = answers(case, drawn, "reference")
    ours = error(answers(case, drawn, name, torch.float32), truth)
    composed = error(answers(case, drawn, "reference", torch.float32), truth)
    for answer, largest in ours.items():
        assert largest <= max(2 * composed[answer], 2e-5), answer


@pytest.mark.parametrize("name", FORMS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 7, 30), (3, 7, 5, 6), (2, 7, 2, 3, 5)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("batch_statistics", [False, True])
def test_half_precisions_round_once(
    name: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    channels_last: bool,
    batch_statistics: bool,
) -> None:
    """With parameters in float32 only the result is rounded: half a unit in the last place."""
    case = Case(shape, channels_last, batch_statistics)
    drawn = rounded(draw(case), dtype, torch.float32)
    truth = answers(case, drawn, "reference")
    found = error(answers(case, drawn, name, dtype, torch.float32), truth)
    for answer in ("y", "x"):
        assert found.pop(answer) <= 0.51 * torch.finfo(dtype).eps, answer
    assert max(found.values()) < 1e-4, found


@pytest.mark.parametrize("name", FAST)
def test_parameters_may_be_half_too(name: str) -> None:
    case = Case((3, 7, 5, 6))
    drawn = rounded(draw(case), torch.bfloat16)
    found = error(answers(case, drawn, name, torch.bfloat16), answers(case, drawn, "reference"))
    assert max(found.values()) < 2 * torch.finfo(torch.bfloat16).eps, found


@pytest.mark.parametrize("name", FORMS, indirect=True)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "shape", [(4, 5, 31, 29), (1, 5, 31, 29), (2, 5, 9, 9), (3, 5, 77), (4, 5, 6, 15, 10)], ids=str
)
def test_a_large_mean_costs_at_most_twice_the_digits_it_costs_batch_norm(
    name: str, channels_last: bool, shape: tuple[int, ...]
) -> None:
    identity = Excitation(None, None, torch.zeros(5, 5), None, gate_scale=2.0)
    memory_format = Case(shape, channels_last).memory_format
    for seed in range(20):  # in some of which BatchNorm is lucky with its roundings
        torch.manual_seed(seed)
        x = (torch.randn(shape) + 1e4).contiguous(memory_format=memory_format)
        weight, bias = torch.randn(2, 5)
        truth = F.batch_norm(x.double(), None, None, weight.double(), bias.double(), training=True)
        batch_norm = (F.batch_norm(x, None, None, weight, bias, True) - truth).abs().max()
        norm = Norm(weight, bias, None, None)
        ours = (norm_excite(x, norm, identity, name) - truth).abs().max()
        assert ours <= 2 * batch_norm, seed


@pytest.mark.parametrize("name", FORMS, indirect=True)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("batch_statistics", [True, False])
@pytest.mark.parametrize("shape", [(4, 5, 9, 7), (2, 5, 4, 5, 6)], ids=str)
def test_a_large_mean_is_as_exact_backwards(
    name: str, channels_last: bool, batch_statistics: bool, shape: tuple[int, ...]
) -> None:
    case = Case(shape, channels_last, batch_statistics)
    drawn = rounded(draw(case, mean=1e4), torch.float32)
    truth = answers(case, drawn, "reference")
    found = error(answers(case, drawn, name, torch.float32), truth)
    assert max(found.values()) < 2e-6, found


@pytest.mark.parametrize("name", FORMS, indirect=True)
@pytest.mark.parametrize("channels_last", [False, True])
def test_half_precision_sums_do_not_overflow(name: str, channels_last: bool) -> None:
    """300 · 64 · 64 is beyond float16, and so is its square root's square."""
    case = Case((2, 3, 64, 64), channels_last)
    drawn = draw(case, mean=300.0)
    drawn = rounded(drawn._replace(g=drawn.g + 100), torch.float16, torch.float32)
    truth = answers(case, drawn, "reference")
    found = error(answers(case, drawn, name, torch.float16, torch.float32), truth)
    once = 0.51 * torch.finfo(torch.float16).eps
    assert found.pop("y") <= once
    # Eager, the traced form has x's gradient from two terms, of a hundred times its size here, each
    # rounded by itself; a compiler adds them before.
    assert found.pop("x") <= (once if name == "aten" else 20 * once)
    assert max(found.values()) < 1e-4, found


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_constant_channels_have_no_variance_and_no_gradient_blows_up(
    name: str, memory_format: torch.memory_format
) -> None:
    case = Case((3, 4, 5, 5), memory_format == torch.channels_last)
    drawn = draw(case)
    drawn.x[:, 1:3] = 7.0
    truth = answers(case, drawn, "reference")
    for answer, expected in answers(case, drawn, name).items():
        torch.testing.assert_close(expected, truth[answer], rtol=1e-6, atol=1e-8, msg=answer)


@pytest.mark.parametrize("name", FORMS, indirect=True)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("constant", [7.0, 0.1, 1e4])
def test_constant_channels_are_no_less_exact_than_composed(
    name: str, channels_last: bool, dtype: torch.dtype, constant: float
) -> None:
    """Over √ε, a rounding of the mean would be a large number."""
    case = Case((3, 4, 5, 5), channels_last)
    drawn = draw(case)
    drawn.x[:, 1:3] = constant
    drawn = rounded(drawn, dtype, torch.float32)
    truth = answers(case, drawn, "reference")
    ours = error(answers(case, drawn, name, dtype, torch.float32), truth)
    composed = dict.fromkeys(ours, 0.0)
    if dtype == torch.float32:  # the composed block has one type for all
        composed = error(answers(case, drawn, "reference", dtype), truth)
    for answer, largest in ours.items():
        assert largest <= max(1.1 * composed[answer], torch.finfo(dtype).eps, 1e-5), answer


@pytest.mark.parametrize("name", FORMS, indirect=True)
@pytest.mark.parametrize(("shape", "channels_last"), list(product(SHAPES, [False, True])))
def test_uninitialised_memory_is_never_read(
    name: str, shape: tuple[int, ...], channels_last: bool
) -> None:
    case = Case(shape, channels_last)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:  # torch.empty is full of NaN now
        for dtype in (torch.float32, torch.bfloat16):
            found = answers(case, draw(case), name, dtype, torch.float32)
            assert all(t.isfinite().all() for t in found.values())
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", ["aten", "traced", "reference"])
@pytest.mark.parametrize("shape", [(1, 5, 1), (1, 5, 1, 1)], ids=str)
def test_one_value_a_channel_raises_as_batch_norm_does(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        answers(Case(shape), draw(Case(shape)), name)
    answers(Case(shape, batch_statistics=False), draw(Case(shape)), name)


def test_each_layout_has_a_form_of_its_own() -> None:
    x = torch.empty(2, 3, 4, 5)
    assert aten.passes_for(x) is rows
    assert aten.passes_for(x.contiguous(memory_format=torch.channels_last)) is channels_last
    volume = torch.empty(2, 3, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d)
    assert aten.passes_for(volume) is channels_last
    assert aten.passes_for(x[..., ::2]) is broadcast
    assert aten.passes_for(x.to("meta")) is broadcast


def test_other_strides_and_broadcast_gradients() -> None:
    case = Case((3, 5, 4, 6))
    drawn = draw(case)
    strided = torch.zeros(3, 5, 4, 12, dtype=torch.float64)[..., ::2].copy_(drawn.x)
    vectors = drawn.vectors
    results = []
    for name, x in (("aten", strided), ("reference", drawn.x)):
        x.requires_grad_()
        block = Excitation(*(vectors[n] for n in ("w1", "b1", "w2", "b2")))
        y = norm_excite(x, Norm(vectors["weight"], vectors["bias"], None, None), block, name)
        # a sum's gradient is an expanded scalar; a transposed one has other strides
        (y.sum() + (y.movedim(1, -1).contiguous() ** 2).sum()).backward()
        results.append((y.detach(), x.grad))
    for ours, truth in zip(*results, strict=True):
        torch.testing.assert_close(ours, truth)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_kept_for_backward_are_x_and_vectors(memory_format: torch.memory_format) -> None:
    n, c, hidden = 4, 32, 8
    x = torch.randn(n, c, 16, 16).contiguous(memory_format=memory_format).requires_grad_()
    parameters = [torch.randn(s, requires_grad=True) for s in ((c,), (c,), (hidden, c), (hidden,))]
    weight, bias, w1, b1 = parameters
    w2, b2 = torch.randn(c, hidden, requires_grad=True), torch.randn(c, requires_grad=True)
    known = {t.untyped_storage().data_ptr() for t in (x, weight, bias, w1, b1, w2, b2)}
    kept: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = norm_excite(x, Norm(weight, bias, None, None), Excitation(w1, b1, w2, b2), "aten")
    vectors = 4 * (2 * c + 2 * n * c + n * hidden)  # μ, r; (m − μ)·r, q; p
    assert sum(kept.values()) == vectors
    assert y.grad_fn is not None


def test_a_second_derivative_is_refused_with_what_to_do() -> None:
    x = torch.randn(2, 3, 4, requires_grad=True)
    block = Excitation(None, None, torch.eye(3), None)
    y = norm_excite(x, Norm(None, None, None, None), block, "aten")
    with pytest.raises(RuntimeError, match=r"no second derivative.*implementation = 'reference'"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 4)], ids=str)
def test_the_output_is_a_tensor_of_its_own(shape: tuple[int, ...]) -> None:
    """Blocks add to it in place, which autograd forbids on a view made in a Function."""
    x = torch.randn(shape, requires_grad=True)
    block = Excitation(None, None, torch.eye(3), None)
    for name in ("aten", "traced"):
        y = norm_excite(x, Norm(None, None, None, None), block, name)
        y += x
        y.sum().backward()


@pytest.mark.parametrize("name", ["aten", "traced", "reference"])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_with_fixed_statistics_a_bad_image_spoils_itself_only(name: str, bad: float) -> None:
    case = Case((4, 5, 4, 6), batch_statistics=False)
    drawn = draw(case)
    expected = answers(case, drawn, "reference")["y"]
    drawn.x[0, 0, 0, 0] = bad
    found = answers(case, drawn, name)["y"]
    assert not found[0].isfinite().all()
    torch.testing.assert_close(found[1:], expected[1:])


@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "w1", "b1", "w2", "b2"])
def test_only_the_gradients_that_are_asked_for(
    wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case((3, 5, 4, 6))
    drawn = draw(case)
    truth = answers(case, drawn, "reference")[wanted]
    tensors = {"x": drawn.x, **drawn.vectors}
    tensor = tensors[wanted]
    assert tensor is not None
    tensor.requires_grad_()
    x, weight, bias, w1, b1, w2, b2 = tensors.values()
    block = Excitation(w1, b1, w2, b2)
    computed: list[str] = []
    of_block, of_x = gate.backward, rows.combine

    def backward(*arguments: Any) -> Any:
        found = of_block(*arguments)
        names = zip(("w1", "b1", "w2", "b2"), found[1:], strict=True)
        computed.extend(name for name, gradient in names if gradient is not None)
        return found

    def combine(*arguments: Any) -> Any:
        computed.append("x")
        return of_x(*arguments)

    monkeypatch.setattr(gate, "backward", backward)
    monkeypatch.setattr(rows, "combine", combine)
    y = norm_excite(x, Norm(weight, bias, None, None), block, "aten")
    y.backward(drawn.g)
    torch.testing.assert_close(tensor.grad, truth)
    assert computed == [wanted] * (wanted not in ("weight", "bias"))  # of which they are made


@pytest.mark.parametrize("name", FORMS, indirect=True)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_twice_the_same_is_the_same_to_the_bit(
    name: str, channels_last: bool, dtype: torch.dtype
) -> None:
    """With several threads, which share a map of this size between them, and several chunks."""
    case = Case((5, 19, 83, 71), channels_last)
    drawn = draw(case)
    torch.set_num_threads(4)
    try:
        first, *others = (answers(case, drawn, name, dtype, torch.float32) for _ in range(4))
    finally:
        torch.set_num_threads(1)
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_gradcheck() -> None:
    case = Case((2, 3, 2, 3), gate="tanh", activation="silu")
    drawn = draw(case)
    tensors = [drawn.x, *(t for t in drawn.vectors.values() if t is not None)]

    def function(x, weight, bias, w1, b1, w2, b2):
        block = Excitation(w1, b1, w2, b2, case.gate, case.activation)
        return norm_excite(x, Norm(weight, bias, None, None), block, "aten")

    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in tensors])
