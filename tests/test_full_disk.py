"""A disk that fills up while a checkpoint is saved: the one before it stays, and the run goes on.

On a small disk of the test's own (a tmpfs) where it may mount one, and under a limit on the size
of files, which every user may set.
"""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from breadth import others_slow

from senet.checkpoints import BEST, LAST, read_record
from senet.errors import UserError
from senet.options import TrainOptions
from senet.runs import WEIGHTS, is_temporary
from senet.training import train

OPTIONS = TrainOptions(
    model="resnet20",
    image_size=8,
    batch_size=16,
    epochs=3,
    limit_batches=2,
    threads=1,
    lr=0.01,
    accelerator="cpu",
)


class SmallDisk:
    """A folder that can be full and free again.

    Args:
        folder: where it is.
        mounted: whether it is a disk of its own; else the size of files is limited.
    """

    def __init__(self, folder: Path, *, mounted: bool) -> None:
        self.folder = folder
        self.mounted = mounted
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self, room: int) -> None:
        """Leave ``room`` bytes."""
        if not self.mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, self.limits[1]))
            return
        state = os.statvfs(self.folder)
        with (self.folder / "others").open("wb") as file:
            file.write(b"\0" * (state.f_bavail * state.f_frsize - room))

    def free(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)
        (self.folder / "others").unlink(missing_ok=True)


@pytest.fixture(params=others_slow(["a disk", "a limit"], ["a disk"]))
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    mounted = request.param == "a disk" and _succeeds(mount)
    made = SmallDisk(folder, mounted=mounted)
    try:
        yield made
    finally:
        made.free()
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def stop_after_an_epoch(line: str) -> None:
    if "epoch 1/3" in line:
        raise KeyboardInterrupt


@pytest.mark.parametrize("room", others_slow([0.1, 0.9], [0.9]), ids=["at once", "in the midst"])
def test_the_checkpoint_before_stays_whole(disk: SmallDisk, tmp_path: Path, room: float) -> None:
    whole, run = tmp_path / "whole", disk.folder / "run"
    train(OPTIONS, whole, say=lambda line: None)
    with pytest.raises(KeyboardInterrupt):
        train(OPTIONS, run, say=stop_after_an_epoch)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    disk.fill(int(room * len(before[run / LAST])))
    with pytest.raises(UserError) as caught:
        train(OPTIONS, run, resume=True, say=lambda line: None)
    disk.free()
    words = str(caught.value)
    assert words.startswith("cannot write '")
    assert words.endswith("No space left on device" if disk.mounted else "File too large")
    assert any(str(run / name) in words for name in (LAST, BEST))
    assert "\n" not in words
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert not any(is_temporary(path) for path in run.rglob("*"))
    assert len(read_record(run / LAST).rows) == 1
    train(OPTIONS, run, resume=True, say=lambda line: None)
    assert (run / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    ours, theirs = (torch.load(r / LAST, weights_only=True)["state_dict"] for r in (run, whole))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
