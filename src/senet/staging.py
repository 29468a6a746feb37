"""A folder of results made beside its place and moved there: whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError
from .runs import make_directory

__all__ = ["fresh", "staged"]


@contextmanager
def fresh(out: Path) -> Iterator[Path]:
    """A new folder to write into, which becomes ``out`` when the block ends well.

    Args:
        out: Where the folder is to be; there is none, or an empty one. Those above it are made.

    Raises:
        UserError: ``out`` is a file, holds anything, or cannot be written. What the block raises
            is left as it is.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        what = "is not empty" if out.is_dir() else "is a file"
        raise UserError(f"out {str(out)!r} {what}; name a directory to be made")
    with _beside(out, out) as folder:
        yield folder
        with _told(out):
            folder.replace(out)


@contextmanager
def staged(out: Path, kind: str, facts: Mapping[str, Any]) -> Iterator[Path]:
    """A new folder to write into, which takes the place of ``out`` when the block ends well.

    ``KIND.json`` is added to it: ``facts``, and every file there is. By it an earlier result of
    the same kind is known and replaced, as long as nothing else was put beside it. Whatever
    happens, ``out`` is what it was or the new folder; a killed process leaves a hidden folder
    ``.senet-….tmp`` beside it, which, in the instant between two renamings, is the old ``out``.

    Args:
        out: Where the folder is to be; it and those above it are made.
        kind: What makes such folders: "inspection".
        facts: Kept in its file. May be filled while the folder is.

    Raises:
        UserError: ``out`` is a file, holds something else, or cannot be written. What the block
            raises is left as it is.
    """
    place = Path(os.path.realpath(out))
    _check(place, out, kind)
    with _beside(place, out) as folder:
        yield folder
        with _told(out):
            files = sorted(_files(folder))
            record = {"kind": f"senet {kind}", **facts, "files": files}
            text = json.dumps(record, indent=2, allow_nan=False) + "\n"
            (folder / f"{kind}.json").write_text(text, encoding="utf-8")
            _check(place, out, kind)  # time has passed
            _put(folder, place)


@contextmanager
def _beside(place: Path, out: Path) -> Iterator[Path]:
    """A new folder beside its place, removed in the end where it was not moved there."""
    make_directory(place.parent)
    folder = _name_beside(place)
    with _told(out):
        folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _name_beside(place: Path) -> Path:
    """A name that is nobody's, of the kind that `runs.is_temporary` knows."""
    return place.parent / f".senet-{os.getpid()}-{secrets.token_hex(4)}.tmp"


@contextmanager
def _told(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {str(out)!r}: {error.strerror or error}") from error


def _check(place: Path, out: Path, kind: str) -> None:
    if not place.exists():
        return
    if not place.is_dir():
        raise UserError(f"{str(out)!r} is a file; name a folder to be made")
    found = set(_files(place))
    if not found and not any(place.iterdir()):
        return
    ours = _recorded(place / f"{kind}.json", kind)
    if ours is None or (others := sorted(found - ours - {f"{kind}.json"})):
        first = sorted(found)[0] if ours is None and found else "" if ours is None else others[0]
        holds = f"something else ({first!r})" if first else "folders of something else"
        raise UserError(f"{str(out)!r} holds {holds}; name a new folder, or an empty one")


def _recorded(path: Path, kind: str) -> set[str] | None:
    """The files that a record of this kind lists; None where there is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["kind"] != f"senet {kind}":
            return None
        return set(map(str, record["files"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _files(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        for name in names:
            yield Path(parent, name).relative_to(folder).as_posix()


def _put(new: Path, place: Path) -> None:
    """Move ``new`` to ``place``, where the old folder comes back if that fails."""
    if not place.exists():
        new.rename(place)
        return
    old = _name_beside(place)
    place.rename(old)
    try:
        new.rename(place)
    except BaseException:
        old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)
