"""senet.training: what a run leaves behind, and what decides it."""

from __future__ import annotations

import copy
import csv
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generated import make_image_folder
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import senet
from senet import training
from senet.checkpoints import BEST, LAST, METRICS, EpochRow, best_row
from senet.classifier import seed_everything
from senet.curves import CURVES
from senet.data import DataOptions, ImageData, load_data, train_loader, val_loader
from senet.errors import UserError
from senet.fitting import fit, make_trainer
from senet.optimization import make_optimizer, make_schedule
from senet.options import TrainOptions, changed_option, options_yaml, read_options
from senet.run_network import build, check_wiring
from senet.runs import CARD, WEIGHTS, read_card
from senet.training import (
    CONFIG,
    data_options_of,
    memory_told,
    plain_twin,
    train,
)
from senet.verification import VerificationError

COLUMNS = [field.name for field in fields(EpochRow)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images") / "set"
    return make_image_folder(root, ("cat", "dog", "eel"), per_class=12, size=(20, 18))


@pytest.fixture(scope="module")
def options(folder: Path) -> TrainOptions:
    return TrainOptions(
        data=str(folder), image_size=16, batch_size=8, epochs=2, lr=0.02, threads=1, twin=True
    )


@pytest.fixture(scope="module")
def pair(options: TrainOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a pair, with everything there is to write."""
    run = tmp_path_factory.mktemp("pair") / "run"
    train(replace(options, tensorboard=True), run)
    return run


def quiet(line: str) -> None:
    assert "\n" not in line


def test_a_run_directory_has_everything(pair: Path) -> None:
    files = {str(path.relative_to(pair)) for path in pair.rglob("*") if path.is_file()}
    own = {str(CONFIG), str(METRICS), str(CURVES), str(LAST), str(BEST), WEIGHTS, CARD}
    board = {name for name in files if name.startswith(("tensorboard", "twin/tensorboard"))}
    twins = {f"twin/{name}" for name in own}
    assert files - board == {*own, *twins, "comparison.json", "comparison.md"}


def test_tensorboard_has_the_metrics(pair: Path) -> None:
    events = EventAccumulator(str(pair / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) >= set(COLUMNS) - {"epoch", "step"}
    with (pair / METRICS).open(newline="") as file:
        expected = {int(row["epoch"]): float(row["val_loss"]) for row in csv.DictReader(file)}
    found = {event.step: event.value for event in events.Scalars("val_loss")}
    assert found == pytest.approx(expected)


def test_metrics_have_a_row_an_epoch(pair: Path, options: TrainOptions) -> None:
    with (pair / METRICS).open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == COLUMNS
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "4"), ("2", "8")]
    values = [{name: float(row[name]) for name in COLUMNS} for row in rows]
    assert all(0 <= row["val_top1"] <= row["val_top5"] == 1 for row in values)
    assert all(0 <= row["train_top1"] <= 1 for row in values)
    assert all(row["seconds"] > 0 and row["images_per_second"] > 0 for row in values)
    assert 0 < values[1]["lr"] < values[0]["lr"] <= options.peak_lr


def test_checkpoints_hold_no_code(pair: Path) -> None:
    for name in (LAST, BEST):
        checkpoint = torch.load(pair / name, weights_only=True)
        assert checkpoint["optimizer_states"]
        assert all(key.startswith("model.") for key in checkpoint["state_dict"])


def test_the_exported_weights_are_those_of_the_best_epoch(pair: Path) -> None:
    best = torch.load(pair / BEST, weights_only=True)["state_dict"]
    exported = senet.load(pair).state_dict()
    assert {f"model.{key}" for key in exported} == set(best)
    assert all(torch.equal(best[f"model.{key}"], value) for key, value in exported.items())


def test_the_card_says_what_is_in_it(pair: Path, options: TrainOptions) -> None:
    card = read_card(pair)
    with (pair / METRICS).open(newline="") as file:
        tops = [float(row["val_top1"]) for row in csv.DictReader(file)]
    assert (card.name, card.data, card.seed) == (options.model, options.data, options.seed)
    assert (card.classes, card.image_size) == (("cat", "dog", "eel"), 16)
    assert card.top1 == max(tops)
    assert card.plan is not None
    assert len(card.plan["sites"]) == 9
    twin = read_card(pair / "twin")
    assert (twin.name, twin.plan) == ("resnet20", None)


def test_the_noted_options_are_those_of_the_run(pair: Path, options: TrainOptions) -> None:
    assert read_options(pair / CONFIG) == replace(options, tensorboard=True)
    assert read_options(pair / "twin" / CONFIG).model == "resnet20"


def test_the_pair_is_compared(pair: Path, options: TrainOptions) -> None:
    document = json.loads((pair / "comparison.json").read_text())
    assert (document["plain"]["name"], document["se"]["name"]) == ("resnet20", "se_resnet20")
    for member in ("plain", "se"):
        run = pair if member == "se" else pair / "twin"
        model = senet.load(run)
        assert document[member]["top1"] == read_card(run).top1
        assert document[member]["parameters"] == sum(p.numel() for p in model.parameters())
        assert document[member]["step_ms"] > 0
    assert document["se"]["macs"] > document["plain"]["macs"] > 0
    assert document["se"]["saved_bytes"] > document["plain"]["saved_bytes"] > 0
    assert (document["batch_size"], document["image_size"]) == (options.batch_size, 16)
    table = (pair / "comparison.md").read_text()
    for column in ("top-1", "parameters", "MACs", "ms a step", "saved for backward"):
        assert column in table.splitlines()[0]
    assert table.count("resnet20 |") == 2


def test_the_pair_is_drawn_in_one_picture(pair: Path) -> None:
    """The plain network in blue, its SE twin in orange; the plain run alone has but one colour."""
    colours = []
    for run in (pair, pair / "twin"):
        with Image.open(run / CURVES) as image:
            picture = np.asarray(image.convert("RGB"))
        colours.append(
            [(picture == c).all(-1).sum() > 100 for c in ((31, 111, 180), (217, 115, 13))]
        )
    assert colours == [[True, True], [True, False]]


def test_twins_start_alike_and_see_the_same_images(options: TrainOptions) -> None:
    states = []
    for each in (options, plain_twin(options)):
        seed_everything(each.seed)
        states.append(build(each, num_classes=3).state_dict())
    se, plain = states
    shared = {key.replace(".norm.", "."): value for key, value in se.items() if ".se." not in key}
    assert shared.keys() == plain.keys()
    assert all(torch.equal(shared[key], plain[key]) for key in plain)
    assert plain_twin(replace(options, reduction=4, bias=False, warm_start=True)) == replace(
        options, model="resnet20", twin=False
    )


def test_a_plain_network_has_no_twin(options: TrainOptions, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="use se_resnet20"):
        train(replace(options, model="resnet20"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(run / LAST, weights_only=True)["state_dict"]
    return weights


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_seed_decides(options: TrainOptions, pair: Path, tmp_path: Path) -> None:
    single = plain_twin(options)
    train(single, tmp_path / "again", say=quiet)
    train(replace(single, seed=8), tmp_path / "other", say=quiet)
    assert same(last_weights(tmp_path / "again"), last_weights(pair / "twin"))
    assert not same(last_weights(tmp_path / "other"), last_weights(pair / "twin"))


@contextmanager
def inner_types() -> Iterator[dict[str, set[torch.dtype]]]:
    """The types of what convolutions and norms with their blocks put out in training steps."""
    seen: dict[str, set[torch.dtype]] = {"Conv2d": set(), "Recalibrated": set()}

    def note(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        kind = type(module).__name__
        if module.training and kind in seen and len(output) == 8:  # the wiring is seen on four
            seen[kind].add(output.dtype)

    handle = nn.modules.module.register_module_forward_hook(note)
    yield seen
    handle.remove()


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw", "lr": 1e-3, "decay_norms": False, "precision": "bf16-mixed"},
        pytest.param(
            {"schedule": "step", "milestones": (1,), "label_smoothing": 0.1, "clip_norm": 1.0},
            marks=pytest.mark.slow,
        ),
        {"model": "se_timm/test_resnet", "warm_start": True, "placement": "pre", "workers": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_options_reach_the_run(
    options: TrainOptions, tmp_path: Path, changes: dict[str, object]
) -> None:
    chosen = replace(options, twin=False, limit_batches=1, **changes)
    with inner_types() as seen:
        result = train(chosen, tmp_path / "run", say=quiet)
    expected = torch.bfloat16 if chosen.precision == "bf16-mixed" else torch.float32
    assert seen == {"Conv2d": {expected}, "Recalibrated": {expected}}
    assert [row.step for row in result.rows] == [1, 2]
    assert read_options(tmp_path / "run" / CONFIG) == chosen
    assert senet.load(tmp_path / "run")(torch.randn(2, 3, 16, 16)).shape == (2, 3)


def test_clipping_and_smoothing_change_the_steps(options: TrainOptions, tmp_path: Path) -> None:
    plain = replace(options, model="resnet20", twin=False, limit_batches=1, epochs=1)
    weights = []
    for number, changes in enumerate(({}, {"clip_norm": 1e-3}, {"label_smoothing": 0.5})):
        run = tmp_path / str(number)
        train(replace(plain, **changes), run, say=quiet)
        weights.append(last_weights(run))
    assert not same(weights[0], weights[1])
    assert not same(weights[0], weights[2])


class Dropping(nn.Module):
    """A small network whose training draws from the global generator."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(x)
        return logits


@pytest.fixture(scope="module")
def data(folder: Path) -> ImageData:
    return load_data(DataOptions(data=str(folder), image_size=16, batch_size=8))


def fit_dropping(run: Path, data: ImageData, options: TrainOptions, *, stop_after: int) -> None:
    def report(row: EpochRow) -> None:
        if row.epoch == stop_after:
            raise KeyboardInterrupt

    seed_everything(3)
    loading = DataOptions(batch_size=8, workers=options.workers)
    trainer = make_trainer(options, run, export=lambda row: None, report=report)
    fit(
        trainer,
        Dropping(3),
        train_loader(data, loading),
        val_loader(data, loading),
        options,
        run,
        classes=3,
    )


@pytest.mark.parametrize("workers", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_chance_inside_the_network_is_resumed_too(
    data: ImageData, tmp_path: Path, workers: int
) -> None:
    options = TrainOptions(epochs=3, lr=0.1, workers=workers, threads=1)
    fit_dropping(tmp_path / "whole", data, options, stop_after=9)
    with pytest.raises(KeyboardInterrupt):
        fit_dropping(tmp_path / "run", data, options, stop_after=1)
    torch.rand(17)  # whatever the process drew meanwhile
    fit_dropping(tmp_path / "run", data, options, stop_after=9)
    assert same(last_weights(tmp_path / "run"), last_weights(tmp_path / "whole"))


class Bypassed(nn.Module):
    """A network that calls its convolutions and forgets the block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.se = senet.SqueezeExcite(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(x).mean((2, 3))
        return out


def test_wiring_is_checked_before_the_first_step(
    data: ImageData, options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_wiring(build(plain_twin(options), num_classes=3), data) == 0
    assert check_wiring(build(options, num_classes=3), data) == 9
    monkeypatch.setattr("senet.training.build", lambda options, num_classes: Bypassed())
    with pytest.raises(VerificationError, match="se"):
        train(replace(options, twin=False), tmp_path / "run", say=quiet)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_explodes_stops_and_leaves_the_best(
    options: TrainOptions, tmp_path: Path
) -> None:
    """The second epoch's learning rate is 1e28: the loss is lost within it."""
    sound = replace(
        plain_twin(options), schedule="step", milestones=(1,), gamma=1e30, warmup_epochs=0
    )
    train(replace(sound, epochs=1), tmp_path / "one", say=quiet)
    with pytest.raises(UserError, match=r"loss is not finite at step [567]: .*lower --lr"):
        train(sound, tmp_path / "run", say=quiet)
    for name in (WEIGHTS, CARD):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    best = torch.load(tmp_path / "run" / BEST, weights_only=True)
    assert best["epoch"] == 0
    assert same(last_weights(tmp_path / "run"), last_weights(tmp_path / "one"))


def test_weights_that_only_validation_finds_broken_stop_too(
    options: TrainOptions, tmp_path: Path
) -> None:
    """One step: its loss was finite, what it did to the weights is not."""
    once = replace(plain_twin(options), epochs=1, limit_batches=1, lr=1e38, warmup_epochs=0)
    with pytest.raises(UserError, match="validation loss is not finite at step 1"):
        train(once, tmp_path / "run", say=quiet)
    assert {path.name for path in (tmp_path / "run").rglob("*")} == {"config.yaml"}


def test_threads_are_those_asked_for_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning would divide the cores among processes, where the environment says nothing."""
    before = torch.get_num_threads()
    for said in (None, "7"):
        if said is None:
            monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        else:
            monkeypatch.setenv("OMP_NUM_THREADS", said)
        with training._threads(2):
            assert torch.get_num_threads() == 2
            assert os.environ["OMP_NUM_THREADS"] == "2"
        assert torch.get_num_threads() == before
        with training._threads(None):
            assert os.environ.get("OMP_NUM_THREADS") == said
        assert os.environ.get("OMP_NUM_THREADS") == said


def test_a_twin_is_timed_with_no_more_images_than_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("senet.cost.step_seconds", lambda *_, **__: 1.0)  # 84 of 1,438 images
    options = TrainOptions(
        data="digits", image_size=8, batch_size=100_000, epochs=1, twin=True, threads=1
    )
    result = train(options, tmp_path / "run", say=lambda line: None)
    assert result.comparison is not None
    assert result.comparison.batch_size == 1438
    again = train(options, tmp_path / "run", resume=True, say=lambda line: None)
    assert again.comparison == result.comparison, "what was timed is not timed anew"
    (tmp_path / "run" / "comparison.json").write_text("{}")
    again = train(options, tmp_path / "run", resume=True, say=lambda line: None)
    assert again.comparison is not None
    assert again.comparison.plain.macs == result.comparison.plain.macs


def test_images_that_are_not_finite_stop_at_the_first_step(data: ImageData, tmp_path: Path) -> None:
    class Broken(Dropping):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x / 0)

    options = TrainOptions(epochs=1, threads=1)
    loading = DataOptions(batch_size=8)
    trainer = make_trainer(options, tmp_path, export=lambda row: None, report=lambda row: None)
    with pytest.raises(UserError, match="training loss is not finite at step 1"):
        fit(
            trainer,
            Broken(3),
            train_loader(data, loading),
            val_loader(data, loading),
            options,
            tmp_path,
            classes=3,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_steps_on_a_cpu_are_one_kernel_and_what_the_plain_optimizer_does(kind: Any) -> None:
    """Also for a parameter whose gradient comes later than the others'."""
    options = TrainOptions(optimizer=kind.__name__.lower(), lr=0.1, weight_decay=0.1)
    one = nn.Sequential(nn.Linear(17, 5), nn.Linear(5, 3)).double()
    other = copy.deepcopy(one)
    ours = make_optimizer(one, options)
    assert all(group["fused"] for group in ours.param_groups)
    group = {k: v for k, v in ours.param_groups[0].items() if k not in ("params", "fused")}
    plain = kind([{**group, "params": list(other.parameters())}], fused=False)
    x = torch.randn(8, 17, dtype=torch.float64)
    for step in range(4):
        for model, moves in ((one, ours), (other, plain)):
            (model(x) if step else model[0](x)).square().sum().backward()
            moves.step()
            moves.zero_grad()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_run_that_was_begun_with_another_kernel_goes_on_with_it() -> None:
    layer = nn.Linear(2, 2)
    ours = make_optimizer(layer, TrainOptions())
    state = ours.state_dict()
    for group in state["param_groups"]:
        group["fused"] = None  # as older checkpoints have it
    ours.load_state_dict(state)
    assert [group["fused"] for group in ours.param_groups] == [None]
    layer.weight.sum().backward()  # the bias has no gradient, and gets no momentum
    ours.step()
    assert list(ours.state) == [layer.weight]


def test_gradients_are_clipped_in_mixed_precision(options: TrainOptions, tmp_path: Path) -> None:
    clipped = replace(
        options, accelerator="cpu", precision="bf16-mixed", clip_norm=1e-9, weight_decay=0.0
    )
    clipped = replace(clipped, epochs=1, limit_batches=2, twin=False)
    train(clipped, tmp_path / "run", say=quiet)
    seed_everything(clipped.seed)
    begun = dict(build(clipped, num_classes=3).named_parameters())
    ended = dict(senet.load(tmp_path / "run").named_parameters())
    assert begun.keys() == ended.keys()
    for name, parameter in begun.items():
        torch.testing.assert_close(ended[name], parameter, rtol=0, atol=1e-8)


def rates(options: TrainOptions, steps: int) -> list[float]:
    optimizer = make_optimizer(nn.Linear(2, 2), options)
    schedule = make_schedule(optimizer, options, steps)
    used = []
    for _ in range(options.epochs * steps):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return used


def test_steps_fall_after_their_epochs() -> None:
    options = TrainOptions(epochs=6, lr=0.6, schedule="step", milestones=(2, 4), warmup_epochs=0)
    assert rates(options, 5) == pytest.approx([0.6] * 10 + [0.06] * 10 + [0.006] * 10)


def test_warm_up_rises_and_milestones_stay_where_they_are() -> None:
    options = TrainOptions(
        epochs=4, lr=1, schedule="step", milestones=(2,), warmup_epochs=1, warmup_factor=0.2
    )
    expected = [0.2, 0.4, 0.6, 0.8, *[1.0] * 4, *[0.1] * 8]
    assert rates(options, 4) == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [0, 0.5])
def test_cosine_falls_to_nearly_nothing(warmup: float) -> None:
    options = TrainOptions(epochs=4, lr=1, warmup_epochs=warmup)
    used = rates(options, 10)
    rise = int(warmup * 10)
    assert used[rise] == pytest.approx(1)
    assert used[:rise] == sorted(used[:rise])
    assert used[rise:] == sorted(used[rise:], reverse=True)
    assert used[rise + (40 - rise) // 2] == pytest.approx(0.5, abs=0.05)
    assert used[-1] < 0.01


def test_an_empty_list_of_milestones_keeps_the_rate() -> None:
    options = TrainOptions(epochs=3, lr=0.5, schedule="step", milestones=(), warmup_epochs=0)
    assert set(rates(options, 2)) == {0.5}


def test_norms_and_biases_may_go_without_decay() -> None:
    model = senet.create_model("se_resnet20", num_classes=10)
    groups = make_optimizer(model, TrainOptions(decay_norms=False)).param_groups
    spared = [g for g in groups if g["weight_decay"] == 0]
    assert {p.ndim for g in spared for p in g["params"]} == {1}
    assert all(p.ndim > 1 for g in groups if g["weight_decay"] for p in g["params"])
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    everything = make_optimizer(model, TrainOptions()).param_groups
    assert {g["weight_decay"] for g in everything} == {TrainOptions().weight_decay}


def test_optimizers_have_their_own_rates() -> None:
    assert TrainOptions().peak_lr == 0.1
    assert TrainOptions(optimizer="adamw").peak_lr == 0.001
    assert TrainOptions(optimizer="adamw", lr=0.3).peak_lr == 0.3


def test_the_best_row_is_the_first_of_the_equal() -> None:
    row = EpochRow(1, 1, 1.0, 0.5, 0.9, 1.0, 0.1, 1.0, 1.0)
    better = replace(row, epoch=2, val_loss=0.4)
    assert best_row([row, replace(row, epoch=3)]) is row
    assert best_row([row, better, replace(better, epoch=4)]) is better
    assert best_row([better, higher := replace(row, epoch=5, val_top1=0.91)]) is higher


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 0}, "epochs is 0, but must be at least 1"),
        ({"lr": 0.0}, "lr is 0.0, but must be above 0"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"milestones": (3, 2)}, "milestones is"),
        ({"val_fraction": 1.0}, "val_fraction is 1.0"),
        ({"warmup_factor": 0.0}, "warmup_factor is 0.0"),
        ({"devices": 0}, "devices is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0"),
        ({"momentum": 0.0}, "nesterov needs a momentum"),
    ],
)
def test_values_out_of_range_are_named(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        TrainOptions(**changes)


def test_options_survive_their_yaml(tmp_path: Path) -> None:
    options = TrainOptions(reduction=4, milestones=(3, 9), lr=0.25, devices="auto", twin=True)
    (tmp_path / "options.yaml").write_text(options_yaml(options))
    assert read_options(tmp_path / "options.yaml") == options
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_options(tmp_path / "empty.yaml") == TrainOptions()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoks: 3", "unknown option epoks; nearest: epochs"),
        ("epochs: many", "option epochs is many, but must be a whole number"),
        ("optimizer: adam", "must be sgd or adamw"),
        ("- 1", "option: value"),
        ("a: [", "cannot read"),
        ("lr: -1", "lr is -1.0, but must be above 0"),
    ],
)
def test_a_wrong_yaml_is_told_in_a_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "options.yaml").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read_options(tmp_path / "options.yaml")
    assert "options.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_changes_the_result_is_found() -> None:
    options = TrainOptions()
    assert changed_option(options, replace(options, workers=3, data_root="x", twin=True)) is None
    assert changed_option(options, replace(options, momentum=0.5)) == "momentum"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"accelerator": "abacus"}, "cannot train with accelerator=abacus"),
        ({"accelerator": "cpu", "devices": 5000}, "devices is 5000"),
    ],
)
def test_devices_that_are_not_there(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    options = TrainOptions(**changes)
    with pytest.raises(UserError, match=words):
        make_trainer(options, tmp_path, export=lambda row: None, report=lambda row: None)


def test_memory_that_is_not_there_is_told_in_a_line() -> None:
    with pytest.raises(UserError, match="not enough memory for") as caught, memory_told():
        torch.empty(2**60)
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="shape"), memory_told():  # a fault of ours is one
        torch.zeros(2, 3) @ torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("model", "data", "size"),
    [
        ("se_resnet20", "some/folder", 32),
        ("resnet50", "some/folder", 224),
        ("se_resnet20", "digits", None),
    ],
)
def test_a_folder_is_seen_at_the_size_that_the_network_is_for(
    model: str, data: str, size: int | None
) -> None:
    assert data_options_of(TrainOptions(model=model, data=data)).image_size == size
    assert data_options_of(TrainOptions(model=model, data=data, image_size=48)).image_size == 48
