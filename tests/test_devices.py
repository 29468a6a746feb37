"""One network trained by several processes: what each sees, what they come to, and what is refused.

Real processes, joined by gloo on the CPU; a launcher's part is played by the variables it sets.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from breadth import others_slow
from generated import make_image_folder
from processes import (
    Finished,
    Running,
    call_group,
    finish,
    free_port,
    is_running,
    start,
    start_group,
    when_placed,
    when_stepped,
)
from torch import nn
from torch.utils.data import ConcatDataset

from senet.checkpoints import LAST, METRICS
from senet.cli import main
from senet.data import DataOptions, ImageLoader, load_data
from senet.devices import check_shares, make_strategy
from senet.errors import UserError
from senet.fitting import fit, make_trainer
from senet.optimization import make_optimizer, make_schedule
from senet.options import TrainOptions
from senet.runs import WEIGHTS, load
from senet.sampling import EpochSampler

DIGITS = ("train", "--model=se_resnet20", "--data=digits", "--image_size=8")
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "{rank}",
    "LOCAL_RANK": "{rank}",
    "GROUP_RANK": "0",
    "WORLD_SIZE": "{world}",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "{port}",
}
TORCHRUN_NODES = TORCHRUN | {"LOCAL_RANK": "0", "GROUP_RANK": "{rank}"}
SLURM = {
    "SLURM_NTASKS": "{world}",
    "SLURM_NTASKS_PER_NODE": "{world}",
    "SLURM_NNODES": "1",
    "SLURM_PROCID": "{rank}",
    "SLURM_LOCALID": "{rank}",
    "SLURM_NODEID": "0",
    "SLURM_JOB_NAME": "train",
    "SLURM_NODELIST": "127.0.0.1",
    "MASTER_PORT": "{port}",
}
NODES = {"NODE_RANK": "{rank}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "{port}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images") / "set"
    return make_image_folder(root, ("cat", "dog", "eel"), per_class=12, size=(20, 18))


def rows_of(run: Path) -> list[dict[str, str]]:
    if not (run / METRICS).exists():
        return []
    with (run / METRICS).open(newline="") as file:
        return list(csv.DictReader(file))


def end(group: list[Running], seconds: float = 120) -> list[Finished]:
    return [process.wait(seconds) for process in group]


def trained(
    words: list[str | Path], log: Path, world: int, variables: Mapping[str, str] | None = None
) -> list[Finished]:
    """The processes of a run that ends well, of which only the first says anything."""
    ends = end(start_group([*words, "--accelerator=cpu"], log, world, variables or {}))
    for rank, ended in enumerate(ends):
        assert (ended.status, ended.err) == (0, ""), (rank, ended.err)
        assert bool(ended.out) == (rank == 0), (rank, ended.out)
    return ends


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


LAUNCHERS: dict[str, tuple[dict[str, str], list[str]]] = {
    "lightning": ({}, ["--devices=2"]),
    "torchrun": (TORCHRUN, ["--devices=2", "--strategy=ddp"]),
    "torchrun on two nodes": (TORCHRUN_NODES, ["--nodes=2"]),
    "srun": (SLURM, ["--devices=2"]),
    "two nodes by hand": (NODES, ["--nodes=2"]),
}


@pytest.mark.parametrize("launcher", others_slow(LAUNCHERS, {"torchrun on two nodes", "srun"}))
def test_the_schedule_goes_by_the_steps_of_each_process(
    folder: Path, tmp_path: Path, launcher: str
) -> None:
    """36 images, 18 a process, are two batches of 8: an epoch has two steps and not four."""
    run = tmp_path / "run"
    words = ["--image_size=16", "--batch_size=8", "--epochs=3", "--lr=0.1", "--warmup_epochs=0.5"]
    variables, options = LAUNCHERS[launcher]
    options = [*options, "--model=resnet20"]
    command: list[str | Path] = ["train", "--data", folder, "--out", run, *words, *options]
    trained(command, tmp_path / "log", 2, variables)
    expected = rates(TrainOptions(epochs=3, lr=0.1, warmup_epochs=0.5), steps=2)
    rows = rows_of(run)
    assert [int(row["step"]) for row in rows] == [2, 4, 6]
    assert [float(row["lr"]) for row in rows] == expected[1::2]


# ── every image once ────────────────────────────────────────────────────────────────────────


def validated(rank: int, world: int, run: str, few: int) -> list[float]:
    """Top-1, top-5 and loss of a run's network over all digits, or the first ``few`` of them.

    By an epoch of one step that moves nothing: the rate is nothing, and so is the momentum of the
    running statistics.
    """
    data = load_data(DataOptions(image_size=8, augment=False))
    options = TrainOptions(
        image_size=8,
        epochs=1,
        limit_batches=10**6,
        warmup_epochs=0.0,
        lr=1e-30,
        weight_decay=0.0,
        accelerator="cpu",
        devices=world,
    )
    model = load(run)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    everything = data.val if few else ConcatDatasetOf([data.train, data.val])
    count = few or len(everything)
    few_batches = ImageLoader(data.train, EpochSampler(8, seed=0, shuffle=True), batch_size=1)
    loader = ImageLoader(everything, EpochSampler(count, seed=0, shuffle=False), batch_size=64)
    out = Path(run).with_name(f"validated-{world}-{few}")
    trainer = make_trainer(options, out, export=lambda row: None, report=lambda row: None)
    (row,) = fit(trainer, model, few_batches, loader, options, out, classes=10)
    return [row.val_top1, row.val_top5, row.val_loss]


class ConcatDatasetOf(ConcatDataset):  # type: ignore[type-arg]
    """Two sets one after the other, in batches, the first as it is without augmentation."""

    def batch(self, keys: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = self.datasets
        pairs = [
            first[epoch, index] if index < len(first) else second[index - len(first)]
            for epoch, index in keys
        ]
        images, labels = zip(*pairs, strict=True)
        return torch.stack(images), torch.tensor(labels)


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has learned about half of the digits."""
    run = tmp_path_factory.mktemp("digits") / "run"
    words = ["--batch_size=32", "--epochs=1", "--limit_batches=20", "--lr=0.05", "--no_augment"]
    ended = finish([*DIGITS, *words, "--out", run], run.with_name("log"))
    assert ended.status == 0, ended.err
    return run


@pytest.mark.parametrize(
    ("few", "worlds"),
    [
        pytest.param(0, (3,), id="all 1,797"),
        pytest.param(3, (2,), id="fewer than two each"),
        pytest.param(129, (2,), id="one more than a batch each"),
        pytest.param(0, (2, 4), id="all, other processes", marks=pytest.mark.slow),
        pytest.param(5, (2, 3), id="few, other processes", marks=pytest.mark.slow),
    ],
)
def test_validation_counts_every_image_once(
    digits_run: Path, tmp_path: Path, few: int, worlds: tuple[int, ...]
) -> None:
    """To the last image, though shares are uneven and some processes have a batch less."""
    (alone,) = call_group(validated, 1, tmp_path, str(digits_run), few)
    images = few or 1797
    right = alone[0] * images
    assert right == pytest.approx(round(right), abs=1e-3)
    if not few:
        assert 0.2 < alone[0] < 0.98  # a mistake would show
    for world in worlds:
        for ours in call_group(validated, world, tmp_path, str(digits_run), few):
            assert ours[:2] == alone[:2], world
            # The same numbers, added in other batches.
            assert ours[2] == pytest.approx(alone[2], rel=1e-5)


@pytest.mark.parametrize(
    "average",
    [
        pytest.param([], id="trained", marks=pytest.mark.slow),
        pytest.param(["--ema_decay=0.5"], id="averaged"),
    ],
)
def test_what_is_validated_is_what_is_saved(
    folder: Path, tmp_path: Path, average: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Each process has running statistics of its own batches; those of the first are saved."""
    run = tmp_path / "run"
    words = ["--image_size=16", "--batch_size=8", "--epochs=2", "--lr=0.1", "--devices=2"]
    trained(["train", "--data", folder, "--out", run, *words, *average], tmp_path / "log", 2)
    best = min(rows_of(run), key=lambda row: (-float(row["val_top1"]), float(row["val_loss"])))
    assert main(["evaluate", str(run), "--device=cpu", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["top1"] == pytest.approx(float(best["val_top1"]))
    assert found["loss"] == pytest.approx(float(best["val_loss"]), rel=1e-5)


# ── as one with the whole batch ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("world", "each"), [(2, 32), (3, 32)])
def test_the_processes_of_a_step_have_the_images_of_one_with_the_whole_batch(
    world: int, each: int
) -> None:
    length = 1437
    for epoch in (0, 3):
        whole = EpochSampler(length, seed=7, shuffle=True)
        whole.set_epoch(epoch)
        parts = []
        for rank in range(world):
            part = EpochSampler(length, seed=7, shuffle=True, rank=rank, world_size=world)
            part.set_epoch(epoch)
            parts.append(list(part))
        order, steps = list(whole), len(parts[0]) // each
        assert steps == length // (world * each)
        for step in range(steps):
            together = {key for part in parts for key in part[step * each : (step + 1) * each]}
            assert together == set(order[step * world * each : (step + 1) * world * each])


EQUAL = (
    *("--epochs=3", "--limit_batches=4", "--sync_batchnorm", "--clip_norm=1"),
    *("--lr=0.02", "--momentum=0", "--no_nesterov"),
)


@pytest.mark.parametrize(
    ("world", "precision", "tolerance"),
    [
        pytest.param(2, "32-true", 2e-4, marks=pytest.mark.slow),
        (2, "64-true", 1e-9),
        pytest.param(3, "64-true", 1e-9, marks=pytest.mark.slow),
        pytest.param(3, "32-true", 2e-4, marks=pytest.mark.slow),
    ],
)
def test_the_loss_curve_is_that_of_one_process_with_the_whole_batch(
    tmp_path: Path, world: int, precision: str, tolerance: float
) -> None:
    """In float64 to 1e-9: it is the same computation. In float32 the order of its sums differs.

    The difference grows with every step, the faster the larger the steps are: a unit near zero
    goes the other way. With momentum 0.9 and a rate of 0.05 it reached 3e-3 of the loss after ten
    steps, while in float64 the curves were the same to 1e-9; these are smaller steps.
    """
    command = [*DIGITS, *EQUAL, f"--precision={precision}", "--threads=1"]
    whole = [*command, f"--batch_size={32 * world}", "--out", tmp_path / "whole"]
    trained(whole, tmp_path / "log", 1, {"LOCAL_RANK": "0"})
    parts = [*command, "--batch_size=32", f"--devices={world}", "--out", tmp_path / "parts"]
    trained(parts, tmp_path / "group", world)
    expected, found = rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts")
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for name in ("train_loss", "val_loss"):
        curves = [[float(row[name]) for row in rows] for rows in (found, expected)]
        # Validation takes its logits in float32, whatever the weights are.
        least = 1e-6 if name == "val_loss" else 0.0
        assert curves[0] == pytest.approx(curves[1], rel=max(tolerance, least)), name
    assert float(expected[-1]["train_loss"]) < float(expected[0]["train_loss"])


@pytest.mark.slow
def test_without_synchronised_norms_it_is_another_curve(tmp_path: Path) -> None:
    """That the test above can fail."""
    command = [*DIGITS, *EQUAL, "--no_sync_batchnorm", "--precision=64-true", "--threads=1"]
    whole = [*command, "--batch_size=64", "--out", tmp_path / "whole"]
    trained(whole, tmp_path / "log", 1, {"LOCAL_RANK": "0"})
    parts = [*command, "--batch_size=32", "--devices=2", "--out", tmp_path / "parts"]
    trained(parts, tmp_path / "group", 2)
    whole_rows, part_rows = rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts")
    apart = [
        abs(float(ours["train_loss"]) / float(theirs["train_loss"]) - 1)
        for ours, theirs in zip(part_rows, whole_rows, strict=True)
    ]
    assert max(apart) > 2e-4


@pytest.mark.slow
def test_shared_out_weights_come_to_the_same(tmp_path: Path) -> None:
    """FSDP: each process has a part of the weights; curve, files and resumption are ddp's."""
    words = ["--epochs=6", "--batch_size=16", "--limit_batches=5", "--devices=2", "--threads=1"]
    command = [*DIGITS, *words, "--lr=0.02", "--sync_batchnorm"]
    trained([*command, "--out", tmp_path / "ddp"], tmp_path / "ddp-log", 2)
    fsdp = [*command, "--strategy=fsdp"]
    trained([*fsdp, "--out", tmp_path / "whole"], tmp_path / "whole-log", 2)
    expected, found = rows_of(tmp_path / "ddp"), rows_of(tmp_path / "whole")
    for name in ("train_loss", "val_loss", "val_top1"):
        curves = [[float(row[name]) for row in rows] for rows in (found, expected)]
        assert curves[0] == pytest.approx(curves[1], rel=2e-3), name
    states = [
        torch.load(tmp_path / each / LAST, weights_only=True)["state_dict"]
        for each in ("ddp", "whole")
    ]
    for name, tensor in states[0].items():
        assert states[1][name].shape == tensor.shape
    assert (
        load(tmp_path / "whole").state_dict().keys() == load(tmp_path / "ddp").state_dict().keys()
    )
    run = tmp_path / "run"
    killed([*fsdp, "--accelerator=cpu", "--out", run], tmp_path / "killed", 2, 1, run)
    trained([*fsdp, "--resume", "--out", run], tmp_path / "resumed", 2)
    assert (run / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


# ── one of them dies ────────────────────────────────────────────────────────────────────────


def killed(command: list[str | Path], log: Path, world: int, victim: int, run: Path) -> None:
    """Kill one process in the second epoch, the seventh step: the others end, each with a line."""
    group = start_group(command, log, world, prepare={victim: when_stepped(signal.SIGKILL, 7)})
    for rank, ended in enumerate(end(group, seconds=60)):
        if rank == victim:
            assert ended.status == -signal.SIGKILL
            continue
        assert ended.status == 2, ended.err
        (line,) = ended.err.splitlines()
        assert f"process {rank} of {world} lost another of its run" in line
        assert "--resume" in line
    assert len(rows_of(run)) == 1


@pytest.mark.parametrize(("world", "victim"), [(2, 0), pytest.param(3, 1, marks=pytest.mark.slow)])
def test_one_killed_ends_the_others_and_all_resume(tmp_path: Path, world: int, victim: int) -> None:
    words = ["--epochs=2", "--batch_size=8", "--limit_batches=4", f"--devices={world}"]
    recipe = ["--accumulate=2", "--ema_decay=0.9", "--mixup=0.2", "--cutmix=1"]
    command: list[str | Path] = [*DIGITS, *words, *recipe, "--accelerator=cpu", "--threads=1"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    trained([*command, "--out", whole], tmp_path / "whole-log", world)
    killed([*command, "--out", run], tmp_path / "killed", world, victim, run)
    first, *_ = trained([*command, "--resume", "--out", run], tmp_path / "resumed", world)
    assert "going on after epoch" in first.out
    assert (run / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    ours, theirs = (torch.load(r / LAST, weights_only=True)["state_dict"] for r in (run, whole))
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def test_one_that_falls_silent_ends_the_others(tmp_path: Path) -> None:
    """Stopped, not killed: nothing is closed, and only the time-out tells."""
    run = tmp_path / "run"
    words = ["--epochs=2", "--limit_batches=4", "--devices=2", "--peer_timeout=8"]
    command = [*DIGITS, *words, "--accelerator=cpu", "--out", run]
    stopped = {1: when_stepped(signal.SIGSTOP, 7)}
    ended = start_group(command, tmp_path / "log", 2, prepare=stopped)[0].wait(60)
    assert ended.status == 2, ended.err
    (line,) = ended.err.splitlines()
    assert "lost another of its run" in line
    assert "imed out" in line


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["the first", "another"])
def test_killed_under_lightnings_launcher(tmp_path: Path, victim: str) -> None:
    """`senet train --devices 3` as typed: the others end with a reason, and it goes on."""
    run = tmp_path / "run"
    words = ["--epochs=400", "--limit_batches=3", "--devices=3", "--accelerator=cpu"]
    command = [sys.executable, "-m", "senet", *DIGITS, *words, "--threads=1", "--out", str(run)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not rows_of(run):
        assert process.poll() is None
        time.sleep(0.05)
    helpers = [
        int(pid)
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]
    assert len(helpers) == 2
    os.kill(process.pid if victim == "the first" else helpers[0], signal.SIGKILL)
    _, err = process.communicate(timeout=60)  # until the last of them has closed its end
    assert process.returncode != 0
    assert err
    for line in err.splitlines():
        assert line.startswith("senet: error: ")
        assert "--resume" in line
    for pid in helpers:
        assert not is_running(pid)


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


@pytest.mark.slow
def test_torchrun_itself(folder: Path, tmp_path: Path) -> None:
    """Two "machines" with a process each, by the commands of docs/training.md."""
    run = tmp_path / "run"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    launch += ["--master-addr=127.0.0.1", "--master-port=29631"]
    words = ["--image_size=16", "--batch_size=8", "--epochs=2", "--accelerator=cpu", "--nodes=2"]
    command = ["-m", "senet", "train", "--data", str(folder), "--out", str(run), *words]
    machines = [
        subprocess.Popen(
            [*launch, f"--node-rank={node}", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for node in range(2)
    ]
    ends = [machine.communicate(timeout=180) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], ends
    assert "best: epoch" in ends[0][0]
    assert ends[1][0] == ""
    assert [row["step"] for row in rows_of(run)] == ["2", "4"]


# ── what is refused ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "variables", "said"),
    [
        (["--devices=1"], TORCHRUN | {"WORLD_SIZE": "2"}, "does not match the world size (2)"),
        (["--devices=2"], SLURM | {"SLURM_NTASKS_PER_NODE": "4"}, "tasks per node configured"),
        (["--strategy=fsdp"], {}, "shares weights out over several devices"),
        (["--strategy=fsdp", "--devices=2", "--clip_norm=1"], {}, "cannot clip the norm"),
        (["--strategy=fsdp", "--devices=2", "--no_decay_norms"], {}, "flattens the weights"),
        (["--strategy=fsdp", "--devices=2", "--ema_decay=0.9"], {}, "which ema_decay needs whole"),
        (
            ["--strategy=fsdp", "--devices=2", "--precision=bf16-mixed"],
            {},
            "computes in the weights' own type",
        ),
        (["--devices=2"], {"NODE_RANK": "first"}, "NODE_RANK is 'first' in the environment"),
        (["--nodes=0"], {}, "nodes is 0, but must be at least 1"),
        (["--strategy=dpp"], {}, "option strategy is dpp, but must be auto, ddp"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(
    tmp_path: Path, words: list[str], variables: dict[str, str], said: str
) -> None:
    command = [*DIGITS, *words, "--accelerator=cpu", "--out", tmp_path / "run"]
    (ended,) = end(start_group(command, tmp_path / "log", 1, variables))
    assert ended.status == 2, ended.err
    (line,) = ended.err.splitlines()
    assert said in line
    assert not (tmp_path / "run" / METRICS).exists()


def test_processes_that_do_not_do_the_same_are_refused(tmp_path: Path) -> None:
    """Machines without a common disk find other run directories; or the commands differ."""
    words = ["--epochs=2", "--limit_batches=2", "--accelerator=cpu", "--threads=1", "--devices=2"]
    command: list[str | Path] = [*DIGITS, *words, "--resume", "--out"]
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    killed = {0: when_placed("metrics.csv", signal.SIGKILL)}
    for running in start_group([*command, run], tmp_path / "log", 2, prepare=killed):
        running.wait()
    assert len(rows_of(run)) == 1
    for what, second in (
        ("the last finished epoch", [*command, elsewhere]),
        ("options", [*command, run, "--seed=8"]),
    ):
        port = str(free_port())
        both = [
            start(
                each,
                tmp_path / f"{what}-{rank}",
                {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            )
            for rank, each in enumerate(([*command, run], second))
        ]
        for ended in end(both):
            assert ended.status == 2, ended.err
            (line,) = ended.err.splitlines()
            assert f"the 2 processes of this run differ in {what}; start all" in line
    assert len(rows_of(run)) == 1


@pytest.mark.parametrize(
    ("train", "val", "said"),
    [
        (3, 9, "4 devices, but 3 training images; each device needs at least one"),
        (9, 3, "4 devices, but 3 held-out images"),
        (100, 9, "batch_size is 64 on each of 4 devices, but each has only 25 of the 100"),
        (256, 4, ""),
        (40, 4, ""),  # less than a batch altogether: one incomplete batch each
    ],
)
def test_more_processes_than_images(tmp_path: Path, train: int, val: int, said: str) -> None:
    options = TrainOptions(accelerator="cpu", strategy="ddp", nodes=4)
    trainer = make_trainer(options, tmp_path, export=lambda row: None, report=lambda row: None)
    assert trainer.world_size == 4
    if not said:
        check_shares(trainer, options, train=train, val=val)
        return
    with pytest.raises(UserError, match=said):
        check_shares(trainer, options, train=train, val=val)


def test_one_device_needs_no_strategy() -> None:
    assert make_strategy(TrainOptions(accelerator="cpu")) == "auto"
    assert make_strategy(TrainOptions(accelerator="cpu", devices="auto")) == "auto"
    assert make_strategy(TrainOptions(accelerator="cpu", devices=2)) != "auto"
    assert make_strategy(TrainOptions(accelerator="cpu", nodes=2)) != "auto"
