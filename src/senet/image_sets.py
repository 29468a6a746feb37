"""Images with labels, in memory or in files, by index.

An image's augmentation is a function of (seed, epoch, index): see ``senet.sampling``.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from .distortion import Distortion
from .errors import UserError
from .holding import HeldPixels, check_memory
from .images import decode_image, frame, image_extent, normalizer, read_image, rgb_pixels
from .sampling import drawing_by, mix
from .watching import note_reading

if TYPE_CHECKING:
    from .sharded import ShardPart

__all__ = [
    "ArrayImages",
    "Batch",
    "CatalogueImages",
    "FileImages",
    "Framing",
    "ImageSet",
    "ShardImages",
    "crop_and_flip",
    "hold_decoded",
]

Batch = tuple[Tensor, Tensor]
"""Images, float32 (N, 3, H, W), and labels, int64 (N,)."""

Keys = npt.NDArray[np.int64]


class Framing:
    """How a set's images become tensors: their size, normalisation and augmentation.

    Args:
        image_size: Height and width in pixels.
        mean: Of the red, green and blue channel, of 1.
        std: Likewise.
        augment: Random crops, and flips if ``flip``; otherwise as evaluation sees them.
        flip: Whether a mirrored image shows the same thing.
        seed: Decides every random crop and flip, with the epoch and the image's index.
        distortion: What else happens to an image at random; nothing by default.
    """

    def __init__(
        self,
        image_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        augment: bool = False,
        flip: bool = False,
        seed: int = 0,
        distortion: Distortion | None = None,
    ) -> None:
        self.image_size = image_size
        self.augment = augment
        self.flip = flip
        self.seed = seed
        self.distortion = distortion or Distortion()
        self.normalize = normalizer(mean, std)


class ImageSet(Dataset[tuple[Tensor, int]], ABC):
    """Images and labels by index, or by (epoch, index) where augmentation changes by epoch."""

    def __init__(self, framing: Framing) -> None:
        self.framing = framing

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def labels(self) -> Tensor | None:
        """int64 (N,), where they are known before an image is read."""
        return None

    @abstractmethod
    def source(self, index: int) -> tuple[Tensor, int]:
        """The image as it is stored, uint8 RGB (3, h, w), and its label."""

    def name(self, index: int) -> str:
        """What messages call an image."""
        return f"image {index}"

    @abstractmethod
    def _pixels(self, epochs: Keys, indices: Keys) -> Batch:
        """Cropped, flipped and resized: uint8 (N, 3, H, W), and labels int64 (N,)."""

    def batch(self, keys: Sequence[tuple[int, int]]) -> Batch:
        """The images and labels of (epoch, index) pairs; ``UserError`` for an unreadable one."""
        epochs, indices = np.array(keys, dtype=np.int64).T
        pixels, labels = self._pixels(epochs, indices)
        framing = self.framing
        pixels = framing.distortion.of_pixels(pixels, mix(framing.seed, epochs, indices, 1))
        images = framing.normalize(pixels).contiguous()
        return framing.distortion.of_images(images, mix(framing.seed, epochs, indices, 2)), labels

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        images, labels = self.batch([(epoch, index % len(self))])
        return images[0], int(labels[0])


class ArrayImages(ImageSet):
    """A set held in memory, whose batches are cropped and flipped as a whole.

    Args:
        pixels: uint8 (N, C, h, w) with C of 1 (grey) or 3.
        labels: int64 (N,).
        framing: Augmentation pads by an eighth of the size and cuts the size out again.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, framing: Framing) -> None:
        super().__init__(framing)
        self._store = pixels
        self._labels = labels

    def __len__(self) -> int:
        return len(self._store)

    @property
    def labels(self) -> Tensor:  # noqa: D102
        return self._labels

    def source(self, index: int) -> tuple[Tensor, int]:
        """The image as it is held, uint8 RGB (3, h, w), and its label."""
        pixels = self._store[index]
        return pixels.expand(3, -1, -1), int(self._labels[index])

    def _pixels(self, epochs: Keys, indices: Keys) -> Batch:
        chosen = torch.from_numpy(indices)
        pixels, framing = self._store[chosen], self.framing
        size = framing.image_size
        if framing.augment:
            margin = max(pixels.shape[-1] // 8, 1)
            draws = mix(framing.seed, epochs, indices)
            pixels = crop_and_flip(pixels, draws, margin=margin, flip=framing.flip)
            if pixels.shape[-2:] != (size, size):
                pixels = tv.resize(pixels, [size, size], antialias=True)
        else:
            pixels = frame(pixels, size)
        return pixels.expand(-1, 3, -1, -1), self._labels[chosen]


def crop_and_flip(
    pixels: Tensor, draws: npt.NDArray[np.uint64], *, margin: int, flip: bool
) -> Tensor:
    """Pad (N, C, H, W) by ``margin`` zeros on each side and cut (H, W) out of each image.

    Where, and whether mirrored, is read from the bits of the image's number in ``draws`` (N,).
    """
    count, channels, height, width = pixels.shape
    places = np.uint64(2 * margin + 1)
    top = torch.from_numpy((((draws >> np.uint64(40)) * places) >> np.uint64(24)).astype(np.int64))
    middle = (draws >> np.uint64(16)) & np.uint64(0xFFFFFF)
    left = torch.from_numpy(((middle * places) >> np.uint64(24)).astype(np.int64))
    columns = torch.arange(width).expand(count, width)
    if flip:
        mirrored = torch.from_numpy((draws & np.uint64(1)).astype(np.bool_))
        columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    rows = (top[:, None] + torch.arange(height))[:, None, :, None]
    columns = (left[:, None] + columns)[:, None, None, :]
    images = torch.arange(count)[:, None, None, None]
    planes = torch.arange(channels)[None, :, None, None]
    return F.pad(pixels, [margin] * 4)[images, planes, rows, columns]


class _DrawnOneByOne(ImageSet):
    """A set whose images are read, and cropped by torchvision's transforms, one at a time."""

    def __init__(self, framing: Framing) -> None:
        super().__init__(framing)
        steps: list[Any] = [v2.RandomResizedCrop(framing.image_size, antialias=True)]
        if framing.flip:
            steps.append(v2.RandomHorizontalFlip())
        self._augment = v2.Compose(steps)
        self.held: HeldPixels | None = None

    def extent(self, index: int) -> tuple[int, int]:
        """Height and width of an image as it is stored, in pixels."""
        height, width = self.source(index)[0].shape[1:]
        return height, width

    def _read(self, index: int) -> tuple[Tensor, int]:
        """As ``source``, out of memory where it was read before and is held."""
        note_reading(index)
        if self.held is None:
            return self.source(index)
        if (known := self.held.get(index)) is not None:
            return known
        pixels, label = self.source(index)
        self.held.put(index, pixels, label)
        return pixels, label

    def _pixels(self, epochs: Keys, indices: Keys) -> Batch:
        pixels, labels = [], []
        draws = mix(self.framing.seed, epochs, indices) >> np.uint64(1)
        for draw, index in zip(draws.tolist(), indices.tolist(), strict=True):
            image, label = self._read(index)
            pixels.append(self._cropped(image, draw))
            labels.append(label)
        return torch.stack(pixels), torch.tensor(labels)

    def _cropped(self, image: Tensor, draw: int) -> Tensor:
        if not self.framing.augment:
            return frame(image, self.framing.image_size)
        with drawing_by(draw):
            return self._augment(image)


class FileImages(_DrawnOneByOne):
    """A set of image files.

    Args:
        paths: N image files.
        labels: int64 (N,).
        framing: Augmentation is a random resized crop (8 to 100 % of the area) and a flip.
    """

    def __init__(self, paths: Sequence[Path], labels: Tensor, framing: Framing) -> None:
        super().__init__(framing)
        # One buffer instead of a million strings, whose reference counts would make every
        # worker process copy the pages they lie on.
        encoded = [os.fsencode(path) for path in paths]
        self._names = b"".join(encoded)
        self._ends = np.cumsum([len(name) for name in encoded])
        self._labels = labels

    def __len__(self) -> int:
        return len(self._ends)

    def path(self, index: int) -> Path:
        """The file of an image."""
        start = int(self._ends[index - 1]) if index else 0
        return Path(os.fsdecode(self._names[start : int(self._ends[index])]))

    @property
    def labels(self) -> Tensor:  # noqa: D102
        return self._labels

    def source(self, index: int) -> tuple[Tensor, int]:
        """The image in its file, uint8 RGB (3, h, w), and its label."""
        return read_image(self.path(index)), int(self._labels[index])

    def name(self, index: int) -> str:
        """The file, in quotes."""
        return repr(str(self.path(index)))

    def extent(self, index: int) -> tuple[int, int]:
        """Height and width of an image, out of the head of its file."""
        return image_extent(self.path(index), self.name(index))


class ShardImages(_DrawnOneByOne):
    """A set of image files inside tar shards, which stay there.

    Args:
        part: Where they lie, and their labels.
        framing: As for ``FileImages``.
    """

    def __init__(self, part: ShardPart, framing: Framing) -> None:
        super().__init__(framing)
        self._part = part

    def __len__(self) -> int:
        return len(self._part)

    def name(self, index: int) -> str:
        """The member, and the shard it is in."""
        shard = self._part.paths[self._part.shard[index]]
        return f"{self._part.name(index)!r} in shard {str(shard)!r}"

    @property
    def labels(self) -> Tensor:  # noqa: D102
        return self._part.labels

    def source(self, index: int) -> tuple[Tensor, int]:
        """The image in its shard, uint8 RGB (3, h, w), and its label."""
        pixels = decode_image(self._bytes(index), self.name(index))
        return pixels, int(self._part.labels[index])

    def extent(self, index: int) -> tuple[int, int]:
        """Height and width of an image, out of its first bytes."""
        return image_extent(self._bytes(index), self.name(index))

    def _bytes(self, index: int) -> bytes:
        """What lies in the shard; opened anew, for thousands of them are more than may be open."""
        part, size = self._part, int(self._part.sizes[index])
        try:
            with part.paths[part.shard[index]].open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), size, int(part.offsets[index]))
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot read image {self.name(index)}: {reason}") from error
        if len(data) < size:
            raise UserError(f"cannot read image {self.name(index)}: the shard is cut short")
        return data


class CatalogueImages(_DrawnOneByOne):
    """A torchvision data set of (Pillow image, label) pairs that reads its files itself.

    Args:
        name: What messages call it.
        pairs: The torchvision data set.
        framing: As for ``FileImages``.
    """

    def __init__(self, name: str, pairs: Dataset[Any], framing: Framing) -> None:
        super().__init__(framing)
        self._name = name
        self._pairs: Any = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def source(self, index: int) -> tuple[Tensor, int]:
        """The image as torchvision reads it, uint8 RGB (3, h, w), and its label."""
        try:
            image, label = self._pairs[index]
            return rgb_pixels(image), int(label)
        except (OSError, SyntaxError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"cannot read image {index} of {self._name}: {reason}") from error


def hold_decoded(
    sets: Sequence[ImageSet], *, shared: bool, processes: int = 1, progress: bool = False
) -> None:
    """Have sets of files keep their decoded images in memory once they were read.

    Args:
        sets: Those that are in memory already stay as they are.
        shared: Whether worker processes read them.
        processes: Training processes on this machine, of which each holds its own.
        progress: Show a bar on standard error while the images are measured.

    Raises:
        UserError: they would not fit into memory; an image is unreadable.
    """
    from rich.console import Console
    from rich.progress import track

    drawn = [images for images in sets if isinstance(images, _DrawnOneByOne)]
    extents = [
        list(
            track(
                map(images.extent, range(len(images))),
                "measuring images",
                total=len(images),
                console=Console(stderr=True),
                transient=True,
                disable=not progress,
            )
        )
        for images in drawn
    ]
    every = [extent for each in extents for extent in each]
    needed = sum(3 * height * width for height, width in every)
    check_memory(len(every), needed, shared=shared, processes=processes)
    for images, each in zip(drawn, extents, strict=True):
        images.held = HeldPixels(each, shared=shared)
