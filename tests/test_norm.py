"""The wrapper: a real norm and a real block as one operation, or as the two modules they are."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import timm.layers
import torch
import torchvision
from breadth import others_slow
from processes import call_group
from synchronised import SPLIT, batch, findings, network, share
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from senet import SqueezeExcite, UserError, adopt, attach, recalibrate
from senet.block import BlockOptions
from senet.kernels import selection
from senet.kernels.selection import SMALL
from senet.norm import Recalibrated, recalibrated_modules

pytestmark = pytest.mark.usefixtures("one_operation")

C = 6


def _of_timm() -> nn.Module:
    return timm.layers.BatchNormAct2d(C, apply_act=False)


NORMS = {
    "1d": (lambda: nn.BatchNorm1d(C), (3, C, 7)),
    "2d": (lambda: nn.BatchNorm2d(C), (3, C, 4, 5)),
    "3d": (lambda: nn.BatchNorm3d(C), (2, C, 2, 3, 4)),
    "cumulative": (lambda: nn.BatchNorm2d(C, momentum=None), (3, C, 4, 5)),
    "plain": (lambda: nn.BatchNorm2d(C, affine=False), (3, C, 4, 5)),
    "untracked": (lambda: nn.BatchNorm2d(C, track_running_stats=False), (3, C, 4, 5)),
    "sync": (lambda: nn.SyncBatchNorm(C), (3, C, 4, 5)),
    "timm": (_of_timm, (3, C, 4, 5)),
    "timm's sync": (lambda: timm.layers.convert_sync_batchnorm(_of_timm()), (3, C, 4, 5)),
    "timm's frozen": (lambda: timm.layers.FrozenBatchNormAct2d(C, apply_act=False), (3, C, 4, 5)),
    "frozen": (lambda: torchvision.ops.FrozenBatchNorm2d(C), (3, C, 4, 5)),
}


def wrapper(kind: str, **options: object) -> Recalibrated:
    torch.manual_seed(0)
    norm = NORMS[kind][0]()
    for name, tensor in (*norm.named_parameters(), *norm.named_buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 2.0) if "var" in name else nn.init.normal_(tensor)
    return recalibrate(norm, C, options=BlockOptions(hidden=3, **options)).double()


def steps(model: nn.Module, x: Tensor, count: int = 3) -> dict[str, Tensor]:
    """A few steps of SGD: the last output, the input's gradient, and all that the model holds."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(count):
        x = (x.detach() + step).requires_grad_()
        y = model(x)
        optimizer.zero_grad()
        y.square().sum().sqrt().backward()
        optimizer.step()
    assert x.grad is not None
    return {"y": y.detach(), "x": x.grad, **model.state_dict()}


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_training_the_fused_pair_is_training_the_two(kind: str, training: bool) -> None:
    fused = wrapper(kind).train(training)
    composed = copy.deepcopy(fused)
    composed.implementation = "reference"
    x = torch.randn(NORMS[kind][1], dtype=torch.float64)
    assert fused.choice(x).implementation == "aten", fused.choice(x).reason
    assert composed.choice(x) == ("reference", "asked for")
    ours, truth = steps(fused, x), steps(composed, x)
    for name, expected in truth.items():
        torch.testing.assert_close(ours[name], expected, msg=name)


class _Doubled(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (nn.GroupNorm(2, C), "GroupNorm is not a BatchNorm"),
        (nn.Conv2d(C, C, 1), "Conv2d is not a BatchNorm"),
        (_Doubled(C), "_Doubled is not a BatchNorm"),
        (timm.layers.BatchNormAct2d(C), "ends in its own ReLU"),
    ],
)
def test_other_modules_are_called_and_then_the_block(norm: nn.Module, reason: str) -> None:
    model = recalibrate(norm, C)
    x = torch.randn(2, C, 4, 5)
    assert model.choice(x).implementation == "reference"
    assert reason in model.choice(x).reason
    torch.testing.assert_close(model(x), model.se(model.norm(x)))
    model.implementation = "aten"
    with pytest.raises(UserError, match=f"'aten' cannot run at this module: .*{reason}"):
        model(x)


def test_an_implementation_that_was_asked_for_is_not_passed_over() -> None:
    x = torch.randn(2, C, 4, 5)
    named = recalibrate(nn.BatchNorm2d(C), C)
    before = recalibrate(nn.BatchNorm2d(C), C)
    before.site = dataclasses.replace(before.site, before=True)
    for model, call, reason in (
        (named, lambda: named(input=x), "with that by name"),
        (before, lambda: before(x), "the block comes before"),
    ):
        torch.testing.assert_close(call().shape, x.shape)
        model.implementation = "aten"
        with pytest.raises(UserError, match=f"'aten' cannot run at this module: .*{reason}"):
            call()
        model.implementation = "reference"
        torch.testing.assert_close(call().shape, x.shape)
    assert before.choice(x) == ("reference", "asked for")


@pytest.mark.parametrize("squeeze", ["max", "none"])
def test_a_squeeze_without_algebra_is_composed(squeeze: str) -> None:
    model = wrapper("2d", squeeze=squeeze)
    x = torch.randn(2, C, 4, 5, dtype=torch.float64)
    assert "the algebra is that of average pooling" in model.choice(x).reason
    torch.testing.assert_close(model(x), model.se(model.norm(x)))


@pytest.mark.parametrize("squeeze", ["avg", "max", "none"])
@pytest.mark.parametrize("shape", [(3, C, 4, 5), (0, C, 4, 5), (3, C, 1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_maps_with_norm_and_block_in_float32(
    squeeze: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    model = recalibrate(nn.BatchNorm2d(C), C, options=BlockOptions(reduction=2, squeeze=squeeze))
    x = torch.randn(shape).to(dtype)
    model.train(shape[0] > 0)
    found, expected = model(x), model.se(model.norm(x))
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)


def test_what_is_set_on_the_wrapper_is_set_on_the_norm() -> None:
    model = recalibrate(nn.BatchNorm2d(C), C)
    model.momentum, model.eps = 0.01, 1e-3
    assert (model.norm.momentum, model.norm.eps) == (0.01, 1e-3)
    model.weight = nn.Parameter(torch.full((C,), 2.0))
    assert set(dict(model.named_parameters())) == {
        *("norm.weight", "norm.bias"),
        *(f"se.{layer}.{name}" for layer in ("fc1", "fc2") for name in ("weight", "bias")),
    }
    assert torch.equal(model.norm.weight, torch.full((C,), 2.0))
    model.implementation, model.note = "reference", "mine"
    assert not hasattr(model.norm, "implementation")
    assert not hasattr(model.norm, "note")
    outer = recalibrate(model, C)  # what both have is each one's own
    outer.implementation, outer.se = "aten", SqueezeExcite(C, 2)
    assert model.implementation == "reference"
    assert model.se is not outer.se
    model.eval()
    assert not model.norm.training


def test_a_forward_that_is_set_on_the_wrapper_is_its_own() -> None:
    model = recalibrate(nn.BatchNorm2d(C), C)
    old, calls = model.forward, []

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(args)
        return old(*args, **kwargs)

    model.forward = forward
    x = torch.randn(2, C, 4, 5)
    torch.testing.assert_close(model(x), model.se(model.norm(x)))
    assert len(calls) == 1
    assert "forward" not in vars(model.norm)


@pytest.mark.parametrize("end", ["act", "drop"])
def test_what_is_hung_on_the_empty_end_of_a_norm_is_called(end: str) -> None:
    model = recalibrate(timm.layers.BatchNormAct2d(C, apply_act=False), C)
    calls: list[str] = []
    getattr(model.norm, end).register_forward_hook(lambda *_: calls.append(end))
    model(torch.randn(2, C, 4, 5))
    assert calls == [end]


@pytest.mark.parametrize("where", ["norm", "se", "se.fc1", "se.fc2"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_what_is_hung_on_a_module_is_called(where: str, kind: str) -> None:
    model = wrapper("2d")
    x = torch.randn(2, C, 4, 5, dtype=torch.float64, requires_grad=True)
    calls: list[str] = []
    hooked = model.get_submodule(where)
    handle = getattr(hooked, f"register_{kind}_hook")(lambda *_: calls.append(where))
    assert "a hook waits" in model.choice(x).reason
    model(x).sum().backward()
    assert calls == [where]
    handle.remove()
    assert model.choice(x).implementation == "aten"


@pytest.mark.parametrize(
    "kind", ["forward_pre_hook", "forward_hook", "full_backward_pre_hook", "full_backward_hook"]
)
def test_hooks_on_all_modules_see_the_two(kind: str) -> None:
    model = wrapper("2d")
    x = torch.randn(2, C, 4, 5, dtype=torch.float64, requires_grad=True)
    called: list[nn.Module] = []
    register = getattr(torch.nn.modules.module, f"register_module_{kind}")
    handle = register(lambda module, *_: called.append(module))
    try:
        assert "a hook waits" in model.choice(x).reason
        model(x).sum().backward()
    finally:
        handle.remove()
    assert {model.norm, model.se, model.se.fc1, model.se.fc2} <= set(called)
    assert model.choice(x).implementation == "aten"


def test_second_derivatives_are_those_of_the_reference() -> None:
    model, x = wrapper("2d"), torch.randn(3, C, 4, 5, dtype=torch.float64, requires_grad=True)

    def penalty(y: Tensor) -> list[Tensor]:
        (gradient,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        return list(torch.autograd.grad(gradient.square().sum(), [x, *model.parameters()]))

    with pytest.raises(RuntimeError, match=r"no second derivative .*implementation = 'reference'"):
        penalty(model(x))
    model.implementation = "reference"
    norm, se = model.norm, model.se
    u = nn.functional.batch_norm(x, None, None, norm.weight, norm.bias, True, eps=norm.eps)
    h = nn.functional.linear(u.mean((2, 3)), se.fc1.weight, se.fc1.bias).relu()
    s = nn.functional.linear(h, se.fc2.weight, se.fc2.bias).sigmoid()
    for ours, truth in zip(penalty(model(x)), penalty(u * s[:, :, None, None]), strict=True):
        torch.testing.assert_close(ours, truth)


def test_a_replaced_layer_and_another_kind_of_block_are_called() -> None:
    class LowRank(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 0

    model = wrapper("2d")
    x = torch.randn(2, C, 4, 5, dtype=torch.float64)
    model.se.fc2 = LowRank(3, C).double()
    assert "a layer of the block was replaced" in model.choice(x).reason
    torch.testing.assert_close(model(x), model.norm(x) / 2)


@pytest.mark.parametrize("implementation", [None, "traced", "aten", "reference"])
def test_errors_of_the_norm_stay_its_own(implementation: str | None) -> None:
    model = wrapper("2d").float()
    model.implementation = implementation
    with pytest.raises(ValueError, match="expected 4D input"):
        model(torch.randn(2, C, 7))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.randn(1, C, 1, 1))


def test_asking_what_would_run_counts_no_batch() -> None:
    model = wrapper("cumulative")
    model.choice(torch.randn(2, C, 4, 5, dtype=torch.float64))
    assert model.norm.num_batches_tracked == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_and_half_inputs(
    dtype: torch.dtype, memory_format: torch.memory_format, compiled: bool
) -> None:
    torch.manual_seed(0)
    conv, pair = nn.Conv2d(3, C, 3), wrapper("2d").float()
    called = torch.compile(pair, fullgraph=True, backend="aot_eager") if compiled else pair
    x = torch.randn(4, 3, 9, 9).contiguous(memory_format=memory_format)
    with torch.autocast("cpu", dtype):
        u = conv(x).detach().requires_grad_()
        y = called(u)
        assert pair.choice(u).implementation == "aten"
    assert u.dtype == y.dtype == dtype
    truth = copy.deepcopy(pair).double()
    truth.implementation = "reference"
    leaf = u.detach().double().requires_grad_()
    expected = truth(leaf)
    torch.testing.assert_close(y.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-3)
    g = torch.randn(y.shape).to(dtype)
    y.backward(g)
    expected.backward(g.double())
    eps = torch.finfo(dtype).eps
    # Without a compiler behind it, the graph has two terms of it, each rounded by itself.
    least = eps * leaf.grad.abs().max().item() if compiled else 1e-6
    torch.testing.assert_close(u.grad.double(), leaf.grad, rtol=0.51 * eps, atol=least)
    for (name, ours), exact in zip(pair.named_parameters(), truth.parameters(), strict=True):
        assert ours.grad is not None
        assert ours.grad.dtype == torch.float32
        torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_whole_networks_run_fused_and_train_alike() -> None:
    torch.manual_seed(0)
    fused = attach(torchvision.models.resnet18(num_classes=7), input_size=(3, 64, 64)).double()
    composed = copy.deepcopy(fused)
    for _, module in recalibrated_modules(composed):
        module.implementation = "reference"
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    seen: dict[str, str] = {}

    def note(module: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(module, Recalibrated)
        seen[module.site.path] = module.choice(*inputs).implementation

    for _, module in recalibrated_modules(fused):
        module.register_forward_pre_hook(note)
    ours, truth = steps(fused, x, 1), steps(composed, x, 1)
    assert len(seen) == 8
    assert set(seen.values()) == {"aten"}
    for name, expected in truth.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    model, again = wrapper("plain"), wrapper("plain")
    x = torch.randn(3, C, 4, 5, dtype=torch.float64, requires_grad=True)
    model(x).square().sum().backward()
    checkpoint(again, x, use_reentrant=reentrant).square().sum().backward()
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("kind", others_slow(NORMS, {"2d", "frozen"}))
def test_compiled_it_is_the_traced_algebra(kind: str) -> None:
    model = wrapper(kind)
    x = torch.randn(NORMS[kind][1], dtype=torch.float64)
    # The momentum of a cumulative average is a number of Python's, and a part of no graph.
    compiled = torch.compile(model, fullgraph=kind != "cumulative", backend="aot_eager")
    for training in (True, False):
        truth = copy.deepcopy(model.train(training))
        truth.implementation = "reference"
        expected, ours = steps(truth, x), steps(compiled, x)
        for name, value in expected.items():
            found = ours.get(name, ours.get(f"_orig_mod.{name}"))
            torch.testing.assert_close(found, value, msg=name)
        truth.implementation = "traced"  # which eager runs too
        torch.testing.assert_close(compiled(x), truth(x))
    torch._dynamo.reset()


def test_a_compiled_norm_with_its_block_is_one_graph_without_batch_norm() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    model = wrapper("2d")
    x = torch.randn(3, C, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(torch.compile(model, backend=backend)(x), copy.deepcopy(model)(x))
    torch._dynamo.reset()
    targets = {str(node.target) for node in graphs[0].graph.nodes}
    assert len(graphs) == 1
    assert any("var_mean" in target for target in targets)
    assert not any("batch_norm" in target for target in targets)


def test_transforms_of_functions_see_operators() -> None:
    model = wrapper("untracked")
    x = torch.randn(2, C, 4, 5, dtype=torch.float64)
    gradient = torch.func.grad(lambda t: torch.func.functional_call(model, {}, (t,)).square().sum())
    leaf = x.clone().requires_grad_()
    model(leaf).square().sum().backward()
    torch.testing.assert_close(gradient(x), leaf.grad)


@pytest.mark.slow
def test_compiled_transforms_of_functions_see_operators() -> None:
    """Gradients of single samples."""
    model = wrapper("2d").eval()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    x = torch.randn(3, 1, C, 4, 5, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(model, parameters, (x,)).square().sum()
        return result

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    found = torch.compile(each, backend="aot_eager")(parameters, x)
    torch._dynamo.reset()
    for name, expected in each(parameters, x).items():
        torch.testing.assert_close(found[name], expected, msg=name)


@pytest.mark.slow
def test_compiled_it_is_checkpointed() -> None:
    model, x = wrapper("plain"), torch.randn(3, C, 4, 5, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        result: Tensor = checkpoint(model, x, use_reentrant=False).square().sum()
        return result

    torch.compile(run, backend="aot_eager")(x).backward()
    torch._dynamo.reset()
    found, x.grad = x.grad, None
    copy.deepcopy(model)(x).square().sum().backward()
    torch.testing.assert_close(found, x.grad)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    found: list[dict[str, Tensor]] = call_group(
        share, len(SPLIT), tmp_path_factory.mktemp("processes")
    )
    return found


def test_two_processes_are_one_on_the_whole_batch(processes: list[dict[str, Tensor]]) -> None:
    truth = network(nn.BatchNorm2d)
    truth.implementation = "reference"
    expected = findings(truth, *batch())
    assert all(found["fused"] for found in processes)
    for name, whole in expected.items():
        if name in ("y", "x"):
            torch.testing.assert_close(torch.cat([found[name] for found in processes]), whole)
            continue
        gradient = name in dict(truth.named_parameters())
        for found in processes:  # DDP averages gradients, so that two ranks have half the sum
            torch.testing.assert_close(found[name], whole / 2 if gradient else whole, msg=name)


@pytest.mark.parametrize("how", ["max", "compiled"])
def test_where_it_cannot_be_one_operation_all_processes_are_still_asked(
    processes: list[dict[str, Tensor]], how: str
) -> None:
    """Composed by us, each process would silently take the statistics of its own share."""
    for found in processes:
        assert "SyncBatchNorm expected input tensor to be on" in found[f"said.{how}"]


@pytest.mark.parametrize("small", [0, SMALL])
def test_a_pass_in_evaluation_and_one_in_training_have_one_backward(
    small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second moves the running statistics that the first was made with."""
    monkeypatch.setattr(selection, "SMALL", small)
    model, x = wrapper("2d"), torch.randn(3, C, 4, 5, dtype=torch.float64)
    truth = copy.deepcopy(model)
    truth.implementation = "reference"
    truth.eval()(x).square().sum().backward()  # before they move: PyTorch's own would take the new
    truth.train()(x).square().sum().backward()
    (model.eval()(x).square().sum() + model.train()(x).square().sum()).backward()
    for ours, theirs in zip(model.parameters(), truth.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("sizes", [(4, 8), (8, 4)])
def test_a_small_and_a_large_map_have_one_backward(
    sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crops of two sizes: one runs as two modules, the other as one operation."""
    monkeypatch.setattr(selection, "SMALL", 3 * C * 6 * 6)
    model = wrapper("2d")
    truth = copy.deepcopy(model)
    truth.implementation = "reference"
    maps = [torch.randn(3, C, size, size, dtype=torch.float64) for size in sizes]
    chosen = {model.choice(x).implementation for x in maps}
    assert chosen == {"reference", "aten"}
    for each in (model, truth):
        torch.stack([each(x).square().sum() for x in maps]).sum().backward()
    for ours, theirs in zip(model.parameters(), truth.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    for ours, theirs in zip(model.buffers(), truth.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("how", ["as it is", "cumulative", "untracked", "no affine"])
def test_small_maps_run_as_the_two_modules(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "SMALL", SMALL)
    options = {
        "as it is": {},
        "cumulative": {"momentum": None},
        "untracked": {"track_running_stats": False},
        "no affine": {"affine": False},
    }[how]
    model = recalibrate(nn.BatchNorm2d(C, **options), C).double()
    truth = copy.deepcopy(model)
    seen: list[Tensor] = []
    model.se.observer = seen.append
    for _ in range(2):
        x = torch.randn(3, C, 4, 5, dtype=torch.float64)
        assert model.choice(x).implementation == "reference"
        expected = truth.se(truth.norm(x))
        torch.testing.assert_close(model(x), expected)
    assert len(seen) == 2
    for ours, theirs in zip(model.buffers(), truth.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert x.grad is not None


def test_a_process_without_images_takes_part(processes: list[dict[str, Tensor]]) -> None:
    truth = network(nn.BatchNorm2d)
    truth.implementation = "reference"
    expected = findings(truth, *batch())
    empty, full = processes
    assert empty["alone.y"].numel() == 0
    for name, whole in expected.items():
        torch.testing.assert_close(full[f"alone.{name}"], whole, msg=name)
    for name in ("norm.running_mean", "norm.running_var"):
        torch.testing.assert_close(empty[f"alone.{name}"], expected[name])


def test_adopted_blocks_have_no_norm_to_end() -> None:
    """Theirs follows an activation; nothing is wrapped, so nothing changes."""
    model = adopt(torchvision.models.mobilenet_v3_small())
    assert not list(recalibrated_modules(model))
    assert any(isinstance(module, SqueezeExcite) for module in model.modules())
