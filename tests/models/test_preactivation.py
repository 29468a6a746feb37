from __future__ import annotations

import pytest
import torch
from torch import nn

from senet.models.preactivation import PreActivationUnit, resnet164, wrn16_8


@pytest.mark.parametrize(
    ("build", "layers", "widths"),
    [(resnet164, 164, (64, 128, 256)), (wrn16_8, 14, (128, 256, 512))],
)
def test_layers_and_shapes(build, layers, widths) -> None:
    """He et al. count the layers of a path; Zagoruyko and Komodakis 16 convolutions in all."""
    with torch.device("meta"):
        model = build(10).eval()
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sum("shortcut" not in name for name in names) == layers
    assert sum("shortcut" in name for name in names) == 3
    shapes = []
    for stage in (model.stage0, model.stage1, model.stage2):
        stage.register_forward_hook(lambda *call: shapes.append(tuple(call[-1].shape[1:])))
    model(torch.empty(1, 3, 32, 32, device="meta"))
    assert shapes == [(w, s, s) for w, s in zip(widths, (32, 16, 8), strict=True)]


def branch_by_hand(unit: PreActivationUnit, x: torch.Tensor) -> torch.Tensor:
    layers = unit.branch
    y = layers.conv1(unit.bn1(x).relu())
    y = layers.conv2(layers.bn2(y).relu())
    return layers.conv3(layers.bn3(y).relu())


def test_a_unit_of_one_shape_adds_to_its_bare_input() -> None:
    torch.manual_seed(0)
    unit = PreActivationUnit(8, 8, 1, kernels=(1, 3, 1), narrowing=4).eval()
    x = torch.randn(2, 8, 5, 4)
    before = x.clone()
    assert torch.equal(unit(x), branch_by_hand(unit, x) + before)
    assert torch.equal(x, before)
    assert isinstance(unit.shortcut, nn.Identity)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_unit_that_changes_the_shape_projects_its_activated_input(stride: int) -> None:
    torch.manual_seed(0)
    unit = PreActivationUnit(8, 16, stride, kernels=(1, 3, 1), narrowing=4).eval()
    x = torch.randn(2, 8, 5, 4)
    expected = branch_by_hand(unit, x) + unit.shortcut(unit.bn1(x).relu())
    assert torch.equal(unit(x), expected)
    assert unit.branch.conv1.stride == unit.shortcut.stride == (stride, stride)
    assert unit.branch.conv2.stride == (1, 1)
    assert unit.branch.conv2.weight.shape == (4, 4, 3, 3)
