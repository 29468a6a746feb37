"""The data of a run: a named set or an image folder, and the loaders of its two parts."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from PIL import Image
from torch import Tensor

from . import catalogue
from .checking import check_bytes
from .data_record import DataRecord
from .distortion import Distortion
from .errors import UserError, nearest
from .folders import fingerprint, read_folder
from .image_sets import (
    ArrayImages,
    CatalogueImages,
    FileImages,
    Framing,
    ImageSet,
    ShardImages,
    hold_decoded,
)
from .images import image_transform, list_images, read_image
from .loading import ImageLoader
from .runs import expanded
from .sampling import EpochSampler
from .sharded import ShardSplit, is_sharded, read_shards

__all__ = [
    "DataOptions",
    "ImageData",
    "ImageLoader",
    "ImageSet",
    "absolute",
    "image_transform",
    "list_images",
    "load_data",
    "read_image",
    "train_loader",
    "val_loader",
]


@dataclass(frozen=True)
class DataOptions:
    """Which images, and how they are put into batches.

    Args:
        data: Data set: digits (built in), cifar10, cifar100, fashion_mnist, mnist, kmnist, usps,
            svhn, stl10, food101, oxford_pets, dtd, imagenette; or a folder with
            train/<class>/... and val/<class>/..., or with <class>/...; or tar shards: a folder
            that `senet pack` made, or a pattern, DIR/train-{0000..0099}.tar.
        val_data: Pattern of the shards to validate on, where ``data`` is one of those to train on.
        data_root: Folder where downloaded data sets are kept.
        download: Download a data set that is not there.
        batch_size: Images a batch, in each process.
        workers: Processes that prepare batches; 0 prepares them in the training process.
        load_timeout: Seconds that a batch may take to come from the workers; None is any number.
        cache: Hold decoded images in memory once they were read.
        processes: Training processes on this machine, for the memory that a cache takes.
        image_size: Height and width in pixels; by default the data set's, 224 for a folder.
        mean: Subtracted from the red, green and blue channel (of 1); by default the data set's,
            ImageNet's for a folder.
        std: Divided by; by default the data set's too.
        augment: Random crops and, unless mirrored images mean something else, flips.
        rand_augment: Magnitude of RandAugment, 0 to 30; None leaves it out.
        erase: Probability that a rectangle of a training image is erased.
        repeats: Versions of each training image in a batch.
        val_fraction: Share of each class held out of a folder that has no val/.
        seed: Decides the order of the images, their crops and flips, and a folder's split.
    """

    data: str = "digits"
    val_data: str | None = None
    data_root: Path = Path("~/.cache/senet/data")
    download: bool = True
    batch_size: int = 64
    workers: int = 0
    load_timeout: float | None = None
    cache: bool = False
    processes: int = 1
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augment: bool = True
    rand_augment: int | None = None
    erase: float = 0.0
    repeats: int = 1
    val_fraction: float = 0.2
    seed: int = 7

    def __post_init__(self) -> None:
        for name, value, least in (
            ("batch_size", self.batch_size, 1),
            ("workers", self.workers, 0),
            ("image_size", 8 if self.image_size is None else self.image_size, 8),
        ):
            if value < least:
                raise UserError(f"{name} is {value}; it must be at least {least}")
        cores = os.cpu_count() or 1
        if self.workers > 16 * cores:  # a slip of the finger would take the machine with it
            raise UserError(
                f"workers is {self.workers}, each of them a process, but here are {cores} cores; "
                f"use at most {16 * cores}"
            )
        if self.load_timeout is not None and not (self.workers and self.load_timeout > 0):
            raise UserError(
                f"load_timeout is {self.load_timeout:g} with workers={self.workers}; it takes "
                "--workers=1 or more, which can be left behind, and some seconds above 0"
            )
        if not (math.isfinite(self.val_fraction) and 0 < self.val_fraction < 1):
            raise UserError(
                f"val_fraction is {self.val_fraction}; it must be above 0, to have images to "
                "validate on, and below 1"
            )


@dataclass(frozen=True)
class ImageData:
    """A data set ready for use.

    Args:
        train: The training images; ``train[epoch, index]`` is float32 (3, H, W) and a label.
        val: The held-out images, ``val[index]``; ``val.source(index)`` is uint8 as stored.
        classes: Names by label.
        image_size: H and W in pixels.
        mean: Subtracted from each channel (of 1).
        std: Divided by.
        eval_transform: What ``val`` does to an image: Pillow or uint8 (3, h, w) → (3, H, W).
        fingerprint: A text that changes with the files of a folder.
        check: (part, parts, bar) ↦ compare that part of the files with their checksums, where
            `load_data` was not to; None where nothing is left to compare.
    """

    train: ImageSet
    val: ImageSet
    classes: tuple[str, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    eval_transform: Callable[[Image.Image | Tensor], Tensor]
    fingerprint: Callable[[], str] = str
    check: Callable[[int, int, bool], None] | None = None

    def record(self) -> DataRecord:
        """What there is, to be kept with a run."""
        counts = len(self.train), len(self.val)
        return DataRecord(self.classes, *counts, self.fingerprint(), self.mean, self.std)


def absolute(data: str) -> str:
    """A folder's path from the root, which means the same wherever one stands; a name as it is.

    Of shards likewise, ``DIR/{0000..0099}.tar`` and several with ``::`` between them.
    """
    folder = expanded(data)
    if is_sharded(data) and not os.path.isdir(folder):
        return "::".join(map(_absolute_pattern, data.split("::")))
    return (
        data
        if data in catalogue.CATALOGUE or not os.path.isdir(folder)
        else os.path.abspath(folder)
    )


def _absolute_pattern(pattern: str) -> str:
    if pattern.startswith(("pipe:", "/")) or re.match(r"\w+://", pattern):
        return pattern
    # Not os.path.abspath, which would take the dots of {0..9} in {a,{0..9}/b} for folders.
    return os.path.join(os.getcwd(), os.path.expanduser(pattern))


def load_data(
    options: DataOptions, *, pipes: bool = False, check: bool = True, progress: bool = False
) -> ImageData:
    """Find, download or read what ``options.data`` names.

    A known name is that data set; shards are told by their pattern, or by the manifest in their
    folder; anything else is a folder (write ``./digits`` for a folder of such a name).

    Args:
        options: What to read.
        pipes: Whether ``pipe:COMMAND`` may be run, because a person typed it.
        check: Compare shards with their checksums here; else that is left to ``check`` of the
            result, so that several processes can share the work.
        progress: Show a bar on standard error while shards are checked or images measured.

    Raises:
        UserError: there is no such thing, the data set is absent and cannot be downloaded, the
            folder does not hold images by class, a shard is damaged or altered.
    """
    data = _found(options, pipes=pipes, check=check, progress=progress)
    if options.cache:
        hold_decoded(
            (data.train, data.val),
            shared=options.workers > 0,
            processes=options.processes,
            progress=progress,
        )
    return data


def _found(options: DataOptions, *, pipes: bool, check: bool, progress: bool) -> ImageData:
    name = options.data
    sharded = name not in catalogue.CATALOGUE and is_sharded(name)
    if options.val_data is not None and not sharded:
        raise UserError(
            f"val_data is {options.val_data!r}, but data is {name!r}, which is not a pattern of "
            "shards; a folder has val/ for it"
        )
    if sharded:
        split = read_shards(
            name,
            options.val_data,
            val_fraction=options.val_fraction,
            seed=options.seed,
            pipes=pipes,
            check=check,
            progress=progress,
        )
        return _from_shards(split, options)
    if name in catalogue.CATALOGUE:
        return _named(name, options)
    folder = expanded(name)
    is_path = os.sep in name or name.startswith((".", "~"))
    if is_path and not os.path.exists(folder):
        raise UserError(f"no such folder, of images or of shards: {str(folder)!r}")
    if not os.path.isdir(folder) and not is_path:
        raise UserError(
            f"unknown data set {name!r}, and no folder of that name; "
            f"{nearest(name, catalogue.CATALOGUE)}"
        )
    return _from_folder(folder, options)


def _framings(
    options: DataOptions, size: int, mean: tuple[float, ...], std: tuple[float, ...], flip: bool
) -> tuple[Framing, Framing]:
    train = Framing(
        size,
        mean,
        std,
        augment=options.augment,
        flip=flip,
        seed=options.seed,
        distortion=Distortion(options.rand_augment, options.erase, mean),
    )
    return train, Framing(size, mean, std)


def _named(name: str, options: DataOptions) -> ImageData:
    entry = catalogue.CATALOGUE[name]
    size = options.image_size or entry.image_size
    mean, std = options.mean or entry.mean, options.std or entry.std
    framings = _framings(options, size, mean, std, entry.flip)
    train: ImageSet
    val: ImageSet
    if name == "digits":
        classes = entry.classes
        parts = catalogue.digit_arrays(size)
        train, val = (ArrayImages(*part, f) for part, f in zip(parts, framings, strict=True))
    else:
        root = expanded(options.data_root)
        opened = catalogue.open_entry(name, root, download=options.download)
        classes = catalogue.class_names(name, opened[0])
        train, val = (
            CatalogueImages(name, part, framing)
            if entry.in_files
            else ArrayImages(*catalogue.arrays(part), framing)
            for part, framing in zip(opened, framings, strict=True)
        )
    transform = image_transform(size, mean, std)
    return ImageData(train, val, classes, size, mean, std, transform)


def _from_folder(folder: Path, options: DataOptions) -> ImageData:
    split = read_folder(folder, val_fraction=options.val_fraction, seed=options.seed)
    framings = _photo_framings(options)
    train = FileImages(split.train_paths, split.train_labels, framings[0])
    val = FileImages(split.val_paths, split.val_labels, framings[1])
    # Of the split nothing is kept: its lists of paths are what `FileImages` does without.
    known = partial(_fingerprint, split.root, train, val)
    return _photos(train, val, split.classes, options, known)


def _fingerprint(root: Path, *parts: FileImages) -> str:
    return fingerprint(root, (map(part.path, range(len(part))) for part in parts))


def _from_shards(split: ShardSplit, options: DataOptions) -> ImageData:
    train, val = (
        ShardImages(part, framing)
        for part, framing in zip((split.train, split.val), _photo_framings(options), strict=True)
    )
    data = _photos(train, val, split.classes, options, lambda: split.fingerprint)
    return replace(data, check=partial(check_bytes, split.unchecked)) if split.unchecked else data


def _photo_framings(options: DataOptions) -> tuple[Framing, Framing]:
    """For images of which nothing more is known, which are mirrored too."""
    return _framings(options, options.image_size or 224, *_photo_statistics(options), True)


def _photo_statistics(options: DataOptions) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation: ImageNet's, unless others are given."""
    return options.mean or catalogue.IMAGENET_MEAN, options.std or catalogue.IMAGENET_STD


def _photos(
    train: ImageSet,
    val: ImageSet,
    classes: tuple[str, ...],
    options: DataOptions,
    fingerprint: Callable[[], str],
) -> ImageData:
    size, statistics = val.framing.image_size, _photo_statistics(options)
    transform = image_transform(size, *statistics)
    return ImageData(train, val, classes, size, *statistics, transform, fingerprint)


def train_loader(data: ImageData, options: DataOptions) -> ImageLoader:
    """Shuffled, augmented batches: images float32 (N, 3, H, W) and labels int64 (N,).

    Order and augmentation depend on the seed, the epoch (``loader.sampler.set_epoch``) and the
    image's index only. An incomplete last batch is left out where there is a complete one: all
    steps see as many images, and BatchNorm never a single one.
    """
    sampler = EpochSampler(
        len(data.train), seed=options.seed, shuffle=True, repeats=options.repeats
    )
    return ImageLoader(
        data.train,
        sampler,
        batch_size=options.batch_size,
        workers=options.workers,
        drop_last=len(sampler) >= options.batch_size,
        timeout=options.load_timeout or 0.0,
    )


def val_loader(data: ImageData, options: DataOptions) -> ImageLoader:
    """The held-out images in order, all of them, each as evaluation sees it."""
    sampler = EpochSampler(len(data.val), seed=options.seed, shuffle=False)
    return ImageLoader(
        data.val,
        sampler,
        batch_size=options.batch_size,
        workers=options.workers,
        timeout=options.load_timeout or 0.0,
    )
