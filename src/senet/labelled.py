"""What a loader gives: images with or without labels, and the classes that these are of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from .errors import UserError

__all__ = ["check_labels", "class_names", "expected_counts", "numbered_classes", "pair"]


def pair(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Images (N, …) and labels (N,), or None where there are none, of what a loader gives.

    Whole numbers of any width are int64: to PyTorch uint8 would be a mask.

    Raises:
        UserError: these are not in it.
    """
    parts = batch if isinstance(batch, tuple | list) else (batch,)
    if not parts or not isinstance(parts[0], Tensor) or parts[0].dim() < 1:
        raise UserError(
            f"the loader gives a {type(batch).__name__}; let it give (images, labels) or images, "
            "as tensors"
        )
    if len(parts) == 1 or parts[1] is None:
        return parts[0], None
    labels = torch.as_tensor(parts[1])
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    return parts[0], labels.long() if whole else labels


def check_labels(labels: Tensor, count: int, classes: int) -> None:
    """Refuse what is not the numbers of ``count`` images' classes, (count,).

    Raises:
        UserError: they are not.
    """
    if labels.shape != (count,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise UserError(
            f"labels of shape {tuple(labels.shape)} and {labels.dtype} came with {count} images; "
            "each image needs the number of one class"
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise UserError(f"label {int(wrong)} in the data, but there are {classes} classes")


def class_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Names by label, as they were given.

    Raises:
        UserError: there are none, or one is there twice.
    """
    if isinstance(classes, str) or not classes:
        raise UserError(f"classes={classes!r} is no list of names")
    names = tuple(map(str, classes))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"class {twice!r} is there twice; classes need a name each")
    return names


def numbered_classes(labelled: bool, outputs: Any) -> tuple[str, ...]:
    """Names where none are given: the network's outputs by number.

    Raises:
        UserError: it has not one output a class.
    """
    if not labelled:
        return ("all",)
    if not (isinstance(outputs, Tensor) and outputs.dim() == 2):
        raise UserError("the network's output does not say how many classes there are; name them")
    return tuple(map(str, range(outputs.shape[1])))


def expected_counts(loader: Iterable[Any], classes: int) -> Tensor | None:
    """How many of each label will come, (K,), where the data tell beforehand."""
    data = getattr(loader, "dataset", None)
    known: Any = getattr(data, "labels", None)
    known = getattr(data, "targets", None) if known is None else known
    if isinstance(data, TensorDataset) and len(data.tensors) > 1:
        known = data.tensors[1]
    try:
        if isinstance(loader, list | tuple) and all(len(_parts(batch)) > 1 for batch in loader):
            numbers = torch.cat([torch.as_tensor(batch[1]) for batch in loader])
        elif isinstance(known, Tensor | np.ndarray | list | tuple):
            numbers = torch.as_tensor(known)
        else:
            return None
    except (TypeError, ValueError, RuntimeError):  # what they are the recording itself will tell
        return None
    if numbers.dim() != 1 or not len(numbers) or numbers.is_floating_point():
        return None
    if not 0 <= int(numbers.min()) <= int(numbers.max()) < classes:
        return None
    return torch.bincount(numbers.cpu(), minlength=classes)


def _parts(batch: Any) -> Sequence[Any]:
    return batch if isinstance(batch, tuple | list) else ()
