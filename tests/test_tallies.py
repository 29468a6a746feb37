"""What `count_macs` leaves out, counted by hand, and counts that are made once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from senet import tallies
from senet.block import SqueezeExcite
from senet.errors import UserError
from senet.models import create_model
from senet.tallies import count_element_wise, count_statistics, tally, tally_element_wise


def test_elements_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    whole = 8 * 10 * 12
    # norm, activation, and the pool by what it takes; the mean by what it takes, a quarter
    assert count_element_wise(model, (3, 10, 12)) == 3 * whole + whole // 4


def test_elements_of_a_block() -> None:
    """The squeeze and the scaling, one for each element of the map, and the two non-linearities."""
    block = SqueezeExcite(64, reduction=16)
    assert count_element_wise(block, (64, 7, 7)) == 2 * 64 * 49 + 4 + 64


def test_elements_leave_the_model_alone() -> None:
    model = create_model("se_resnet20", num_classes=10).train()
    assert count_element_wise(model, (3, 32, 32)) > 0
    assert model.training
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_a_residual_networks_sums_count() -> None:
    """ResNet-50's 16 sums are what the squeezes of SE-ResNet-50 take, and its scalings give."""
    plain, twin = (tally_element_wise(n, 1000, {}) for n in ("resnet50", "se_resnet50"))
    sums = 3 * 256 * 56**2 + 4 * 512 * 28**2 + 6 * 1024 * 14**2 + 3 * 2048 * 7**2
    gates = 3 * 256 + 4 * 512 + 6 * 1024 + 3 * 2048
    assert twin - plain == 2 * sums + gates + gates // 16


def test_statistics_are_two_a_channel() -> None:
    assert count_statistics(nn.Sequential(nn.BatchNorm2d(7), nn.Linear(3, 3))) == 14


def test_a_tally_is_that_of_the_network() -> None:
    counts = tally("se_resnet20", 10, {"bias": False})
    model = create_model("se_resnet20", num_classes=10, bias=False)
    assert counts.parameters == sum(p.numel() for p in model.parameters())
    stored = [t for t in model.state_dict().values() if t.dtype == torch.float32]
    assert counts.file_mebibytes == sum(4 * t.numel() for t in stored) / 2**20
    with_biases = tally("se_resnet20", 10, {})
    assert with_biases.parameters - counts.parameters == 3 * (16 + 32 + 64 + 3 * 4)
    assert with_biases.macs == counts.macs


def test_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = tally("resnet20", 7, {})
    monkeypatch.setattr(tallies, "count_macs", None)
    assert tally("resnet20", 7, {}) is first


def test_a_network_that_fails_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tallies, "native_input_size", lambda name: (3, 1, 1))
    with pytest.raises(UserError, match="multiply-adds of 'resnet18' cannot be counted") as error:
        tally("resnet18", 3, {})
    assert "\n" not in str(error.value)


def test_a_network_that_does_not_exist() -> None:
    with pytest.raises(UserError, match="unknown model 'resnet5O'"):
        tally("resnet5O", 1000, {})
