"""A deployed network computes what the network did, and goes where networks go."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.layers
import torch
import torchvision
from architectures import OWN
from breadth import others_slow
from deploying import SMALL, counts, deployed, difference, drawn, images, outcome
from digits import digits, fit
from networks import Residual, small_resnet
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from senet import (
    UserError,
    adopt,
    attach,
    create_model,
    detach,
    se_parameters,
    verify,
)
from senet.deployment import GATES_FROM, deploy
from senet.hoisting import InputGated, OutputGated
from senet.norm import recalibrated_modules

C = 8


def _attached(name: str, size: tuple[int, ...] = (3, 64, 64)) -> Any:
    make = timm.create_model if name.startswith("timm/") else torchvision.models.get_model
    model = make(name.rpartition("/")[2], num_classes=5)
    return attach(model, input_size=size)


def _vgg() -> Any:
    """Its convolutions; the classifier is a hundred million weights to draw."""
    return attach(make_layers(cfgs["A"], batch_norm=True), input_size=(3, 32, 32))


NETWORKS: Mapping[str, tuple[Callable[[], Any], tuple[int, ...], dict[str, int]]] = {
    "resnet18": (lambda: _attached("resnet18"), (3, 64, 64), {"folded": 20}),
    "resnet50": (
        lambda: _attached("resnet50"), (3, 64, 64), {"folded": 53, "gated from its input": 16}
    ),
    "resnext50": (
        lambda: _attached("resnext50_32x4d"), (3, 64, 64),
        {"folded": 53, "gated from its input": 16},
    ),
    "resnet20": (lambda: create_model("se_resnet20"), (3, 32, 32), {"folded": 19}),
    "bn_inception": (
        lambda: create_model("se_bn_inception", num_classes=5), (3, 64, 64),
        {"folded": 69, "gated in place": 10},
    ),
    "vgg11_bn": (_vgg, (3, 32, 32), {"folded": 8, "left": 8}),
    "densenet121": (lambda: _attached("densenet121"), (3, 64, 64), {}),
    "r3d_18": (lambda: _attached("r3d_18", (3, 4, 32, 32)), (3, 4, 32, 32), {"folded": 20}),
    "resnet_1d": (
        lambda: attach(OWN["resnet_1d"](), input_size=(12, 50)), (12, 50), {"folded": 9}
    ),
    "seresnet50": (
        lambda: adopt(timm.create_model("seresnet50", num_classes=5)), (3, 64, 64),
        {"folded": 53, "gated from its input": 16},
    ),
    "seresnet18": (
        lambda: adopt(timm.create_model("seresnet18", num_classes=5)), (3, 64, 64), {"folded": 20}
    ),
    "efficientnet_b0": (
        lambda: adopt(timm.create_model("efficientnet_b0", num_classes=5)), (3, 64, 64),
        {"folded": 49, "left": 16},
    ),
    "mobilenet_v3_small": (
        lambda: adopt(torchvision.models.mobilenet_v3_small(num_classes=5)), (3, 64, 64),
        {"folded": 34, "left": 9},
    ),
    "ese_vovnet19b_dw": (
        lambda: adopt(timm.create_model("ese_vovnet19b_dw", num_classes=5)), (3, 64, 64), {},
    ),
    "plain resnet18": (lambda: torchvision.models.resnet18(), (3, 64, 64), {"folded": 20}),
    "plain efficientnet": (
        lambda: timm.create_model("tf_efficientnet_b0", num_classes=5), (3, 64, 64), {"folded": 49}
    ),
}  # fmt: skip
"""Name → network, size of a sample, and how many rewrites of a kind there must be."""


SECOND_OF_A_KIND = {
    *("resnext50", "densenet121", "r3d_18", "seresnet50", "mobilenet_v3_small"),
    *("ese_vovnet19b_dw", "plain efficientnet", "seresnet18", "bn_inception"),
}


@pytest.mark.parametrize("name", others_slow(NETWORKS, NETWORKS.keys() - SECOND_OF_A_KIND))
def test_the_outputs_are_the_same(name: str) -> None:
    make, size, expected = NETWORKS[name]
    torch.manual_seed(0)
    fast = deployed(drawn(make()), size)
    found = counts(fast)
    assert expected.items() <= found.items(), found
    folded = [m for m in fast.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    left = [w for w, _ in outcome(fast).values() if w == "left"]
    assert len(folded) <= len(left)


@pytest.mark.parametrize("gates", GATES_FROM)
@pytest.mark.parametrize("name", ["resnet18", "resnet_1d", "seresnet18"])
def test_gates_from_either_side(name: str, gates: str) -> None:
    make, size, _ = NETWORKS[name]
    torch.manual_seed(0)
    found = counts(deployed(drawn(make()), size, gates=gates))
    if gates != "cheaper":
        kinds = {"input": "gated from its input", "output": "gated in place"}
        assert found.keys() == {"folded", kinds[gates]}


# The network that is deployed is not touched


def _state(model: nn.Module) -> dict[str, Any]:
    modules = list(model.named_modules(remove_duplicate=False))
    return {
        "tensors": {name: t.clone() for name, t in model.state_dict().items()},
        "parameters": {name: (id(p), p.requires_grad) for name, p in model.named_parameters()},
        "buffers": {name: id(buffer) for name, buffer in model.named_buffers()},
        "modules": {path: id(module) for path, module in modules},
        "modes": {path: module.training for path, module in modules},
        "hooks": {path: (len(m._forward_hooks), len(m._forward_pre_hooks)) for path, m in modules},
        "attributes": {path: sorted(vars(module)) for path, module in modules},
    }


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_not_touched(training: bool) -> None:
    model = drawn(attach(small_resnet(), input_size=SMALL)).train(training)
    model[1][0].bn1.weight.requires_grad_(False)
    calls: list[int] = []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    before, rng, python_rng = _state(model), torch.get_rng_state(), random.getstate()
    fast = deploy(model, gates="input")
    after = _state(model)
    for name, tensor in before.pop("tensors").items():
        assert torch.equal(after["tensors"].pop(name), tensor), name
    after.pop("tensors")
    assert after == before
    assert not calls
    assert torch.equal(torch.get_rng_state(), rng)
    assert random.getstate() == python_rng
    storages = {t.untyped_storage().data_ptr() for t in model.state_dict().values()}
    assert not storages & {t.untyped_storage().data_ptr() for t in fast.state_dict().values()}
    assert not any(module.training for module in fast.modules())
    assert not any(p.requires_grad for p in fast.parameters())
    fast(images(*SMALL))
    assert calls == [1]  # a hook on a block goes with the copy


def test_the_plans_size_is_taken() -> None:
    """Without it 224 × 224 would be; this network takes one channel."""
    model = nn.Sequential(nn.Conv2d(1, C, 3), nn.BatchNorm2d(C), nn.ReLU())
    attach(model, input_size=(1, 8, 8))
    assert deploy(drawn(model)).report.count("folded") == 1


# Types, layouts and devices


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norms_too", [True, False])
@pytest.mark.parametrize("gates", ["input", "output"])
def test_half_precisions(dtype: torch.dtype, norms_too: bool, gates: str) -> None:
    """As close to the truth as the network itself, give or take a few roundings."""
    torch.manual_seed(0)
    model = drawn(attach(small_resnet(), input_size=SMALL))
    truth = copy.deepcopy(model)
    for module in model.modules():
        if norms_too or isinstance(module, nn.Conv2d):
            module.to(dtype) if not list(module.children()) else None
    model[2].to(dtype)
    x = images(*SMALL).to(dtype)
    fast = deploy(model, gates=gates)
    with torch.no_grad():
        expected = truth(x.float())
        y = fast(x)
        assert y.dtype == dtype
        theirs = difference(model(x).float(), expected)
        assert difference(y.float(), expected) < 2 * theirs + 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("gates", ["input", "output"])
def test_channels_last(gates: str) -> None:
    torch.manual_seed(0)
    model = drawn(attach(small_resnet(), input_size=SMALL)).to(memory_format=torch.channels_last)
    fast = deploy(model, gates=gates)
    x = images(*SMALL).contiguous(memory_format=torch.channels_last)
    features = fast[:2]
    with torch.no_grad():
        assert difference(fast(x), model(x)) <= 1e-5
        assert features(x).is_contiguous(memory_format=torch.channels_last)


def test_other_sizes_than_the_traced_one() -> None:
    torch.manual_seed(0)
    model = drawn(attach(small_resnet(), input_size=SMALL))
    fast = deploy(model, gates="input")
    for size in ((3, 9, 31), (3, 40, 12)):
        x = images(*size, count=3)
        with torch.no_grad():
            assert difference(fast(x), model(x)) <= 1e-5


def test_without_memory_for_weights() -> None:
    """A deployed network on the meta device takes the state of one that has weights."""
    torch.manual_seed(0)
    model = drawn(attach(small_resnet(), input_size=SMALL))
    fast = deploy(model)
    empty = deploy(copy.deepcopy(model).to("meta"))
    assert all(t.is_meta for t in empty.state_dict().values())
    assert empty.report == fast.report
    empty.load_state_dict(fast.state_dict(), assign=True)
    x = images(*SMALL)
    assert torch.equal(empty(x), fast(x))


class _Asking(nn.Module):
    """Its forward asks for a value, which is not known on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, C, 3), nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        scale = 2.0 if x.abs().max().item() > 100 else 1.0
        return self.norm(self.conv(x)) * scale


def test_a_forward_that_asks_for_values() -> None:
    model = drawn(_Asking())
    assert deployed(model).report.count("folded") == 1
    with pytest.raises(UserError, match="the forward of _Asking failed on input of shape"):
        deploy(model.to("meta"), input_size=SMALL)


# Mistakes


def test_mistakes_are_told_in_one_line() -> None:
    model = small_resnet()
    with pytest.raises(UserError, match=r"gates='inputs' is unknown; nearest: 'input'"):
        deploy(model, input_size=SMALL, gates="inputs")
    with pytest.raises(UserError, match="the forward of Sequential failed on input of shape"):
        deploy(model, input_size=(4, 16, 16))
    with pytest.raises(UserError, match=r"'resnet50' is no torch\.nn\.Module"):
        deploy("resnet50")
    with pytest.raises(UserError, match="the model is compiled"):
        deploy(torch.compile(model), input_size=SMALL)


@pytest.mark.parametrize("gates", ["input", "output"])
@pytest.mark.parametrize("adopted", [True, False])
def test_deployed_it_has_no_blocks_to_work_on(gates: str, adopted: bool) -> None:
    torch.manual_seed(0)
    if adopted:
        model = adopt(timm.create_model("seresnet18", num_classes=5))
        fast, size, place = deploy(model, input_size=SMALL, gates=gates), SMALL, "layer1.0"
    else:
        model = attach(small_resnet(), input_size=SMALL)
        fast, size, place = deploy(model, gates=gates), SMALL, "1.0"
    line = rf"^the model is deployed: the gate of {place}\.\w+ is part of .*take the network that"
    for work in (
        detach,
        adopt,
        se_parameters,
        lambda m: verify(m, images(*size)),
        lambda m: attach(m, input_size=size),
    ):
        with pytest.raises(UserError, match=line):
            work(fast)
    assert len(verify(model, images(*size))) == len([m for m in fast.modules() if _is_gated(m)])


def _is_gated(module: nn.Module) -> bool:
    return isinstance(module, InputGated | OutputGated)


def test_deployed_twice_is_deployed_once() -> None:
    torch.manual_seed(0)
    fast = deployed(drawn(attach(small_resnet(), input_size=SMALL)))
    again = deployed(fast)
    assert again is not fast
    assert again.report == fast.report
    again = deployed(fast.train().requires_grad_(True))
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_what_is_attached_to_a_deployed_network_is_deployed_too() -> None:
    torch.manual_seed(0)
    plain = deployed(drawn(small_resnet()))
    x = images(*SMALL)
    with_se = attach(plain, input_size=SMALL).eval()
    fast = deployed(with_se)
    assert fast.report.count("gated in place") == len(list(recalibrated_modules(with_se))) > 0
    torch.testing.assert_close(fast(x), with_se(x), rtol=1e-4, atol=1e-5)


# It goes where networks go


@pytest.fixture(scope="module", params=["input", "output"])
def networks(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = drawn(attach(small_resnet(), input_size=SMALL))
    return model, deploy(model, gates=request.param)


def test_compiled(networks: tuple[Any, Any]) -> None:
    model, fast = networks
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    x = images(*SMALL)
    with torch.no_grad():
        assert difference(compiled(x), model(x)) <= 1e-5
    torch._dynamo.reset()


def test_exported(networks: tuple[Any, Any]) -> None:
    model, fast = networks
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(fast, (images(*SMALL),), dynamic_shapes=({0: batch},))
    for count in (1, 5):
        x = images(*SMALL, count=count)
        with torch.no_grad():
            assert difference(program.module()(x), model(x)) <= 1e-5


@pytest.mark.filterwarnings("ignore:`torch.jit.trace.*` is deprecated:FutureWarning")
def test_traced(networks: tuple[Any, Any]) -> None:
    model, fast = networks
    x = images(*SMALL)
    with torch.no_grad():
        traced = torch.jit.trace(fast, x)
        for other in (x, images(*SMALL, count=3, seed=1)):
            assert difference(traced(other), model(other)) <= 1e-5


def test_copied_and_saved(networks: tuple[Any, Any], tmp_path: Path) -> None:
    _, fast = networks
    x = images(*SMALL)
    again = copy.deepcopy(fast)
    assert torch.equal(again(x), fast(x))
    for parameter in again.parameters():
        parameter.zero_()
    assert not torch.equal(again(x), fast(x))
    torch.save(fast.state_dict(), tmp_path / "deployed.pt")
    again.load_state_dict(torch.load(tmp_path / "deployed.pt", weights_only=True))
    assert torch.equal(again(x), fast(x))


def test_gradients_reach_the_input(networks: tuple[Any, Any]) -> None:
    model, fast = networks
    found = []
    for network in (model, fast):
        x = images(*SMALL).requires_grad_()
        network(x).square().sum().backward()
        assert x.grad is not None
        found.append(x.grad)
    assert difference(*found) <= 1e-5


def test_every_digit_gets_the_same_class() -> None:
    torch.manual_seed(0)
    (train, labels), (held_out, answers) = digits()
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), Residual(16), Residual(16, stride=2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    attach(model, input_size=(1, 8, 8), min_hidden=4)
    fit(model, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9), train, labels, 8)
    model.eval()
    for gates in GATES_FROM:
        fast = deploy(model, gates=gates)
        with torch.no_grad():
            ours, expected = fast(held_out), model(held_out)
        assert torch.equal(ours.argmax(1), expected.argmax(1))
        assert difference(ours, expected) <= 1e-5
    assert (expected.argmax(1) == answers).float().mean() > 0.9
