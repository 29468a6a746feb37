"""What a deployed network has rewritten, where, and what it left alone for which reason."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import timm
import timm.layers
import torch
import torchvision
from deploying import SMALL, counts, deployed, drawn, images, outcome
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from senet import (
    Recalibrated,
    SqueezeExcite,
    recalibrate,
)
from senet.block import BlockOptions
from senet.deployment import Report, deploy

C = 8


class _Used(nn.Module):
    """A convolution with its norm (and block), and something else that happens to its output."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, C, 3)
        self.norm = nn.BatchNorm2d(C)
        self.how = how

    def forward(self, x: Tensor) -> Any:
        if self.how == "conv's type asked":
            x = x.to(self.conv.weight.dtype)
        u = self.conv(x)
        if self.how == "written to":
            u[:, :, 0] = 0
        if self.how == "written in place":
            u.relu_()
        y = self.norm(u)
        if self.how == "added":
            return y + u
        if self.how == "asked":
            return y if u.sum() > 0 else -y
        if self.how == "copied":
            both = torch.zeros_like(y)
            both[:, :, 1:] = u[:, :, 1:]
            return y + both
        if self.how == "conv twice":
            return y + self.conv(x + 1)
        if self.how == "norm twice":
            return self.norm(y)
        if self.how == "conv's weight":
            return y + nn.functional.conv2d(x, self.conv.weight)
        if self.how == "norm's mean":
            return y + self.norm.running_mean.reshape(-1, 1, 1)
        return (u, y) if self.how == "returned" else y


class _Concatenated(nn.Module):
    """Two branches side by side, and what comes after their concatenation."""

    def __init__(self, after: nn.Module, ends: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, C // 2, 1), nn.BatchNorm2d(C // 2), end) for end in ends
        )
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(torch.cat([branch(x) for branch in self.branches], dim=1))


class _Squeezed(SqueezeExcite):
    def forward(self, u: Tensor) -> Tensor:
        return u + super().forward(u)


class _Regularised(nn.Module):
    """A convolution and its block, and a second output that reads the weights of one of them."""

    def __init__(self, read: str) -> None:
        super().__init__()
        self.conv, self.se = nn.Conv2d(3, C, 1), SqueezeExcite(C)
        self.read = read

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.se(self.conv(x)), self.get_parameter(self.read).square().sum() + 0 * x.sum()


def _chain(*modules: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*copy.deepcopy(modules))


def _hooked(path: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = nn.Sequential(nn.Conv2d(3, C, 3), recalibrate(nn.BatchNorm2d(C), C))
        model.get_submodule(path).register_forward_hook(lambda *_: None)
        return model

    return make


def _block(**options: Any) -> SqueezeExcite:
    return SqueezeExcite(C, options=BlockOptions(hidden=3, **options))


def _shared() -> nn.Module:
    conv = nn.Conv2d(C, C, 3, padding=1)
    first, second = nn.BatchNorm2d(C), nn.BatchNorm2d(C)
    return nn.Sequential(nn.Conv2d(3, C, 1), conv, first, nn.ReLU(), conv, second)


def _weight_norm() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, C, 3)), nn.BatchNorm2d(C))


def _pruned() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C))
    prune.random_unstructured(model[0], "weight", 0.5)
    return model


LEFT: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...], str, str]] = {
    **{
        how: (lambda how=how: _Used(how), SMALL, "norm", why)
        for how, why in {
            "added": "the output of conv is used elsewhere too",
            "asked": "the output of conv is used elsewhere too",
            "copied": "the output of conv is used elsewhere too",
            "written to": "it follows no module, but operators",
            "written in place": "it follows no module, but operators",
            "norm twice": "it runs 2 times",
            "conv twice": "conv runs 2 times",
            "returned": "the output of conv is used elsewhere too",
            "conv's weight": "weights of conv are read outside of it",
            "conv's type asked": "weights of conv are read outside of it",
            "norm's mean": "weights of it are read outside of it",
        }.items()
    },
    "block read": (
        lambda: _Regularised("se.fc1.weight"), SMALL, "se", "weights of it are read outside of it"
    ),
    "shared": (_shared, SMALL, "2", "1 runs 2 times"),
    "no statistics": (
        _chain(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C, track_running_stats=False)), SMALL, "1",
        "it has no running statistics, and so none of its own in evaluation",
    ),
    "pre-activation": (
        _chain(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, C, 3)), SMALL, "0",
        "it follows no module, but operators",
    ),
    "after an activation": (
        _chain(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.ReLU(), _block()), SMALL, "3",
        "it follows 2: a ReLU is not known to be a convolution",
    ),
    **{
        f"{what} after a concatenation of {ends}": (
            lambda after=after, modules=modules: _Concatenated(after(), modules), SMALL, "after",
            f"it follows a concatenation of {why}",
        )
        for what, after in {"norm": lambda: nn.BatchNorm2d(C)}.items()
        for ends, modules, why in (
            ("activations", (nn.ReLU(), nn.SiLU()),
             "branches that end in relu or silu, not in a convolution"),
            ("both", (nn.ReLU(), nn.Identity()),
             "branches of which some end in relu, not in a convolution"),
        )
    },
    "max": (
        _chain(nn.Conv2d(3, C, 3), _block(squeeze="max")), SMALL, "1",
        "its squeeze is 'max', not a mean over positions",
    ),
    "none": (
        _chain(nn.Conv2d(3, C, 3), _block(squeeze="none")), SMALL, "1",
        "its squeeze is 'none', not a mean over positions",
    ),
    "subclass": (
        _chain(nn.Conv2d(3, C, 3), _Squeezed(C)), SMALL, "1",
        "_Squeezed may compute something else",
    ),
    "channels last": (
        _chain(nn.Conv2d(3, C, 3, padding=1), SqueezeExcite(16, channels_last=True)), SMALL, "1",
        "its channels are last",
    ),
    "weight norm": (
        _weight_norm, SMALL, "1",
        "it follows 0: the ParametrizedConv2d's weight or bias is computed anew each time",
    ),
    "pruned": (
        _pruned, SMALL, "1",
        "it follows 0: the Conv2d's weight or bias is computed anew each time",
    ),
    "transposed": (
        _chain(nn.ConvTranspose2d(3, C, 3), nn.BatchNorm2d(C)), SMALL, "1",
        "it follows 0: a ConvTranspose2d is not known to be a convolution",
    ),
    "rows": (
        _chain(nn.Linear(7, C), nn.BatchNorm1d(5)), (5, 7), "1",
        "the channels of 0 are not where it looks for them",
    ),
    "hooked conv": (_hooked("0"), SMALL, "1.norm", "it follows 0: a hook is on the Conv2d"),
    "hooked norm": (_hooked("1.norm"), SMALL, "1.norm", "a hook is on it"),
    "hooked block": (_hooked("1.se"), SMALL, "1.se", "a hook is on it"),
    "hooked wrapper": (_hooked("1"), SMALL, "1.norm", "a hook on 1 sees the output of 0"),
}  # fmt: skip
"""What → network, size of a sample, the module that is left, and the reason given."""


def test_a_norm_that_stays_in_training_is_left() -> None:
    class Adapting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, C, 3), nn.BatchNorm2d(C)

        def train(self, mode: bool = True) -> Adapting:
            super().train(mode)
            self.norm.train()
            return self

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x))

    model = drawn(Adapting())
    assert outcome(deployed(model)) == {"norm": ("left", "it stays in training mode")}


def test_a_parametrised_bias_is_left() -> None:
    conv = nn.Conv2d(3, C, 3)
    torch.nn.utils.parametrize.register_parametrization(conv, "bias", nn.Tanh())
    model = drawn(nn.Sequential(conv, nn.BatchNorm2d(C)))
    why = "it follows 0: the ParametrizedConv2d's weight or bias is computed anew each time"
    assert outcome(deployed(model)) == {"1": ("left", why)}


class _Held(nn.Module):
    """A convolution, its norm and its block, called by what holds them beside the register."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.norm, self.se = nn.Conv2d(3, C, 1), nn.BatchNorm2d(C), SqueezeExcite(C)
        parts = (self.conv, self.norm, self.se)
        self.parts: Any = {
            "list": lambda: list(parts),
            "partial": lambda: [functools.partial(part) for part in parts],
            "bound method": lambda: [part.__call__ for part in parts],
            "own container": lambda: _Container(parts),
        }[how]()

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


class _Container:
    def __init__(self, held: Sequence[nn.Module]) -> None:
        self.held = held

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.held)


@pytest.mark.parametrize("gates", ["input", "output"])
@pytest.mark.parametrize("how", ["list", "partial", "bound method", "own container"])
def test_whoever_holds_a_module_gets_the_rewritten_one(how: str, gates: str) -> None:
    found = counts(deployed(drawn(_Held(how)), gates=gates))
    assert found == {
        "folded": 1,
        {"input": "gated from its input", "output": "gated in place"}[gates]: 1,
    }


class _Asking(nn.Module):
    """Its forward goes by what its modules are."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, C, 1, bias=False), nn.BatchNorm2d(C)
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        if self.what == "type":
            return y if isinstance(self.norm, nn.BatchNorm2d) else 2 * y
        if self.what == "features":
            return y * self.norm.num_features
        return y if self.conv.bias is None else 3 * y


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("type", "its outputs differ by 1.0e+00"),
        ("bias", "its outputs differ by 2.0e+00"),
        ("features", "it fails ('Identity' object has no attribute 'num_features')"),
    ],
)
def test_a_forward_that_asks_how_it_is_made_is_left(what: str, says: str) -> None:
    model = drawn(_Asking(what))
    why = "the forward asks how its modules are made: rewritten, "
    assert outcome(deployed(model)) == {"norm": ("left", why + says)}


def test_one_sample_without_a_batch_is_left() -> None:
    """A norm takes its first dimension, the channels, for the batch, and so does a block."""
    model = drawn(nn.Sequential(nn.Conv1d(3, C, 3), nn.BatchNorm1d(9), SqueezeExcite(9)))
    sample = torch.randn(3, 11)
    fast = deploy(model, example_inputs=sample, gates="input")
    torch.testing.assert_close(fast(sample), model(sample))
    assert outcome(fast)["1"] == ("left", "the channels of 0 are not where it looks for them")


@pytest.mark.slow
def test_a_detector_is_rewritten() -> None:
    """What it finds in random values may change with a rounding; how many boxes, too."""
    torch.manual_seed(0)
    model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None
    )
    assert deploy(model.eval()).report.count("folded") > 50


@pytest.mark.parametrize("implementation", ["aten", "traced", "reference"])
def test_what_was_asked_for_in_training_does_not_matter(implementation: str) -> None:
    model = drawn(nn.Sequential(nn.Conv2d(3, C, 1), recalibrate(nn.BatchNorm2d(C), C)))
    model[1].implementation = implementation
    assert counts(deployed(model)) == {"folded": 1, "gated from its input": 1}
    assert model[1].implementation == implementation


def test_a_gate_stays_where_the_convolution_before_it_is_read() -> None:
    model = _Regularised("conv.weight")
    fast = deploy(model, input_size=SMALL, gates="input")
    (rewrite,) = fast.report.rewrites
    assert (rewrite.what, rewrite.why) == (
        "gated in place",
        "weights of conv are read outside of it",
    )
    x = images(*SMALL)
    torch.testing.assert_close(fast(x), model(x))


@pytest.mark.parametrize("name", LEFT)
@pytest.mark.parametrize("gates", ["input", "output"])
def test_what_is_left_alone_and_why(name: str, gates: str) -> None:
    make, size, path, why = LEFT[name]
    torch.manual_seed(0)
    model = drawn(make())
    fast = deploy(model, input_size=size, gates=gates)
    x = images(*size)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-6)
    assert outcome(fast)[path] == ("left", why)


# What is rewritten, and where


def _branch() -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(3, C, 3), nn.BatchNorm2d(C))


def _before() -> nn.Module:
    """The block gates the input of the second convolution, as with placement="pre"."""
    model = nn.Sequential(nn.Conv2d(3, C, 3), nn.Conv2d(C, C, 3))
    wrapper = recalibrate(model[1], C)
    wrapper.site = dataclasses.replace(wrapper.site, before=True)
    model[1] = wrapper
    return model


def _frozen() -> nn.Module:
    norm = torchvision.ops.FrozenBatchNorm2d(C)
    for name, buffer in norm.named_buffers():
        nn.init.uniform_(buffer, 0.5, 2.0) if name == "running_var" else nn.init.normal_(buffer)
    norm.num_features = C  # as other norms have it
    return norm


def _low_rank() -> nn.Module:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    block = _block()
    block.fc1 = Doubled(C, 3)
    return nn.Sequential(nn.Conv2d(3, C, 3), block)


def _hooked_layer() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, C, 3), _block())
    model[1].fc2.register_forward_hook(lambda module, inputs, output: output + 1)
    return model


Rewritten = tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, str]]
REWRITTEN: Mapping[str, Rewritten] = {
    "conv": (lambda: nn.Sequential(recalibrate(nn.Conv2d(3, C, 3), C)), SMALL, {"0.se": "gated"}),
    "branch": (
        lambda: nn.Sequential(recalibrate(_branch(), C)), SMALL,
        {"0.norm.2": "folded", "0.se": "gated"},
    ),
    "branch itself": (
        lambda: recalibrate(_branch(), C), SMALL, {"norm.2": "folded", "se": "gated"}
    ),
    "norm": (
        lambda: nn.Sequential(nn.Conv2d(3, C, 1), recalibrate(nn.BatchNorm2d(C), C)), SMALL,
        {"1.norm": "folded", "1.se": "gated"},
    ),
    "before": (_before, SMALL, {"1.se": "gated"}),
    "two norms": (
        _chain(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.BatchNorm2d(C), _block()), SMALL,
        {"1": "folded", "2": "folded", "3": "gated"},
    ),
    "concatenated": (
        lambda: _Concatenated(nn.BatchNorm2d(C), (nn.Identity(), nn.Identity())), SMALL,
        {"branches.0.1": "folded", "branches.1.1": "folded", "after": "folded"},
    ),
    "effective": (_chain(nn.Conv2d(3, C, 3), _block(bottleneck=False)), SMALL, {"1": "gated"}),
    "options": (
        _chain(
            nn.Conv2d(3, C, 3, groups=1, padding="same", padding_mode="reflect"),
            nn.Identity(), nn.Dropout(),
            _block(gate="tanh", activation="gelu", gate_scale=2.0, bias=False),
        ), SMALL, {"3": "gated"},
    ),
    "depthwise": (
        _chain(nn.Conv2d(3, 3, 3, 2, 1, groups=3), SqueezeExcite(3)), SMALL, {"1": "gated"}
    ),
    "linear": (_chain(nn.Linear(3, C), nn.BatchNorm1d(C)), (3,), {"1": "folded"}),
    "frozen": (
        lambda: nn.Sequential(nn.Conv2d(3, C, 3), _frozen()), SMALL, {"1": "folded"}
    ),
    "activated": (
        _chain(nn.Conv2d(3, C, 3), timm.layers.BatchNormAct2d(C, act_layer=nn.SiLU), _block()),
        SMALL, {"1": "folded", "2": "left"},
    ),
    "synchronised": (_chain(nn.Conv2d(3, C, 3), nn.SyncBatchNorm(C)), SMALL, {"1": "folded"}),
    "no affine": (
        _chain(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C, affine=False)), SMALL, {"1": "folded"}
    ),
}  # fmt: skip
"""What → network, size of a sample, and what becomes of each of its modules."""


@pytest.mark.parametrize("name", REWRITTEN)
@pytest.mark.parametrize("gates", ["input", "output"])
def test_what_is_rewritten(name: str, gates: str) -> None:
    make, size, expected = REWRITTEN[name]
    torch.manual_seed(0)
    fast = deployed(drawn(make()), size, gates=gates)
    gated = {"input": "gated from its input", "output": "gated in place"}[gates]
    found = {path: what for path, (what, _) in outcome(fast).items()}
    assert found == {path: gated if w == "gated" else w for path, w in expected.items()}
    if gates == "input":  # nothing is left of a wrapper, unless it is the model itself
        assert not any(isinstance(m, Recalibrated) for m in fast.modules() if m is not fast)


IN_PLACE: Mapping[str, tuple[Callable[[], nn.Module], str]] = {
    "same": (
        _chain(timm.layers.Conv2dSame(3, C, 3, stride=2), nn.BatchNorm2d(C), _block()),
        "the input of a Conv2dSame is not what it convolves",
    ),
    **{
        f"after a concatenation of {ends}": (
            lambda modules=modules: _Concatenated(_block(), modules),
            "it follows a concatenation, not one convolution",
        )
        for ends, modules in {
            "activations": (nn.ReLU(), nn.SiLU()),
            "norms": (nn.Identity(), nn.Identity()),
        }.items()
    },
    "after a norm of a concatenation": (
        lambda: _Concatenated(
            nn.Sequential(nn.BatchNorm2d(C), _block()), (nn.Identity(), nn.Identity())
        ),
        "it follows a concatenation, not one convolution",
    ),
    "low rank": (_low_rank, "a layer of the block does more than multiply"),
    "hooked layer": (_hooked_layer, "a layer of the block does more than multiply"),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_gated_in_place(name: str) -> None:
    make, why = IN_PLACE[name]
    torch.manual_seed(0)
    fast = deployed(drawn(make()), gates="input")
    assert ("gated in place", why) in outcome(fast).values()


class _Joined(nn.Module):
    """Convolutions, a norm after their concatenation, and one more reader of a tensor between."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, C, 1), nn.Conv2d(3, C, 1)
        self.norm = nn.BatchNorm2d(C if how == "rows" else 2 * C)
        self.how = how

    def forward(self, x: Tensor) -> Any:
        one, two = self.one(x), self.two(x)
        if self.how == "rows":
            return self.norm(torch.cat((one, two), 2))
        whole = torch.cat((one, one if self.how == "twice" else two), 1)
        y = self.norm(whole)
        if self.how == "branch":
            return y[:, :C] + two
        return y + whole if self.how == "whole" else y


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("rows", "it follows a concatenation of 2 convolutions, not each once and along its chan"),
        ("twice", "it follows a concatenation of 2 convolutions, not each once and along its chan"),
        ("whole", "the output of a concatenation is used elsewhere too"),
        ("branch", "the output of two is used elsewhere too"),
    ],
)
def test_a_concatenation_that_takes_nothing_in(how: str, why: str) -> None:
    torch.manual_seed(0)
    found = outcome(deployed(drawn(_Joined(how))))
    assert found["norm"][0] == "left"
    assert found["norm"][1].startswith(why)


def test_each_gate_comes_from_where_less_is_read() -> None:
    torch.manual_seed(0)
    narrow, wide = nn.Conv2d(3, C, 1), nn.Conv2d(C, 4, 1)
    model = nn.Sequential(narrow, _block(), nn.ReLU(), wide, SqueezeExcite(4))
    assert outcome(deployed(drawn(model))) == {
        "1": ("gated from its input", "that of 0"),
        "4": ("gated in place", "no less is read before 3"),
    }


def test_the_report_is_a_table() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, C, 1), recalibrate(nn.BatchNorm2d(C), C), nn.ReLU(), nn.BatchNorm2d(C)
    )
    fast = deployed(drawn(model))
    assert str(fast.report).splitlines() == [
        "1.norm  folded                into 0",
        "3       left                  it follows 2: a ReLU is not known to be a convolution",
        "1.se    gated from its input  that of 0",
        "1 folded, 1 left, 1 gated from its input",
    ]
    assert isinstance(fast.report, Report)
    assert str(deploy(nn.Sequential(nn.Conv2d(3, C, 1))).report) == "nothing to rewrite"
