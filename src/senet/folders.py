"""Image folders with a folder for each class, split already or to be split."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .errors import UserError
from .images import find_images
from .sampling import stratified_split

__all__ = ["FolderSplit", "fingerprint", "read_folder"]


_PARTS = frozenset(("train", "val", "valid", "validation", "test"))


@dataclass(frozen=True)
class FolderSplit:
    """Files below ``root`` and int64 labels of the two parts, and the class names."""

    root: Path
    classes: tuple[str, ...]
    train_paths: list[Path]
    train_labels: Tensor
    val_paths: list[Path]
    val_labels: Tensor


def fingerprint(root: Path, parts: Iterable[Iterable[Path]]) -> str:
    """A short text that changes with the files' paths below ``root``, parts and sizes.

    Their contents are not read: that would take as long as an epoch.
    """
    digest = hashlib.sha256()
    for part in parts:
        for path in part:
            name = os.fsencode(path.relative_to(root))
            digest.update(b"%s\0%d\0" % (name, _size(path)))
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def _size(path: Path) -> int:
    """Bytes in a file; -1 for a link that leads nowhere, which reading it will report."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def read_folder(root: Path, *, val_fraction: float, seed: int) -> FolderSplit:
    """Find the images of ``root/train/<class>/`` and ``root/val/<class>/``, or ``root/<class>/``.

    The second layout is split: ``val_fraction`` of each class, chosen by ``seed``, is held out.
    Classes are sorted by name. Raises ``UserError`` where the folder or a part of it is missing,
    a class has no images, there are fewer than two classes, or train and val differ in classes.
    """
    if not os.path.isdir(root):  # False also for what is too long for a name
        raise UserError(f"no such image folder: {str(root)!r}")
    parts = {name: _class_folders(root / name) for name in ("train", "val")}
    if parts["train"] and parts["val"]:
        return _given_split(root, parts["train"], parts["val"])
    for there, absent in (("train", "val"), ("val", "train")):
        if parts[there]:
            raise UserError(
                f"{str(root)!r} has {there}/ with class folders but no {absent}/ with any; "
                f"add {absent}/<class>/, or leave {there}/ out and have the classes split"
            )
    classes, paths, labels = _labelled(root, _class_folders(root))
    if set(classes) <= _PARTS:
        raise UserError(
            f"{' and '.join(map(repr, classes))} in {str(root)!r} are parts of data, with images "
            "but no classes in them; expected train/<class>/ and val/<class>/, or <class>/"
        )
    try:
        train, val = stratified_split(labels, val_fraction, seed)
    except ValueError as error:
        counts = labels.bincount()
        name = classes[int(counts.argmin())]
        raise UserError(
            f"class {name!r} in {str(root)!r} has one image only, so none can be held out; "
            "add images or give train/ and val/ folders"
        ) from error
    return FolderSplit(
        root,
        classes,
        [paths[index] for index in train.tolist()],
        labels[train],
        [paths[index] for index in val.tolist()],
        labels[val],
    )


def _class_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )


def _given_split(root: Path, train: list[Path], val: list[Path]) -> FolderSplit:
    classes, train_paths, train_labels = _labelled(root / "train", train)
    val_classes, val_paths, val_labels = _labelled(root / "val", val)
    if classes != val_classes:
        alone = sorted(set(classes) ^ set(val_classes))
        shown = ", ".join(
            f"{name!r} only in {'train' if name in classes else 'val'}/" for name in alone[:3]
        )
        more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
        raise UserError(f"train/ and val/ in {str(root)!r} differ in classes: {shown}{more}")
    return FolderSplit(root, classes, train_paths, train_labels, val_paths, val_labels)


def _labelled(folder: Path, classes: list[Path]) -> tuple[tuple[str, ...], list[Path], Tensor]:
    """Names, files and labels (N,) of class folders; each has images, and there are two."""
    if not classes:
        raise UserError(
            f"no class folders in {str(folder)!r}; expected {folder.name}/<class>/<image files>"
        )
    paths: list[Path] = []
    labels: list[int] = []
    empty: list[Path] = []
    for label, entry in enumerate(classes):
        found = find_images(entry)
        paths += found
        labels += [label] * len(found)
        if not found:
            empty.append(entry)
    if not paths:
        raise UserError(f"no images at all in {str(folder)!r} or its {len(empty)} folders")
    if empty:
        more = f", nor have {len(empty) - 1} more" if len(empty) > 1 else ""
        raise UserError(
            f"class folder {str(empty[0])!r} has no images{more}; fill or remove what is empty"
        )
    if len(classes) < 2:
        raise UserError(
            f"only one class folder, {classes[0].name!r}, in {str(folder)!r}; "
            "telling classes apart takes two"
        )
    return tuple(entry.name for entry in classes), paths, torch.tensor(labels)
