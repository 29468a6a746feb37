"""verify passes on healthy networks and names what is wrong with others."""

import pytest
import torch
from networks import small_resnet
from torch import nn

from senet import SqueezeExcite, VerificationError, attach, create_model, verify

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
