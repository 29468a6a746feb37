"""The data sets with a name: the digits that come with scikit-learn, and torchvision's."""

from __future__ import annotations

import contextlib
import io
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from .errors import UserError
from .sampling import stratified_split

__all__ = ["CATALOGUE", "IMAGENET_MEAN", "IMAGENET_STD", "Entry", "digit_arrays", "open_entry"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_DIGITS = tuple("0123456789")
_TRAIN_TEST: tuple[dict[str, Any], dict[str, Any]] = ({"train": True}, {"train": False})
_SPLITS: tuple[dict[str, Any], dict[str, Any]] = ({"split": "train"}, {"split": "test"})


@dataclass(frozen=True)
class Entry:
    """A named data set.

    Args:
        kind: Its class in ``torchvision.datasets``; "" is scikit-learn's digits.
        image_size: Height and width in pixels that networks get unless told otherwise.
        mean: Of the red, green and blue channel of the training images, of 1.
        std: Likewise.
        flip: Whether a mirrored image shows the same thing.
        parts: What the class is called with for the training and for the held-out part.
        classes: Their names where torchvision has none, or long ones.
        in_files: Read image by image instead of held in memory.
    """

    kind: str
    image_size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    flip: bool = True
    parts: tuple[dict[str, Any], dict[str, Any]] = field(default=_SPLITS)
    classes: tuple[str, ...] = ()
    in_files: bool = False


def _grey(kind: str, size: int, mean: float, std: float, classes: tuple[str, ...] = ()) -> Entry:
    return Entry(kind, size, (mean,) * 3, (std,) * 3, False, _TRAIN_TEST, classes)


CATALOGUE: dict[str, Entry] = {
    "digits": Entry("", 16, (0.3054,) * 3, (0.3188,) * 3, False, classes=_DIGITS),
    "mnist": _grey("MNIST", 28, 0.1307, 0.3081, _DIGITS),
    "kmnist": _grey("KMNIST", 28, 0.1918, 0.3483),
    "usps": _grey("USPS", 16, 0.2469, 0.2989, _DIGITS),
    "fashion_mnist": Entry("FashionMNIST", 28, (0.2860,) * 3, (0.3530,) * 3, parts=_TRAIN_TEST),
    "cifar10": Entry(
        "CIFAR10", 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), parts=_TRAIN_TEST
    ),
    "cifar100": Entry(
        "CIFAR100", 32, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), parts=_TRAIN_TEST
    ),
    "svhn": Entry(
        "SVHN", 32, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), False, classes=_DIGITS
    ),
    "stl10": Entry("STL10", 96, (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
    "food101": Entry("Food101", 224, in_files=True),
    "oxford_pets": Entry(
        "OxfordIIITPet", 224, parts=({"split": "trainval"}, {"split": "test"}), in_files=True
    ),
    "dtd": Entry("DTD", 224, in_files=True),
    "imagenette": Entry(
        "Imagenette", 224, parts=({"split": "train"}, {"split": "val"}), in_files=True
    ),
}
"""Name → data set. Means and deviations are the usual ones of each training part."""


def digit_arrays(image_size: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and held-out digits: uint8 (N, 1, image_size, image_size), int64 (N,) each.

    scikit-learn's 1,797 handwritten digits of 8 × 8 pixels (E. Alpaydin, C. Kaynak, UCI 1998),
    enlarged. A fifth of each class is held out, always the same one.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = torch.from_numpy((digits.images * (255 / 16)).round().astype(np.uint8))[:, None]
    pixels = tv.resize(grey, [image_size, image_size], antialias=True)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    train, val = stratified_split(labels, fraction=0.2, seed=0)
    return (pixels[train], labels[train]), (pixels[val], labels[val])


def open_entry(name: str, root: Path, *, download: bool) -> tuple[Any, Any]:
    """The training and held-out part of a torchvision data set, downloaded where it is absent.

    Raises ``UserError`` with the place where it was looked for, where it is absent or damaged.
    """
    entry = CATALOGUE[name]
    train, val = (_open_part(name, root, part, download=download) for part in entry.parts)
    return train, val


def _open_part(name: str, root: Path, part: dict[str, Any], *, download: bool) -> Any:
    from torchvision import datasets

    kind = getattr(datasets, CATALOGUE[name].kind)
    # torchvision raises whatever its file format's reader does; and it prints, where a command
    # may be writing JSON.
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            return kind(root, **part, download=False)
        except Exception as error:
            if not download:
                raise UserError(
                    f"data set {name!r} is not in {str(root)!r} or damaged there, and downloading "
                    f"is off: {_reason(error)}; allow it, or put the files there, or take 'digits'"
                ) from error
        try:
            with _socket_timeout(15.0):
                root.mkdir(parents=True, exist_ok=True)
                return kind(root, **part, download=True)
        except Exception as error:
            raise UserError(
                f"data set {name!r} is not in {str(root)!r} or damaged there, and downloading it "
                f"failed: {_reason(error)}; put the files there, or go online, or take 'digits', "
                "which is built in"
            ) from error


def _reason(error: Exception) -> str:
    """The first sentence of what a library said."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0].rstrip(".:")


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """torchvision opens addresses without a time limit; a dead network would hang it."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def arrays(part: Any) -> tuple[Tensor, Tensor]:
    """Pixels uint8 (N, C, h, w) and labels int64 (N,) of a torchvision data set in memory."""
    pixels = torch.as_tensor(part.data)
    if pixels.dim() == 3:
        pixels = pixels[:, None]
    elif pixels.shape[-1] == 3:
        pixels = pixels.permute(0, 3, 1, 2)
    labels = part.targets if hasattr(part, "targets") else part.labels
    return pixels, torch.as_tensor(labels).to(torch.int64)


def class_names(name: str, part: Any) -> tuple[str, ...]:
    """The classes of a data set, by label; of several names for one the first."""
    names = CATALOGUE[name].classes or part.classes
    return tuple(each if isinstance(each, str) else each[0] for each in names)
