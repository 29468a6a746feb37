"""Images with labels, in memory or in files, and the batches made of them.

An image's augmentation is a function of (seed, epoch, index): see ``senet.sampling``.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from .distortion import Distortion
from .errors import UserError
from .images import frame, normalizer, read_image, rgb_pixels
from .sampling import EpochSampler, drawing_by, mix

__all__ = [
    "ArrayImages",
    "Batch",
    "CatalogueImages",
    "FileImages",
    "Framing",
    "ImageLoader",
    "ImageSet",
    "crop_and_flip",
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

    @abstractmethod
    def source(self, index: int) -> tuple[Tensor, int]:
        """The image as it is stored, uint8 RGB (3, h, w), and its label."""

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

    def _pixels(self, epochs: Keys, indices: Keys) -> Batch:
        pixels, labels = [], []
        draws = mix(self.framing.seed, epochs, indices) >> np.uint64(1)
        for draw, index in zip(draws.tolist(), indices.tolist(), strict=True):
            image, label = self.source(index)
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

    def source(self, index: int) -> tuple[Tensor, int]:
        """The image in its file, uint8 RGB (3, h, w), and its label."""
        return read_image(self.path(index)), int(self._labels[index])


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


class _Batches(Dataset[Batch]):
    """A set as the loader asks for it: whole batches, and errors as values.

    A worker's exception would arrive with the worker's traceback for a message; a value arrives
    as it was, and ``ImageLoader`` raises it.
    """

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        return self.images.batch([key])

    def __getitems__(self, keys: list[tuple[int, int]]) -> Batch | UserError:
        try:
            return self.images.batch(keys)
        except UserError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


class ImageLoader(DataLoader[Batch]):
    """Batches of an ``ImageSet`` in the order of an ``EpochSampler``.

    Args:
        images: The set.
        sampler: The order; ``loader.sampler.set_epoch(epoch)`` chooses the epoch.
        batch_size: Images a batch.
        workers: Processes that prepare batches; 0 prepares them in this one.
        drop_last: Leave an incomplete last batch out.
    """

    def __init__(
        self,
        images: ImageSet,
        sampler: EpochSampler,
        *,
        batch_size: int,
        workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        super().__init__(
            _Batches(images),
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=_as_it_is,
            drop_last=drop_last,
            persistent_workers=workers > 0,
            # One of its own: a draw from the global generator would shift the model's.
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                # Let go of the workers now, and raise an error that this frame does not hold:
                # collected as part of a cycle, they would take PyTorch ten seconds to end.
                self._iterator = None
                raise UserError(*batch.args)
            yield batch
