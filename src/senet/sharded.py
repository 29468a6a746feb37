"""Data sets of tar shards: patterns and packed folders → where each image lies, all checked."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .checking import ShardChecks, bar_over
from .errors import UserError
from .manifests import MANIFEST, Manifest, ShardEntry, read_manifest
from .piped import PIPE, fetched
from .runs import expanded
from .sampling import stratified_split
from .shards import Shard

__all__ = ["ShardPart", "ShardSplit", "expand", "is_sharded", "read_shards"]

_MOST_SHARDS = 100_000
_RANGES = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?\}")
_LONGEST = 4096


@dataclass(frozen=True)
class ShardPart:
    """The images of some shards, one buffer or array for all: workers are to share them.

    Args:
        paths: The shards.
        shard: int64 (N,), in which of them each image lies.
        offsets: int64 (N,), where its bytes begin.
        sizes: int64 (N,), how many they are.
        labels: int64 (N,).
        names: Of the members, UTF-8, one after the other.
        ends: int64 (N,), where each name ends.
    """

    paths: tuple[Path, ...]
    shard: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    labels: Tensor
    names: bytes
    ends: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets)

    def name(self, index: int) -> str:
        """The member that an image is, in its shard."""
        start = int(self.ends[index - 1]) if index else 0
        return self.names[start : int(self.ends[index])].decode("utf-8", "surrogateescape")

    def take(self, indices: Sequence[int]) -> ShardPart:
        """These images, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return ShardPart(
            self.paths,
            self.shard[chosen],
            self.offsets[chosen],
            self.sizes[chosen],
            self.labels[torch.from_numpy(chosen)],
            *_joined([self.name(index) for index in indices]),
        )


@dataclass(frozen=True)
class ShardSplit:
    """The data of some shards.

    Args:
        classes: Names by label.
        train, val: The two parts.
        fingerprint: A text that changes with the shards.
        unchecked: Shards whose bytes are still to be compared with what their manifest says.
    """

    classes: tuple[str, ...]
    train: ShardPart
    val: ShardPart
    fingerprint: str
    unchecked: tuple[tuple[Path, ShardEntry], ...] = ()


def is_sharded(data: str) -> bool:
    """Whether ``data`` means shards: a pattern, a packed folder, or its manifest."""
    if data.startswith(PIPE):
        return True
    path = expanded(data)
    if os.path.isdir(path):  # False also for what is too long for a name
        folders = (entry for entry in path.iterdir() if entry.is_dir() and entry.name[0] != ".")
        return next(folders, None) is None and (
            (path / MANIFEST).is_file() or any(path.glob("*.tar"))
        )
    return (
        "::" in data
        or path.name == MANIFEST
        or re.search(r"\.tar(\.\w+)?\}?$|\.tgz$|\{.*\}", data) is not None
    )


def expand(pattern: str) -> list[str]:
    """The shards that a pattern names: braces as in a shell, ``::`` between several patterns.

    >>> expand("a-{08..10}.tar::b.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b.tar']
    """
    from braceexpand import braceexpand

    if max(map(len, pattern.split("::"))) > _LONGEST:
        raise UserError(f"{pattern[:60]!r}… is no pattern of shards: longer than any path")
    for first, last, step in _RANGES.findall(pattern):  # braceexpand lists each whole
        if abs(int(last) - int(first)) // max(abs(int(step or 1)), 1) >= _MOST_SHARDS:
            raise UserError(f"{pattern!r} names more than {_MOST_SHARDS:,} shards")
    try:
        names = [
            name
            for part in pattern.split("::")
            for name in islice(braceexpand(part), _MOST_SHARDS + 1)
        ]
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{pattern!r} is no pattern of shards: {error}; write train-{{0000..0099}}.tar"
        ) from error
    if len(names) > _MOST_SHARDS:
        raise UserError(f"{pattern!r} names more than {_MOST_SHARDS:,} shards")
    return names


def read_shards(
    data: str,
    val_data: str | None = None,
    *,
    val_fraction: float,
    seed: int,
    pipes: bool = False,
    check: bool = True,
    progress: bool = False,
) -> ShardSplit:
    """Find the shards of both parts, check them against their manifest, and index them.

    Where the shards lie beside the manifest of `senet pack`, their sizes and SHA-256 must be as
    it says. All are checked before training: its order is drawn over all images, so that the
    first few batches already read from every shard.

    Args:
        data: A pattern of the shards to train on; or a packed folder or its manifest, for both.
        val_data: A pattern of those to validate on. Without one: the manifest's, or a share of
            each class of ``data``.
        val_fraction: That share.
        seed: Decides it.
        pipes: Whether commands (``pipe:cat file``) may be run: only where a person typed them.
        check: Whether to read all bytes, for their SHA-256; without it they stay ``unchecked``.
        progress: Show a bar on standard error.

    Raises:
        UserError: a shard that is missing, cut short, altered or hostile, a manifest that is,
            labels without a class, a shard that is in both parts.
    """
    packed = _packed(data)
    if packed is not None:
        folder, manifest = packed
        train = [folder / entry.file for entry in manifest.train]
        val = [folder / entry.file for entry in manifest.val]
    else:
        train, val = _paths(data, pipes), []
    if val_data is not None:
        val = _paths(val_data, pipes)
    known = _manifests([*train, *val])
    if val_data is None and packed is None:
        val = _beside(train, known)
    held_out = {os.path.realpath(path) for path in val}
    if both := [path for path in train if os.path.realpath(path) in held_out]:
        raise UserError(f"shard {str(both[0])!r} is among those to train on and to validate on")
    checks = ShardChecks(known, read_bytes=check)
    with bar_over([*train, *val], progress) as advance:
        parts = [checks.part(paths, advance) for paths in (train, val) if paths]
    joined = [_join(shards, in_order_of_names=bool(known)) for shards in parts]
    split = joined if len(joined) == 2 else _split(joined[0], data, val_fraction, seed)
    return ShardSplit(
        _classes(known, split, data),
        split[0],
        split[1],
        _fingerprint(parts, known, [part.labels for part in split]),
        () if check else checks.known_bytes([*train, *val]),
    )


def _packed(data: str) -> tuple[Path, Manifest] | None:
    """The folder and manifest that ``data`` is, if it is one of the two."""
    if data.startswith(PIPE):
        return None
    path = expanded(data)
    folder = path.parent if path.name == MANIFEST else path
    if path.name != MANIFEST and not os.path.isdir(path):
        return None
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"no {MANIFEST} in {str(folder)!r}: `senet pack` writes it last, so it was interrupted "
            "(run it again) or others made the shards (name them: train-{0000..0099}.tar)"
        )
    manifest = read_manifest(folder / MANIFEST)
    if manifest is None:
        raise UserError(
            f"{str(folder / MANIFEST)!r} is not one of `senet pack`; name the shards by a pattern, "
            "such as train-{0000..0099}.tar"
        )
    return folder, manifest


def _paths(pattern: str, pipes: bool) -> list[Path]:
    """The files of a pattern; what commands print is fetched into files first."""
    names = expand(pattern)
    if any(name.startswith(PIPE) for name in names):
        return fetched(names, allowed=pipes)
    for name in names:
        if re.match(r"\w+://", name):
            raise UserError(
                f"{name!r} is not a file; download it, or type --data 'pipe:curl -sf {name}'"
            )
    paths = [expanded(name) for name in names]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UserError(f"{pattern!r} names {str(twice)!r} twice")
    if absent := [path for path in paths if not os.path.isfile(path)]:
        more = f", nor are {len(absent) - 1} more of {len(paths)}" if len(absent) > 1 else ""
        raise UserError(
            f"no such shard: {str(absent[0])!r} is not a file{more}; copy it there, or name those "
            "there are, as in train-{0000..0003}.tar"
        )
    return paths


def _manifests(paths: Sequence[Path]) -> dict[Path, Manifest]:
    """The manifests of the folders that the shards are in, where there are such."""
    known = {}
    for folder in dict.fromkeys(path.parent for path in paths):
        if (folder / MANIFEST).is_file():
            manifest = read_manifest(folder / MANIFEST)
            if manifest is not None:
                known[folder] = manifest
    return known


def _beside(train: Sequence[Path], known: dict[Path, Manifest]) -> list[Path]:
    """The shards to validate on that lie beside those to train on; [] where none are."""
    folders = list(dict.fromkeys(path.parent for path in train))
    if not all(folder in known for folder in folders):
        return []
    return [folder / entry.file for folder in folders for entry in known[folder].val]


def _joined(names: Sequence[str]) -> tuple[bytes, npt.NDArray[np.int64]]:
    encoded = [name.encode("utf-8", "surrogateescape") for name in names]
    return b"".join(encoded), np.cumsum([len(name) for name in encoded], dtype=np.int64)


def _join(shards: Sequence[Shard], *, in_order_of_names: bool) -> ShardPart:
    """All images of the shards, in the order they lie there or in that of their names.

    `senet pack` lays them down shuffled, for those who read from beginning to end, under names
    that tell their place in the folder: so the folder and its shards give the same training.
    """
    counts = [len(shard.names) for shard in shards]
    part = ShardPart(
        tuple(shard.path for shard in shards),
        np.repeat(np.arange(len(shards)), counts),
        np.concatenate([np.array(shard.offsets, np.int64) for shard in shards]),
        np.concatenate([np.array(shard.sizes, np.int64) for shard in shards]),
        torch.tensor([label for shard in shards for label in shard.labels]),
        *_joined([name for shard in shards for name in shard.names]),
    )
    if not in_order_of_names:
        return part
    names = [part.name(index) for index in range(len(part))]
    return part.take(sorted(range(len(part)), key=names.__getitem__))


def _split(part: ShardPart, data: str, fraction: float, seed: int) -> list[ShardPart]:
    try:
        return [
            part.take(chosen.tolist()) for chosen in stratified_split(part.labels, fraction, seed)
        ]
    except ValueError as error:
        raise UserError(
            f"a class of {data!r} has one image only, so none can be held out ({error}); name "
            "shards to validate on with --val_data"
        ) from error


def _classes(known: dict[Path, Manifest], parts: Sequence[ShardPart], data: str) -> tuple[str, ...]:
    """Names by label: a manifest's, or the numbers."""
    named = {manifest.classes for manifest in known.values()}
    if len(named) > 1:
        raise UserError(f"the folders of {data!r} and of val_data differ in classes")
    most = max(int(part.labels.max()) for part in parts) + 1
    if named:
        (classes,) = named
        if most > len(classes):
            raise UserError(f"label {most - 1} in the shards, of {len(classes)} classes by name")
        return classes
    if most < 2:
        raise UserError(f"only one class in {data!r}; telling classes apart takes two")
    return tuple(str(label) for label in range(most))


def _fingerprint(
    parts: Sequence[Sequence[Shard]], known: dict[Path, Manifest], labels: Sequence[Tensor]
) -> str:
    """A short text that changes with the shards: their checksums, or what their headers say."""
    digest = hashlib.sha256()
    entries = {
        folder / entry.file: entry
        for folder, manifest in known.items()
        for entry in (*manifest.train, *manifest.val)
    }
    for shards in parts:
        for shard in shards:
            if (entry := entries.get(shard.path)) is not None:
                digest.update(entry.sha256.encode())
            else:
                digest.update(repr((shard.names, shard.offsets, shard.sizes, shard.bytes)).encode())
        digest.update(b"\0")
    for each in labels:
        digest.update(each.numpy().tobytes() + b"\0")
    return digest.hexdigest()[:16]
