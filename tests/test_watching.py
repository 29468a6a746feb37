"""Workers that die or hang are told in a line that names the file: with real processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from generated import make_image_folder
from processes import start, wait_until
from tars import samples, write_tar

from senet.data import DataOptions, load_data, train_loader
from senet.errors import UserError
from senet.loading import ImageLoader
from senet.watching import workers_told

pytestmark = pytest.mark.filterwarnings("ignore:This process .*multi-threaded:DeprecationWarning")


@pytest.fixture
def stuck(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of images, and the one of them that is trouble."""
    folder = make_image_folder(tmp_path / "set", per_class=12)
    image = folder / "train" / "dog" / "5.png"
    return folder, image


def loader_of(folder: Path, **changes: float) -> ImageLoader:
    options = DataOptions(data=str(folder), image_size=16, batch_size=4, **changes)  # type: ignore[arg-type]
    return train_loader(load_data(options), options)


class _Stuck:
    """Reads of one file that never come back, as of a disk that is gone."""

    def __init__(self, loader: ImageLoader, image: Path) -> None:
        self.images = loader.dataset.images  # type: ignore[attr-defined]
        self.read, self.image = self.images.source, image
        self.images.source = self

    def __call__(self, index: int) -> tuple[torch.Tensor, int]:
        if self.images.path(index) == self.image:
            time.sleep(1000)
        result: tuple[torch.Tensor, int] = self.read(index)
        return result


def asked_often() -> None:
    """PyTorch waits five seconds at a time for workers to end, which one that hangs does not."""
    torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.2


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_loader_that_hangs_names_the_file(stuck: tuple[Path, Path], workers: int) -> None:
    folder, image = stuck
    loader = loader_of(folder, workers=workers, load_timeout=4)
    _Stuck(loader, image)
    with pytest.raises(UserError) as caught:
        list(loader)
    text = str(caught.value)
    assert text.startswith("no batch for 4 s (load_timeout): the workers were reading ")
    assert repr(str(image)) in text
    assert "\n" not in text


@pytest.mark.slow
def test_a_loader_that_hangs_between_two_epochs(stuck: tuple[Path, Path]) -> None:
    """A worker that is stopped, and would not end when it is asked to."""
    loader = loader_of(stuck[0], workers=1, load_timeout=2)
    list(loader)
    (worker,) = loader._watch.processes  # type: ignore[union-attr]
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(UserError, match=r"no batch for 2 s .* were reading no file"):
        list(loader)
    worker.join(10)
    assert not worker.is_alive()


def test_a_loader_in_time_is_left_alone(stuck: tuple[Path, Path]) -> None:
    assert len(list(loader_of(stuck[0], workers=1, load_timeout=30))) == 6


def kill_at(loader: ImageLoader, image: Path, number: int) -> None:
    """Have the worker that comes to ``image`` killed there."""
    stop = _Stuck(loader, image)
    parent = os.getpid()

    def read(index: int) -> tuple[torch.Tensor, int]:
        if stop.images.path(index) == image and os.getpid() != parent:
            os.kill(os.getpid(), number)
        result: tuple[torch.Tensor, int] = stop.read(index)
        return result

    stop.images.source = read


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_dies_names_the_file(stuck: tuple[Path, Path], number: int) -> None:
    folder, image = stuck
    loader = loader_of(folder, workers=2)
    kill_at(loader, image, number)
    with pytest.raises(UserError) as caught, workers_told():
        list(loader)
    text = str(caught.value)
    assert f"was killed ({signal.Signals(number).name}) while reading {str(image)!r}" in text
    assert "fewer --workers" in text
    assert "\n" not in text


def test_the_error_of_something_else_passes() -> None:
    with pytest.raises(RuntimeError, match=r"^something else$"), workers_told():
        raise RuntimeError("something else")


@pytest.mark.parametrize(("workers", "seconds"), [(0, 5.0), (1, 0.0), (1, -1.0)])
def test_a_timeout_needs_workers_and_seconds(workers: int, seconds: float) -> None:
    with pytest.raises(UserError, match="load_timeout is"):
        DataOptions(workers=workers, load_timeout=seconds)


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def test_training_whose_worker_is_killed_ends_with_a_line(tmp_path: Path) -> None:
    folder = make_image_folder(tmp_path / "set", per_class=16)
    run = tmp_path / "run"
    options = ["--model=resnet20", "--image_size=16", "--batch_size=8", "--epochs=500"]
    options.append("--workers=2")
    running = start(["train", "--data", folder, "--out", run, *options], tmp_path / "log")
    assert wait_until(lambda: (run / "metrics.csv").exists(), running)
    os.kill(children(running.pid)[0], signal.SIGKILL)
    ended = running.wait()
    assert ended.status == 2, ended.err
    (line,) = ended.err.splitlines()
    assert "a process that loads images was killed (SIGKILL)" in line


def test_training_on_a_file_that_never_comes_ends_with_a_line(tmp_path: Path) -> None:
    """A shard gives way to a named pipe that nobody writes to, while training is at work."""
    for number in (0, 1):
        write_tar(tmp_path / f"{number}.tar", samples([0, 1] * 8, start=16 * number))
    run = tmp_path / "run"
    command = ["train", "--data", f"{tmp_path}/{{0,1}}.tar", "--out", run, "--workers=1"]
    options = ["--model=resnet20", "--image_size=16", "--batch_size=4", "--epochs=4000"]
    options.append("--load_timeout=4")
    running = start([*command, *options], tmp_path / "log", prepare=asked_often)
    assert wait_until(lambda: (run / "metrics.csv").exists(), running)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "fifo").replace(tmp_path / "1.tar")
    ended = running.wait()
    assert ended.status == 2, ended.err
    (line,) = ended.err.splitlines()
    assert "no batch for 4 s (load_timeout): the workers were reading '" in line
    assert f".png' in shard '{tmp_path}/1.tar'; look at that file" in line
