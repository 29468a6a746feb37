from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from senet import attach, models, verify
from senet.checkpoints import LAST
from senet.models import Network
from senet.models.shake_shake import (
    Shake,
    ShakeShakeNet,
    TwoPathShortcut,
    shake_shake_26_2x96d,
    shake_shake_29_2x4x64d,
)
from senet.options import TrainOptions
from senet.training import train


def weights_of(shake: Shake, images: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """The first branch's weight in each image, forwards and backwards."""
    first = torch.ones(images, 2, 3, 3, requires_grad=True)
    second = torch.zeros(images, 2, 3, 3, requires_grad=True)
    y = shake(first, second)
    y.sum().backward()
    assert first.grad is not None
    assert second.grad is not None
    torch.testing.assert_close(first.grad + second.grad, torch.ones_like(y))
    for each in (y.detach(), first.grad):  # one weight an image
        torch.testing.assert_close(each, each[:, :1, :1, :1].expand_as(each))
    return y.detach()[:, 0, 0, 0], first.grad[:, 0, 0, 0]


@pytest.mark.parametrize("backward", ["shake", "even"])
def test_weights_in_training(backward) -> None:
    torch.manual_seed(0)
    alpha, beta = weights_of(Shake(backward))
    assert len(alpha.unique()) == 200
    assert alpha.min() >= 0
    assert alpha.max() <= 1
    assert alpha.mean().item() == pytest.approx(0.5, abs=0.06)
    assert alpha.std().item() == pytest.approx(12**-0.5, abs=0.04)
    if backward == "even":
        torch.testing.assert_close(beta, torch.full_like(beta, 0.5))
    else:
        assert beta.std().item() == pytest.approx(12**-0.5, abs=0.04)
        assert abs(torch.corrcoef(torch.stack([alpha, beta]))[0, 1].item()) < 0.2


def test_evaluation_takes_the_mean_and_no_chance() -> None:
    state = torch.get_rng_state()
    alpha, beta = weights_of(Shake("shake").eval())
    assert (alpha == 0.5).all()
    assert (beta == 0.5).all()
    assert torch.equal(torch.get_rng_state(), state)


def test_chance_is_the_global_generators() -> None:
    a, b = torch.randn(2, 4, 3, 2, 2)
    shake = Shake("shake")
    torch.manual_seed(4)
    once = shake(a, b)
    other = shake(a, b)
    torch.manual_seed(4)
    assert torch.equal(shake(a, b), once)
    assert not torch.equal(other, once)


@pytest.mark.parametrize(("size", "stride"), [((5, 4), 2), ((4, 6), 2), ((3, 3), 1), ((1, 1), 2)])
def test_the_second_path_sees_the_image_moved(size: tuple[int, int], stride: int) -> None:
    torch.manual_seed(0)
    shortcut = TwoPathShortcut(3, 8, stride).eval()
    x = torch.randn(2, 3, *size)
    moved = torch.zeros_like(x)
    moved[:, :, 1:, 1:] = x[:, :, :-1, :-1]
    y = shortcut(x) * (1 + shortcut.bn.eps) ** 0.5
    torch.testing.assert_close(y[:, :4], shortcut.straight(x)[:, :, ::stride, ::stride])
    torch.testing.assert_close(y[:, 4:], shortcut.moved(moved)[:, :, ::stride, ::stride])


@pytest.mark.parametrize(
    ("build", "layers", "widths"),
    [(shake_shake_26_2x96d, 26, (96, 192, 384)), (shake_shake_29_2x4x64d, 29, (256, 512, 1024))],
)
def test_layers_and_shapes(build, layers, widths) -> None:
    """Weighted layers on a path, without the projections."""
    with torch.device("meta"):
        model = build(10).eval()
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sum("shortcut" not in n and "branch2" not in n for n in names) == layers
    shapes = []
    for stage in (model.stage0, model.stage1, model.stage2):
        stage.register_forward_hook(lambda *call: shapes.append(tuple(call[-1].shape[1:])))
    model(torch.empty(1, 3, 32, 32, device="meta"))
    assert shapes == [(w, s, s) for w, s in zip(widths, (32, 16, 8), strict=True)]
    assert {m.backward_weights for m in model.modules() if isinstance(m, Shake)} == {
        "shake" if layers == 26 else "even"
    }


def test_first_layers_of_the_grouped_units_have_four_groups_of_64() -> None:
    with torch.device("meta"):
        model = shake_shake_29_2x4x64d()
    conv = model.stage0.unit1.branch2.spatial.conv
    assert (conv.groups, conv.in_channels // conv.groups) == (4, 64)


def test_unit_is_the_shortcut_and_the_mean_of_its_branches() -> None:
    torch.manual_seed(0)
    for unit in ShakeShakeNet(2, 16).eval().stage1:
        x = torch.randn(2, 16 if unit.projects else 32, 6, 6)
        before, a = x.clone(), x.relu()
        mean = 0.5 * (unit.branch1(a) + unit.branch2(a))
        shortcut = unit.shortcut(a if unit.projects else x)
        torch.testing.assert_close(unit(x), mean + shortcut)
        assert torch.equal(x, before)


def test_one_block_a_unit_on_the_mixed_branches() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    plain = ShakeShakeNet(1, 16).eval()
    expected = plain(x)
    model = attach(plain, input_size=(3, 8, 8), warm_start=True)
    torch.testing.assert_close(model(x), expected)
    assert [block.path for block in verify(model, x)] == [f"stage{s}.unit1.shake" for s in range(3)]


class _StopError(Exception):
    pass


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Network(lambda classes: ShakeShakeNet(1, 8, classes), (3, 32, 32))
    monkeypatch.setitem(models._NETWORKS, "shake_shake_26_2x96d", small)  # type: ignore[index]
    options = TrainOptions(
        model="se_shake_shake_26_2x96d",
        data="digits",
        image_size=8,
        batch_size=16,
        epochs=3,
        limit_batches=3,
        threads=1,
    )
    said: list[str] = []

    def stop_after_two(line: str) -> None:
        if line.startswith("epoch 2/3"):
            raise _StopError

    train(options, tmp_path / "whole", say=said.append)
    assert any("3 SE blocks, all wired" in line for line in said)
    with pytest.raises(_StopError):
        train(options, tmp_path / "stopped", say=stop_after_two)
    train(options, tmp_path / "stopped", resume=True, say=said.append)
    assert any("going on after epoch" in line for line in said)
    whole, stopped = (
        torch.load(tmp_path / run / LAST, weights_only=True)["state_dict"]
        for run in ("whole", "stopped")
    )
    for name, weight in whole.items():
        assert torch.equal(stopped[name], weight), name
