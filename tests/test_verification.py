"""verify passes on healthy networks and names what is wrong with others."""

import random
import re
from collections import OrderedDict

import numpy as np
import pytest
import timm
import torch
from networks import Residual, small_resnet
from ordinary_networks import plain
from torch import nn

from senet import (
    SqueezeExcite,
    UserError,
    VerificationError,
    adopt,
    attach,
    create_model,
    detach,
    verify,
)
from senet.kernels import IMPLEMENTATIONS, Excitation, norm_excite
from senet.norm import recalibrated_modules

SIZE = (3, 16, 16)


def _attached(**options):
    return attach(small_resnet(), input_size=SIZE, **options)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("warm_start", [False, True])
def test_healthy(batch, warm_start):
    model = _attached(warm_start=warm_start)
    checks = verify(model, torch.randn(batch, *SIZE))
    assert [check.path for check in checks] == ["1.0.bn2", "1.1.bn2", "1.2.bn2"]
    assert all(check.gate_gradient > 0 and not check.frozen for check in checks)


def test_zero_initialised_last_norms_are_healthy():
    model = _attached()
    for block in model[1]:
        nn.init.zeros_(block.bn2.weight)
    assert len(verify(model, torch.randn(2, *SIZE))) == 3


def test_frozen_parts_are_said_to_be_frozen():
    model = _attached()
    model.requires_grad_(False)
    model[1][1].bn2.se.requires_grad_(True)
    assert [c.frozen for c in verify(model, torch.randn(2, *SIZE))] == [True, False, True]


def test_small_maps_of_a_deep_network():
    assert len(verify(create_model("se_resnet50", num_classes=3), torch.randn(1, 3, 32, 32))) == 16


def test_the_model_is_not_touched():
    model = _attached()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rng = torch.get_rng_state()
    verify(model, torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), rng)


class _OwnForward(nn.Module):
    """Whose author wrote the block in, rightly or wrongly."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.se, self.how = nn.Conv2d(3, 16, 3), SqueezeExcite(16, 4), how

    def forward(self, x):
        y = self.conv(x)
        if self.how == "never":
            return y
        if self.how == "twice":
            return self.se(self.se(y))
        if self.how == "dead":
            return self.se(y * 0) + y
        if self.how == "gates":
            return y * self.se.gates(y)[:, :, None, None]
        if self.how == "evaluation":
            return y if self.training else self.se(y)
        if self.how == "training":
            return self.se(y) if self.training else y
        if self.how == "unused":
            self.se(y)
            return y
        return self.se(y)


@pytest.mark.parametrize("how", ["right", "gates"])
def test_a_block_in_the_users_own_forward(how):
    assert [c.path for c in verify(_OwnForward(how), torch.randn(2, *SIZE))] == ["se"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("never", "se: the block was never called"),
        ("twice", "se: the block was called 2 times"),
        ("dead", "se: .*fed by a dead branch"),
        ("unused", "se: no gradient reaches the block"),
        ("evaluation", "se: no finite gradient comes to its fc.* in training mode"),
        ("training", "se: the block was never called"),
    ],
)
def test_what_is_wrong_is_named(how, message):
    with pytest.raises(VerificationError, match=message):
        verify(_OwnForward(how), torch.randn(2, *SIZE))


class _Fed(nn.Module):
    """A residual block whose branch may carry nothing of the input."""

    def __init__(self, how):
        super().__init__()
        self.stem, self.how = nn.Conv2d(3, 16, 3, padding=1), how
        self.conv1, self.conv2 = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))
        self.bn, self.head = nn.BatchNorm2d(16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.conv1(x.detach() * 0 if self.how == "detached" else x)
        y = self.conv2(torch.relu(y - 1e4 if self.how == "silent" else y))
        y = self.bn(y * 0.0 if self.how == "zero" else y)
        return self.head((x + y).mean((2, 3)))


@pytest.mark.parametrize("how", ["detached", "silent", "zero"])
def test_a_dead_branch_below_a_norm(how):
    """Whose β, random in the copy, would have a gradient on the gate."""
    x = torch.randn(2, *SIZE)
    assert len(verify(attach(_Fed(""), input_size=SIZE), x)) == 1
    with pytest.raises(VerificationError, match="bn: it is fed by a dead branch"):
        verify(attach(_Fed(how), input_size=SIZE), x)


@pytest.mark.parametrize("constant", [torch.zeros_like, torch.ones_like])
def test_a_convolution_that_returns_a_constant(constant):
    model = _attached()
    model[1][0].conv2.forward = constant
    with pytest.raises(VerificationError, match=r"1\.0\.bn2: it is fed by a dead branch"):
        verify(model, torch.randn(2, *SIZE))


@pytest.mark.parametrize("value", [0.0, 1.0, 255.0])
def test_equal_samples_are_no_dead_branch(value):
    assert len(verify(_attached(), torch.full((2, *SIZE), value))) == 3


# The operation that the model runs


def test_an_operation_that_leaves_the_block_out_is_found(one_operation, monkeypatch):
    def plain(x, norm, excitation, implementation):
        return nn.functional.batch_norm(x, None, None, norm.weight, norm.bias, True)

    model, x = _attached(), torch.randn(2, *SIZE)
    monkeypatch.setattr("senet.norm.norm_excite", plain)
    with pytest.raises(VerificationError, match=r"1\.0\.bn2: .*as one operation .*'aten' is"):
        verify(model, x)


def test_an_operation_without_a_gradient_is_found(monkeypatch):
    def without(x, norm, excitation, implementation):
        return norm_excite(x, norm, Excitation(*(_detached(v) for v in excitation)), implementation)

    model, x = _attached(), torch.randn(2, *SIZE)
    monkeypatch.setattr("senet.norm.norm_excite", without)
    with pytest.raises(VerificationError, match=r"1\.0\.bn2: no finite gradient comes to its fc"):
        verify(model, x)


def _detached(value):
    return value.detach() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_implementation_that_was_asked_for(implementation):
    model = _attached()
    for _, wrapper in recalibrated_modules(model):
        wrapper.implementation = implementation
    assert len(verify(model, torch.randn(2, *SIZE))) == 3
    assert {w.implementation for _, w in recalibrated_modules(model)} == {implementation}


class _OnlyInEvaluation(nn.Module):
    """As detectors, which take targets in training."""

    def __init__(self):
        super().__init__()
        self.network = small_resnet()

    def forward(self, x, targets=None):
        assert not self.training or targets is not None
        return self.network(x)


def test_a_forward_that_takes_other_arguments_in_training():
    model = attach(_OnlyInEvaluation(), input_size=SIZE)
    assert len(verify(model, torch.randn(2, *SIZE))) == 3


class _Dropped(Residual):
    """Whose branch is left out half the time in training (stochastic depth)."""

    def forward(self, x):
        if self.training and torch.rand(()) < 0.5:
            return x
        return super().forward(x)


def test_branches_that_are_left_out_by_chance():
    model = small_resnet()
    model[1][1] = _Dropped()
    attach(model, input_size=SIZE)
    for _ in range(3):
        assert len(verify(model.train(), torch.randn(2, *SIZE))) == 3


# Layers of the block that are others


class _LowRank(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(2, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, 2))

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


@pytest.mark.parametrize("warm_start", [False, True])
def test_adapters_in_place_of_the_layers(warm_start):
    model = _attached(warm_start=warm_start)
    for block in [m for m in model.modules() if isinstance(m, SqueezeExcite)]:
        block.fc1, block.fc2 = _LowRank(block.fc1), _LowRank(block.fc2)
    checks = verify(model, torch.randn(2, *SIZE))
    assert all(check.gate_gradient > 0 and not check.frozen for check in checks)
    assert "hidden=1" in repr(model[1][0].bn2.se)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.filterwarnings("ignore:quantized..linear_dynamic. an autograd kernel")
@pytest.mark.parametrize(("where", "passed"), [(nn.Linear, False), ("1", True)])
def test_quantised_layers_are_frozen(where, passed):
    """All of them, the head among them, or the blocks' alone, through which no gradient goes."""
    model = torch.ao.quantization.quantize_dynamic(_attached().eval(), {where})
    checks = verify(model, torch.randn(2, *SIZE))
    assert [(check.frozen, check.gate_gradient > 0) for check in checks] == [(True, passed)] * 3


def test_a_block_lost_in_a_conversion():
    model = _attached()
    model[1][1].bn2 = nn.BatchNorm2d(16)
    with pytest.raises(VerificationError, match=r"1\.1\.bn2: the block is gone, .*BatchNorm2d"):
        verify(model, torch.randn(2, *SIZE))


def test_a_forward_with_its_own_reference():
    model = _attached()
    kept = model[1][2].bn2.norm
    model[1][2].forward = lambda x: x + kept(model[1][2].conv1(x))
    with pytest.raises(VerificationError, match=r"1\.2\.bn2: the block was never called"):
        verify(model, torch.randn(2, *SIZE))


def test_a_network_without_blocks():
    with pytest.raises(VerificationError, match="has no SE block"):
        verify(small_resnet(), torch.randn(2, *SIZE))


# Blocks that are not where they were put


def test_a_wrapper_at_another_path():
    model = _attached()
    first, second = model[1][0], model[1][1]
    first.bn2, second.bn2 = second.bn2, first.bn2
    with pytest.raises(VerificationError, match=r"1\.0\.bn2: its block has moved to 1\.1\.bn2"):
        verify(model, torch.randn(2, *SIZE))
    first.bn2, second.bn2 = second.bn2, first.bn2
    assert len(verify(model, torch.randn(2, *SIZE))) == 3


def test_a_wrapper_whose_block_was_replaced():
    model = _attached()
    model[1][2].bn2.se = nn.Identity()
    with pytest.raises(VerificationError, match=r"1\.2\.bn2: the block is gone, .*Recalibrated"):
        verify(model, torch.randn(2, *SIZE))


def test_a_renamed_stage_is_no_loss():
    model = attach(plain("torchvision"), input_size=(3, 64, 64))
    model.layer1 = nn.Sequential(OrderedDict(inner=model.layer1))
    assert len(verify(model, torch.randn(2, 3, 64, 64))) == 4


@pytest.mark.parametrize(("prefix", "around"), [("", lambda m: m), ("0.", nn.Sequential)])
def test_an_adopted_block_that_was_replaced(prefix, around):
    model = adopt(timm.create_model("test_efficientnet"))
    first, second = (c.get_submodule("0") for c in (model.blocks[3], model.blocks[4]))
    x, whole = torch.randn(2, 3, 64, 64), around(model)
    assert len(verify(whole, x)) == 2
    first.se, kept = nn.Identity(), first.se
    message = re.escape(f"{prefix}blocks.3.0.se: the block is gone, its place holds Identity;")
    with pytest.raises(VerificationError, match=message):
        verify(whole, x)
    first.se = kept
    assert len(verify(whole, x)) == 2
    detach(whole)
    assert not isinstance(second.se, SqueezeExcite)
    with pytest.raises(VerificationError, match="has no SE block"):
        verify(whole, x)


# Mistakes, and what is left as it was


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: verify("resnet18", torch.ones(1, *SIZE)), "'resnet18' is no torch.nn.Module"),
        (
            lambda: verify(_attached().to("meta"), torch.ones(2, *SIZE)),
            "'0.0.weight' is on the meta device",
        ),
        (
            lambda: verify(_attached(), torch.ones(1, 5, 16, 16)),
            r"the forward of Sequential failed on input of shape \(1, 5, 16, 16\): .*channels",
        ),
        (
            lambda: verify(_attached(), (torch.ones(1, *SIZE), torch.ones(3))),
            r"input of shape \(1, 3, 16, 16\), \(3,\): .*positional arguments",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(act, message):
    with pytest.raises(UserError, match=message) as caught:
        act()
    assert "\n" not in str(caught.value)
    assert ("failed on" in str(caught.value)) == (caught.value.__cause__ is not None)


class _Drawing(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = small_resnet()

    def forward(self, x):
        return self.network(x) * (1 + random.random() + np.random.random() + torch.rand(1))


def test_all_random_numbers_are_left_as_they_were():
    model, x = attach(_Drawing(), input_size=SIZE), torch.randn(2, *SIZE)
    torch.cuda.manual_seed_all(7)  # waits where CUDA is not in use
    waiting = list(torch.cuda._lazy_seed_tracker.get_calls())
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    verify(model, x)
    assert torch.cuda._lazy_seed_tracker.get_calls() == waiting
    assert states == (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )
