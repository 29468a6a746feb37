"""A lock on a directory that ends with the process which holds it, however that ends."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "DirectoryLock"]

LOCK = ".senet.lock"
"""The file in a directory that is locked; it is removed when the lock is given back."""


class DirectoryLock:
    """A lock on a directory, for one process at a time.

    The kernel gives it back when the process ends, by ``kill -9`` too, and processes that were
    forked from it, such as those that load images, do not hold it. Where the file system knows no
    locks, or nothing can be written, there is none and nobody is kept out.

    Args:
        directory: what is locked; it may be missing until `take`.
    """

    def __init__(self, directory: Path) -> None:
        self.path = Path(directory) / LOCK
        self._file: BinaryIO | None = None

    def take(self) -> bool:
        """Whether this process has the lock now; False where another one has it."""
        while self._file is None and fcntl is not None:
            try:
                file = self.path.open("ab")
            except OSError:
                return True  # not to be written to: there is nothing to protect
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                file.close()
                return False
            except OSError:
                file.close()
                return True
            if self._is_in_place(file):
                self._file = file
            else:  # whoever had it removed the file between our two steps
                file.close()
        return True

    @property
    def held(self) -> bool:
        """Whether there is a lock, and this process has it."""
        return self._file is not None

    def _is_in_place(self, file: BinaryIO) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give the lock back; nothing where there is none."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)  # while it is locked, or it could be another's
            self._file.close()
            self._file = None

    def __enter__(self) -> DirectoryLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
