"""The command line is a contract: options come and go on purpose, and --help tells each default."""

from __future__ import annotations

import importlib
import re
from dataclasses import fields
from inspect import signature

import pytest

from senet.cli import COMMANDS, main
from senet.options import TrainOptions
from senet.placement import plan

BLOCKS = {
    *("placement", "sites", "reduction", "hidden", "min_hidden", "divisor", "bias"),
    *("gate", "activation", "squeeze"),
}
OPTIONS = {
    "train": {
        *("config", "print_config", "out", "resume", "progress"),
        *(
            "model",
            "data",
            "val_data",
            "load_timeout",
            "cache",
            "data_root",
            "download",
            "image_size",
            "val_fraction",
            "augment",
        ),
        *("batch_size", "workers", "epochs", "seed", "optimizer", "lr", "momentum", "nesterov"),
        *("weight_decay", "decay_norms", "schedule", "milestones", "gamma", "warmup_epochs"),
        *("warmup_factor", "label_smoothing", "clip_norm", "pretrained", "init", "se_lr"),
        *("warm_start", "precision", "accelerator", "devices", "threads", "twin", "tensorboard"),
        *("limit_batches", "rand_augment", "erase", "repeats", "mixup", "cutmix", "mix_prob"),
        *("accumulate", "ema_decay", "drop_path", "layer_decay", "compile", *BLOCKS),
        *("nodes", "strategy", "sync_batchnorm", "peer_timeout"),
    },
    "sweep": set(),
    "evaluate": {
        "data",
        "val_data",
        "part",
        "data_root",
        "batch_size",
        "workers",
        "device",
        "json",
    },
    "predict": {"top", "device", "json"},
    "export": {
        *("format", "out", "as_trained", "image_size", "opset", "tolerance", "batch", "json"),
    },
    "inspect": {
        *("out", "data", "classes", "blocks", "channels", "examples", "permutations", "gates"),
        *("val_data", "data_root", "batch_size", "workers", "device", "json"),
    },
    "pack": {"out", "shard_size", "val_fraction", "seed", "json"},
    "slim": {
        *("data", "val_data", "data_root", "max_drop", "by", "out", "finetune", "rounds"),
        *("batch_size", "workers", "cache", "device", "json"),
    },
    "plan": {"image_size", "scope", "json", *BLOCKS},
    "tables": {"format", "results", "out", "json"},
    "bench": {
        *("columns", "batch", "infer_batch", "image_size", "layout", "dtype", "rounds"),
        *("device", "threads", "csv", "json"),
    },
}
ONE_RUN = {"config", "print_config", "resume", "seed", "twin"}
SEVERAL_DEVICES = {"devices", "nodes", "strategy", "sync_batchnorm", "peer_timeout"}
OPTIONS["sweep"] = (OPTIONS["train"] - ONE_RUN - SEVERAL_DEVICES) | {
    *("variants", "seeds", "retry", "jobs", "json"),
}
WITHOUT_DEFAULT = {"help", "config", "print_config"}


def help_of(command: str, capfd: pytest.CaptureFixture[str]) -> str:
    capfd.readouterr()
    assert main([command, "--help"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    return " ".join(out.split())


def test_every_command_is_known() -> None:
    assert set(COMMANDS) == set(OPTIONS)


@pytest.mark.parametrize("command", OPTIONS)
def test_options_are_these(command: str) -> None:
    parser = importlib.import_module(COMMANDS[command][0]).parser()
    names = {name for action in parser._actions for name in action.option_strings}
    long = {name.removeprefix("--") for name in names if name.startswith("--")}
    assert {name for name in long if not name.startswith("no_")} == {"help", *OPTIONS[command]}


@pytest.mark.parametrize("command", OPTIONS)
def test_help_tells_every_option_and_its_default(
    command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    text = help_of(command, capfd)
    parser = importlib.import_module(COMMANDS[command][0]).parser()
    for action in parser._actions:
        for name in action.option_strings:
            assert name in text
        if action.required:
            continue
        if action.dest not in WITHOUT_DEFAULT:
            shown = re.escape("null" if action.default is None else str(action.default))
            described = " ".join((action.help or "").replace("%%", "%").split())
            assert described, action.dest
            assert re.search(rf"{re.escape(described)} \([^()]*default: {shown}", text), action.dest
    assert text.count("required") == sum(action.required for action in parser._actions)


def test_plan_has_the_options_of_the_function() -> None:
    parser = importlib.import_module(COMMANDS["plan"][0]).parser()
    parameters = signature(plan).parameters
    options = {name: parser.get_default(name) for name in {*BLOCKS, "scope"}}
    assert set(options) == set(parameters) - {"model", "input_size", "example_inputs"}
    for name in set(options) - {"min_hidden"}:  # the network's own
        assert options[name] == parameters[name].default, name


def test_the_size_of_images_in_a_folder_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        "the data set's own, for a folder the network's (32 for resnet20, 224 for resnet50)"
        in help_of("train", capfd)
    )


def test_training_options_have_a_line_and_a_default_each(
    capfd: pytest.CaptureFixture[str],
) -> None:
    text = help_of("train", capfd)
    for field in fields(TrainOptions):
        default = "null" if field.default is None else field.default
        assert f"--{field.name}" in text
        assert f"default: {default})" in text
