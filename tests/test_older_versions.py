"""Runs of older versions: their options lack what was added since, and they go on as they were."""

from __future__ import annotations

import shutil
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch
import yaml  # type: ignore[import-untyped,unused-ignore]

from senet.checkpoints import BEST, LAST, RECORDER
from senet.cli import main
from senet.errors import UserError
from senet.options import TrainOptions, read_options
from senet.runs import WEIGHTS, load
from senet.training import CONFIG, train

OLDER = Path(__file__).with_name("older") / "config.yaml"
"""As the first version wrote it; never to be changed."""


def test_a_configuration_of_the_first_version_is_read() -> None:
    """Where this fails for a new option: name it in `senet.options._LATER`."""
    noted = yaml.safe_load(OLDER.read_text())
    options = read_options(OLDER, whole=True)
    untouched = TrainOptions()
    for field in fields(TrainOptions):
        expected = noted.get(field.name, getattr(untouched, field.name))
        value = getattr(options, field.name)
        assert value == (tuple(expected) if isinstance(expected, list) else expected), field.name


@pytest.mark.parametrize("name", sorted(yaml.safe_load(OLDER.read_text())))
def test_what_the_first_version_had_may_not_be_missing(name: str, tmp_path: Path) -> None:
    lines = OLDER.read_text().splitlines(keepends=True)
    (tmp_path / "config.yaml").write_text("".join(x for x in lines if not x.startswith(f"{name}:")))
    with pytest.raises(UserError, match=f"cut short or edited, {name} is missing"):
        read_options(tmp_path / "config.yaml", whole=True)


def as_the_first_version_left_it(run: Path) -> None:
    """Take from a run what that version did not note."""
    known = yaml.safe_load(OLDER.read_text()).keys()
    assert asdict(read_options(run / CONFIG)).keys() - known  # something was added since
    (run / CONFIG).write_text(OLDER.read_text())
    for name in (LAST, BEST):
        checkpoint = torch.load(run / name, weights_only=True)
        state = checkpoint["callbacks"][RECORDER]
        state["options"] = {k: v for k, v in state["options"].items() if k in known}
        torch.save(checkpoint, run / name)


def stop_after_an_epoch(line: str) -> None:
    if "epoch 1/2" in line:
        raise KeyboardInterrupt


def test_a_run_of_the_first_version_goes_on_and_evaluates(tmp_path: Path) -> None:
    options = read_options(OLDER)
    train(options, tmp_path / "whole", say=lambda line: None)
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(options, run, say=stop_after_an_epoch)
    as_the_first_version_left_it(run)
    moved = tmp_path / "elsewhere" / "run"
    moved.parent.mkdir()
    run.rename(moved)  # to another path too
    assert main(["train", "--resume", "--out", str(moved)]) == 0
    assert (moved / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    assert (moved / CONFIG).read_text() != OLDER.read_text()  # it notes all the options now
    assert read_options(moved / CONFIG, whole=True) == options


def test_another_value_than_the_default_is_another_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, options = tmp_path / "run", read_options(OLDER)
    with pytest.raises(KeyboardInterrupt):
        train(options, run, say=stop_after_an_epoch)
    as_the_first_version_left_it(run)
    assert main(["train", "--resume", "--out", str(run), "--sync_batchnorm"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert f"sync_batchnorm is true but the run in {run} has false" in line


def test_a_run_of_a_later_version_is_told_in_a_line(tmp_path: Path) -> None:
    run, options = tmp_path / "run", read_options(OLDER)
    with pytest.raises(KeyboardInterrupt):
        train(options, run, say=stop_after_an_epoch)
    text = (run / CONFIG).read_text()
    (run / CONFIG).write_text(text + "epoch: 3\n")
    with pytest.raises(UserError, match="unknown option epoch; nearest: epochs"):
        train(options, run, resume=True)
    (run / CONFIG).write_text(text)
    checkpoint = torch.load(run / LAST, weights_only=True)
    checkpoint["callbacks"][RECORDER]["options"]["teacher"] = "se_resnet56"
    torch.save(checkpoint, run / LAST)
    with pytest.raises(UserError, match="an option 'teacher', which this version of senet does"):
        train(options, run, resume=True)


def test_a_copied_run_is_evaluated_and_goes_on_from_its_new_place(tmp_path: Path) -> None:
    run, options = tmp_path / "run", replace(read_options(OLDER), epochs=1)
    train(options, run, say=lambda line: None)
    copy = tmp_path / "another disk" / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(run)
    assert isinstance(load(copy), torch.nn.Module)
    assert main(["evaluate", str(copy), "--json"]) == 0
    assert not train(options, copy, resume=True, say=lambda line: None).trained
