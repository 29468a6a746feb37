"""Accumulated gradients, learning rates by layer, stochastic depth, torch.compile: in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from generated import make_image_folder
from torch import Tensor, nn
from torch.nn import functional as F

import senet
from senet.checkpoints import LAST
from senet.data import DataOptions, ImageData, load_data, train_loader, val_loader
from senet.errors import UserError
from senet.fitting import fit, make_trainer
from senet.optimization import make_optimizer, make_schedule
from senet.options import TrainOptions
from senet.run_network import build
from senet.training import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images") / "set"
    return make_image_folder(root, ("cat", "dog"), per_class=10, size=(12, 12))


@pytest.fixture(scope="module")
def data(folder: Path) -> ImageData:
    return load_data(DataOptions(data=str(folder), image_size=8))


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 2))


def small() -> nn.Module:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1))
    model = nn.Sequential(plain, nn.Flatten(), nn.Linear(8, 2))
    return senet.attach(model, input_size=(3, 8, 8), min_hidden=4)


def fitted(
    run: Path, data: ImageData, options: TrainOptions, model: nn.Module | None = None
) -> tuple[nn.Module, list[int]]:
    model, loading = model or linear(), DataOptions(batch_size=options.batch_size)
    trainer = make_trainer(options, run, export=lambda row: None, report=lambda row: None)
    loaders = train_loader(data, loading), val_loader(data, loading)
    rows = fit(trainer, model, *loaders, options, run, classes=2)
    return model, [row.step for row in rows]


def by_hand(data: ImageData, options: TrainOptions) -> nn.Module:
    """The same by a loop that takes the mean over whatever batches a step has."""
    model, loading = linear(), DataOptions(batch_size=options.batch_size)
    loader = train_loader(data, loading)
    optimizer = make_optimizer(model, options)
    steps = -(-len(loader) // options.accumulate)
    schedule = make_schedule(optimizer, options, steps)
    for epoch in range(options.epochs):
        loader.sampler.set_epoch(epoch)
        batches: list[tuple[Tensor, Tensor]] = list(loader)
        for first in range(0, len(batches), options.accumulate):
            window = batches[first : first + options.accumulate]
            losses = [F.cross_entropy(model(images), labels) for images, labels in window]
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            optimizer.step()
            schedule.step()
    return model


@pytest.mark.parametrize(("accumulate", "steps"), [(1, [5, 10]), (2, [3, 6]), (5, [1, 2])])
def test_a_step_is_the_mean_of_its_batches(
    data: ImageData, tmp_path: Path, accumulate: int, steps: list[int]
) -> None:
    """Five batches an epoch: with two a step, the last step of an epoch has one."""
    options = TrainOptions(batch_size=4, epochs=2, lr=0.05, accumulate=accumulate, threads=1)
    model, found = fitted(tmp_path / "run", data, options)
    assert found == steps
    for ours, theirs in zip(model.parameters(), by_hand(data, options).parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_more_batches_a_step_than_there_are(data: ImageData, tmp_path: Path) -> None:
    options = TrainOptions(batch_size=4, epochs=1, lr=0.05, accumulate=50, threads=1)
    model, steps = fitted(tmp_path / "run", data, options)
    assert steps == [1]
    for ours, theirs in zip(model.parameters(), by_hand(data, options).parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_two_batches_are_one_of_twice_the_size(data: ImageData, tmp_path: Path) -> None:
    options = TrainOptions(batch_size=5, epochs=3, lr=0.05, accumulate=2, threads=1)
    two, steps = fitted(tmp_path / "two", data, options)
    whole, same_steps = fitted(
        tmp_path / "one", data, replace(options, batch_size=10, accumulate=1)
    )
    assert steps == same_steps == [2, 4, 6]
    for ours, theirs in zip(two.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def rates_of(model: nn.Module, options: TrainOptions) -> dict[str, float]:
    groups = make_optimizer(model, options).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    return {name: rates[id(p)] for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("se_resnet20", ["stem.", "stage0.unit1.", "stage0.unit2.", "stage2.unit3.", "classifier"]),
        ("se_bn_inception", ["conv1.", "conv2.", "inception_3a.", "inception_5b.", "classifier"]),
        ("se_timm/resnet18", ["conv1.", "layer1.0.", "layer1.1.", "layer4.1.", "fc."]),
        ("timm/convnext_atto", ["stem.", "stages.0.", "stages.2.", "stages.3.", "head."]),
    ],
)
def test_rates_rise_from_layer_to_layer(name: str, order: list[str]) -> None:
    model = senet.create_model(name, num_classes=3)
    rates = rates_of(model, TrainOptions(model=name, lr=1.0, layer_decay=0.8))
    means = []
    for prefix in order:
        found = [rate for parameter, rate in rates.items() if parameter.startswith(prefix)]
        means.append(sum(found) / len(found))
    assert means == sorted(set(means))
    assert means[-1] == 1.0
    assert min(rates.values()) == rates[next(iter(rates))]
    for rate in rates.values():  # each a power of 0.8
        power = torch.tensor(rate).log() / torch.tensor(0.8).log()
        assert abs(power - power.round()) < 1e-3


def test_blocks_have_the_rate_of_their_layer_or_their_own() -> None:
    model = senet.create_model("se_resnet20", num_classes=3)
    usual = TrainOptions(lr=1.0, layer_decay=0.5)
    rates = rates_of(model, usual)
    units: dict[tuple[str, ...], set[float]] = {}
    for name, rate in rates.items():
        units.setdefault(tuple(name.split(".")[:2]), set()).add(rate)
    assert all(len(found) == 1 for found in units.values())
    assert len({name for name in rates if ".se." in name}) == 36
    own = rates_of(model, replace(usual, se_lr=0.3))
    assert {rate for name, rate in own.items() if ".se." in name} == {0.3}
    assert {name: r for name, r in own.items() if ".se." not in name} == {
        name: r for name, r in rates.items() if ".se." not in name
    }


def test_layers_and_weight_decay_go_together() -> None:
    model = senet.create_model("se_resnet20", num_classes=3)
    options = TrainOptions(lr=1.0, layer_decay=0.5, decay_norms=False, weight_decay=0.1)
    for group in make_optimizer(model, options).param_groups:
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] > 0}


def test_the_rate_in_the_metrics_is_the_classifiers(folder: Path, tmp_path: Path) -> None:
    options = TrainOptions(
        data=str(folder), image_size=8, batch_size=4, epochs=1, lr=0.25, warmup_epochs=0,
        schedule="step", layer_decay=0.5, limit_batches=2, threads=1,
    )  # fmt: skip
    (row,) = train(options, tmp_path / "run", say=lambda line: None).rows
    assert row.lr == 0.25


def test_stochastic_depth_reaches_the_network(folder: Path, tmp_path: Path) -> None:
    """The deeper the likelier; blocks are verified as without, and the run can be loaded."""
    options = TrainOptions(
        model="se_timm/resnet18", data=str(folder), image_size=16, batch_size=4, epochs=1,
        limit_batches=1, threads=1, drop_path=0.4,
    )  # fmt: skip
    found = [
        module.drop_prob
        for module in build(options, num_classes=2).modules()
        if type(module).__name__ == "DropPath"
    ]
    assert found == sorted(found)
    assert found[-1] == pytest.approx(0.4)
    lines: list[str] = []
    train(options, tmp_path / "run", say=lines.append)
    assert "8 SE blocks, all wired" in lines[0]
    assert senet.load(tmp_path / "run")(torch.randn(2, 3, 16, 16)).shape == (2, 2)


@pytest.mark.parametrize("name", ["resnet20", "se_resnet50", "timm/vgg11", "timm/dla34"])
def test_no_stochastic_depth_where_there_is_none(name: str) -> None:
    with pytest.raises(UserError, match="has no stochastic depth that drop_path could be for; of"):
        senet.create_model(name, drop_path=0.2)


def test_compiled_it_trains_as_eager(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs are torch.compile's, of norm and block too; what makes code of them is slow."""
    graphs: list[str] = []

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(module.code)
        return module.forward

    plain = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: plain(self, backend=backend))
    options = TrainOptions(batch_size=4, epochs=1, lr=0.1, limit_batches=3, compile=True)
    compiled, steps = fitted(tmp_path / "compiled", data, options, small())
    torch.compiler.reset()
    assert steps == [3]
    assert graphs
    assert not any("batch_norm" in code for code in graphs)  # the traced algebra instead
    eager, _ = fitted(tmp_path / "eager", data, replace(options, compile=False), small())
    assert list(compiled.state_dict()) == list(eager.state_dict())
    for name, tensor in eager.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_run_has_plain_names(folder: Path, tmp_path: Path) -> None:
    """With an average and accumulation; it can be loaded, resumed and evaluated as any other."""
    options = TrainOptions(
        data=str(folder), image_size=8, batch_size=4, epochs=2, limit_batches=2, threads=1,
        compile=True, ema_decay=0.9, accumulate=2,
    )  # fmt: skip

    def stop(line: str) -> None:
        if "epoch 1/2" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(options, tmp_path / "run", say=stop)
    result = train(options, tmp_path / "run", resume=True, say=lambda line: None)
    assert [row.step for row in result.rows] == [1, 2]
    states = torch.load(tmp_path / "run" / LAST, weights_only=True)
    plain = senet.create_model("se_resnet20", num_classes=2).state_dict()
    for part in ("state_dict", "trained_state_dict"):
        assert states[part].keys() == {f"model.{name}" for name in plain}
    assert senet.load(tmp_path / "run").state_dict().keys() == plain.keys()
    train(options, tmp_path / "whole", say=lambda line: None)
    whole = torch.load(tmp_path / "whole" / LAST, weights_only=True)
    for part in ("state_dict", "trained_state_dict"):
        for name, tensor in states[part].items():
            assert torch.equal(tensor, whole[part][name]), name
    train(replace(options, compile=False), tmp_path / "eager", say=lambda line: None)
    eager = torch.load(tmp_path / "eager" / LAST, weights_only=True)["state_dict"]
    for name, tensor in states["state_dict"].items():
        torch.testing.assert_close(tensor, eager[name], rtol=1e-2, atol=1e-3, msg=name)
