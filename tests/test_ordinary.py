"""Attached models stay ordinary models: what is done to networks leaves every block running."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch
from breadth import others_slow
from networks import randomise
from ordinary_networks import (
    BLOCKS,
    NETWORKS,
    SIZE,
    attached,
    images,
    plain,
    run_and_note,
    working_gates,
)
from ordinary_parallel import share
from processes import call_group
from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d, unfreeze_batch_norm_2d
from timm.models import FeatureGraphNet, FeatureHookNet, FeatureListNet
from timm.utils import ModelEmaV3
from timm.utils.model import freeze, unfreeze
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops.misc import FrozenBatchNorm2d

from senet import SqueezeExcite, attach, attached_plan, detach, se_parameters, verify
from senet.norm import recalibrated_modules

pytestmark = pytest.mark.usefixtures("one_operation")

ONCE = [["aten"]] * BLOCKS
"""Each block runs once, and as one operation with its norm."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """On tensors this small more threads mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=others_slow(NETWORKS, {"timm"}))
def name(request) -> str:
    return request.param


@pytest.fixture
def model(name: str) -> nn.Module:
    return attached(name)


def _wrapped(model: nn.Module) -> list[nn.Module]:
    return [wrapper.norm for _, wrapper in recalibrated_modules(model)]


def _whole(model: nn.Module, output: Tensor, x: Tensor) -> None:
    """Each block runs once and works, the output is as before, and verify finds nothing wrong."""
    found, calls = run_and_note(model, x)
    assert calls == ONCE
    torch.testing.assert_close(found, output, rtol=1e-4, atol=1e-5)
    assert working_gates(model, x) == BLOCKS
    assert len(verify(model, x)) == BLOCKS


# Copies and files


def _through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def _through_torch_save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # the test's own file


@pytest.mark.parametrize("copied", [copy.deepcopy, _through_pickle, _through_torch_save])
def test_copies_are_whole_and_their_own(model, copied: Callable[[nn.Module], nn.Module]):
    x = images()
    output = model(x)
    twin = copied(model)
    _whole(twin, output, x)
    assert attached_plan(twin) == attached_plan(model)
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(model(x), output)
    assert [type(m) for m in detach(twin).modules()] == [type(m) for m in detach(model).modules()]


def test_state_dict_round_trip_is_strict(name, model, tmp_path: Path):
    torch.save(model.state_dict(), tmp_path / "model.pt")
    twin = attached(name, seed=1)
    assert not torch.allclose(twin(images()), model(images()))
    twin.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
    _whole(twin, model(images()), images())


@pytest.mark.parametrize("assign", [False, True])
def test_plain_checkpoint_loads_before_and_after(name, assign):
    x, trained = images(), plain(name, seed=1)
    before = plain(name)
    before.load_state_dict(trained.state_dict(), strict=True)
    _whole(attach(before, input_size=SIZE, warm_start=True), trained(x), x)
    after = attached(name, warm_start=True)
    after.load_state_dict(copy.deepcopy(trained.state_dict()), strict=True, assign=assign)
    _whole(after, trained(x), x)
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in after.parameters())


# Conversions of norms


_CONVERSIONS = {
    "torch SyncBatchNorm": (nn.SyncBatchNorm.convert_sync_batchnorm, nn.SyncBatchNorm),
    "timm SyncBatchNorm": (convert_sync_batchnorm, nn.SyncBatchNorm),
    "timm freeze_batch_norm_2d": (freeze_batch_norm_2d, FrozenBatchNorm2d),
    "timm freeze": (lambda model: freeze(model) or model, FrozenBatchNorm2d),
}


@pytest.mark.parametrize("conversion", list(_CONVERSIONS))
def test_converting_norms_converts_the_wrapped_ones_and_keeps_the_blocks(name, model, conversion):
    convert, kind = _CONVERSIONS[conversion]
    x, output = images(), model(images())
    converted = convert(model)
    assert [type(norm) for norm in _wrapped(converted)] == [kind] * BLOCKS
    _whole(converted, output, x)
    assert all(c.frozen == (conversion == "timm freeze") for c in verify(converted, x))
    expected = convert(plain(name))
    detach(converted)
    assert [type(m) for m in converted.modules()] == [type(m) for m in expected.modules()]
    assert list(converted.state_dict()) == list(expected.state_dict())


@pytest.mark.parametrize("convert", [convert_sync_batchnorm, freeze_batch_norm_2d])
def test_converting_timms_norms_with_an_activation(convert):
    model = timm.create_model("test_efficientnet", num_classes=5)
    attach(randomise(model), input_size=SIZE).eval()
    blocks, output = len(attached_plan(model)), model(images())
    before = {type(norm) for norm in _wrapped(model)}
    ran = run_and_note(model, images())[1]
    assert ["aten"] in ran
    assert ["reference"] in ran  # where the norm ends in its activation
    converted = convert(model)
    assert before == {timm.layers.BatchNormAct2d}
    assert not before & {type(norm) for norm in _wrapped(converted)}
    found, calls = run_and_note(converted, images())
    assert calls == ran
    torch.testing.assert_close(found, output, rtol=1e-4, atol=1e-5)
    assert len(verify(converted, images())) == blocks


@pytest.mark.parametrize(
    ("there", "back"),
    [
        (freeze_batch_norm_2d, unfreeze_batch_norm_2d),
        (lambda model: freeze(model) or model, lambda model: unfreeze(model) or model),
    ],
    ids=["norms", "model"],
)
def test_frozen_norms_thaw(model, there, back):
    x, output = images(), model(images())
    frozen = there(model).train()
    torch.testing.assert_close(frozen(x), output, rtol=1e-4, atol=1e-5)
    thawed = back(frozen).eval()
    assert [type(norm) for norm in _wrapped(thawed)] == [nn.BatchNorm2d] * BLOCKS
    _whole(thawed, output, x)


def test_update_bn_reaches_the_wrapped_norms(model):
    batches = [images(seed, 4) for seed in range(3)]
    entered = {}
    reference = copy.deepcopy(model).train()
    for path, wrapper in recalibrated_modules(reference):
        entered[path] = []
        wrapper.norm.register_forward_hook(
            lambda norm, args, output, means=entered[path]: means.append(args[0].mean((0, 2, 3)))
        )
    for batch in batches:
        reference(batch)
    update_bn(batches, model)
    for path, wrapper in recalibrated_modules(model):
        expected = torch.stack(entered[path]).mean(0)
        torch.testing.assert_close(wrapper.norm.running_mean, expected, rtol=1e-4, atol=1e-5)
    assert run_and_note(model, images())[1] == ONCE
    assert len(verify(model, images())) == BLOCKS


def _torchvision_zero_init(model: nn.Module) -> None:
    """The loop in torchvision's ResNet, which runs while that is built, under the same names."""
    for module in model.modules():
        if isinstance(module, Bottleneck) and module.bn3.weight is not None:
            nn.init.constant_(module.bn3.weight, 0)
        elif isinstance(module, BasicBlock) and module.bn2.weight is not None:
            nn.init.constant_(module.bn2.weight, 0)


def test_zero_initialisers_reach_the_wrapped_norms(name, model):
    if name == "timm":
        model.init_weights(zero_init_last=True)
    else:
        _torchvision_zero_init(model)
    assert [bool(norm.weight.any()) for norm in _wrapped(model)] == [False] * BLOCKS
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(not bool(norm.weight.any()) for norm in norms) == BLOCKS
    _whole(model, model(images()), images())


# Averages of weights


def _a_step(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(images()).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "averaging",
    [
        lambda model: AveragedModel(model),
        lambda model: AveragedModel(
            model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True
        ),
        lambda model: ModelEmaV3(model, decay=0.5),
    ],
    ids=["swa", "torch ema", "timm ema"],
)
def test_averages_of_weights_average_the_blocks(model, averaging):
    first = copy.deepcopy(model.state_dict())
    average = averaging(model)
    update = getattr(average, "update_parameters", None) or average.update
    if hasattr(average, "update_parameters"):
        update(model)  # the first one copies
    _a_step(model)
    update(model)
    averaged = average.module.state_dict()
    for key in (key for key in first if ".se." in key):
        assert not torch.equal(model.state_dict()[key], first[key])
        torch.testing.assert_close(averaged[key], (first[key] + model.state_dict()[key]) / 2)
    assert run_and_note(average, images())[1] == ONCE
    assert len(verify(average, images())) == BLOCKS


# Several processes


@pytest.fixture(scope="module")
def parallel() -> dict[str, list[dict]]:
    return {}


@pytest.fixture
def findings(parallel: dict[str, list[dict]], tmp_path: Path, name: str) -> list[dict]:
    """What each process found, of a network that all tests of it share the run of."""
    if name not in parallel:
        parallel[name] = call_group(share, 2, tmp_path, name)
    return parallel[name]


@pytest.mark.parametrize("way", ["ddp", "fsdp2", "fsdp1"])
def test_two_processes_train_every_block_alike(findings, name, way):
    for found in (each[f"{way}-{name}"] for each in findings):
        # In FSDP1 each norm is a unit of its own, which gathers its weights when it is called.
        assert found["calls"] == ([["reference"]] * BLOCKS if way == "fsdp1" else ONCE)
        assert found["names"]
        assert found["output"] <= 1e-5
        assert found["gradient"] <= 1e-4
        assert found["spread"] == 0


def test_verify_looks_inside_ddp(findings, name):
    assert [found[f"ddp-{name}"]["verified"] for found in findings] == [BLOCKS] * 2


def test_sharded_checkpoints_have_the_names_and_take_plain_ones(findings, name):
    for found in (each[f"fsdp1-{name}"] for each in findings):
        assert found["keys"]
        assert found["loaded"] <= 1e-5


@pytest.mark.parametrize("way", ["fsdp2", "fsdp1"])
def test_verify_says_that_sharded_models_are_verified_before(findings, name, way):
    for message in (each[f"{way}-{name}"]["refused"] for each in findings):
        assert "verify a model before it is sharded" in message
        assert "\n" not in message


# Other ways to run the network


def test_functional_call_with_other_weights(model):
    x, before = images(), model(images())
    idle = copy.deepcopy(model)
    for block in (m for m in idle.modules() if isinstance(m, SqueezeExcite)):
        block.zero_init()
    weights = dict(idle.named_parameters()) | dict(idle.named_buffers())
    output, calls = run_and_note(model, x, call=lambda x: functional_call(model, weights, x))
    assert calls == ONCE
    torch.testing.assert_close(output, idle(x))
    assert torch.equal(model(x), before)
    blocks = {k: v.detach() for k, v in model.named_parameters() if ".se." in k}
    gradient = torch.func.grad(lambda w: functional_call(model, w, x).square().sum())(blocks)
    assert len(gradient) == 4 * BLOCKS
    assert all(value.any() for value in gradient.values())
    assert len(verify(model, x)) == BLOCKS


def test_channels_last(model):
    x, output = images(), model(images())
    model.to(memory_format=torch.channels_last)
    formats = []
    for _, wrapper in recalibrated_modules(model):
        wrapper.register_forward_hook(
            lambda module, args, made: formats.append(
                made.is_contiguous(memory_format=torch.channels_last)
            )
        )
    found, calls = run_and_note(model, x.to(memory_format=torch.channels_last))
    assert calls == ONCE
    assert formats == [True] * BLOCKS
    torch.testing.assert_close(found, output, rtol=1e-4, atol=1e-5)
    assert len(verify(model, x)) == BLOCKS


def test_bfloat16_autocast(model):
    x, output = images(), model(images()).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, calls = run_and_note(model, x)
        assert len(verify(model, x)) == BLOCKS
    assert calls == ONCE
    assert found.dtype == torch.bfloat16
    assert ((found - output).abs().max() / output.abs().max()) <= 0.03
    found.float().square().sum().backward()
    for parameter in model.parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()
    assert all(p.grad.any() for p in se_parameters(model)[1]["params"])


def test_frozen_backbone_trains_the_blocks_alone(name):
    backbone = plain(name).requires_grad_(False)
    torch.manual_seed(1)  # with which no hidden unit is dead for all images
    model = attach(backbone, input_size=SIZE, warm_start=True)
    x, before = images(), copy.deepcopy(model.state_dict())
    trained = se_parameters(model)[1]["params"]
    assert {id(p) for p in trained} == {id(p) for p in model.parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(2):  # a warm start's first step moves the second matrix, the next one both
        optimizer.zero_grad()
        output, calls = run_and_note(model, x)
        assert calls == ONCE
        output.square().mean().backward()
        optimizer.step()
    moved = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert moved == {key for key in before if ".se." in key}
    assert [check.frozen for check in verify(model, x)] == [False] * BLOCKS
    assert [check.frozen for check in verify(model.requires_grad_(False), x)] == [True] * BLOCKS


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(name, model, reentrant):
    class Checkpointed(nn.Module):
        def __init__(self, stage: nn.Module) -> None:
            super().__init__()
            self.stage = stage

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.stage, x, use_reentrant=reentrant)

    reference = copy.deepcopy(model)
    reference(images()).square().sum().backward()
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        setattr(model, stage, Checkpointed(getattr(model, stage)))
    _same_gradients(model, reference)


def test_timms_gradient_checkpointing():
    model = attached("timm")
    reference = copy.deepcopy(model)
    reference(images()).square().sum().backward()
    model.set_grad_checkpointing(True)
    _same_gradients(model, reference)


def _same_gradients(model: nn.Module, reference: nn.Module) -> None:
    """Of a checkpointed model, whose blocks run once forward and once more backward."""
    output, calls = run_and_note(model, images())
    assert calls == ONCE
    _, again = run_and_note(model, output, call=lambda output: output.square().sum().backward())
    assert again == ONCE
    for parameter, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)
    assert len(verify(model, images())) == BLOCKS


# Graphs


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile_in_one_graph(model, backend):
    x, reference = images(), copy.deepcopy(model)
    expected = reference(x)
    expected.square().sum().backward()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    output, calls = run_and_note(compiled, x)
    assert calls == [["traced"]] * BLOCKS
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    output.square().sum().backward()
    for parameter, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=1e-4)
    assert len(verify(compiled, x)) == BLOCKS


def test_export_with_any_batch_size(model):
    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(model, (images(),), dynamic_shapes=({0: batch},)).module()
    for count in (1, 5):
        x = images(count=count)
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)
    assert working_gates(program, images()) == BLOCKS


def test_symbolic_trace(model):
    traced = _through_pickle(torch.fx.symbolic_trace(model))
    for size in (64, 96):  # the graph knows no sizes
        x = torch.randn(2, 3, size, size)
        torch.testing.assert_close(traced(x), model(x))
    assert working_gates(traced, images()) == BLOCKS
    traced(images()).square().sum().backward()
    assert all(p.grad is not None for n, p in traced.named_parameters() if ".se." in n)


@pytest.mark.parametrize(
    "options", [{"squeeze": "none"}, {"squeeze": "max", "gate": "tanh"}, {"warm_start": True}]
)
def test_symbolic_trace_of_other_blocks(name, options):
    model = attach(plain(name), input_size=SIZE, **options)
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(images()), model(images()))
    assert working_gates(traced, images()) == BLOCKS


@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated")
def test_jit_trace_and_save(model, tmp_path: Path):
    x = images()
    torch.jit.save(torch.jit.trace(model, x), tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    torch.testing.assert_close(loaded(x), model(x))
    assert working_gates(loaded, x) == BLOCKS
    names = [module.original_name for module in loaded.modules()]
    assert names.count("SqueezeExcite") == BLOCKS


# Features


def _stages(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What the four stages of a network return."""
    stages = [model.layer1, model.layer2, model.layer3, model.layer4]
    found: list[Tensor] = []
    handles = [s.register_forward_hook(lambda *call: found.append(call[2])) for s in stages]
    model(x)
    for handle in handles:
        handle.remove()
    return found


def test_timms_features_only():
    features = timm.create_model("test_resnet", features_only=True)
    expected = [f.shape for f in features(images())]
    attach(randomise(features), input_size=SIZE).eval()
    found, calls = run_and_note(features, images())
    assert calls == ONCE
    assert [f.shape for f in found] == expected
    assert len(verify(features, images())) == BLOCKS


@pytest.mark.parametrize("extractor", [FeatureListNet, FeatureHookNet, FeatureGraphNet])
def test_timms_features_of_an_attached_model(extractor):
    model = attached("timm")
    expected = _stages(model, images())
    features = extractor(copy.deepcopy(model), out_indices=(1, 2, 3, 4))
    found, calls = run_and_note(features, images())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    if extractor is not FeatureGraphNet:
        assert calls == ONCE
        assert len(verify(features, images())) == BLOCKS
    assert working_gates(features, images(), call=lambda x: features(x)[-1]) == BLOCKS


def test_torchvisions_feature_extractor(model):
    stages = ["layer1", "layer2", "layer3", "layer4"]
    features = create_feature_extractor(model, stages)
    found = features(images())
    for stage, expected in zip(stages, _stages(model, images()), strict=True):
        torch.testing.assert_close(found[stage], expected)
    assert working_gates(features, images(), call=lambda x: features(x)["layer4"]) == BLOCKS


# And out again


def test_detached_model_is_the_original(name, model):
    original, x = plain(name), images()
    assert not torch.allclose(model(x), original(x))
    assert detach(model) is model
    assert [type(m) for m in model.modules()] == [type(m) for m in original.modules()]
    assert list(model.state_dict()) == list(original.state_dict())
    assert torch.equal(model(x), original(x))
    assert attached_plan(model) is None


def test_detached_in_another_model_it_can_be_attached_to_again(model):
    outer = nn.Sequential(model, nn.Identity())
    detach(outer)
    assert attached_plan(model) is None
    _whole(attach(outer, input_size=SIZE), outer(images()), images())


def test_detached_after_training_keeps_what_was_trained(name, model):
    _a_step(model)
    norms = _wrapped(model)
    trained = [norm.weight.clone() for norm in norms]
    detach(model)
    kept = {id(m) for m in model.modules()}
    assert all(id(norm) in kept for norm in norms)
    assert all(torch.equal(n.weight, w) for n, w in zip(norms, trained, strict=True))
    assert not torch.equal(model.fc.weight, plain(name).fc.weight)
