"""senet.options: the options of SE from the command line to the network, and what is refused."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

import senet
from senet.cli import main
from senet.commands.parsing import parse
from senet.commands.train import parser
from senet.errors import UserError
from senet.insertion import attached_plan
from senet.models import create_model
from senet.options import TrainOptions, changed_option, in_yaml, options_yaml, read_options
from senet.run_network import build
from senet.runs import read_card
from senet.training import CONFIG, train

SE: dict[str, object] = {
    "placement": "pre",
    "sites": "0,stage2.*",
    "reduction": {"2": 4.0, "*": 8.0},
    "hidden": 3,
    "min_hidden": 2,
    "divisor": 4,
    "bias": False,
    "gate": "hard_sigmoid",
    "activation": "silu",
    "squeeze": "max",
    "warm_start": True,
}
"""For each option of SE another value than its default."""

TRIAL = ("--data=digits", "--image_size=8", "--epochs=1", "--limit_batches=1", "--threads=1")


def test_every_option_of_the_blocks_is_one_of_training() -> None:
    """What `create_model` takes, `senet train` takes too."""
    taken = set(create_model.__kwdefaults__) - {"num_classes", "pretrained", "drop_path"}
    assert taken == set(SE)
    assert taken <= {field.name for field in fields(TrainOptions)}


@pytest.mark.parametrize("name", [name for name in SE if name != "warm_start"])
def test_each_option_reaches_the_blocks(name: str) -> None:
    torch.manual_seed(0)
    usual, changed = (
        attached_plan(build(TrainOptions(**given), num_classes=10))
        for given in ({}, {name: SE[name]})
    )
    assert usual is not None
    assert changed is not None
    assert usual.sites != changed.sites


def test_the_command_line_the_configuration_and_the_card_agree(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--sites=0,stage2.*", "--reduction={2: 4, 'stage0.*': 2}", "--gate=hard_sigmoid"]
    words += ["--activation=silu", "--squeeze=max", "--min_hidden=1", "--no_bias"]
    assert main(["train", "--out", str(run), *TRIAL, *words]) == 0
    noted = read_options(run / CONFIG)
    assert (noted.sites, noted.reduction) == ("0,stage2.*", {"2": 4.0, "stage0.*": 2.0})
    model = senet.load(run)
    plan = attached_plan(model)
    assert plan is not None
    expected = senet.plan(
        senet.detach(senet.load(run)),
        input_size=(3, 32, 32),
        sites=(0, "stage2.*"),
        reduction={2: 4, "stage0.*": 2},
        gate="hard_sigmoid",
        activation="silu",
        squeeze="max",
        bias=False,
    )
    assert plan.sites == expected.sites
    assert {site.hidden for site in plan} == {8, 16}
    assert read_card(run).plan is not None
    assert main(["train", "--resume", "--out", str(run), *words]) == 0
    assert main(["train", "--resume", "--out", str(run), "--gate=sigmoid"]) == 2


def test_a_hidden_width_and_a_divisor_from_the_command_line(tmp_path: Path) -> None:
    for option, widths in (("--hidden=5", {5}), ("--divisor=8", {8})):
        run = tmp_path / option
        assert main(["train", "--out", str(run), *TRIAL, option]) == 0
        plan = attached_plan(senet.load(run))
        assert plan is not None
        assert {site.hidden for site in plan} == widths


@pytest.mark.parametrize("name", SE)
def test_a_plain_network_has_no_options_of_se(tmp_path: Path, name: str) -> None:
    options = TrainOptions(**{"model": "resnet20", name: SE[name]})
    with pytest.raises(UserError, match=f"no SE blocks that {name}=.*its SE twin is 'se_resnet20'"):
        train(options, tmp_path / "run", say=lambda line: None)
    assert not (tmp_path / "run").exists()
    assert options.without_se() == TrainOptions(model="resnet20")


def test_a_plain_network_has_no_learning_rate_of_se() -> None:
    with pytest.raises(UserError, match=r"no SE blocks that se_lr=0\.5 could be for"):
        TrainOptions(model="resnet20", se_lr=0.5)
    assert TrainOptions(se_lr=0.5).without_se() == TrainOptions(model="resnet20")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sites": "stage9.*"}, "the pattern 'stage9.*' matches no site"),
        ({"sites": "9"}, "no site is in stage 9"),
        ({"sites": "0,,1"}, "sites is 0,,1, but must be globs or stages"),
        ({"reduction": {"9": 4.0}}, "no site is in stage 9"),
        ({"reduction": {}}, "reduction is {}, but must be above 0"),
        ({"reduction": {"1": -4.0}}, "reduction is {'1': -4.0}, but must be above 0"),
        ({"gate": "sigmoit"}, "unknown gate 'sigmoit'; nearest: 'sigmoid'"),
        ({"gate": "tanh", "warm_start": True}, "a warm start needs a gate"),
        ({"hidden": 0}, "hidden is 0, but must be at least 1"),
        ({"hidden": 10**12}, "hidden is 1000000000000, but must be at least 1 and at most 65,536"),
        ({"divisor": 10**12}, "divisor is 1000000000000, but must be"),
        ({"reduction": 1e-300}, "reduction is 1.0e-300, but must be above 0"),
        ({"image_size": 10**6}, "image_size is 1000000, but must be"),
        ({"threads": 10**10}, "threads is 10000000000, but must be"),
        ({"batch_size": 10**25}, "batch_size is 1"),
        ({"seed": 10**30}, "seed is 1"),
        ({"devices": 10**20}, "devices is 1"),
        ({"lr": 1e300}, "lr is 1.0e+300, but must be above 0, at most"),
        ({"lr": float("nan")}, "lr is .nan, but must be above 0"),
        ({"data": ""}, "data is '', but must be a name or a folder"),
        ({"init": " "}, "init is ' ', but must be a name or a folder"),
        ({"data_root": ""}, "data_root is '', but must be"),
        ({"warmup_factor": None}, "warmup_factor is null, but must have a value"),
        ({"epochs": None}, "epochs is null, but must have a value"),
        ({"divisor": 0}, "divisor is 0, but must be at least 1"),
        ({"val_fraction": 0.0}, "val_fraction is 0.0, but must be above 0, to have images"),
        ({"mixup": -0.1}, "mixup is -0.1, but must be 0, or 0.001 to 1,000"),
        ({"cutmix": 2e-308}, "cutmix is 2.0e-308, but must be 0, or 0.001"),
        ({"cutmix": float("nan")}, "cutmix is .nan, but must be 0, or 0.001"),
        ({"mix_prob": 1.5}, "mix_prob is 1.5, but must be at least 0 and at most 1"),
        ({"erase": 2.0}, "erase is 2.0, but must be at least 0 and at most 1"),
        ({"rand_augment": 31}, "rand_augment is 31, but must be at least 0 and at most 30"),
        ({"repeats": 0}, "repeats is 0, but must be at least 1"),
        ({"accumulate": 0}, "accumulate is 0, but must be at least 1"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0, but must be above 0 and below 1"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0, but must be above 0 and at most 1"),
        ({"drop_path": 1.0}, "drop_path is 1.0, but must be in [0, 1)"),
        ({"drop_path": 0.1}, "'resnet20' has no stochastic depth that drop_path could be for"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_line(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        train(TrainOptions(**changes), tmp_path / "run")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("reduction", ["{4: [1]}", "much"])
def test_a_reduction_of_the_wrong_type(tmp_path: Path, reduction: str) -> None:
    (tmp_path / "options.yaml").write_text(f"reduction: {reduction}\n")
    with pytest.raises(UserError) as caught:
        read_options(tmp_path / "options.yaml")
    assert str(caught.value).endswith("must be a number or a mapping, such as {4: 8, 5: 4}")


def test_options_of_se_survive_their_yaml(tmp_path: Path) -> None:
    options = TrainOptions(**SE)
    (tmp_path / "options.yaml").write_text(options_yaml(options))
    assert read_options(tmp_path / "options.yaml") == options
    (tmp_path / "short.yaml").write_text("sites: 4\nreduction: {4: 8}\n")
    short = read_options(tmp_path / "short.yaml")
    assert (short.site_filters, short.reductions) == ((4,), {4: 8.0})


def test_the_order_of_reductions_counts() -> None:
    """The first that fits a place is its reduction."""
    first = TrainOptions(reduction={"4": 8, "*": 4})
    assert changed_option(first, replace(first)) is None
    assert changed_option(first, TrainOptions(reduction={"*": 4, "4": 8})) == "reduction"


def test_values_are_shown_as_they_are_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert [in_yaml(value) for value in (None, True, 0.5, "a", (1, 2))] == [
        *("null", "true", "0.5", "a", "[1, 2]")
    ]
    run = tmp_path / "run"
    assert main(["train", "--out", str(run), *TRIAL]) == 0
    assert main(["train", "--resume", "--out", str(run), "--limit_batches=null"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert f"limit_batches is null but the run in {run} has 1; leave it out to resume" in line


@pytest.mark.parametrize(
    "text", ["1e3", "on", "12:30", "./null", "0x1F", "a: b", "'", "2026-01-01"]
)
def test_texts_that_look_like_something_else_survive(tmp_path: Path, text: str) -> None:
    """By `read_options` and by --config, whose readers of YAML are not the same."""
    config = tmp_path / "options.yaml"
    options = TrainOptions(data=text, init=text, sites=text, reduction={text: 4.0})
    config.write_text(options_yaml(options))
    assert read_options(config) == options
    given = parse(parser(), ["--out=run", f"--config={config}"])
    for name in ("data", "init", "sites", "reduction"):
        assert given[name] == getattr(options, name)


@pytest.mark.parametrize("text", ["null", "~", "Null", "NULL"])
def test_the_text_null_is_null_everywhere(tmp_path: Path, text: str) -> None:
    options = TrainOptions(init=text, sites=text)
    assert options == TrainOptions()
    (tmp_path / "options.yaml").write_text(f"init: '{text}'\nsites: {text}\n")
    assert read_options(tmp_path / "options.yaml") == options
    assert parse(parser(), ["--out=run", f"--init={text}"]).init is None


@pytest.mark.parametrize(
    "text",
    [
        "warmup_factor: null",
        "epochs: null",
        "seed: " + "9" * 5000,
        "seed: " + "[" * 3000,
        "reduction: " + "{a: " * 3000,
        "- 1",
        "epochs",
    ],
    ids=lambda text: text[:20],
)
def test_files_that_are_no_options_get_a_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str
) -> None:
    config = tmp_path / "options.yaml"
    config.write_text(text)
    with pytest.raises(UserError) as caught:
        read_options(config)
    assert str(config) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert main(["train", "--out", str(tmp_path / "run"), "--config", str(config)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("senet: error: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["#", "# a folder", "a: b", "[1]", "'x'"])
def test_a_text_stays_one_wherever_it_is_given(text: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"init: {json.dumps(text)}\n")
    words = ["--out", "run"]
    assert parse(parser(), [*words, "--init", text]).init == text
    assert parse(parser(), [*words, "--config", str(config)]).init == text
    resumed = parser()
    resumed.set_defaults({"init": text})
    assert parse(resumed, words).init == text
    assert parse(resumed, [*words, "--init", "null"]).init is None


def test_what_is_no_text_is_told(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("init: [1]\n")
    with pytest.raises(UserError, match="init"):
        parse(parser(), ["--out", "run", "--config", str(config)])
