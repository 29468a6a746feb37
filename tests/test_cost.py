from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from senet.block import SqueezeExcite
from senet.cost import (
    count_macs,
    count_parameters,
    inference_seconds,
    measure_cost,
    saved_for_backward,
    step_seconds,
)
from senet.errors import UserError
from senet.models import create_model

FLOAT = 4  # bytes


def small_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_parameters_by_hand() -> None:
    assert count_parameters(small_network()) == 8 * 3 * 9 + 2 * 8 + (4 * 8 + 4) + (5 * 4 + 5)


def test_shared_parameters_count_once() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    assert count_parameters(model) == 36 + 6 + 6


def test_macs_by_hand() -> None:
    macs = 8 * 27 * 10 * 12 + 4 * 8 * 5 * 6 + 5 * 4
    assert count_macs(small_network(), (3, 10, 12)) == macs


def test_macs_of_groups_and_dilation() -> None:
    grouped = nn.Conv2d(8, 16, 3, padding=2, dilation=2, groups=4)
    assert count_macs(grouped, (8, 9, 9)) == 16 * (8 // 4) * 9 * 81


@pytest.mark.parametrize("bias", [True, False])
def test_macs_of_a_block_are_its_two_layers(bias: bool) -> None:
    """2 · C · C/r, whatever the size: squeeze and scale are no multiply-adds of the paper's."""
    block = SqueezeExcite(64, reduction=16, bias=bias)
    assert count_macs(block, (64, 7, 7)) == count_macs(block, (64, 14, 3)) == 2 * 64 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_macs_for_any_dtype(dtype: torch.dtype) -> None:
    model = small_network().to(dtype)
    assert count_macs(model, (3, 10, 12)) == count_macs(small_network(), (3, 10, 12))


def test_counting_macs_leaves_the_model_alone() -> None:
    model = create_model("se_resnet20", num_classes=10).train()
    calls: list[object] = []
    model.register_forward_hook(lambda *call: calls.append(call))
    before, generator = state_of(model), torch.get_rng_state()
    assert count_macs(model, (3, 32, 32)) > 40e6
    assert model.training
    assert calls == []
    assert torch.equal(torch.get_rng_state(), generator)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert not value.is_meta


def test_macs_at_a_size_that_does_not_fit() -> None:
    with pytest.raises(UserError, match=r"Sequential does not run on .* size \(5, 8, 8\)") as error:
        count_macs(small_network(), (5, 8, 8))
    assert "\n" not in str(error.value)


class Asking(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum().item() > 0 else -x)


def test_macs_of_what_asks_for_values_are_those_of_a_copy_that_runs() -> None:
    model = Asking(nn.Conv2d(3, 8, 3))
    before = torch.get_rng_state()
    assert count_macs(model, (3, 8, 8)) == 8 * 6 * 6 * 3 * 3 * 3
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(UserError, match=r"Asking does not run on .* size \(5, 8, 8\)"):
        count_macs(model, (5, 8, 8))


def test_macs_of_what_does_not_run_on_meta_and_is_there() -> None:
    model = Asking(nn.Conv2d(3, 8, 3, device="meta"))
    with pytest.raises(UserError, match=r"Asking does not run on .*item\(\)") as error:
        count_macs(model, (3, 8, 8))
    assert "\n" not in str(error.value)


def test_macs_of_timms_plain_resnet50() -> None:
    """4.09 GMACs is what is commonly printed for the variant with its stride in the 3×3."""
    assert round(count_macs(create_model("timm/resnet50")) / 1e9, 2) == 4.09


def test_saved_in_training_by_hand() -> None:
    model = small_network().train()
    positions = 10 * 12
    x = torch.randn(2, 3, 10, 12)
    expected = (
        2 * 8 * positions  # the convolution's output, which BatchNorm keeps
        + 2 * 8  # its batch mean and 1/σ
        + 2 * 8 * positions  # ReLU's output: kept by ReLU and by the convolution, once
        + 2 * 4  # the linear layer's input; the pool to one position is a mean and keeps none
    )
    assert saved_for_backward(model, x) == FLOAT * expected


def test_saved_views_count_once_and_whole() -> None:
    class Views(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            made = x * 2  # keeps nothing of x: 2 is a constant
            return made[:, :1].sin() + made[:, 1:].cos() + made.exp().sum()

    x = torch.randn(4, 2, requires_grad=True)
    # sin and cos keep views of the one product; exp keeps its result
    assert saved_for_backward(Views(), x) == FLOAT * (8 + 8)


def test_saved_leaves_out_what_is_there_anyway() -> None:
    linear = nn.Linear(6, 3)
    assert saved_for_backward(linear, torch.randn(5, 6)) == 0
    norm = nn.BatchNorm1d(6).eval()
    assert saved_for_backward(norm, torch.randn(5, 6)) == 0


def test_saved_works_inside_no_grad() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid())
    with torch.no_grad():
        assert saved_for_backward(model, torch.ones(2, 4)) == FLOAT * 16


def test_saved_grows_with_the_batch_alone() -> None:
    """The parts that grow do so in proportion: twice the step from 2 to 4 is that from 4 to 8."""
    model = create_model("resnet20", num_classes=10).train()
    two, four, eight = (saved_for_backward(model, torch.randn(n, 3, 32, 32)) for n in (2, 4, 8))
    assert eight - four == 2 * (four - two) > 0


def test_measuring_leaves_the_model_alone() -> None:
    model = nn.Sequential(small_network(), nn.Dropout(0.5)).eval()
    model[0][1].train()
    modes = [module.training for module in model.modules()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    before = state_of(model)
    measure_cost(model, torch.randn(4, 3, 8, 8), warmup=1, repeats=2)
    inference_seconds(model, torch.randn(4, 3, 8, 8), warmup=0, repeats=1)
    assert [module.training for module in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all((parameter.grad == 7.0).all() for parameter in model.parameters())


def test_measuring_puts_the_generator_back() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)), torch.randn(2, 4)
    generator = torch.get_rng_state()
    step_seconds(model, x, warmup=0, repeats=2)
    saved_for_backward(model, x)
    assert torch.equal(torch.get_rng_state(), generator)


class Slow(nn.Module):
    """Takes a long first forward, then 20 ms, with one outlier, by a clock of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.calls = 0
        self.now = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.now += 0.3 if self.calls in (0, 3) else 0.02
        self.calls += 1
        return self.linear(x)


@pytest.mark.parametrize("measure", [step_seconds, inference_seconds])
def test_seconds_are_a_median_after_warm_up(
    measure: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Slow()
    monkeypatch.setattr("senet.timing.time.perf_counter", lambda: model.now)
    seconds = measure(model, torch.ones(1, 2), warmup=1, repeats=5)
    assert model.calls == 6
    assert seconds == pytest.approx(0.02)


def test_a_step_includes_the_backward() -> None:
    passes: list[str] = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            passes.append("forward")
            return x.clone()

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:
            passes.append("backward")
            return grad

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return Watched.apply(self.linear(x))

    step_seconds(Net(), torch.ones(1, 2), warmup=1, repeats=2)
    assert passes == ["forward", "backward"] * 3


def test_timing_mistakes() -> None:
    with pytest.raises(UserError, match="does not return logits"):
        step_seconds(nn.Conv2d(3, 3, 1), torch.ones(1, 3, 2, 2))
    with pytest.raises(UserError, match="cannot time 0 runs"):
        inference_seconds(nn.Linear(2, 2), torch.ones(1, 2), repeats=0)


def test_costs_of_a_pair() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 32, 32)
    plain, twin = (create_model(name, num_classes=10) for name in ("resnet20", "se_resnet20"))
    cost, with_se = (measure_cost(model, x, warmup=1, repeats=2) for model in (plain, twin))
    # by hand: 3 blocks each of C = 16, 32, 64 with four hidden units and biases
    added = 3 * sum(2 * 4 * channels + channels + 4 for channels in (16, 32, 64))
    assert with_se.parameters - cost.parameters == added
    assert with_se.macs - cost.macs == 3 * 2 * 4 * (16 + 32 + 64)
    assert cost.step_ms > 0
    # what SE adds is small: nothing of the size of a feature map but what a block may gate
    assert cost.saved_bytes < with_se.saved_bytes
    assert cost.saved_bytes == saved_for_backward(copy.deepcopy(plain).train(), x)
