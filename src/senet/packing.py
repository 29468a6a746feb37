"""An image folder packed into tar shards in the WebDataset convention, with a manifest."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from . import runs
from .errors import UserError
from .folders import FolderSplit, read_folder
from .images import decode_image, existing_file, quiet
from .locking import LOCK, DirectoryLock
from .manifests import MANIFEST, PARTS, Manifest, ShardEntry
from .sampling import mix

__all__ = ["Packed", "pack"]

STAGING = ".senet-packing"
"""Where shards are made, inside of the folder they are for."""

_SHARD = "{part}-{number:04d}.tar"
_IS_SHARD = re.compile(rf"({'|'.join(PARTS)})-\d{{4,}}\.tar")
_AT_ONCE = 64  # images that are read and checked at a time


@dataclass(frozen=True)
class Packed:
    """What `pack` made.

    Args:
        directory: Where the shards and their manifest are.
        manifest: The manifest.
    """

    directory: Path
    manifest: Manifest


def pack(
    folder: Path,
    out: Path,
    *,
    shard_bytes: int = 500_000_000,
    val_fraction: float = 0.2,
    seed: int = 7,
    progress: bool = False,
) -> Packed:
    """Write the images of a folder to ``train-0000.tar``, …, ``val-0000.tar``, … in ``out``.

    Samples are KEY.jpg (or .png, …), the bytes of the file, and KEY.cls, the label. The key is
    the image's place in the folder, and the training images are laid down in an order drawn by
    ``seed``, for those who read a shard from beginning to end. The same files and options give
    the same shards to the byte.

    Everything is made in a folder inside of ``out`` and moved when it is whole, the manifest
    last: without a manifest there is nothing to be taken for a data set, and a call that was
    interrupted can be made again.

    Args:
        folder: As `read_folder` takes it.
        out: Folder to be made, or an empty one.
        shard_bytes: A shard that has so many is not added to.
        val_fraction: Share of each class that is held out, where there is no val/.
        seed: Decides which, and the order of the training images.
        progress: Show a bar on standard error.

    Raises:
        UserError: ``out`` holds something else, another call is packing into it, images cannot
            be read (named), the disk is full.
    """
    folder, out = Path(folder), Path(out)
    split = read_folder(folder, val_fraction=val_fraction, seed=seed)
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{str(out)!r} is inside of {str(folder)!r}; name a folder elsewhere")
    _check_out(out)
    made_here = not out.exists()
    runs.make_directory(out)
    try:
        with DirectoryLock(out) as lock:
            if not lock.take():
                raise UserError(
                    f"another senet pack is under way in {str(out)!r}; name another folder"
                )
            _check_out(out)  # another may have ended since
            manifest = _packed(split, out, shard_bytes, seed, progress)
    except BaseException:
        if made_here and not any(out.iterdir()):
            out.rmdir()
        raise
    return Packed(out, manifest)


def _packed(split: FolderSplit, out: Path, shard_bytes: int, seed: int, progress: bool) -> Manifest:
    """Shards and manifest in ``out``, or nothing."""
    try:
        with _disk_told(out):
            _clear(out)
            (out / STAGING).mkdir()
            manifest = _written(split, out / STAGING, shard_bytes, seed, progress)
            for path in sorted((out / STAGING).iterdir()):
                path.replace(out / path.name)
        text = manifest.to_json().encode()
        runs.atomic_write(out / MANIFEST, lambda file: file.write(text))
    except BaseException:
        if not (out / MANIFEST).exists():
            _clear(out)
        raise
    _clear(out, keep_shards=True)
    return manifest


def _check_out(out: Path) -> None:
    """Refuse a place that holds anything but what an interrupted call left."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{str(out)!r} is a file; name a folder to be made")
    if not out.is_dir():
        return
    names = {path.name for path in out.iterdir()}
    if MANIFEST in names:
        raise UserError(f"{str(out)!r} holds a {MANIFEST} already; name another folder")
    ours = {n for n in names if n in (STAGING, LOCK) or runs.is_temporary(Path(n))}
    if STAGING in names:
        ours |= {name for name in names if _IS_SHARD.fullmatch(name)}
    if others := sorted(names - ours):
        raise UserError(f"{str(out)!r} holds something else ({others[0]!r}); name another folder")


def _clear(out: Path, *, keep_shards: bool = False) -> None:
    """Remove what an interrupted call left: its shards only while its own folder is there."""
    if not out.is_dir():
        return
    for path in sorted(out.iterdir()):
        shard = _IS_SHARD.fullmatch(path.name) and (out / STAGING).is_dir() and not keep_shards
        if shard or runs.is_temporary(path):
            path.unlink()
    shutil.rmtree(out / STAGING, ignore_errors=True)


@contextmanager
def _disk_told(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        advice = "name a folder that may be written to"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            advice = "nothing is left there, make room and run it again"
        raise UserError(
            f"cannot write to {str(out)!r}: {error.strerror or error}; {advice}"
        ) from error


def _written(
    split: FolderSplit, staging: Path, shard_bytes: int, seed: int, progress: bool
) -> Manifest:
    """Write all shards into ``staging``."""
    from rich.console import Console
    from rich.progress import Progress

    order = torch.Generator().manual_seed(int(mix(seed)[0] >> 1))
    parts = {
        "train": (split.train_paths, torch.randperm(len(split.train_paths), generator=order)),
        "val": (split.val_paths, torch.arange(len(split.val_paths))),
    }
    labels = {"train": split.train_labels.tolist(), "val": split.val_labels.tolist()}
    unreadable: list[str] = []
    entries = {}
    with (
        quiet(),  # for the threads of the pool too
        Progress(console=Console(stderr=True), transient=True, disable=not progress) as bar,
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
    ):
        for part, (paths, places) in parts.items():
            task = bar.add_task(f"packing {part}", total=len(paths))
            chosen = [(place, paths[place]) for place in places.tolist()]
            samples = (
                (f"{place:08d}", suffix, data, labels[part][place])
                for place, suffix, data in _read(bar.track(chosen, task_id=task), unreadable, pool)
            )
            entries[part] = _write_part(part, samples, staging, shard_bytes, unreadable)
    if unreadable:
        more = f" (and {len(unreadable) - 3} more)" if len(unreadable) > 3 else ""
        raise UserError(
            f"{'; '.join(unreadable[:3])}{more}; mend or remove them: nothing was packed"
        )
    return Manifest(split.classes, entries["train"], entries["val"])


def _read(
    chosen: Iterable[tuple[int, Path]], unreadable: list[str], pool: Executor
) -> Iterator[tuple[int, str, bytes]]:
    """Place, suffix and bytes of each image that can be decoded; what is wrong with the others.

    In threads, since Pillow lets go of Python's lock while it decodes. They are the caller's: a
    generator that an error leaves half read is closed whenever, and wherever, it is collected.
    """

    def check(item: tuple[int, Path]) -> tuple[int, str, bytes] | str:
        place, path = item
        try:
            data = existing_file(path).read_bytes()
            decode_image(data, repr(str(path)))
        except OSError as error:
            return f"cannot read image {str(path)!r}: {error.strerror or error}"
        except UserError as error:
            return str(error)
        return place, path.suffix.lower().removeprefix("."), data

    coming = iter(chosen)
    while some := list(islice(coming, _AT_ONCE)):
        for result in pool.map(check, some):
            if isinstance(result, str):
                unreadable.append(result)
            else:
                yield result


def _write_part(
    part: str,
    samples: Iterable[tuple[str, str, bytes, int]],
    staging: Path,
    shard_bytes: int,
    unreadable: Sequence[str],
) -> tuple[ShardEntry, ...]:
    """Write samples (key, suffix, bytes, label) to shards of about a size, in their order."""
    from webdataset.writer import TarWriter

    entries: list[ShardEntry] = []
    coming = iter(samples)
    sample = next(coming, None)
    while sample is not None:
        path = staging / _SHARD.format(part=part, number=len(entries))
        count = 0
        with path.open("xb") as file:
            with TarWriter(file, user="", group="", encoder=False, mtime=0) as shard:
                while sample is not None and (count == 0 or file.tell() < shard_bytes):
                    key, suffix, data, label = sample
                    if not unreadable:  # else what is left is only looked at
                        shard.write({"__key__": key, suffix: data, "cls": str(label).encode()})
                        count += 1
                    sample = next(coming, None)
            file.flush()
            os.fsync(file.fileno())
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        entries.append(ShardEntry(path.name, count, path.stat().st_size, digest))
    return tuple(entries)
