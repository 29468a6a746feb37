"""attach, detach, warm start, and state dicts of plain and attached networks."""

import copy
import dataclasses
import pickle

import pytest
import timm
import torch
import torchvision
from networks import Residual, randomise, small_resnet
from torch import nn

from senet import (
    Recalibrated,
    SqueezeExcite,
    UserError,
    adopt,
    attach,
    attached_plan,
    detach,
    plan,
    recalibrate,
    se_parameters,
    verify,
)
from senet.models import build_plain
from senet.norm import recalibrated_modules

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
        (lambda: timm.create_model("test_resnet", num_classes=7), 64),
        pytest.param(lambda: build_plain("bn_inception", 7), 64, marks=pytest.mark.slow),
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


def _nested(plain):
    """The plan of `small_resnet` and, around two of its blocks, one more site."""
    whole = plan(plain, input_size=SIZE)
    around = dataclasses.replace(whole[0], path="1")
    return dataclasses.replace(whole, sites=(*whole.sites, around))


@pytest.mark.parametrize("order", [1, -1])
def test_plain_checkpoint_of_wrappers_inside_wrappers(order):
    plain, x = randomise(small_resnet(), 1).eval(), torch.randn(2, *SIZE)
    nested = _nested(plain)
    nested = dataclasses.replace(nested, sites=nested.sites[::order])
    model = attach(small_resnet(), nested, warm_start=True).eval()
    assert isinstance(model[1].norm[0].bn2, Recalibrated)
    checkpoint = plain.state_dict()
    keys = list(checkpoint)
    model.load_state_dict(checkpoint, strict=True)
    assert list(checkpoint) == keys
    torch.testing.assert_close(model(x), plain(x))
    assert len(verify(model, x)) == 4
    twin = attach(small_resnet(), nested)
    twin.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(
        twin.state_dict()["1.norm.0.bn2.se.fc1.weight"], _blocks(model)[0].fc1.weight
    )
    missing = {k: v for k, v in model.state_dict().items() if "1.norm.0.bn2.se." not in k}
    with pytest.raises(RuntimeError, match=r"1\.norm\.0\.bn2\.se\.fc1\.weight"):
        twin.load_state_dict(missing)
    assert list(detach(model).state_dict()) == keys


def test_checkpoint_of_the_inner_wrappers_alone():
    inner = attach(randomise(small_resnet(), 1), input_size=SIZE).eval()
    both, x = attach(small_resnet(), _nested(small_resnet())).eval(), torch.randn(2, *SIZE)
    both[1].se.zero_init()
    both[1].se.options = dataclasses.replace(both[1].se.options, gate_scale=2.0)
    both.load_state_dict(inner.state_dict(), strict=True)
    torch.testing.assert_close(both(x), inner(x))


def test_a_plain_checkpoint_that_has_se_of_its_own():
    class Foreign(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.se = nn.Conv2d(8, 8, 1), nn.Module()
            self.se.fc1, self.se.fc2 = nn.Linear(8, 2), nn.Linear(2, 8)

        def forward(self, x):
            y = self.conv(x)
            return y * self.se.fc2(self.se.fc1(y.mean((2, 3)))).sigmoid()[:, :, None, None]

    plain, wrapped = Foreign(), recalibrate(Foreign(), 8)
    gate = wrapped.se.fc1.weight.clone()
    wrapped.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(wrapped.norm.se.fc1.weight, plain.se.fc1.weight)
    assert torch.equal(wrapped.se.fc1.weight, gate)


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


class _To(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        return x.to(self.dtype)


def test_a_block_on_a_module_without_parameters_follows_its_neighbours():
    """As where the parts of a network are on several devices."""
    stem = nn.Conv2d(3, 16, 1)
    model = nn.Sequential(stem, _To(torch.float64), Residual(), _To(torch.float32), Residual())
    model[2].double()
    attach(model, input_size=SIZE, placement="identity")
    assert isinstance(model[2].shortcut.norm, nn.Identity)
    assert [block.fc1.weight.dtype for block in _blocks(model)] == [torch.float64, torch.float32]
    assert len(verify(model, torch.randn(2, *SIZE))) == 2


def test_an_attribute_that_only_sounds_like_a_norms_is_no_reason_to_refuse():
    class Branch(nn.Module):
        num_features = 1000

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(x).relu()

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = Branch()

        def forward(self, x):
            return x + self.branch(x)

    model = attach(Network(), input_size=SIZE)
    assert isinstance(model.branch, Recalibrated)
    assert model.branch.num_features == 1000


def test_a_module_with_two_names_is_wrapped_under_both():
    model = small_resnet()
    model[1][0].alias = model[1][0].bn2
    attach(model, input_size=SIZE)
    assert isinstance(model[1][0].alias, Recalibrated)
    assert model[1][0].alias is model[1][0].bn2


class _Reads(nn.Module):
    """Whose forward, as many do, looks at its modules."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.alone = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        x = x + self.bn(self.conv(x)) * self.bn.running_var.mean()
        return x + self.alone(x)[:, : self.alone.out_channels] / self.alone.stride[0]


@pytest.mark.parametrize(
    "changed",
    [
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        torch.fx.symbolic_trace,
        lambda m: torch.compile(m, fullgraph=True, backend="aot_eager"),
        lambda m: torch.jit.trace(m, torch.ones(1, *SIZE)),
        pytest.param(
            lambda m: torch.export.export(m, (torch.ones(2, *SIZE),)).module(),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["deepcopy", "pickle", "fx", "compile", "jit", "export"],
)
@pytest.mark.filterwarnings("ignore:.torch.jit.trace.* is deprecated")
def test_attributes_of_the_wrapped_module_are_the_wrappers(changed):
    model, x = attach(_Reads(), input_size=SIZE).eval(), torch.randn(2, *SIZE)
    assert [path for path, _ in recalibrated_modules(model)] == ["bn", "alone"]
    assert model.bn.running_mean is model.bn.norm.running_mean
    assert len(verify(model, x)) == 2
    torch.testing.assert_close(changed(model)(x), model(x))
    torch.compiler.reset()


def test_methods_and_private_attributes_of_the_wrapped_module_are_its_own():
    """timm's `reparameterize_model` replaces whatever has a `fuse` by what that returns."""

    class Fusible(nn.Conv2d):
        _kept = 1

        def fuse(self):
            return nn.Conv2d(3, 3, 1)

    model = recalibrate(Fusible(3, 3, 1), 3)
    assert not hasattr(model, "fuse")
    assert not hasattr(model, "_kept")
    with pytest.raises(AttributeError, match=r"fuse\(\) of the wrapped Fusible would leave the SE"):
        model.fuse()
    with pytest.raises(AttributeError, match="'Fusible' object has no attribute 'sorts'"):
        _ = model.sorts
    holder = timm.utils.reparameterize_model(nn.Sequential(model))
    assert isinstance(holder[0], Recalibrated)
    assert type(holder[0].norm) is nn.Conv2d


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


def _resized(path, channels, model, **options):
    whole = plan(model, input_size=SIZE, **options)
    site = dataclasses.replace(whole[0], path=path, channels=channels)
    return dataclasses.replace(whole, sites=(site,))


class _CalledTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 16, 1), Residual()

    def forward(self, x):
        return self.block(self.block(self.stem(x)))


class _Small(nn.Module):
    """Whose pooling needs more positions than a small input has."""

    def __init__(self):
        super().__init__()
        self.network, self.pool = small_resnet()[:2], nn.AvgPool2d(7)

    def forward(self, x):
        return self.pool(self.network(x))


def _state(model):
    return [(name, type(module), id(module)) for name, module in model.named_modules()]


def _traced(model):
    return torch.jit.trace(copy.deepcopy(model).eval(), torch.ones(1, *SIZE))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace.*` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda m: attach(attach(m, input_size=SIZE)), r"SE is already there \(1\.0\.bn2\)"),
        (
            lambda m: attach(nn.Sequential(m, SqueezeExcite(8)), input_size=SIZE),
            r"SE is already there \(1\); it is the network's own, which senet\.detach leaves",
        ),
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
        (
            lambda m: attach(m, _resized("1.0.bn2", 17, m)),
            "the plan has 17 channels at '1.0.bn2', this model 16",
        ),
        (
            lambda m: attach(m, _resized("0.0", 3, m)),
            "the plan has 3 channels at '0.0', this model 16",
        ),
        (
            lambda m: attach(m, _resized("0.0", 16, m, placement="pre")),
            "the plan has 16 channels at '0.0', this model 3",
        ),
        (lambda m: attach(m, "post"), r"plan='post' is not what senet\.plan makes; .*placement="),
        (lambda m: attach(m, [1]), r"plan=\[1\] is not what senet\.plan makes"),
        (lambda m: attach(m, input_size=SIZE, reduction="16"), "reduction='16' is not a number"),
        (lambda m: attach(m, input_size=SIZE, reduction={0: "x"}), "reduction='x' is not a number"),
        (lambda m: attach(m, input_size=SIZE, hidden=2.5), "hidden=2.5 is no width"),
        (lambda m: attach(m, input_size=SIZE, placement=None), "unknown placement None; known:"),
        (lambda m: attach(m, input_size=224), r"input_size=224 is not \(C, H, W\)"),
        (lambda m: attach(m, example_inputs=5), "example_inputs=5 is no tensor, tuple of pos"),
        (lambda m: attach(m, input_size=SIZE, sites=[]), r"sites=\[\] selects nothing"),
        (lambda m: attach(m, input_size=SIZE, sites=2.5), "sites=2.5 is no path pattern, stage"),
        (lambda m: attach(m, input_size=SIZE, sites="9.*"), "the pattern '9.\\*' matches no site"),
        (
            lambda m: attach(m, input_size=SIZE, reduction=32, min_hidden=0),
            "leave no hidden unit",
        ),
        (
            lambda m: attach(m.to("meta"), input_size=(5, 8, 8)),
            r"the forward of Sequential failed on input of shape \(1, 5, 8, 8\)",
        ),
        (
            lambda m: attach(_Small(), input_size=(3, 4, 4)),
            r"_Small failed on input of shape \(1, 3, 4, 4\): .*output size",
        ),
        (
            lambda m: attach(_CalledTwice(), input_size=SIZE),
            "nothing to attach to .* its end block.bn2 is called 2 times in one forward",
        ),
        (
            lambda m: attach(timm.create_model("legacy_seresnet18"), input_size=(3, 64, 64)),
            "the 8 SE blocks that it has become ours by senet.adopt",
        ),
        (lambda m: attach(torch.compile(m), input_size=SIZE), "is compiled"),
        (lambda m: attach(torch.compile(m), plan(m, input_size=SIZE)), r"use .*model\._orig_mod"),
        (lambda m: detach(torch.compile(m)), r"use the module before .*model\._orig_mod"),
        (lambda m: adopt(torch.compile(m)), r"use the module before .*model\._orig_mod"),
        (lambda m: attach(_traced(m), plan(m, input_size=SIZE)), "the model is scripted"),
        (
            lambda m: attach(nn.Sequential(nn.LazyConv2d(16, 1), m[1])),
            "'0.weight' is a lazy parameter",
        ),
        *(
            (lambda m, act=act: act("resnet18"), "'resnet18' is no torch.nn.Module; give the net")
            for act in (plan, attach, detach, adopt)
        ),
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
