"""A gate that really is constant goes into its neighbours: the same outputs, a block less."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import timm
import torch
import torchvision
from architectures import OWN
from breadth import others_slow
from deploying import difference, drawn, images
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import small_resnet
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from senet import SqueezeExcite, adopt, attach, attached_plan, create_model, detach, recalibrate
from senet.constant_gates import Folding, fold_gates, foldings, held_constant
from senet.errors import UserError

EXACT = 1e-5
SMALL = (3, 16, 16)


def gates_of(found: Mapping[str, Folding], seed: int = 0) -> dict[str, Tensor]:
    """A gate for each block that can be folded, none of its channels near 0."""
    rng = torch.Generator().manual_seed(seed)
    return {
        path: 0.1 + 1.8 * torch.rand(each.channels, generator=rng)
        for path, each in found.items()
        if not each.why
    }


def folded(
    model: Any, size: tuple[int, ...], seed: int = 0, *, layout: Any = torch.contiguous_format
) -> tuple[Any, dict[str, Folding]]:
    """A copy with all gates folded that can be, after a look at its outputs; and the foldings."""
    found = {each.path: each for each in foldings(model, input_size=size)}
    gates = gates_of(found, seed)
    slim = copy.deepcopy(model)
    fold_gates(slim, found, gates)
    x = images(*size, seed=seed).contiguous(memory_format=layout)
    with torch.no_grad():
        with held_constant(model, gates):
            wanted = model(x)
        assert difference(slim(x), wanted) <= EXACT
    blocks = [m for m in slim.modules() if isinstance(m, SqueezeExcite)]
    assert len(blocks) == len(found) - len(gates)
    return slim, found


def _resnet(block: Any = BasicBlock, **options: Any) -> Any:
    return attach(ResNet(block, [2, 1, 1, 1], num_classes=5), input_size=(3, 32, 32), **options)


def _attached(model: Any, size: tuple[int, ...], **options: Any) -> Any:
    return attach(model, input_size=size, **options)


def _pre_activation(**options: Any) -> Any:
    blocks = {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32), "stem_chs": 8}
    layers = {"norm_layer": timm.layers.BatchNormAct2d, "conv_layer": timm.layers.create_conv2d}
    model = timm.models.resnetv2.ResNetV2(**blocks, **layers, num_classes=5)
    return attach(model, input_size=(3, 32, 32), **options)


def _dense(**options: Any) -> Any:
    model = torchvision.models.DenseNet(8, (2, 2), 16, num_classes=5)
    return attach(model, input_size=(3, 32, 32), **options)


NETWORKS: Mapping[str, tuple[Callable[[], Any], tuple[int, ...], int]] = {
    "resnet": (_resnet, (3, 32, 32), 0),
    "bottleneck": (lambda: _resnet(Bottleneck, warm_start=True), (3, 32, 32), 0),
    "released": (lambda: create_model("se_resnet20"), (3, 32, 32), 0),
    "1-D": (lambda: _attached(OWN["resnet_1d"](), (12, 50)), (12, 50), 0),
    "3-D": (
        lambda: _attached(torchvision.models.video.r3d_18(num_classes=5), (3, 4, 32, 32)),
        (3, 4, 32, 32),
        0,
    ),
    # Behind a concatenation: into the norm at the end of every branch, and through max-pooling.
    "inception": (lambda: create_model("se_bn_inception", num_classes=5), (3, 64, 64), 0),
    "chain": (lambda: _attached(OWN["tutorial_cnn"](), (3, 32, 32)), (3, 32, 32), 0),
    # Before a sum of unnormalised convolutions, and before norms that end in an activation.
    "pre-activation": (_pre_activation, (3, 32, 32), 0),
    "pre-activation, pre": (lambda: _pre_activation(placement="pre"), (3, 32, 32), 0),
    "dense": (lambda: _dense(), (3, 32, 32), 0),
    # Into the statistics of the norm that takes the concatenation.
    "dense, pre": (lambda: _dense(placement="pre"), (3, 32, 32), 0),
    "seresnet": (lambda: adopt(timm.create_model("seresnet18", num_classes=5)), (3, 64, 64), 0),
    # After SiLU, and before a 1×1 convolution, which takes the gate in instead.
    "efficientnet": (
        lambda: adopt(timm.create_model("efficientnet_b0", num_classes=5)), (3, 64, 64), 0
    ),
    "mobilenet": (
        lambda: adopt(torchvision.models.mobilenet_v3_small(num_classes=5)), (3, 64, 64), 0
    ),
}  # fmt: skip
"""Name → network, size of a sample, and how many blocks stay."""


@pytest.mark.parametrize("name", others_slow(NETWORKS, NETWORKS.keys() - {"mobilenet", "seresnet"}))
def test_outputs_are_those_of_the_constant_gates(name: str) -> None:
    make, size, kept = NETWORKS[name]
    torch.manual_seed(0)
    _, found = folded(drawn(make()), size)
    assert found
    assert sum(bool(each.why) for each in found.values()) == kept, found.values()


_KINDS: Mapping[int, tuple[Any, Any, Any]] = {
    1: (nn.Conv1d, nn.BatchNorm1d, nn.AdaptiveAvgPool1d),
    2: (nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d),
    3: (nn.Conv3d, nn.BatchNorm3d, nn.AdaptiveAvgPool3d),
}


class _Block(nn.Module):
    def __init__(self, dims: int, inputs: int, width: int, groups: int, norm: str) -> None:
        super().__init__()
        conv, batch_norm, _ = _KINDS[dims]
        norms: Mapping[str, Callable[[], nn.Module]] = {
            "batch": lambda: batch_norm(width),
            "group": lambda: nn.GroupNorm(2, width),
            "none": nn.Identity,
        }
        bias = norm == "none"
        self.conv1 = conv(inputs, width, 3, padding=1, groups=groups, bias=bias)
        self.norm1 = norms[norm]()
        self.conv2 = conv(width, width, 3, padding=1, groups=groups, bias=bias)
        self.norm2 = norms[norm]()
        self.shortcut = nn.Identity() if inputs == width else conv(inputs, width, 1)
        self.out = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return self.out(y + self.shortcut(x))


def _network(dims: int, groups: int, norm: str) -> nn.Module:
    conv, _, pool = _KINDS[dims]
    blocks = [_Block(dims, n, m, groups, norm) for n, m in ((8, 8), (8, 16))]
    return nn.Sequential(conv(3, 8, 3), nn.ReLU(), *blocks, pool(1), nn.Flatten(), nn.Linear(16, 5))


FOLDED = {
    "standard": {0, 1},
    "pre": {0, 1},  # into the convolution that takes it
    "inner": {0, 1},
    "post": {0, 1},  # into both convolutions of the next block, and into the classifier
    "identity": {1},  # a projection, where the other is what the block was given
}


@settings(max_examples=25, deadline=None)
@given(
    placement=st.sampled_from(sorted(FOLDED)),
    dims=st.integers(1, 3),
    groups=st.sampled_from([1, 2]),
    norm=st.sampled_from(["batch", "group", "none"]),
    gate=st.sampled_from(["sigmoid", "hard_sigmoid", "tanh", "relu"]),
    squeeze=st.sampled_from(["avg", "max", "none"]),
    channels_last=st.booleans(),
    warm=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_placement_and_option(
    placement: str,
    dims: int,
    groups: int,
    norm: str,
    gate: str,
    squeeze: str,
    channels_last: bool,
    warm: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    size = (3, *((6,) * dims))
    model = attach(
        _network(dims, groups, norm),
        input_size=size,
        placement=placement,
        gate=gate,
        squeeze=squeeze,
        reduction=4,
        warm_start=warm and gate in ("sigmoid", "hard_sigmoid"),
    )
    layouts = {2: torch.channels_last, 3: torch.channels_last_3d}
    layout = layouts.get(dims, torch.contiguous_format) if channels_last else None
    _, found = folded(drawn(model, seed), size, seed, layout=layout or torch.contiguous_format)
    assert {n for n, each in enumerate(found.values()) if not each.why} == FOLDED[placement]


def test_a_block_that_stays_works_on_and_the_plan_knows_the_sites_left() -> None:
    model = drawn(_attached(small_resnet(), SMALL))
    found = {each.path: each for each in foldings(model, input_size=SMALL)}
    paths = list(found)
    gates = {path: gate for path, gate in gates_of(found).items() if path != paths[1]}
    x = images(*SMALL)
    with torch.no_grad(), held_constant(model, gates):
        wanted = model(x)
    slim = copy.deepcopy(model)
    fold_gates(slim, found, gates)
    plan = attached_plan(slim)
    assert plan is not None
    assert [site.path for site in plan] == [paths[1].removesuffix(".se")]
    assert len(attached_plan(model)) == 3  # the network that was copied is as it was
    with torch.no_grad():
        assert difference(slim(x), wanted) <= EXACT
        # What is folded stays folded when the last block goes, too.
        plain = detach(copy.deepcopy(slim))
        fold_gates(slim, found, {paths[1]: torch.ones(16)})
        assert difference(slim(x), plain(x)) <= EXACT
    assert attached_plan(slim) is None
    assert slim.state_dict().keys() == small_resnet().state_dict().keys()


def test_adopted_blocks_that_stay_return_to_their_own_kind() -> None:
    model = adopt(timm.create_model("seresnet18", num_classes=5)).eval()
    found = {each.path: each for each in foldings(model, input_size=(3, 32, 32))}
    gates = dict(list(gates_of(found).items())[:5])
    fold_gates(model, found, gates)
    detach(model)
    kinds = [type(module).__name__ for module in model.modules()]
    assert kinds.count("SEModule") == len(found) - 5
    assert "AdoptedSqueezeExcite" not in kinds


# Where a gate cannot go


class _Named(nn.Module):
    """A convolution, a block of ours, and what a subclass does with them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.se = SqueezeExcite(8)
        self.after = nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.se(self.conv(x)))


class _Seen(_Named):
    def forward(self, x: Tensor) -> Any:
        u = self.conv(x)
        s = self.se(u)
        return s.sigmoid() + u.mean()


class _Twice(_Named):
    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.se(self.se(self.conv(x))))


class _Read(_Named):
    def forward(self, x: Tensor) -> Tensor:
        s = self.se(self.conv(x)).sigmoid()
        return self.after(s) + self.conv.weight.sum()


class _Tied(_Named):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.other = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.other.weight = self.conv.weight
        self.first = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.se(self.conv(self.other(self.first(x)))).sigmoid()


class _Hooked(_Named):
    def __init__(self) -> None:
        super().__init__()
        for module in (self.conv, self.after):
            module.register_forward_hook(lambda module, args, output: None)


class _WithoutAffine(_Named):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.se(self.norm(self.conv(x))).sigmoid()


class _OwnConvolution(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class _Own(_Named):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.after = _OwnConvolution(3, 8, 3), _OwnConvolution(8, 8, 3)


REFUSED: Mapping[str, tuple[Callable[[], nn.Module], str]] = {
    "seen": (_Seen, "output of conv is used elsewhere"),
    "twice": (_Twice, "runs 2 times"),
    "read": (_Read, "before it is conv"),
    "tied": (_Tied, "before it is conv"),
    "hooked": (_Hooked, "a hook on conv sees"),
    "affine=False": (_WithoutAffine, "norm, a BatchNorm2d without weights"),
    "own": (_Own, "before it is .*conv"),
    "itself": (lambda: recalibrate(nn.Conv2d(3, 8, 1), 8), "cannot be taken out in place"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_gate_that_cannot_be_folded_stays_and_says_why(name: str) -> None:
    make, why = REFUSED[name]
    model = make().eval()
    (found,) = foldings(model, input_size=SMALL)
    assert found.shares == ()
    with pytest.raises(UserError, match=f"cannot be folded: .*{why}") as caught:
        fold_gates(model, {found.path: found}, {found.path: torch.ones(8)})
    assert "\n" not in str(caught.value)
    assert any(isinstance(module, SqueezeExcite) for module in model.modules())


def test_a_negative_gate_does_not_pass_a_relu() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), SqueezeExcite(8, gate="tanh")).eval()
    (found,) = foldings(model, input_size=SMALL)
    assert [(share.path, share.side) for share in found.shares] == [("0", "output")]
    gate = torch.linspace(-1, 1, 8)
    with pytest.raises(UserError, match="negative"):
        fold_gates(model, {"2": found}, {"2": gate})
    fold_gates(model, {"2": found}, {"2": gate.abs()})
    assert isinstance(model[2], nn.Identity)


def test_statistics_take_no_gate_of_zero() -> None:
    model = nn.Sequential(SqueezeExcite(3, reduction=1), nn.BatchNorm2d(3)).eval()
    (found,) = foldings(model, input_size=SMALL)
    assert [share.side for share in found.shares] == ["statistics"]
    with pytest.raises(UserError, match="zero"):
        fold_gates(model, {"0": found}, {"0": torch.tensor([1.0, 0.0, 1.0])})


def test_training_goes_on_from_folded_statistics() -> None:
    """The norm's statistics are those of what it is given now."""
    torch.manual_seed(0)
    model = nn.Sequential(SqueezeExcite(3, reduction=1), nn.BatchNorm2d(3))
    gate, x = torch.tensor([0.2, 0.9, 1.7]), images(*SMALL, count=64)
    (found,) = foldings(model, input_size=SMALL)
    for _ in range(200):  # the running statistics of s·x, settled
        model[1](x * gate[:, None, None])
    slim = copy.deepcopy(model).eval()
    fold_gates(slim, {"0": found}, {"0": gate})
    wanted = model[1].eval()(x * gate[:, None, None])
    assert difference(slim(x), wanted) <= EXACT
    assert difference(slim.train()(x), wanted) <= 1e-3
    assert isinstance(slim[1].weight, nn.Parameter)
    assert slim[1].weight.requires_grad
