"""Shards read and compared with what their manifest says of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from .errors import UserError
from .manifests import MANIFEST, Manifest, ShardEntry
from .shards import Shard, read_shard

Item = TypeVar("Item")
Result = TypeVar("Result")

__all__ = ["ShardChecks", "bar_over", "check_bytes"]

_MEND = "copy it anew, or pack the folder again"
_SAID = f"in the {MANIFEST} beside it; {_MEND}"


class ShardChecks:
    """Reads the headers of shards and compares each with its manifest.

    Args:
        known: The manifest of each folder that has one.
        read_bytes: Compare the SHA-256 of all bytes too.
    """

    def __init__(self, known: Mapping[Path, Manifest], *, read_bytes: bool) -> None:
        self._known = known
        self._read_bytes = read_bytes
        self._entries = {
            folder / entry.file: entry
            for folder, manifest in known.items()
            for entry in (*manifest.train, *manifest.val)
        }

    def known_bytes(self, paths: Sequence[Path]) -> tuple[tuple[Path, ShardEntry], ...]:
        """The shards that a manifest says something of, with what it says."""
        return tuple((path, self._entries[path]) for path in paths if path in self._entries)

    def part(self, paths: Sequence[Path], advance: Callable[[int], None]) -> list[Shard]:
        """The shards in order; the first that is not as it should be raises."""
        return _each(lambda path: self._read(path, advance), paths)

    def _read(self, path: Path, advance: Callable[[int], None]) -> Shard:
        entry = self._entries.get(path)
        if path.parent in self._known and entry is None:
            raise UserError(f"shard {str(path)!r} is not in the {MANIFEST} beside it")
        if entry is not None:
            _compare_size(path, entry)
            if self._read_bytes:
                _compare_bytes(path, entry, advance)
            else:
                advance(entry.bytes)
        shard = read_shard(path)
        if entry is None:
            advance(shard.bytes)
        elif len(shard.names) != entry.count:
            raise UserError(
                f"shard {str(path)!r} holds {len(shard.names):,} images, but {entry.count:,} by "
                f"the {MANIFEST} beside it; pack the folder again"
            )
        if entry is not None:
            limit = len(self._known[path.parent].classes)
            if (label := max(shard.labels)) >= limit:
                raise UserError(f"shard {str(path)!r} has label {label}, of {limit} classes")
        return shard


def check_bytes(
    pairs: Sequence[tuple[Path, ShardEntry]],
    part: int = 0,
    parts: int = 1,
    progress: bool = False,
) -> None:
    """Compare the bytes of shards with what their manifest says, or one of several parts of them.

    Args:
        pairs: As `ShardChecks.known_bytes` gives them.
        part: Which part, counted from 0.
        parts: Of how many.
        progress: Show a bar on standard error.

    Raises:
        UserError: A shard cannot be read, or is another.
    """
    mine = pairs[part::parts]
    with bar_over([path for path, _ in mine], progress) as advance:
        _each(lambda pair: _compare_bytes(*pair, advance), mine)


def _each(do: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """In threads, for most of it is reading and hashing, which let go of Python's lock."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        coming = pool.map(do, items)
        try:
            return list(coming)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _compare_size(path: Path, entry: ShardEntry) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error
    if size != entry.bytes:
        how = "cut short" if size < entry.bytes else "altered"
        sizes = f"it has {size:,} bytes, not {entry.bytes:,}"
        raise UserError(f"shard {str(path)!r} is {how}: {sizes} as {_SAID}")


def _compare_bytes(path: Path, entry: ShardEntry, advance: Callable[[int], None]) -> None:
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(2**22):
                digest.update(chunk)
                advance(len(chunk))
    except OSError as error:
        raise _unreadable(path, error) from error
    if digest.hexdigest() != entry.sha256:
        raise UserError(f"shard {str(path)!r} is altered: its SHA-256 is not that {_SAID}")


def _unreadable(path: Path, error: OSError) -> UserError:
    reason = error.strerror or error
    return UserError(f"cannot read shard {str(path)!r}: {reason}; {_MEND}")


@contextmanager
def bar_over(paths: Sequence[Path], progress: bool) -> Iterator[Callable[[int], None]]:
    """A bar over the bytes of all shards; yields what takes their number as they are read."""
    if not progress:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("checking shards"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=sum(path.stat().st_size for path in paths if path.is_file()))
        yield lambda count: bar.advance(task, count)
