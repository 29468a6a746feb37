from __future__ import annotations

import pytest
import torch
from torch import nn

from senet.cost import count_parameters
from senet.models.cifar_resnet import CifarResNet, PadShortcut, resnet20, resnet56, resnet110


def parameters_of(depth: int, classes: int) -> int:
    """By hand: ``depth`` units of two 3×3 convolutions with norms in each stage, no shortcuts'."""
    total = 3 * 16 * 9 + 2 * 16
    channels = 16
    for width in (16, 32, 64):
        for _ in range(depth):
            total += 9 * channels * width + 2 * width + 9 * width * width + 2 * width
            channels = width
    return total + 64 * classes + classes


@pytest.mark.parametrize(
    ("build", "layers", "published"),
    [(resnet20, 20, 0.27), (resnet56, 56, 0.85), (resnet110, 110, 1.7)],
)
def test_parameters_and_layers(build: type[CifarResNet], layers: int, published: float) -> None:
    """He et al., table 6: 0.27M, 0.85M and 1.7M parameters."""
    with torch.device("meta"):
        model = build(10)
    count = count_parameters(model)
    assert count == parameters_of((layers - 2) // 6, 10)
    assert round(count / 1e6, len(str(published)) - 2) == published
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == layers


def test_exact_counts() -> None:
    assert [parameters_of(n, 10) for n in (3, 9, 18)] == [269_722, 853_018, 1_727_962]


def test_pad_shortcut() -> None:
    x = torch.randn(2, 4, 7, 6)
    y = PadShortcut(4, 10, 2)(x)
    assert y.shape == (2, 10, 4, 3)
    assert torch.equal(y[:, :4], x[:, :, ::2, ::2])
    assert not y[:, 4:].any()


def test_shapes_by_stage() -> None:
    shapes = {}
    with torch.device("meta"):
        model = resnet20().eval()
    for name in ("stage0", "stage1", "stage2"):
        model.get_submodule(name).register_forward_hook(
            lambda *call, name=name: shapes.update({name: tuple(call[-1].shape[1:])})
        )
    model(torch.empty(1, 3, 32, 32, device="meta"))
    assert shapes == {"stage0": (16, 32, 32), "stage1": (32, 16, 16), "stage2": (64, 8, 8)}


def test_every_shortcut_is_a_module_without_parameters() -> None:
    with torch.device("meta"):
        model = resnet20()
    shortcuts = [unit.shortcut for unit in model.modules() if hasattr(unit, "shortcut")]
    assert [type(shortcut) for shortcut in shortcuts].count(PadShortcut) == 2
    assert [type(shortcut) for shortcut in shortcuts].count(nn.Identity) == 7
    assert not [p for shortcut in shortcuts for p in shortcut.parameters()]
