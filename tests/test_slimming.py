"""senet.slim: what is left out, what stays, and what it says of both.

The labels are what the network itself says, so that it is always right, and whatever a slimmer
one gets wrong is a drop.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import timm
import torch
from deploying import difference, drawn, images
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import small_resnet
from torch import Tensor, nn

from senet import (
    SlimReport,
    SqueezeExcite,
    UserError,
    adopt,
    attach,
    attached_plan,
    deploy,
    detach,
    slim,
    verify,
)
from senet.cost import count_parameters
from senet.slim_report import Point, Score
from senet.slimming import _Search

SIZE = (3, 12, 12)
Batches = list[tuple[Tensor, Tensor]]


def pictures(count: int = 96, *, seed: int = 0, size: Any = SIZE) -> Tensor:
    """Images of different brightness and contrast, for gates to tell apart."""
    rng = torch.Generator().manual_seed(seed)
    shift = 2 * torch.randn(count, 3, 1, 1, generator=rng)
    return shift + images(*size, count=count, seed=seed) * torch.rand(count, 1, 1, 1, generator=rng)


def labelled(model: nn.Module, count: int = 96, *, seed: int = 0, size: Any = SIZE) -> Batches:
    with torch.no_grad():
        return [(x, model(x).argmax(1)) for x in pictures(count, seed=seed, size=size).split(32)]


def network(constant: tuple[int, ...], seed: int = 0, *, sites: Any = None) -> Any:
    """Three blocks, of which some have gates that are the same for all images, and some do not."""
    torch.manual_seed(seed)
    model = drawn(attach(small_resnet(), input_size=SIZE, reduction=2, sites=sites), seed)
    for n, block in enumerate(blocks_of(model)):
        block.fc2.weight.data.mul_(0 if n in constant else 12)
    with torch.no_grad():  # every class as likely as the others
        logits, head = model(pictures(200, seed=9)), model[2][2]
        head.weight.div_(logits.std(0)[:, None])
        head.bias.sub_(logits.mean(0)).div_(logits.std(0))
    return model


def blocks_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, SqueezeExcite)]


PATHS = ("1.0.bn2", "1.1.bn2", "1.2.bn2")


def test_constant_blocks_go_and_the_others_stay() -> None:
    model = network(constant=(0, 2))
    before = copy.deepcopy(model.state_dict())
    told: list[tuple[int, int, str]] = []
    halves = labelled(model), labelled(model, seed=1)
    model.train()
    slimmed = slim(model, *halves, max_drop=0, rounds=2, progress=lambda *step: told.append(step))
    report = slimmed.report
    assert {candidate.name for candidate in report.candidates[:2]} == {PATHS[0], PATHS[2]}
    assert report.candidates[2].name == PATHS[1]
    assert report.candidates[2].drop > 0
    assert report.candidates[0].deviation < 1e-6 < 1e-2 < report.candidates[2].deviation
    assert [point.blocks for point in report.points] == [3, 2, 1, 0]
    assert report.chosen == 2
    assert report.held_out_drop == 0
    assert report.before.images == report.after.images == 96
    assert all(point.latency_ms and point.latency_ms > 0 for point in report.points)
    # The network is the same with a block instead of three, and ordinary.
    model.eval()
    x = images(*SIZE, count=4, seed=2)
    with torch.no_grad():
        assert difference(slimmed.model(x), model(x)) <= 1e-5
    assert [site.path for site in attached_plan(slimmed.model)] == [PATHS[1]]
    assert len(verify(copy.deepcopy(slimmed.model), x)) == 1
    assert len(blocks_of(deploy(slimmed.model, input_size=SIZE))) <= 1
    # And the other is as it was, in its own mode too.
    model_now = model.state_dict()
    assert all(torch.equal(model_now[name], value) for name, value in before.items())
    assert len(blocks_of(model)) == 3
    # What was counted is what there is.
    point = report.point
    assert point.parameters == count_parameters(slimmed.model)
    assert point.se_parameters == count_parameters(blocks_of(slimmed.model)[0])
    assert report.points[3].parameters == count_parameters(small_resnet())
    assert report.points[0].macs - report.points[3].macs == sum(
        site.macs for site in attached_plan(model)
    )
    done = [step[0] for step in told]
    assert done == sorted(done)
    assert all(0 <= step[0] <= step[1] and step[2] for step in told)


def test_the_model_keeps_its_mode() -> None:
    model = network(constant=(0, 1, 2)).train()
    slim(model, labelled(model), labelled(model), max_drop=100, rounds=0)
    assert all(module.training for module in model.modules())


def test_where_all_gates_are_constant_a_plain_network_is_left() -> None:
    model = network(constant=(0, 1, 2))
    slimmed = slim(model, labelled(model), labelled(model, seed=1), max_drop=0, rounds=0)
    assert attached_plan(slimmed.model) is None
    assert slimmed.model.state_dict().keys() == small_resnet().state_dict().keys()
    x = images(*SIZE, seed=2)
    with torch.no_grad():
        assert difference(slimmed.model(x), model(x)) <= 1e-5
        assert difference(slimmed.model(x), detach(copy.deepcopy(model))(x)) > 1e-2
    assert all(point.latency_ms is None for point in slimmed.report.points)


def test_by_stage_the_blocks_of_one_go_together() -> None:
    model = network(constant=(1, 2))
    slimmed = slim(model, labelled(model), labelled(model), max_drop=0, by="stage", rounds=0)
    report = slimmed.report
    assert [(each.name, each.blocks) for each in report.candidates] == [
        ("stage 1", PATHS[1:]),
        ("stage 0", PATHS[:1]),
    ]
    assert report.point.left_out == ("stage 1",)
    assert report.point.blocks == 1


def test_the_budget_that_is_named_can_be_met() -> None:
    model = network(constant=())
    halves = labelled(model), labelled(model, seed=1)
    with pytest.raises(UserError, match="max_drop of 0 points cannot be met") as caught:
        slim(model, *halves, max_drop=0, by="stage", rounds=0)
    assert "\n" not in str(caught.value)
    named = re.search(r"the nearest that can is ([\d.]+)$", str(caught.value))
    assert named
    needed = float(named[1])
    assert needed > 0
    report = slim(model, *halves, max_drop=needed, by="stage", rounds=0).report
    assert report.chosen >= 1
    assert max(report.point.drop, report.held_out_drop) <= needed + 1e-9
    with pytest.raises(UserError, match="cannot be met"):
        slim(model, *halves, max_drop=needed - 0.02, by="stage", rounds=0)


def _disagreeing(model: Any, batches: Batches) -> tuple[float, Batches]:
    """How many points the last block is worth there, and the images that need it."""
    slimmed = slim(model, batches, batches, max_drop=100, rounds=0)
    x, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        wrong = slimmed.model(x).argmax(1) != labels
    assert wrong.any()
    return slimmed.report.points[-1].drop, [(x[wrong], labels[wrong])]


class _Told(_Search):
    """A search whose networks are numbers, and what they lose held out is told."""

    def __init__(self, held: Sequence[int]) -> None:
        self.model, self.held, self.by, self.done, self.total = 0, held, "block", 0, 0
        self.progress = lambda done, total, what: None

    def without(self, paths: Sequence[str]) -> Any:
        return len(paths)

    def score(self, model: Any, loader: Any) -> Score:
        return Score((900 - self.held[model]) / 1000, None, 0.0, 1000)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 9), st.integers(-5, 9)), min_size=1, max_size=6))
def test_the_smallest_within_the_budget_or_the_nearest_budget(wrong: list[tuple[int, int]]) -> None:
    """How many of 1,000 images more each network gets wrong, on either half."""
    wrong = [(0, 0), *wrong]
    paths = [("x",) * count for count in range(len(wrong))]
    points = tuple(
        Point(path, 9, 0, 0, 0, None, score := Score((900 - lost) / 1000, None, 0.0, 1000),
              100 * (0.9 - score.top1))
        for path, (lost, _) in zip(paths, wrong, strict=True)
    )  # fmt: skip
    search = _Told([held for _, held in wrong])
    least = max(0, min(max(pair) for pair in wrong[1:]))
    for budget in range(least + 2):
        met = [n for n, pair in enumerate(wrong) if n and max(pair) <= budget]
        assert bool(met) == (budget >= least)
        if met:
            assert search.choice(paths, points, [], budget / 10)[0] == met[-1]
        else:
            with pytest.raises(UserError, match=f"the nearest that can is {least / 10:g}$"):
                search.choice(paths, points, [], budget / 10)


def test_batches_are_what_a_loader_gives() -> None:
    """Labels as a list, and more than images and labels in a batch."""
    model = network(constant=(0, 1, 2))
    batches = [(x, y.tolist(), "names") for x, y in labelled(model, 8)]
    report = slim(model, batches, batches, max_drop=0, rounds=0).report
    assert report.point.blocks == 0


def test_what_is_too_slim_held_out_is_stepped_back_from() -> None:
    model = network(constant=(0, 2))
    calibration = labelled(model)
    drop, held_out = _disagreeing(model, calibration)
    report = slim(model, calibration, held_out, max_drop=drop, rounds=0).report
    assert report.chosen == 2
    assert report.stepped_back == ((3, pytest.approx(100)),)
    assert report.held_out_drop == 0


def test_a_budget_that_only_the_held_out_images_exceed() -> None:
    model = network(constant=(), sites=PATHS[1])
    calibration = labelled(model)
    drop, held_out = _disagreeing(model, calibration)
    assert 0 < drop < 100
    wanted = "without 1.1.bn2 100.00 .*lost on the held-out images.*nearest that can is 100"
    with pytest.raises(UserError, match=wanted):
        slim(model, calibration, held_out, max_drop=drop, rounds=0)


def test_an_adopted_network() -> None:
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_small_050", num_classes=4)
    adopt(drawn(model))
    halves = [labelled(model, 32, seed=seed, size=(3, 32, 32)) for seed in (0, 1)]
    slimmed = slim(model, *halves, max_drop=100, by="stage", rounds=0)
    assert slimmed.report.kept == {}
    assert slimmed.report.points[0].blocks == len(blocks_of(model)) == 9
    assert not blocks_of(slimmed.model)
    assert slimmed.report.held_out_drop < 100


def test_what_cannot_be_folded_is_kept_and_told() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = drawn(attach(small_resnet(), input_size=SIZE, reduction=2))
            self.se = SqueezeExcite(3, reduction=1)

        def forward(self, x: Tensor) -> Any:
            return self.body(self.se(x).tanh())

    model = Network().eval()
    report = slim(model, labelled(model), labelled(model), max_drop=100, rounds=0).report
    assert list(report.kept) == ["se"]
    assert "after it is 'tanh'" in report.kept["se"]
    assert report.points[-1].blocks == 1
    assert report.worth_csv().splitlines()[-1].startswith(",se,,se,,,,,,")


class _Asking(nn.Module):
    """A forward that wants to know what its block is."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.body, self.fails = network((0, 1, 2)), fails
        self.conv, self.se = nn.Conv2d(3, 3, 1), SqueezeExcite(3, reduction=1)

    def forward(self, x: Tensor) -> Any:
        y = self.se(self.conv(x))
        if self.fails:
            return self.body(y + 0 * self.se.options.gate_scale)  # type: ignore[operator]
        return self.body(y) * (1 if isinstance(self.se, SqueezeExcite) else 2)


@pytest.mark.parametrize(
    ("fails", "why"), [(True, "asks how its modules are made"), (False, "outputs would differ by")]
)
def test_a_forward_that_asks_what_its_block_is_keeps_it(fails: bool, why: str) -> None:
    model = _Asking(fails).eval()
    report = slim(model, labelled(model), labelled(model), max_drop=0, rounds=0).report
    assert list(report.kept) == ["se"]
    assert why in report.kept["se"]
    assert report.point.blocks == 1


def test_the_report_as_files() -> None:
    model = network(constant=(0,))
    report = slim(model, labelled(model), labelled(model), max_drop=0, rounds=1).report
    document = json.loads(report.to_json())
    assert document["chosen"] == report.chosen
    assert document["points"][1]["left_out"] == [report.candidates[0].name]
    worth = list(csv.DictReader(io.StringIO(report.worth_csv())))
    assert [row["name"] for row in worth] == [each.name for each in report.candidates]
    assert {row["top5_drop_points"] for row in worth} == {""}, "of five classes there is none"
    curve = list(csv.DictReader(io.StringIO(report.curve_csv())))
    assert [int(row["blocks"]) for row in curve] == [3, 2, 1, 0]
    assert [row["chosen"] for row in curve].index("1") == report.chosen
    assert float(curve[0]["top1"]) == 1
    assert all(float(row["latency_ms"]) > 0 for row in curve)


# What there is nothing to slim with


def _halves(model: nn.Module) -> tuple[Batches, Batches]:
    return labelled(model), labelled(model, seed=1)


def _once(model: nn.Module) -> tuple[Any, Any]:
    def batches() -> Iterator[Any]:
        yield from labelled(model)

    return batches(), labelled(model)


class _Maps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = small_resnet()[:2]

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def _labels(calibration: Any) -> tuple[Any, Any]:
    return calibration, calibration


_X = images(*SIZE, count=4)
BAD: Mapping[str, tuple[Callable[[], Any], Any, dict[str, Any], str]] = {
    "plain": (small_resnet, None, {}, "Sequential has no SE blocks, so there is nothing to slim"),
    "foreign": (
        lambda: timm.create_model("seresnet18"), None, {}, r"not ours \(layer1.0.se\); senet.adopt"
    ),
    "deployed": (lambda: deploy(network(()), input_size=SIZE), None, {}, "deployed"),
    "no module": (lambda: "runs/x", None, {}, "'runs/x' is no torch.nn.Module"),
    "negative": (lambda: network(()), None, {"max_drop": -1}, "max_drop is -1; it must be points"),
    "nan": (lambda: network(()), None, {"max_drop": math.nan}, "max_drop is nan; it must be"),
    "text": (lambda: network(()), None, {"max_drop": "1"}, "max_drop is 1; it must be"),
    "by": (lambda: network(()), None, {"by": "blocks"}, "by='blocks' is unknown; nearest: 'block'"),
    "generator": (lambda: network(()), _once, {}, "calibration= can be gone through once only"),
    "empty": (lambda: network(()), lambda m: ([], []), {}, "no images to calibrate on"),
    "no images": (
        lambda: network(()), lambda m: _labels([(_X[:0], torch.tensor([]))]), {}, "no images"
    ),
    "no labels": (lambda: network(()), lambda m: _labels([(_X,)]), {}, "without labels"),
    "a data set": (
        lambda: network(()),
        lambda m: _labels(torch.utils.data.TensorDataset(torch.zeros(2, 4), torch.tensor([0, 1]))),
        {},
        r"the forward of Sequential fails on images of shape \(2,\)",
    ),
    "soft labels": (
        lambda: network(()), lambda m: _labels([(_X, torch.rand(4, 5))]), {}, "number of one class"
    ),
    "no labels held out": (
        lambda: network((0, 1)), lambda m: (labelled(m), [_X]), {}, "without labels"
    ),
    "rounds": (lambda: network(()), None, {"rounds": -1}, "rounds=-1 is not a whole number"),
    "none held out": (lambda: network((0, 1)), lambda m: (labelled(m), []), {}, "no images"),
    "classes": (
        lambda: network(()), lambda m: _labels([(_X, torch.tensor([0, 1, 2, 7]))]), {},
        "label 7 in the data, but there are 5 classes",
    ),
    "maps": (
        lambda: attach(_Maps(), input_size=SIZE),
        lambda m: _labels([(_X, torch.tensor([0, 1, 2, 3]))]), {},
        "_Maps does not return logits",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_told_in_a_line(name: str) -> None:
    make, batches, options, message = BAD[name]
    model = make()
    halves = batches(model) if batches else ([], [])
    with pytest.raises(UserError, match=message) as caught:
        slim(model, *halves, **{"rounds": 0} | options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["0.0.weight", "1.1.bn2.se.fc2.weight"])
def test_weights_that_are_no_numbers(name: str) -> None:
    model = network(())
    halves = _halves(model)
    model.get_parameter(name).data[0] = math.nan
    with pytest.raises(UserError, match="not finite; its weights have diverged"):
        slim(model, *halves, rounds=0)


def test_a_gate_that_is_no_number_where_the_output_is() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network((0,))
            self.se = SqueezeExcite(3, reduction=1)
            self.se.fc2.bias.data[0] = math.nan

        def forward(self, x: Tensor) -> Any:
            return self.body(self.se(x).nan_to_num())

    model = Hidden().eval()
    with pytest.raises(UserError, match=r"the gates of .se. are not finite"):
        slim(model, labelled(model), labelled(model), rounds=0)


def test_one_image_of_each_half_is_enough() -> None:
    model = network((0, 1, 2))
    (x, labels), *_ = labelled(model, 2)
    report = slim(model, [(x[:1], labels[:1])], [(x[1:], labels[1:])], by="stage", rounds=0).report
    assert isinstance(report, SlimReport)
    assert report.point.blocks == 0
