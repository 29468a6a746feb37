"""SE blocks that a model already has become ours, compute the same, and return to their kind."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import timm
import torch
import torchvision
from breadth import others_slow
from networks import randomise, small_resnet
from ordinary_networks import run_and_note
from timm.layers import EffectiveSEModule, SEModule
from timm.layers.squeeze_excite import SqueezeExciteCl
from timm.models._efficientnet_blocks import SqueezeExcite as EfficientNetSE
from timm.models.senet import SEModule as LegacySEModule
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from senet import SqueezeExcite, UserError, adopt, attach, detach, verify
from senet.adoption import AdoptedSqueezeExcite


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    kind: type[nn.Module]
    blocks: int


NETWORKS = {
    "byobnet": Case(lambda: timm.create_model("test_byobnet", num_classes=5), SEModule, 4),
    "nfnet": Case(lambda: timm.create_model("test_nfnet", num_classes=5), SEModule, 4),
    "seresnet": Case(
        lambda: timm.create_model("legacy_seresnet18", layers=[1, 1, 1, 1], num_classes=5),
        LegacySEModule,
        4,
    ),
    "mobilenetv3": Case(
        lambda: timm.create_model("mobilenetv3_small_050", num_classes=5), EfficientNetSE, 9
    ),
    "efficientnet": Case(
        lambda: timm.create_model("test_efficientnet", num_classes=5), EfficientNetSE, 2
    ),
    "vovnet": Case(
        lambda: timm.create_model("ese_vovnet19b_slim_dw", num_classes=5), EffectiveSEModule, 4
    ),
    "torchvision": Case(
        lambda: torchvision.models.mobilenet_v3_small(num_classes=5), SqueezeExcitation, 9
    ),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """On tensors this small more threads mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# timm has two kinds of SE in two networks each.
@pytest.fixture(params=others_slow(NETWORKS, NETWORKS.keys() - {"nfnet", "mobilenetv3"}))
def case(request) -> Case:
    return NETWORKS[request.param]


def _plain(case: Case, seed: int = 0) -> nn.Module:
    return copy.deepcopy(_prototype(case, seed))


@functools.cache
def _prototype(case: Case, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = randomise(case.make(), seed).eval()
    for parameter in model.parameters():
        if not parameter.any():  # biases, and gains that would hide a whole branch
            nn.init.uniform_(parameter, 0.2, 0.4)
    return model


def _images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(dtype)


def _types(model: nn.Module) -> list[type[nn.Module]]:
    return [type(module) for module in model.modules()]


def _run_seeded(model: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(0)  # for dropout
    return model(x)


def _assert_same_state(model: nn.Module, expected: nn.Module, **tolerances: float) -> None:
    found, wanted = model.state_dict(), expected.state_dict()
    assert list(found) == list(wanted)
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, **tolerances or {"rtol": 0, "atol": 0})


def test_outputs_and_gradients_stay_the_same(case):
    plain = _plain(case)
    assert sum(type(module) is case.kind for module in plain.modules()) == case.blocks
    adopted = adopt(copy.deepcopy(plain))
    assert not any(type(module) is case.kind for module in adopted.modules())
    output, calls = run_and_note(adopted, _images())
    assert calls == [["block"]] * case.blocks
    # In single precision a deep, untrained network multiplies what rounding differs by …
    torch.testing.assert_close(output, plain(_images()), rtol=1e-4, atol=1e-5)
    # … so that the two are told to be the same function in double precision.
    for mode in (False, True):
        both = [copy.deepcopy(model).double().train(mode) for model in (plain, adopted)]
        expected, found = (_run_seeded(model, _images(torch.float64)) for model in both)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        expected.square().sum().backward()
        found.square().sum().backward()
        gradients = [[p.grad for p in model.parameters()] for model in both]
        # What a norm takes out again (a bias before it) has a gradient of rounding alone.
        least = 1e-12 * max(gradient.abs().max().item() for gradient in gradients[0])
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(other.reshape(one.shape), one, rtol=1e-7, atol=least)


@pytest.mark.parametrize(
    "block",
    [
        lambda: SEModule(24),
        lambda: SEModule(24, rd_ratio=0.5, bias=False, act_layer=nn.SiLU),
        lambda: SEModule(24, gate_layer="hard_sigmoid", act_layer=nn.GELU),
        lambda: SqueezeExciteCl(24, act_layer="hard_swish"),
        lambda: EffectiveSEModule(24),
        lambda: EffectiveSEModule(24, gate_layer="sigmoid"),
        lambda: EfficientNetSE(24, act_layer=nn.SiLU, gate_layer=nn.Hardsigmoid),
        lambda: LegacySEModule(24, 4),
        lambda: SqueezeExcitation(24, 6),
        lambda: SqueezeExcitation(24, 6, nn.SiLU, nn.Hardsigmoid),
    ],
)
def test_a_block_of_each_kind_by_itself(block):
    torch.manual_seed(0)
    plain = nn.Sequential(block())
    adopted = adopt(copy.deepcopy(plain))
    shape = (3, 5, 7, 24) if isinstance(plain[0], SqueezeExciteCl) else (3, 24, 5, 7)
    x = torch.randn(shape)
    expected = plain(x)
    assert ((adopted(x) - expected).abs().max() / expected.abs().max()) <= 1e-6
    assert [check.channels for check in verify(adopted, x)] == [24]
    returned = detach(adopted)
    assert _types(returned) == _types(plain)
    _assert_same_state(returned, plain)


def test_the_originals_state_dict_loads_and_so_does_our_own(case):
    other, adopted = _plain(case, seed=1), adopt(_plain(case))
    checkpoint = other.state_dict()
    keys = list(checkpoint)
    adopted.load_state_dict(checkpoint, strict=True)
    assert list(checkpoint) == keys
    torch.testing.assert_close(adopted(_images()), other(_images()), rtol=1e-4, atol=1e-5)
    again = adopt(_plain(case, seed=2))
    again.load_state_dict(adopted.state_dict(), strict=True)
    _assert_same_state(again, adopted)
    _assert_same_state(detach(again), other)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_whole_and_return_too(case, copied):
    plain = _plain(case)
    adopted = adopt(copy.deepcopy(plain))
    twin = copied(adopted)
    output, calls = run_and_note(twin, _images())
    assert calls == [["block"]] * case.blocks
    assert torch.equal(output, adopted(_images()))
    assert len(verify(twin, _images())) == case.blocks
    with torch.no_grad():
        for parameter in detach(twin).parameters():
            parameter.zero_()
    _assert_same_state(detach(adopted), plain)
    assert _types(twin) == _types(plain)


def test_detach_returns_the_very_blocks(case):
    model = _plain(case).train()
    before = copy.deepcopy(model)
    originals = {id(module) for module in model.modules() if type(module) is case.kind}
    assert detach(adopt(model)) is model
    assert {id(module) for module in model.modules() if type(module) is case.kind} == originals
    assert _types(model) == _types(before)
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    _assert_same_state(model, before)


def test_detach_returns_trained_weights_of_the_type_they_have_by_now(case):
    plain = _plain(case)
    adopted = adopt(copy.deepcopy(plain))
    start = copy.deepcopy(plain).double()
    for model in (plain, adopted):
        model.double().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        _run_seeded(model, _images(torch.float64)).square().mean().backward()
        optimizer.step()
    detach(adopted)
    assert _types(adopted) == _types(plain)
    _assert_same_state(adopted, plain, rtol=1e-8, atol=1e-10)
    for path, module in adopted.named_modules():
        if type(module) is case.kind:
            moved = zip(module.parameters(), start.get_submodule(path).parameters(), strict=True)
            assert all(not torch.equal(now, then) for now, then in moved)
    assert torch.isfinite(adopted.eval()(_images(torch.float64))).all()


def test_verify_passes(case):
    checks = verify(adopt(_plain(case)), _images())
    assert len(checks) == case.blocks
    assert not any(check.frozen for check in checks)


def test_frozen_blocks_stay_frozen_there_and_back():
    model = _plain(NETWORKS["torchvision"]).requires_grad_(False)
    adopt(model)
    assert all(check.frozen for check in verify(model, _images()))
    blocks = [module for module in model.modules() if isinstance(module, SqueezeExcite)]
    blocks[0].requires_grad_(True)
    detach(model)
    trained = [
        path
        for path, module in model.named_modules()
        if isinstance(module, SqueezeExcitation)
        and all(p.requires_grad for p in module.parameters())
    ]
    assert len(trained) == 1
    assert sum(p.requires_grad for p in model.parameters()) == 4


def test_type_and_mode_follow_the_block():
    model = adopt(_plain(NETWORKS["efficientnet"]).to(torch.bfloat16).train())
    for block in (module for module in model.modules() if isinstance(module, SqueezeExcite)):
        assert block.training
        assert {p.dtype for p in block.parameters()} == {torch.bfloat16}


def test_a_block_in_two_places_stays_one():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.second = SEModule(16)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    model = Twice()
    original, x = model.first, torch.randn(2, 16, 4, 4)
    expected = model(x)
    adopt(model)
    assert isinstance(model.first, AdoptedSqueezeExcite)
    assert model.first is model.second
    torch.testing.assert_close(model(x), expected)
    detach(model)
    assert model.first is model.second is original


def test_adopted_models_trace():
    model = adopt(_plain(NETWORKS["torchvision"]))
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(_images()), model(_images()))
    layers = [name for name, _ in traced.named_parameters() if name.endswith("fc2.weight")]
    assert len(layers) == 9


# What is left alone, and what is refused


def test_a_block_with_a_part_that_ours_has_not_is_left_with_a_warning():
    model = _plain(NETWORKS["nfnet"])
    places = [(m, n) for m in model.modules() for n, c in m.named_children() if type(c) is SEModule]
    for (parent, name), changed in zip(
        places[:2], ({"norm_layer": nn.BatchNorm2d}, {"add_maxpool": True}), strict=True
    ):
        channels = getattr(parent, name).fc1.in_channels
        setattr(parent, name, SEModule(channels, **changed).eval())
    kept = [getattr(parent, name) for parent, name in places[:2]]
    before = copy.deepcopy(model)
    with pytest.warns(UserWarning, match=r"2 of 4 SE blocks are left .*\(it has bn\)") as caught:
        adopt(model)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert [getattr(parent, name) for parent, name in places[:2]] == kept
    output, calls = run_and_note(model, _images())
    assert calls == [["block"]] * 2
    torch.testing.assert_close(output, before(_images()), rtol=1e-4, atol=1e-5)
    assert len(verify(model, _images())) == 2


def test_hooks_on_a_block_fire_there_and_back():
    model, calls = nn.Sequential(SEModule(16), SEModule(16)), []
    handle = model[0].register_forward_hook(lambda *call: calls.append(call[2].shape))
    x = torch.randn(2, 16, 4, 4)
    twin = copy.deepcopy(adopt(model))
    later = model[1].register_forward_pre_hook(lambda *call: calls.append("later"))
    model(x)
    assert calls == [x.shape, "later"]
    handle.remove()
    model(x)
    detach(model)(x)
    assert calls == [x.shape, "later", "later", "later"]
    later.remove()
    model(x)
    assert len(calls) == 4
    twin(x)
    detach(twin)(x)
    assert calls[4:] == [x.shape] * 2


@pytest.mark.parametrize("part", ["fc1", "gate"])
def test_a_block_with_a_hook_on_a_part_is_left(part):
    model, calls = nn.Sequential(SEModule(16), SEModule(16)), []
    getattr(model[0], part).register_forward_hook(lambda *call: calls.append(part))
    with pytest.warns(
        UserWarning, match=rf"1 of 2 .*left as they are: 0 \(a hook is on its {part}"
    ):
        adopt(model)
    model(torch.randn(2, 16, 4, 4))
    assert calls == [part]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_learned_activation_is_left(device):
    model = nn.Sequential(SEModule(16, act_layer=nn.PReLU), SEModule(16)).to(device)
    with pytest.warns(
        UserWarning, match=r"left as they are: 0 \(its activation is PReLU, which learns\)"
    ):
        adopt(model)
    assert isinstance(model[1], AdoptedSqueezeExcite)


def test_other_activations_are_left():
    model = nn.Sequential(SEModule(8, gate_layer=nn.Softplus), SEModule(8, act_layer=nn.ELU))
    with pytest.raises(UserError, match=r"left as they are: 0 \(its gate is Softplus\)"):
        adopt(model)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: adopt(small_resnet()), "Sequential has no SE blocks to adopt .looked for .*SEMod"),
        (
            lambda: adopt(timm.create_model("rexnet_100")),
            r"RexNet has no SE blocks to adopt .*left as they are: features\.3\.se \(it has bn\)",
        ),
        (lambda: adopt(SEModule(16)), "the model itself is an SE block .SEModule."),
        (lambda: adopt(adopt(nn.Sequential(SEModule(16)))), "has no SE blocks to adopt"),
        (
            lambda: attach(adopt(_plain(NETWORKS["nfnet"])), input_size=(3, 64, 64)),
            r"SE is already there \(stages\.0\.0\.attn_last\); senet\.detach the model first",
        ),
        (lambda: detach(_plain(NETWORKS["nfnet"])), "nothing to detach"),
    ],
)
def test_mistakes_are_told_in_one_line(act, message):
    with pytest.raises(UserError, match=message) as caught:
        act()
    assert "\n" not in str(caught.value)


def test_a_refusal_leaves_the_model_as_it_was():
    model = adopt(_plain(NETWORKS["nfnet"]))
    before = [(name, id(module)) for name, module in model.named_modules()]
    for act in (adopt, lambda m: attach(m, input_size=(3, 64, 64))):
        with pytest.raises(UserError):
            act(model)
    assert [(name, id(module)) for name, module in model.named_modules()] == before


# Hugging Face


def test_hugging_faces_regnet():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    configuration = transformers.RegNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1] * 4, groups_width=8, num_labels=5
    )
    plain = randomise(transformers.RegNetForImageClassification(configuration)).eval()
    adopted, x = adopt(copy.deepcopy(plain)), _images()
    output, calls = run_and_note(adopted, x)
    assert calls == [["block"]] * 4
    torch.testing.assert_close(output.logits, plain(x).logits, rtol=1e-4, atol=1e-6)
    assert len(verify(adopted, x)) == 4
    adopted.load_state_dict(plain.state_dict(), strict=True)
    detach(adopted)
    assert _types(adopted) == _types(plain)
    _assert_same_state(adopted, plain)


def test_a_stand_in_with_the_anatomy_of_hugging_faces_block():
    """For where transformers is not installed: its block's name and parts, written out here."""

    class RegNetSELayer(nn.Module):
        def __init__(self, in_channels: int, reduced_channels: int) -> None:
            super().__init__()
            self.pooler = nn.AdaptiveAvgPool2d((1, 1))
            self.attention = nn.Sequential(
                nn.Conv2d(in_channels, reduced_channels, kernel_size=1),
                nn.ReLU(),
                nn.Conv2d(reduced_channels, in_channels, kernel_size=1),
                nn.Sigmoid(),
            )

        def forward(self, hidden_state: Tensor) -> Tensor:
            return hidden_state * self.attention(self.pooler(hidden_state))

    RegNetSELayer.__module__ = "transformers.models.regnet.modeling_regnet"
    RegNetSELayer.__qualname__ = "RegNetSELayer"
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 16, 3), RegNetSELayer(16, 4))
    adopted, x = adopt(copy.deepcopy(plain)), torch.randn(2, 3, 8, 8)
    assert adopted[1].options.hidden == 4
    torch.testing.assert_close(adopted(x), plain(x), rtol=1e-6, atol=1e-6)
    adopted.load_state_dict(plain.state_dict(), strict=True)
    assert len(verify(adopted, x)) == 1
    detach(adopted)
    assert _types(adopted) == _types(plain)
    _assert_same_state(adopted, plain)
