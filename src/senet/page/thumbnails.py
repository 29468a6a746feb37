"""Small pictures for the page, as many as a number of bytes allows."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from ..excitations import Excitations

__all__ = ["Picture", "Thumbnail", "Thumbnails", "choose_thumbnails"]

LARGEST = 64
"""Pixels of a thumbnail's longer side, at most."""
_QUALITY = 75
_SMALL = 32  # pixels up to which colours are kept in full
_OF_SPECIFIC = 0.6  # of the bytes, for the channels of highest specificity
_AROUND = 120  # bytes in the page around a thumbnail: its number, label and name


@dataclass(frozen=True)
class Picture:
    """An image as the page shows it.

    Args:
        pixels: uint8 (3, H, W).
        label: Its class, by number.
        name: What it is called; may be empty.
    """

    pixels: Tensor
    label: int
    name: str = ""


@dataclass(frozen=True)
class Thumbnail:
    """A picture made small.

    Args:
        label: Its class, by number.
        name: What it is called.
        jpeg: The file in base64.
    """

    label: int
    name: str
    jpeg: str

    @property
    def size(self) -> int:
        """Bytes that it takes in the page, about."""
        return len(self.jpeg) + len(self.name.encode("utf-8", "replace")) + _AROUND


@dataclass
class Thumbnails:
    """The small pictures of a page.

    Args:
        images: Number of the image → its thumbnail.
        channels: Pairs of block and channel all of whose images are there.
        total: How many channels there are.
    """

    images: dict[int, Thumbnail] = field(default_factory=dict)
    channels: set[tuple[int, int]] = field(default_factory=set)
    total: int = 0


def choose_thumbnails(
    excitations: Excitations,
    picture: Callable[[int], Picture] | None,
    budget: int,
    note: Callable[[float], object] = lambda share: None,
) -> Thumbnails:
    """The images of as many channels as fit: the most specific ones, then an even sample.

    An image that several channels share is kept once; channels all of whose images are there
    in the end count as well.

    Args:
        excitations: What was recorded.
        picture: The image of a number; None where there are none to show.
        budget: Bytes that they may take in the page.
        note: Told the share of the budget that is used, for a bar.
    """
    wanted = [
        _images_of(excitations, number, channel)
        for number, block in enumerate(excitations.blocks)
        for channel in range(block.channels)
    ]
    places = [
        (number, channel)
        for number, block in enumerate(excitations.blocks)
        for channel in range(block.channels)
    ]
    made = Thumbnails(total=len(places))
    if picture is None:
        return made
    left = budget
    eta = torch.cat([block.eta_squared for block in excitations.blocks])
    specific = eta.argsort(descending=True, stable=True).tolist()
    for order, keep in ((specific, round(budget * (1 - _OF_SPECIFIC))), (_even(len(eta)), 0)):
        for place in order:
            new = [image for image in wanted[place] if image not in made.images]
            thumbnails = {image: _thumbnail(picture(image)) for image in new}
            size = sum(thumbnail.size for thumbnail in thumbnails.values())
            if left - size < keep:
                break
            left -= size
            made.images.update(thumbnails)
            if new:
                note(1 - left / max(budget, 1))
    made.channels = {
        place
        for place, images in zip(places, wanted, strict=True)
        if images and all(image in made.images for image in images)
    }
    return made


def _images_of(excitations: Excitations, number: int, channel: int) -> list[int]:
    block = excitations.blocks[number]
    both = (block.most_images[channel].tolist(), block.least_images[channel].tolist())
    return list(dict.fromkeys(chain(*both)))


def _even(count: int) -> Iterator[int]:
    """0 … ``count`` − 1 in an order of which every beginning is an even sample: bits reversed."""
    width = max(1, (count - 1).bit_length())
    for place in range(1 << width):
        turned = int(f"{place:0{width}b}"[::-1], 2)
        if turned < count:
            yield turned


def _thumbnail(picture: Picture) -> Thumbnail:
    image = Image.fromarray(picture.pixels.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    subsampling = "4:4:4" if max(image.size) <= _SMALL else "4:2:0"
    image.save(file, "JPEG", quality=_QUALITY, optimize=True, subsampling=subsampling)
    return Thumbnail(picture.label, picture.name, base64.b64encode(file.getvalue()).decode())
