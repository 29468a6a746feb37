"""senet.locking: one training in a directory at a time, and none is kept out by a dead one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from processes import finish, server, start, wait_until

from senet.checkpoints import METRICS
from senet.locking import LOCK, DirectoryLock

TRAIN = (
    *("train", "--model=resnet20", "--data=digits", "--image_size=8", "--limit_batches=2"),
    "--accelerator=cpu",
)


def hold(folder: Path, connection: Any) -> None:
    """Take the lock, say whether that was possible, and wait."""
    lock = DirectoryLock(folder)
    connection.send(lock.take())
    signal.pause()


def other_process(folder: Path) -> tuple[Any, bool]:
    context = server()
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(folder, theirs), daemon=True)
    process.start()
    theirs.close()
    assert ours.poll(60)
    return process, ours.recv()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    holder, taken = other_process(tmp_path)
    assert taken
    lock = DirectoryLock(tmp_path)
    assert not lock.take()
    lock.release()  # which it does not have
    assert (tmp_path / LOCK).exists()
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert (tmp_path / LOCK).exists()  # nobody was left to remove it
    with DirectoryLock(tmp_path) as lock:
        assert lock.take()
        assert lock.take()
        process, taken = other_process(tmp_path)
        assert not taken
        process.kill()
        process.join()
    assert not (tmp_path / LOCK).exists()


def test_a_file_that_was_removed_meanwhile_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking it the holder gave it back, and another made a new one."""
    answers = [False, True]
    monkeypatch.setattr(DirectoryLock, "_is_in_place", lambda self, file: answers.pop(0))
    with DirectoryLock(tmp_path) as lock:
        assert lock.take()
        assert not answers


def test_where_no_file_can_be_made_nobody_is_kept_out(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path / "missing")
    assert lock.take()
    lock.release()


def test_two_trainings_into_one_directory(tmp_path: Path) -> None:
    """The second is told so; killed, the first lets go at once, though it has a worker."""
    run = tmp_path / "run"
    first = start([*TRAIN, "--epochs=500", "--workers=1", "--out", run], tmp_path / "first")
    assert wait_until(lambda: (run / METRICS).exists(), first, pause=0.01)
    try:
        ended = finish([*TRAIN, "--epochs=500", "--out", run, "--resume"], tmp_path / "second")
        assert ended.status == 2
        (line,) = ended.err.splitlines()
        assert f"another training is under way in {run}" in line
        assert first.alive()
    finally:
        first.process.kill()
    assert first.wait().status == -signal.SIGKILL
    again = start(["train", "--out", run, "--resume"], tmp_path / "again")
    try:
        assert wait_until(
            lambda: again.out.exists() and "going on after" in again.out.read_text(),
            again,
            pause=0.01,
        )
        os.kill(again.pid, signal.SIGINT)
        assert again.wait().status == 130
    finally:
        again.process.kill()
    assert not (run / LOCK).exists()
