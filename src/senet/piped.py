"""Shards that a command prints: run only where a person typed it, kept in a folder meanwhile.

The folder is locked as long as the process lives. One whose lock nobody has was left by a process
that was killed, and the next that fetches anything removes it.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .errors import UserError
from .locking import DirectoryLock

__all__ = ["PIPE", "fetched"]

PIPE = "pipe:"
_PREFIX = "senet-piped-"
_MINE: set[Path] = set()
"""Folders of this process, whose locks would not keep it out."""


def fetched(names: Sequence[str], *, allowed: bool) -> list[Path]:
    """Run the command of each ``pipe:COMMAND`` and keep what it prints in a temporary folder.

    Images are read in another order in every epoch, which a stream does not allow. ``TMPDIR``
    says where the folder is made; it is removed when the process ends. Each process of a run
    fetches for itself.

    Args:
        names: The commands.
        allowed: A person typed them. A command out of a file, which may be a stranger's, is not
            run.

    Raises:
        UserError: not allowed; some are files; a command fails; there is no space.
    """
    command = next(name for name in names if name.startswith(PIPE))
    if not allowed:
        raise UserError(
            f"{command!r} is a command, and commands out of a file are not run; type it: "
            "--data 'pipe:...'"
        )
    if plain := next((name for name in names if not name.startswith(PIPE)), None):
        raise UserError(f"{plain!r} is a file and {command!r} a command; name one kind only")
    from webdataset.gopen import gopen

    _clear_left()
    folder = _folder()
    paths = [folder / f"{number:06d}.tar" for number in range(len(names))]
    for name, path in zip(names, paths, strict=True):
        try:
            with gopen(name, "rb") as stream, path.open("wb") as file:
                shutil.copyfileobj(stream, file, 2**20)
        except OSError as error:
            # A disk that is full ends the command too, which then is the second to fail.
            first = error.__context__ if isinstance(error.__context__, OSError) else error
            if first.strerror:
                raise UserError(
                    f"cannot keep what {name!r} prints in {str(folder)!r}: {first.strerror}; "
                    "TMPDIR says where such folders are made"
                ) from first
            status = re.search(r"exit -?\d+", str(error))
            failed = f"the command failed, {status[0]}" if status else "the command failed"
            raise UserError(f"cannot read {name!r}: {failed}") from error
    return paths


def _folder() -> Path:
    """A locked folder that goes when this process ends."""
    folder = tempfile.TemporaryDirectory(prefix=_PREFIX)
    path = Path(folder.name)
    _MINE.add(path)
    lock = DirectoryLock(path)
    lock.take()
    atexit.register(folder.cleanup)  # which workers, forked from this process, do not run
    atexit.register(lock.release)  # before it
    return path


def _clear_left() -> None:
    """Remove the folders of processes that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        lock = DirectoryLock(path)
        # Into another user's folder one may not even look.
        if path in _MINE or path.is_symlink() or not _is_own(path) or not lock.path.is_file():
            continue
        with lock:
            if lock.take() and lock.held:
                shutil.rmtree(path, ignore_errors=True)


def _is_own(path: Path) -> bool:
    try:
        return not hasattr(os, "getuid") or path.stat().st_uid == os.getuid()
    except OSError:  # it has just gone
        return False
