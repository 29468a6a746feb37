"""Any valid combination of training options: it is written and read back, and can train."""

from __future__ import annotations

import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from generated import make_image_folder
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from torch import nn

import senet
from senet.optimization import make_optimizer, make_schedule
from senet.options import TrainOptions, changed_option, options_yaml, read_options
from senet.training import train

LEARNING: dict[str, st.SearchStrategy[Any]] = {
    "epochs": st.integers(1, 6),
    "optimizer": st.sampled_from(["sgd", "adamw"]),
    "lr": st.none() | st.floats(1e-12, 1e6),
    "se_lr": st.none() | st.floats(1e-12, 1e6),
    "momentum": st.floats(0.01, 0.999),
    "nesterov": st.booleans(),
    "weight_decay": st.floats(0, 10),
    "decay_norms": st.booleans(),
    "schedule": st.sampled_from(["cosine", "step"]),
    "milestones": st.sets(st.integers(1, 9)).map(lambda some: tuple(sorted(some))),
    "gamma": st.floats(1e-6, 1),  # a larger one raises the rate beyond its peak, as asked
    "warmup_epochs": st.floats(0, 9),
    "warmup_factor": st.floats(1e-6, 1),
    "label_smoothing": st.floats(0, 0.99),
    "clip_norm": st.none() | st.floats(1e-6, 1e6),
    "layer_decay": st.none() | st.floats(0.01, 1),
}
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
REST: dict[str, st.SearchStrategy[Any]] = {
    "data": TEXTS.filter(str.strip),
    "data_root": TEXTS.filter(str.strip),
    "init": st.none() | TEXTS.filter(str.strip),
    "image_size": st.none() | st.integers(1, 16_384),
    "val_fraction": st.floats(0.001, 0.999),
    "batch_size": st.integers(1, 10**9),
    "workers": st.integers(0, 10**6),
    "seed": st.integers(0, 2**63 - 1),
    "sites": st.none() | st.sampled_from(["4", "4,5", "stage2.*", "0, *.bn2"]),
    "reduction": st.floats(0.001, 1e6)
    | st.dictionaries(TEXTS, st.floats(0.001, 1e6), min_size=1, max_size=3),
    "hidden": st.none() | st.integers(1, 65_536),
    "bias": st.booleans(),
    "precision": st.sampled_from(["32-true", "bf16-mixed", "16-mixed", "64-true"]),
    "devices": st.just("auto") | st.integers(1, 10**6),
    "nodes": st.integers(1, 10**6),
    "strategy": st.sampled_from(["auto", "ddp", "ddp_find_unused_parameters_true", "fsdp"]),
    "sync_batchnorm": st.booleans(),
    "peer_timeout": st.floats(1, 10**6),
    "threads": st.none() | st.integers(1, 1024),
    "limit_batches": st.none() | st.integers(1, 10**9),
    "twin": st.booleans(),
    "val_data": st.none() | TEXTS.filter(str.strip),
    "load_timeout": st.none() | st.floats(1, 1e6),
    "cache": st.booleans(),
    "rand_augment": st.none() | st.integers(0, 30),
    "erase": st.floats(0, 1),
    "repeats": st.integers(1, 16),
    "mixup": st.just(0.0) | st.floats(1e-3, 10),
    "cutmix": st.just(0.0) | st.floats(1e-3, 10),
    "mix_prob": st.floats(0, 1),
    "accumulate": st.integers(1, 1000),
    "ema_decay": st.none() | st.floats(0.01, 0.99999),
    "drop_path": st.floats(0, 0.9),
    "compile": st.booleans(),
    "accelerator": st.sampled_from(["auto", "cpu", "gpu", "mps"]),
    "activation": st.sampled_from(["relu", "silu", "gelu", "hard_swish"]),
    "augment": st.booleans(),
    "divisor": st.none() | st.integers(1, 65_536),
    "download": st.booleans(),
    "gate": st.sampled_from(["sigmoid", "hard_sigmoid", "tanh", "relu"]),
    "min_hidden": st.none() | st.integers(1, 65_536),
    "model": st.sampled_from(["se_resnet20", "se_timm/resnet18"]),
    "placement": st.sampled_from(["standard", "pre", "post", "identity", "inner"]),
    "pretrained": st.booleans(),
    "squeeze": st.sampled_from(["avg", "max", "none"]),
    "tensorboard": st.booleans(),
    "warm_start": st.booleans(),
}
SHORT: dict[str, st.SearchStrategy[Any]] = {
    **LEARNING,
    **{name: REST[name] for name in ("augment", "bias", "placement", "squeeze", "activation")},
    **{name: REST[name] for name in ("cache", "rand_augment", "erase", "cutmix", "mix_prob")},
    **{name: REST[name] for name in ("mixup", "ema_decay", "seed")},
    "epochs": st.just(1),
    "lr": st.none() | st.floats(1e-6, 0.1),
    "se_lr": st.none() | st.floats(1e-6, 0.1),
    "weight_decay": st.floats(0, 0.01),
    "repeats": st.integers(1, 2),
    "accumulate": st.integers(1, 2),
    "reduction": st.floats(1, 16),
    "min_hidden": st.none() | st.integers(1, 8),
    "divisor": st.none() | st.integers(1, 8),
    "precision": st.sampled_from(["32-true", "bf16-mixed", "64-true"]),
    "sites": st.none() | st.just("0,1"),
    # Only of these gates can a warm start be made.
    "gate": st.sampled_from(["sigmoid", "hard_sigmoid"]),
    "warm_start": st.booleans(),
}
"""Options of a short training of a small network on a few images."""


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Convolutions, norms, a linear layer and a block."""
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return senet.attach(nn.Sequential(plain, nn.Linear(8, 2)), input_size=(3, 8, 8))


@given(values=st.fixed_dictionaries(LEARNING), steps=st.integers(1, 7))
@settings(max_examples=50, deadline=None)
def test_any_combination_has_an_optimizer_and_a_rate_within_its_peak(
    network: nn.Module, values: dict[str, Any], steps: int
) -> None:
    options = TrainOptions(**values)
    optimizer = make_optimizer(network, options)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters())
    schedule = make_schedule(optimizer, options, steps)
    peaks = [group["initial_lr"] for group in optimizer.param_groups]
    named = {options.peak_lr, options.se_lr or options.peak_lr}
    assert set(peaks) <= named if options.layer_decay is None else 0 < max(peaks) <= max(named)
    for _ in range(options.epochs * steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            assert 0 <= group["lr"] <= peak * (1 + 1e-9)
        optimizer.step()
        schedule.step()
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        assert -1e-9 * peak <= group["lr"] <= peak * (1 + 1e-9)


@given(values=st.fixed_dictionaries({}, optional=LEARNING | REST))
@example(values={"val_data": "#", "init": "# a run", "data": "~"})
@settings(max_examples=50, deadline=None)
def test_any_combination_survives_its_yaml(values: dict[str, Any]) -> None:
    options = TrainOptions(**values)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "config.yaml")
        path.write_text(options_yaml(options), encoding="utf-8")
        again = read_options(path, whole=True)
    assert again == options
    assert changed_option(options, again) is None


def test_every_option_is_drawn() -> None:
    assert {*LEARNING, *REST} == {field.name for field in fields(TrainOptions)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_folder(tmp_path_factory.mktemp("images") / "set", size=(16, 16))


@given(values=st.fixed_dictionaries(SHORT))
@settings(max_examples=5, deadline=None, phases=[Phase.generate])
def test_any_combination_trains(folder: Path, values: dict[str, Any]) -> None:
    options = TrainOptions(
        **values, data=str(folder), image_size=16, batch_size=4, limit_batches=1, threads=1
    )
    with tempfile.TemporaryDirectory() as place:
        (row,) = train(options, Path(place, "run"), say=lambda line: None).rows
        assert row.step == 1
        assert read_options(Path(place, "run", "config.yaml"), whole=True) == options
        logits = senet.load(Path(place, "run"))(torch.zeros(1, 3, 16, 16))
        assert logits.shape == (1, 2)
        assert logits.isfinite().all()
