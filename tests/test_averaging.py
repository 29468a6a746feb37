"""senet.averaging: the average itself, and that it is what is validated, saved and gone on with."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from breadth import others_slow
from generated import make_image_folder
from torch import Tensor, nn

import senet
from senet.averaging import WeightAverage
from senet.checkpoints import BEST, LAST, TRAINED
from senet.cli import main
from senet.data import load_data, val_loader
from senet.errors import UserError
from senet.evaluation import Evaluation, evaluate
from senet.options import TrainOptions
from senet.run_network import build
from senet.runs import CARD, WEIGHTS, read_card
from senet.training import data_options_of, train

pytestmark = pytest.mark.usefixtures("undrawn")

State = dict[str, Tensor]


def step_of(model: nn.Module, seed: int) -> None:
    """Other weights and statistics, as after a step of an optimizer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator))
            else:
                tensor.add_(1)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))


def expected_average(states: list[State], decay: float) -> dict[str, Tensor]:
    """By the formula, in float64: of floating-point tensors; others are those of the last state."""
    average = {name: tensor.double() for name, tensor in states[0].items()}
    for n, state in enumerate(states[1:], start=1):
        d = min(decay, (1 + n) / (10 + n))
        for name, tensor in state.items():
            average[name] = d * average[name] + (1 - d) * tensor.double()
    whole = {name: t for name, t in states[-1].items() if not t.is_floating_point()}
    return average | whole


def assert_close(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.to(expected[name].dtype), expected[name], msg=name)


@pytest.mark.parametrize("decay", [0.3, 0.9999])
def test_the_average_is_by_its_formula(decay: float) -> None:
    """The window grows at first; buffers too; BatchNorm's count of batches is the last one."""
    model = small()
    average, states = WeightAverage(model, decay), []
    for seed in range(12):
        step_of(model, seed)
        average.update(model)
        states.append(copy.deepcopy(model.state_dict()))
    assert average.steps == 12
    assert_close(average.state_dict(), expected_average(states, decay))
    assert int(average.state_dict()["1.num_batches_tracked"]) == 12


def test_an_exchange_and_back_keeps_every_bit() -> None:
    model = small()
    average = WeightAverage(model, 0.9)
    step_of(model, 1)
    mine, its = copy.deepcopy(model.state_dict()), copy.deepcopy(average.state_dict())
    with average.inside(model):
        assert same(model.state_dict(), its)
        assert same(average.state_dict(), mine)
    assert same(model.state_dict(), mine)
    assert same(average.state_dict(), its)


def test_a_state_is_gone_on_with() -> None:
    model = small()
    whole, first = WeightAverage(model, 0.99), WeightAverage(model, 0.99)
    second = WeightAverage(small(), 0.99)
    for seed in range(8):
        step_of(model, seed)
        whole.update(model)
        (first if seed < 4 else second).update(model)
        if seed == 3:
            second.load_state_dict(copy.deepcopy(first.state_dict()), steps=first.steps)
    assert same(whole.state_dict(), second.state_dict())


def same(ours: State, theirs: State) -> bool:
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> TrainOptions:
    folder = make_image_folder(
        tmp_path_factory.mktemp("data") / "set", ("cat", "dog", "eel"), per_class=16, size=(16, 16)
    )
    return TrainOptions(
        model="resnet20",
        data=str(folder),
        image_size=16,
        batch_size=8,
        epochs=3,
        lr=0.05,
        threads=1,
        ema_decay=0.9,
    )


@pytest.fixture(scope="module")
def run(options: TrainOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("averaged") / "run"
    train(options, made, say=lambda line: None)
    return made


def loaded(path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


def evaluated(options: TrainOptions, weights: State) -> Evaluation:
    data_options = data_options_of(options)
    data = load_data(data_options)
    model = build(options, num_classes=len(data.classes)).eval()
    model.load_state_dict({name.removeprefix("model."): t for name, t in weights.items()})
    return evaluate(model, val_loader(data, data_options), classes=data.classes)


def test_training_itself_is_what_it_was(options: TrainOptions, run: Path, tmp_path: Path) -> None:
    """The average looks on: the weights that are trained are those of a run without it."""
    train(replace(options, ema_decay=None), tmp_path / "plain", say=lambda line: None)
    plain, averaged = loaded(tmp_path / "plain" / LAST), loaded(run / LAST)
    assert TRAINED not in plain
    assert same(averaged[TRAINED], plain["state_dict"])
    assert not same(averaged["state_dict"], averaged[TRAINED])


def test_the_average_of_a_run_is_by_its_formula(options: TrainOptions, tmp_path: Path) -> None:
    """Of SE's too; epochs of one step each show the weights of every step."""
    states: list[State] = []

    def say(line: str) -> None:
        if "loss" in line:
            states.append(loaded(tmp_path / "run" / LAST)[TRAINED])

    chosen = replace(options, model="se_resnet20", epochs=6, limit_batches=1)
    train(chosen, tmp_path / "run", say=say)
    assert len(states) == 6
    average = loaded(tmp_path / "run" / LAST)["state_dict"]
    assert_close(average, expected_average(states, 0.9))


def test_the_averaged_weights_are_validated_saved_and_exported(
    options: TrainOptions, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    last, best = loaded(run / LAST), loaded(run / BEST)
    rows = last["callbacks"]["RunRecorder"]["rows"]
    of_average = evaluated(options, last["state_dict"])
    of_trained = evaluated(options, last[TRAINED])
    assert rows[-1]["val_loss"] == pytest.approx(of_average.loss, rel=1e-5)
    assert rows[-1]["val_top1"] == pytest.approx(of_average.top1)
    assert of_trained.loss != pytest.approx(of_average.loss, rel=1e-3)
    exported = senet.load(run).state_dict()
    assert same({f"model.{name}": t for name, t in exported.items()}, best["state_dict"])
    row = rows[best["epoch"]]
    assert read_card(run).top1 == row["val_top1"]
    assert evaluated(options, best["state_dict"]).loss == pytest.approx(row["val_loss"], rel=1e-5)
    capfd.readouterr()
    assert main(["evaluate", str(run), "--device=cpu", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["top1"] == pytest.approx(row["val_top1"])


def test_a_run_with_an_average_far_from_the_weights(options: TrainOptions, tmp_path: Path) -> None:
    """At a rate that breaks the weights in the last epoch, the average tells other classes."""
    wild = replace(
        options,
        epochs=2,
        schedule="step",
        milestones=(1,),
        gamma=40.0,
        warmup_epochs=0,
        ema_decay=0.99,
    )
    train(wild, tmp_path / "run", say=lambda line: None)
    last = loaded(tmp_path / "run" / LAST)
    row = last["callbacks"]["RunRecorder"]["rows"][-1]
    of_average, of_trained = (evaluated(wild, last[n]) for n in ("state_dict", TRAINED))
    assert of_average.confusion != of_trained.confusion
    assert row["val_top1"] == pytest.approx(of_average.top1)
    assert row["val_loss"] == pytest.approx(of_average.loss, rel=1e-4)


def stopped(options: TrainOptions, run: Path, after: int) -> Path:
    def say(line: str) -> None:
        if f"epoch {after}/" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(options, run, say=say)
    return run


@pytest.fixture(scope="module")
def half(options: TrainOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stopped(options, tmp_path_factory.mktemp("half") / "run", after=1)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"accumulate": 4, "precision": "64-true", "mixup": 0.5},
    ],
    ids=str,
)
def test_a_resumed_run_ends_with_the_same_bits(
    options: TrainOptions, tmp_path: Path, changes: dict[str, Any]
) -> None:
    chosen = replace(options, **changes)
    train(chosen, tmp_path / "whole", say=lambda line: None)
    stopped(chosen, tmp_path / "run", after=1)
    train(chosen, tmp_path / "run", resume=True, say=lambda line: None)
    for name in (LAST, BEST):
        ours, theirs = loaded(tmp_path / "run" / name), loaded(tmp_path / "whole" / name)
        for part in ("state_dict", TRAINED):
            assert same(ours[part], theirs[part]), (name, part)
    for file in (WEIGHTS, CARD):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_weights_are_restored_from_the_best_checkpoint(
    options: TrainOptions, run: Path, tmp_path: Path
) -> None:
    again = Path(shutil.copytree(run, tmp_path / "run"))
    for file in (WEIGHTS, CARD):
        (again / file).unlink()
    train(options, again, resume=True, say=lambda line: None)
    for file in (WEIGHTS, CARD):
        assert (again / file).read_bytes() == (run / file).read_bytes()


def test_another_run_starts_from_the_average(
    options: TrainOptions, run: Path, tmp_path: Path
) -> None:
    """What --init takes is what the run exported; its rate is so low that nothing else happens."""
    after = replace(options, init=str(run), lr=1e-30, weight_decay=0.0, epochs=1, limit_batches=1)
    train(after, tmp_path / "next", say=lambda line: None)
    begun, exported = loaded(tmp_path / "next" / LAST)[TRAINED], senet.load(run)
    for name, parameter in exported.named_parameters():
        assert torch.equal(begun[f"model.{name}"], parameter)


CLASSIFIER = "model.classifier.weight"


def _put(part: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(checkpoint: dict[str, Any]) -> None:
        checkpoint[part][CLASSIFIER] = value

    return change


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "missing": (lambda c: c.pop(TRAINED), "its 'trained_state_dict' is missing"),
    "a list": (lambda c: c.update({TRAINED: [1]}), "its 'trained_state_dict' is damaged"),
    "not a tensor": (_put(TRAINED, 1.0), "its 'trained_state_dict' is damaged"),
    "sparse": (_put(TRAINED, torch.zeros(3, 64).to_sparse()), "damaged"),
    "on meta": (
        _put(TRAINED, torch.zeros(3, 64, device="meta")),
        "'trained_state_dict' is damaged",
    ),
    "of another shape": (_put(TRAINED, torch.zeros(4, 64)), "has another shape for"),
    "of another type": (
        _put(TRAINED, torch.zeros(3, 64, dtype=torch.float16)),
        f"its 'trained_state_dict/{CLASSIFIER}' is missing or damaged",
    ),
    "an average of another shape": (_put("state_dict", torch.zeros(4, 64)), "another shape for"),
    "half of it": (lambda c: c[TRAINED].pop(CLASSIFIER), f"it lacks '{CLASSIFIER}'"),
}


@pytest.mark.parametrize("damage", others_slow(DAMAGES, {"of another shape", "half of it"}))
def test_damage_is_told_in_a_line(
    options: TrainOptions, half: Path, tmp_path: Path, damage: str
) -> None:
    again = Path(shutil.copytree(half, tmp_path / "run"))
    checkpoint = loaded(again / LAST)
    change, words = DAMAGES[damage]
    change(checkpoint)
    torch.save(checkpoint, again / LAST)
    with pytest.raises(UserError) as caught:
        train(options, again, resume=True, say=lambda line: None)
    assert str(caught.value).startswith(f"cannot go on from {again / LAST}: it")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_average_is_not_turned_on_or_off_in_the_midst(
    options: TrainOptions, half: Path
) -> None:
    for other in (None, 0.5):
        with pytest.raises(UserError, match=r"ema_decay is .* but the run in .* has 0\.9"):
            train(replace(options, ema_decay=other), half, resume=True, say=lambda line: None)
