"""attach, detach, warm start, and state dicts of plain and attached networks."""

import copy

import pytest
import timm
import torch
import torchvision
from networks import randomise, small_resnet
from torch import nn

from senet import (
    Recalibrated,
    SqueezeExcite,
    UserError,
    attach,
    attached_plan,
    detach,
    plan,
    recalibrate,
    se_parameters,
)
from senet.models import build_plain

SIZE = (3, 16, 16)


def _blocks(model):
    return [m for m in model.modules() if isinstance(m, SqueezeExcite)]


def test_attached_network_is_the_seeds_equation():
    model = small_resnet().eval()
    attach(model, input_size=SIZE, reduction=4)
    block, x = model[1][0], torch.randn(2, 16, 8, 8)
    branch = block.bn2.norm(block.conv2(block.relu(block.bn1(block.conv1(x)))))
    z = branch.mean((2, 3))
    s = torch.sigmoid(block.bn2.se.fc2(torch.relu(block.bn2.se.fc1(z))))
    torch.testing.assert_close(block(x), torch.relu(s[:, :, None, None] * branch + x))


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (small_resnet, 16),
        (lambda: timm.create_model("resnet18", num_classes=7), 64),
        (lambda: build_plain("bn_inception", 7), 64),
    ],
    ids=["small", "timm", "inception"],
)
@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid"])
def test_warm_start_changes_nothing_and_trains(make, size, gate):
    torch.manual_seed(0)
    model = randomise(make()).eval()
    x = torch.randn(3, 3, size, size)
    before = model(x)
    attach(model, warm_start=True, gate=gate, min_hidden=8)
    after = model(x)
    assert ((after - before).abs().max() / before.abs().max()) <= 1e-6
    assert torch.equal(after.argmax(1), before.argmax(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        for block in _blocks(model):
            assert block.fc2.weight.grad.any()
            assert bool(block.fc1.weight.grad.any()) == (step == 1)
        optimizer.step()


@pytest.mark.parametrize("strict", [True, False])
def test_plain_checkpoint_loads_before_and_after(strict):
    plain, other = randomise(small_resnet(), 1).eval(), randomise(small_resnet(), 2).eval()
    x = torch.randn(2, *SIZE)
    model = attach(small_resnet(), input_size=SIZE, warm_start=True).eval()
    for source in (plain, other):
        checkpoint = source.state_dict()
        keys = list(checkpoint)
        model.load_state_dict(checkpoint, strict=strict)
        assert list(checkpoint) == keys
        torch.testing.assert_close(model(x), source(x))


def test_state_dict_round_trip_is_strict_and_named_after_modules():
    model = attach(randomise(small_resnet()), input_size=SIZE)
    keys = set(model.state_dict())
    assert {"1.0.bn2.norm.weight", "1.0.bn2.norm.running_mean", "1.0.bn2.se.fc1.weight"} <= keys
    twin = attach(small_resnet(), input_size=SIZE)
    twin.load_state_dict(model.state_dict(), strict=True)
    for key, value in twin.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])


def test_half_a_checkpoint_is_still_refused():
    model = attach(small_resnet(), input_size=SIZE)
    without_se = {k: v for k, v in model.state_dict().items() if ".se." not in k}
    with pytest.raises(RuntimeError, match=r"1\.0\.bn2\.se\.fc1\.weight"):
        model.load_state_dict(without_se)


def test_a_wrapped_module_with_a_child_called_norm():
    class Unit(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.conv(x))

    plain = randomise(Unit())
    wrapped = recalibrate(Unit(), 4)
    wrapped.load_state_dict(plain.state_dict())
    assert torch.equal(wrapped.norm.norm.running_var, plain.norm.running_var)
    again = recalibrate(Unit(), 4)
    again.load_state_dict(wrapped.state_dict())
    assert torch.equal(again.norm.norm.running_var, plain.norm.running_var)


def test_detach_gives_the_original_back():
    model = randomise(small_resnet()).eval()
    original, x = copy.deepcopy(model), torch.randn(2, *SIZE)
    attach(model, input_size=SIZE)
    assert attached_plan(model) == plan(original, input_size=SIZE)
    assert not torch.equal(model(x), original(x))
    detach(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in original.modules()]
    assert list(model.state_dict()) == list(original.state_dict())
    assert torch.equal(model(x), original(x))
    assert attached_plan(model) is None


def test_plan_rebuilds_an_attached_model():
    first = attach(small_resnet(), sites=1, input_size=SIZE, reduction=4, gate="hard_sigmoid")
    second = attach(small_resnet(), attached_plan(first))
    second.load_state_dict(first.state_dict())
    x = torch.randn(1, *SIZE)
    assert torch.equal(second.eval()(x), first.eval()(x))


def test_device_type_and_mode_follow_the_model():
    model = attach(small_resnet().to("meta", torch.bfloat16).eval(), input_size=SIZE)
    for block in _blocks(model):
        assert block.fc1.weight.is_meta
        assert block.fc1.weight.dtype == torch.bfloat16
        assert not block.training


def test_a_module_with_two_names_is_wrapped_under_both():
    model = small_resnet()
    model[1][0].alias = model[1][0].bn2
    attach(model, input_size=SIZE)
    assert isinstance(model[1][0].alias, Recalibrated)
    assert model[1][0].alias is model[1][0].bn2


def test_zero_initialisers_reach_the_norm():
    model = attach(small_resnet(), input_size=SIZE)
    for module in model[1]:
        nn.init.zeros_(module.bn2.weight)
    assert not model[1][0].bn2.norm.weight.any()
    assert model[1][0].bn2.num_features == 16


def test_se_parameters_are_all_parameters_once():
    model = attach(small_resnet(), input_size=SIZE)
    network, blocks = se_parameters(model)
    assert len(blocks["params"]) == 4 * 3
    ids = {id(p) for p in (*network["params"], *blocks["params"])}
    assert ids == {id(p) for p in model.parameters()}
    assert len(ids) == len(network["params"]) + len(blocks["params"])


def _state(model):
    return [(name, type(module), id(module)) for name, module in model.named_modules()]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda m: attach(attach(m, input_size=SIZE)), r"SE is already there \(1\.0\.bn2\)"),
        (lambda m: attach(nn.Linear(3, 3), input_size=(3,)), "nothing to attach to in Linear"),
        (
            lambda m: attach(timm.create_model("vit_tiny_patch16_224")),
            "nothing to attach to in VisionTransformer .looked for sums",
        ),
        (lambda m: attach(m, input_size=SIZE, warm_start=True, gate="tanh"), "warm start needs"),
        (lambda m: attach(m, plan(m, input_size=SIZE), reduction=4), "reduction= goes to"),
        (
            lambda m: attach(nn.Sequential(nn.Conv2d(3, 3, 1)), plan(m, input_size=SIZE)),
            "the plan names '1.0.bn2', which this model does not have",
        ),
        (
            lambda m: attach(
                small_resnet(), plan(torchvision.models.resnet18()).select("layer1.0.*")
            ),
            "plan names",
        ),
        (lambda m: detach(m), "nothing to detach"),
        (lambda m: plan(attach(m, input_size=SIZE), input_size=SIZE)[:0] or attach(m), "already"),
    ],
)
def test_mistakes_leave_the_model_as_it_was(act, message):
    model = small_resnet()
    before = _state(model)
    with pytest.raises(UserError, match=message) as caught:
        act(model)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)
    if "already" not in str(caught.value):
        assert _state(model) == before
