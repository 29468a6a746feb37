"""senet.mending: whichever of an epoch's files a kill left behind, a resumed run puts it right."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resumption import options_for, stop_after_an_epoch, until

from senet.checkpoints import BEST, LAST, METRICS, best_row, read_record
from senet.classifier import Classifier, EpochMetrics
from senet.mending import read_progress, weights_fault
from senet.options import TrainOptions
from senet.runs import CARD, WEIGHTS, read_card, read_weights
from senet.training import train

pytestmark = pytest.mark.usefixtures("undrawn")

FILES = (LAST, BEST, Path(WEIGHTS), Path(CARD), METRICS)
"""In the order in which the end of an epoch writes them."""


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> TrainOptions:
    """Three epochs, each of which validates better than the one before."""
    measure = Classifier.epoch_metrics

    def better_and_better(self: Classifier) -> EpochMetrics:
        return replace(measure(self), val_top1=0.1 * (self.current_epoch + 1))

    monkeypatch.setattr(Classifier, "epoch_metrics", better_and_better)
    return replace(options_for(Path("digits")), epochs=3, image_size=8, accelerator="cpu")


def train_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a step ends in other numbers, as it does on a GPU."""
    step = Classifier.training_step

    def other(self: Classifier, batch: Any, batch_idx: int) -> torch.Tensor:
        return 1.25 * step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", other)


def stop_before(count: int, run: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Have the process interrupted before the file after the next ``count`` is in its place."""
    put, done = os.replace, []

    def stopping(source: Path, target: Path) -> None:
        if run in Path(target).parents and Path(target).relative_to(run) in FILES:
            if len(done) == count:
                raise KeyboardInterrupt
            done.append(Path(target).relative_to(run))
        put(source, target)

    monkeypatch.setattr(os, "replace", stopping)
    return lambda: monkeypatch.setattr(os, "replace", put)


def assert_in_step(run: Path, epochs: int) -> None:
    """All files of a run are those of its last and of its best epoch."""
    rows = read_record(run / LAST).rows
    best = best_row(rows)
    assert len(rows) == epochs
    assert read_record(run / BEST).rows == rows[: best.epoch]
    assert read_card(run).top1 == best.val_top1
    expected = torch.load(run / BEST, weights_only=True)["state_dict"]
    for name, tensor in read_weights(run / WEIGHTS).items():
        assert torch.equal(tensor, expected[f"model.{name}"]), name
    with (run / METRICS).open(newline="") as file:
        noted = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert noted == [asdict(row) for row in rows]
    assert weights_fault(run, rows) is None


@pytest.mark.parametrize(
    ("epochs", "written"),
    [
        (1, 1),
        (2, 3),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((2, 2), (3, 1), (3, 4))),
    ],
)
def test_stopped_between_two_files(
    options: TrainOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    epochs: int,
    written: int,
) -> None:
    """The epoch stays what it was, though to train it again would end in other numbers."""
    run = tmp_path / "run"
    go_on = stop_before((epochs - 1) * len(FILES) + written, run, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(options, run, say=until("never said"))
    go_on()
    before = read_record(run / LAST)
    assert len(before.rows) == epochs
    train_otherwise(monkeypatch)
    lines: list[str] = []
    result = train(options, run, resume=True, say=lines.append)
    assert result.rows[:epochs] == before.rows
    assert_in_step(run, 3)
    assert result.trained == any(f"going on after epoch {epochs}" in line for line in lines)
    assert result.trained == (epochs < 3)


def test_the_files_of_an_earlier_version(
    options: TrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which wrote best.ckpt first: it is gone on from."""
    run, later = tmp_path / "run", tmp_path / "later"
    with pytest.raises(KeyboardInterrupt):
        train(options, run, say=until("epoch 1/3"))
    shutil.copytree(run, later)
    with pytest.raises(KeyboardInterrupt):
        train(options, later, resume=True, say=until("epoch 2/3"))
    shutil.copy(later / BEST, run / BEST)
    assert len(read_progress(run, mend=False).rows) == 2
    assert len(read_record(run / LAST).rows) == 1  # as it was
    train_otherwise(monkeypatch)
    result = train(options, run, resume=True, say=lambda line: None)
    assert result.rows[:2] == read_record(later / LAST).rows
    assert_in_step(run, 3)


def test_another_history_is_no_progress(options: TrainOptions, tmp_path: Path) -> None:
    """A best.ckpt of another run is neither gone on from nor lost; one that is none is replaced."""
    run, other = tmp_path / "run", tmp_path / "other"
    with pytest.raises(KeyboardInterrupt):
        train(options, run, say=until("epoch 1/3"))
    with pytest.raises(KeyboardInterrupt):
        train(options, other, say=until("epoch 2/3"))
    shutil.copy(other / BEST, run / BEST)
    assert len(read_progress(run, mend=True).rows) == 1
    assert (run / BEST).read_bytes() == (other / BEST).read_bytes()
    for damage in ((run / BEST).unlink, lambda: (run / BEST).write_bytes(b"PK and no more")):
        damage()
        assert len(read_progress(run, mend=True).rows) == 1
        assert (run / BEST).read_bytes() == (run / LAST).read_bytes()
    assert_in_step(run, 1)


def test_a_sound_run_is_not_touched(tmp_path: Path) -> None:
    """Also where its last epoch is not the best."""
    run, options = tmp_path / "run", options_for(Path("digits"), image_size=8)
    stop_after_an_epoch(options, run)
    train(options, run, resume=True, say=lambda line: None)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert not train(options, run, resume=True, say=lambda line: None).trained
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == before
