"""A run that is killed, at any moment, and resumed ends with the bits of one that was not."""

from __future__ import annotations

import csv
import os
import pickle
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from breadth import others_slow
from processes import Finished, Running, finish, start, wait_until, when_placed

from senet.checkpoints import BEST, LAST, METRICS, TRAINED
from senet.runs import CARD, WEIGHTS, is_temporary

EPOCHS = 5
OPTIONS = ("--data=digits", "--image_size=8", "--batch_size=32", "--limit_batches=3")
TRAIN = ("train", "--model=se_resnet20", f"--epochs={EPOCHS}", *OPTIONS)
TIMES = ("seconds", "images_per_second")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    run = tmp_path_factory.mktemp("whole") / "run"
    ended = finish([*TRAIN, "--out", run], run.with_name("log"))
    assert ended.status == 0, ended.err
    return run


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / METRICS).open(newline="") as file:
        return list(csv.DictReader(file))


def without_times(run: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in metrics(run)]


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield from leaves(child, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for number, child in enumerate(value):
            yield from leaves(child, f"{path}/{number}")
    else:
        yield path, value


def assert_same_run(run: Path, whole: Path) -> None:
    """Weights, statistics, momenta and metrics are the same to the last bit."""
    for name in (LAST, BEST):
        ours, theirs = (torch.load(r / name, weights_only=True) for r in (run, whole))
        assert ours.keys() == theirs.keys()
        for part in {"state_dict", TRAINED, "optimizer_states", "lr_schedulers"} & ours.keys():
            for (path, a), (other, b) in zip(leaves(ours[part]), leaves(theirs[part]), strict=True):
                assert path == other
                same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
                assert same, f"{name}: {part}{path}"
    assert without_times(run) == without_times(whole)
    assert (run / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert (run / CARD).read_bytes() == (whole / CARD).read_bytes()


def temporary_in(directory: Path) -> bool:
    try:
        return any(is_temporary(Path(name)) for name in os.listdir(directory))
    except FileNotFoundError:
        return False


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def kill_while_writing(running: Running, directory: Path) -> bool:
    """Kill the process while it has a file half written in ``directory``; False if it ends first.

    It is stopped when the file appears, and killed if the file is there still.
    """
    while wait_until(lambda: temporary_in(directory), running, pause=0.0):
        os.kill(running.pid, signal.SIGSTOP)
        while running.alive() and state_of(running.pid) not in "TXZ":
            time.sleep(0.0005)
        if temporary_in(directory):
            os.kill(running.pid, signal.SIGKILL)
            return True
        os.kill(running.pid, signal.SIGCONT)
    return False


def kill_when(moment: Callable[[Path], bool]) -> Callable[[Running, Path], bool]:
    def kill(running: Running, run: Path) -> bool:
        reached = wait_until(lambda: moment(run), running)
        running.process.kill()
        return reached

    return kill


def epochs_noted(run: Path) -> int:
    return len(metrics(run)) if (run / METRICS).exists() else 0


MOMENTS: dict[str, Callable[[Running, Path], bool]] = {
    "in the first epoch": kill_when(lambda run: (run / "config.yaml").exists()),
    "while a checkpoint is written": lambda p, run: kill_while_writing(p, run / LAST.parent),
    "before the first epoch is in the metrics": kill_when(lambda run: (run / LAST).exists()),
    "while the weights are written": lambda p, run: kill_while_writing(p, run),
    "in a later epoch": kill_when(lambda run: epochs_noted(run) >= 3),
}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.slow
def test_killed_at_several_points_ends_with_the_same_bits(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for number, (moment, kill) in enumerate(MOMENTS.items()):
        running = start([*TRAIN, "--resume", "--out", run], tmp_path / f"killed{number}")
        assert kill(running, run), f"ended before it could be killed {moment}"
        assert running.wait().status == -signal.SIGKILL, moment
        for name in (LAST, BEST):  # whole, or not there
            if (run / name).exists():
                assert "state_dict" in torch.load(run / name, weights_only=True), moment
    ended = finish([*TRAIN, "--resume", "--out", run], tmp_path / "last")
    assert ended.status == 0, ended.err
    assert_same_run(run, whole)
    assert not [path for path in run.rglob("*") if is_temporary(path)]


@pytest.mark.slow  # `test_kills` has such moments
def test_killed_at_any_moment_ends_with_the_same_bits(whole: Path, tmp_path: Path) -> None:
    run, chance = tmp_path / "run", random.Random(0)
    for number in range(20):
        running = start(["train", *TRAIN[1:], "--resume", "--out", run], tmp_path / f"log{number}")
        wait_until(lambda: (run / "config.yaml").exists(), running)
        running.process.join(chance.uniform(0.0, 0.6))
        running.process.kill()
        if running.wait().status == 0:
            break
    if epochs_noted(run) < EPOCHS:
        assert finish([*TRAIN, "--resume", "--out", run], tmp_path / "last").status == 0
    assert_same_run(run, whole)


def kill_and_resume(command: list[str | Path], moments: list[str], run: Path) -> None:
    """Run ``command`` with --resume again and again, killed when one file after the other is there.

    A moment is the end of a path: of what a run writes, when it is in its place.
    """
    command = [*command, "--resume", "--out", run]
    for number, moment in enumerate(moments):
        killed = when_placed(f"{run.name}/{moment}", signal.SIGKILL)
        running = start(command, run.with_name(f"killed{number}"), prepare=killed)
        assert running.wait().status == -signal.SIGKILL, moment
    ended = finish(command, run.with_name("last"))
    assert ended.status == 0, ended.err


@pytest.mark.parametrize(
    "moments",
    [
        ["metrics.csv", "twin/metrics.csv"],
        pytest.param(
            ["config.yaml", "metrics.csv", "twin/config.yaml", "twin/metrics.csv"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_pair_that_is_killed_ends_with_the_same_bits(tmp_path: Path, moments: list[str]) -> None:
    """In either of the two, before and after its first epoch."""
    pair = ["train", "--model=se_resnet20", "--epochs=2", *OPTIONS, "--twin"]
    ended = finish([*pair, "--out", tmp_path / "whole"], tmp_path / "log")
    assert ended.status == 0, ended.err
    run = tmp_path / "run"
    kill_and_resume([*pair], moments, run)
    for member in (".", "twin"):
        assert_same_run(run / member, tmp_path / "whole" / member)
    assert (run / "comparison.json").exists()


@pytest.mark.slow
def test_a_run_from_another_that_is_killed_ends_with_the_same_bits(tmp_path: Path) -> None:
    plain = ["train", "--model=resnet20", "--epochs=1", *OPTIONS, "--out", tmp_path / "plain"]
    assert finish(plain, tmp_path / "log").status == 0
    init = ["--init", tmp_path / "plain", "--warm_start", "--se_lr=0.02", "--lr=0.01"]
    command = ["train", "--model=se_resnet20", "--epochs=3", *OPTIONS, *init]
    ended = finish([*command, "--out", tmp_path / "whole"], tmp_path / "log")
    assert ended.status == 0, ended.err
    assert f"starting from resnet20 in {tmp_path / 'plain'}" in ended.out
    kill_and_resume(command, ["config.yaml", "metrics.csv"], tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_a_run_by_a_modern_recipe_that_is_killed_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Everything that draws, and everything that remembers, beside the weights."""
    chance = ["--mixup=0.2", "--cutmix=1", "--mix_prob=0.8", "--rand_augment=9", "--erase=0.3"]
    memory = ["--ema_decay=0.99", "--accumulate=2", "--repeats=2", "--optimizer=adamw"]
    command = ["train", "--model=se_resnet20", "--epochs=3", *OPTIONS, *chance, *memory]
    ended = finish([*command, "--out", tmp_path / "whole"], tmp_path / "log")
    assert ended.status == 0, ended.err
    moments = ["config.yaml", "metrics.csv", "metrics.csv"]
    kill_and_resume([*command], moments, tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert TRAINED in torch.load(tmp_path / "run" / LAST, weights_only=True)


INTERRUPTED = """
import os, signal, sys
from senet.cli import main
put = os.replace
def replace(source, target):
    put(source, target)
    if str(target).endswith("last.ckpt"):
        signal.raise_signal(signal.SIGINT)
os.replace = replace
sys.exit(main(sys.argv[1:]))
"""
"""`senet` that is interrupted by Ctrl-C when its first checkpoint is written."""


def test_ctrl_c_says_how_to_go_on(whole: Path, tmp_path: Path) -> None:
    """A process of its own, started as a user's, with nothing imported beforehand."""
    run = tmp_path / "a run"
    surroundings = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *map(str, TRAIN), "--out", str(run)],
        capture_output=True,
        text=True,
        env=surroundings,
        timeout=120,
    )
    assert process.returncode == 130, process.stderr
    (line,) = process.stderr.splitlines()
    assert not [path for path in run.rglob("*") if is_temporary(path)]
    command = shlex.split(line.partition("to go on: ")[2])
    assert command == ["senet", "train", "--out", str(run), "--resume"]
    ended = finish(command[1:], tmp_path / "resumed")
    assert ended.status == 0, ended.err
    assert_same_run(run, whole)


def test_terminated_is_interrupted_too(tmp_path: Path) -> None:
    run = tmp_path / "run"
    terminated = when_placed("metrics.csv", signal.SIGTERM)
    ended = start([*TRAIN, "--out", run], tmp_path / "log", prepare=terminated).wait()
    assert ended.status == 143
    assert "--resume" in ended.err


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run with its first epoch done."""
    run = tmp_path / "run"
    killed = when_placed("metrics.csv", signal.SIGKILL)
    start([*TRAIN, "--out", run], tmp_path / "stopped", prepare=killed).wait()
    assert epochs_noted(run) == 1
    return run


def resume(run: Path, *options: str) -> Finished:
    return finish(["train", "--resume", "--out", run, *options], run.with_name("resume"))


def test_resume_takes_the_options_from_the_run(stopped: Path, whole: Path) -> None:
    ended = resume(stopped)
    assert ended.status == 0, ended.err
    assert "going on after epoch" in ended.out
    assert_same_run(stopped, whole)


def test_a_finished_run_says_so(whole: Path) -> None:
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    ended = resume(whole)
    assert ended.status == 0
    assert f"finished: {EPOCHS} epochs" in ended.out
    assert before == {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "option",
    others_slow(["--epochs=6", "--lr=0.01", "--model=se_resnet56", "--seed=8"], {"--epochs=6"}),
)
def test_other_options_are_refused(whole: Path, option: str) -> None:
    ended = resume(whole, option)
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert option[2:].partition("=")[0] in line


def test_the_same_configuration_is_no_difference(whole: Path) -> None:
    ended = resume(whole, f"--config={whole / 'config.yaml'}")
    assert ended.status == 0, ended.err


def test_what_does_not_matter_may_change(whole: Path) -> None:
    assert resume(whole, "--workers=2", "--no-download").status == 0


def test_a_run_is_not_written_over(whole: Path, tmp_path: Path) -> None:
    ended = finish([*TRAIN, "--out", whole], tmp_path / "log")
    assert ended.status == 2
    assert "holds another run; add --resume" in ended.err


def test_a_directory_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    for resuming in ([], ["--resume"]):
        ended = finish([*TRAIN, "--out", tmp_path / "out", *resuming], tmp_path / "log")
        assert ended.status == 2
        assert "not empty and holds no run" in ended.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


class _Trap:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "damage",
    others_slow(
        ["cut short", "a pickle", "a torch pickle", "empty", "a text"],
        {"cut short", "a torch pickle"},
    ),
)
def test_a_checkpoint_that_is_none_is_told_in_a_line(
    whole: Path, tmp_path: Path, damage: str
) -> None:
    run, trap = tmp_path / "run", tmp_path / "executed"
    (run / LAST).parent.mkdir(parents=True)
    (run / "config.yaml").write_bytes((whole / "config.yaml").read_bytes())
    if damage == "a torch pickle":
        torch.save({"state_dict": _Trap(trap)}, run / LAST)
    else:
        contents = {
            "cut short": (whole / LAST).read_bytes()[:-1000],
            "a pickle": pickle.dumps({"state_dict": _Trap(trap)}),
            "empty": b"",
            "a text": b"epoch,step\n",
        }
        (run / LAST).write_bytes(contents[damage])
    ended = resume(run)
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert "last.ckpt" in line
    assert not trap.exists()
    assert not (run / WEIGHTS).exists()
