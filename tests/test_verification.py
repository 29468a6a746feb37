"""verify passes on healthy networks and names what is wrong with others."""

import random
import re
from collections import OrderedDict

import numpy as np
import pytest
import timm
import torch
from networks import small_resnet
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
        if self.how == "unused":
            self.se(y)
            return y
        return self.se(y)


def test_a_block_in_the_users_own_forward():
    assert [c.path for c in verify(_OwnForward("right"), torch.randn(2, *SIZE))] == ["se"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("never", "se: the block was never called"),
        ("twice", "se: the block was called 2 times"),
        ("dead", "se: .*fed by a dead branch"),
        ("unused", "se: no gradient reaches the block"),
    ],
)
def test_what_is_wrong_is_named(how, message):
    with pytest.raises(VerificationError, match=message):
        verify(_OwnForward(how), torch.randn(2, *SIZE))


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
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    verify(model, x)
    assert states == (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )
