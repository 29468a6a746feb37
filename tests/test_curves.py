"""senet.curves: the picture of a run, and of a pair."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from senet.checkpoints import METRICS, EpochRow
from senet.curves import CURVES, write_curves
from senet.options import TrainOptions
from senet.training import train

BLUE, ORANGE = (0x1F, 0x6F, 0xB4), (0xD9, 0x73, 0x0D)


def rows(count: int, gain: float = 0.0) -> list[EpochRow]:
    made = []
    for epoch in range(1, count + 1):
        loss = 2.3 * math.exp(-epoch / count)
        top1 = min(1.0, 0.1 * epoch / count + 0.8 + gain)
        row = EpochRow(epoch, 10 * epoch, loss, loss + 0.1, top1, 1.0, 0.1, 1.0, 100.0)
        made.append(replace(row, train_top1=top1 - 0.1))
    return made


def pixels(run: Path) -> np.ndarray:
    with Image.open(run / CURVES) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def count_of(colour: tuple[int, ...], picture: np.ndarray) -> int:
    return int((picture == colour).all(-1).sum())


@pytest.mark.parametrize("count", [1, 2, 8, 200])
def test_one_run(tmp_path: Path, count: int) -> None:
    write_curves(tmp_path, {"se_resnet20": rows(count)})
    picture = pixels(tmp_path)
    assert picture.shape == (552, 1200, 3)
    for half in (picture[:450, :600], picture[:450, 600:]):  # loss, top-1
        assert count_of(BLUE, half) > 5
    assert count_of(ORANGE, picture) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_a_pair_has_both_in_one_picture(tmp_path: Path) -> None:
    write_curves(tmp_path, {"resnet20": rows(8), "se_resnet20": rows(8, 0.05)})
    picture = pixels(tmp_path)
    for half in (picture[:450, :600], picture[:450, 600:]):
        assert count_of(ORANGE, half) > 50
    assert count_of(BLUE, picture[:450, 600:]) > 50


def test_the_same_rows_are_the_same_file(tmp_path: Path) -> None:
    files = []
    for _ in range(2):
        write_curves(tmp_path, {"resnet20": rows(5)})
        files.append((tmp_path / CURVES).read_bytes())
    assert files[0] == files[1]
    write_curves(tmp_path, {"resnet20": rows(6)})
    assert (tmp_path / CURVES).read_bytes() != files[0]


def test_rows_of_a_version_that_did_not_count_training_accuracy(tmp_path: Path) -> None:
    write_curves(tmp_path, {"resnet20": [replace(row, train_top1=None) for row in rows(5)]})
    assert count_of(BLUE, pixels(tmp_path)) > 100


def test_a_run_draws_its_curves(tmp_path: Path) -> None:
    """At its end; again where they are missing; and what is there stays as it is."""
    run = tmp_path / "run"
    options = TrainOptions(model="resnet20", image_size=8, epochs=2, limit_batches=2, threads=1)
    result = train(options, run, say=lambda line: None)
    drawn = (run / CURVES).read_bytes()
    assert count_of(BLUE, pixels(run)[:450]) > 100
    assert all(0 <= row.train_top1 <= 1 for row in result.rows if row.train_top1 is not None)
    assert "train_top1" in (run / METRICS).read_text().splitlines()[0]
    (run / CURVES).unlink()
    train(options, run, resume=True, say=lambda line: None)
    assert (run / CURVES).read_bytes() == drawn
    (run / CURVES).write_bytes(b"mine")
    train(options, run, resume=True, say=lambda line: None)
    assert (run / CURVES).read_bytes() == b"mine"


def test_long_epochs_are_drawn_as_they_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a run of days can be looked at; and of a run that was stopped there is a picture."""
    monkeypatch.setattr("senet.training._WORTH_DRAWING", 0.0)
    options = TrainOptions(model="resnet20", image_size=8, epochs=3, limit_batches=2, threads=1)
    pictures: list[bytes] = []

    def say(line: str) -> None:
        if (tmp_path / "run" / CURVES).exists():
            pictures.append((tmp_path / "run" / CURVES).read_bytes())
        if "epoch 3/3" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(options, tmp_path / "run", say=say)
    assert len(set(pictures)) == 2
