"""One network trained by two processes: who takes which images, and how far the schedule goes."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from generated import make_image_folder
from processes import start
from torch import nn

from senet.checkpoints import METRICS
from senet.optimization import make_optimizer, make_schedule
from senet.options import TrainOptions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images") / "set"
    return make_image_folder(root, ("cat", "dog", "eel"), per_class=12, size=(20, 18))


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / METRICS).open(newline="") as file:
        return list(csv.DictReader(file))


def rates(options: TrainOptions, steps: int) -> list[float]:
    """The learning rate of every step, where an epoch has so many."""
    optimizer = make_optimizer(nn.Linear(2, 2), options)
    schedule = make_schedule(optimizer, options, steps)
    used = []
    for _ in range(options.epochs * steps):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return used


def test_the_schedule_goes_by_the_steps_of_each_process(folder: Path, tmp_path: Path) -> None:
    """36 images, 18 a process, are two batches of 8: an epoch has two steps and not four."""
    run = tmp_path / "run"
    words = ["--image_size=16", "--batch_size=8", "--epochs=3", "--lr=0.1", "--warmup_epochs=0.5"]
    command = ["train", "--data", folder, "--out", run, *words]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        start(
            [*command, "--accelerator=cpu", "--devices=2", "--threads=1"],
            tmp_path / f"rank{rank}",
            {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        )
        for rank in range(2)
    ]
    for ended in [process.wait() for process in processes]:
        assert ended.status == 0, ended.err
    expected = rates(TrainOptions(epochs=3, lr=0.1, warmup_epochs=0.5), steps=2)
    rows = rows_of(run)
    assert [int(row["step"]) for row in rows] == [2, 4, 6]
    assert [float(row["lr"]) for row in rows] == expected[1::2]


@pytest.mark.slow
def test_two_processes_train_one_network(folder: Path, tmp_path: Path) -> None:
    """Each takes half of every epoch; the pair's files and words are written once."""
    command = [sys.executable, "-m", "senet", "train", "--data", str(folder), "--twin"]
    options = ["--image_size=16", "--batch_size=8", "--epochs=2", "--accelerator=cpu"]
    ended = subprocess.run(
        [*command, *options, "--devices=2", "--threads=1", "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    for name in ("resnet20: ", "se_resnet20: ", "best: "):
        assert sum(line.startswith(name) for line in ended.stdout.splitlines()) == 1
    for run in (tmp_path / "run", tmp_path / "run" / "twin"):
        rows = rows_of(run)
        assert [row["step"] for row in rows] == ["2", "4"]  # 36 images in halves, batches of 8
        tops = [float(row["val_top1"]) * 18 for row in rows]
        assert tops == pytest.approx([round(top) for top in tops], abs=1e-4)
