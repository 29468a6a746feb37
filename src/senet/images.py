"""Image files: finding them, reading them as RGB, and framing them for a network."""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from .errors import UserError

__all__ = [
    "CROP",
    "EXTENSIONS",
    "MAX_PIXELS",
    "decode_image",
    "existing_file",
    "find_images",
    "frame",
    "image_extent",
    "image_transform",
    "list_images",
    "normalizer",
    "quiet",
    "read_image",
    "rgb_pixels",
]

EXTENSIONS = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
"""What counts as an image file, in lower case."""
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's readers for them, and no others: that of PostScript runs a program, Ghostscript."""

MAX_PIXELS = 89_478_485
"""Larger images are refused: Pillow's own limit against decompression bombs, 256 MiB of RGB."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By orientation. `ImageOps` would write all EXIF data anew, which fails where they are bad."""

CROP = 0.875
"""The part of an image's shorter side that evaluation looks at (224 of 256 pixels)."""


def list_images(folder: Path) -> list[Path]:
    """``find_images``, but ``UserError`` where ``folder`` is missing or holds no image."""
    if not Path(folder).is_dir():
        raise UserError(f"no such folder: {str(folder)!r}")
    found = find_images(folder)
    if not found:
        known = " ".join(sorted(EXTENSIONS))
        raise UserError(f"no images in {str(folder)!r}; files that end in {known} count")
    return found


def find_images(folder: Path) -> list[Path]:
    """All image files below ``folder``, sorted, hidden files and folders left out.

    Links to folders are followed, each folder is visited once. Raises ``UserError`` where one
    cannot be listed: its images would be missing without a word.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_cannot_list):
        here = os.path.realpath(parent)
        if here in seen:
            folders.clear()
            continue
        seen.add(here)
        # In order, so that of two ways to a folder the same one counts on every disk.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(parent, name)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS
        ]
    return sorted(found)


def _cannot_list(error: OSError) -> NoReturn:
    raise UserError(f"cannot list folder {error.filename!r}: {error.strerror}") from error


def read_image(path: Path) -> Tensor:
    """The image in a file as RGB, uint8 (3, H, W), turned upright where its EXIF data says so.

    Grey, palette, CMYK and 16-bit images are converted; transparent ones are laid on white; of
    an animation the first picture counts. Raises ``UserError`` naming the file where it is
    missing, unreadable, truncated or larger than ``MAX_PIXELS``.
    """
    path = existing_file(path)
    with _opened(path, repr(str(path))) as image:
        return rgb_pixels(image)


def decode_image(data: bytes, name: str) -> Tensor:
    """As ``read_image``, out of the bytes of a file; ``name`` is what messages call it."""
    with _opened(io.BytesIO(data), name) as image:
        return rgb_pixels(image)


def image_extent(source: Path | bytes, name: str) -> tuple[int, int]:
    """Height and width of an image, before it is turned upright, out of its first bytes."""
    opened = io.BytesIO(source) if isinstance(source, bytes) else existing_file(source)
    with _opened(opened, name) as image:
        return image.height, image.width


def existing_file(path: Path) -> Path:
    """The path, if a file is there; a named pipe, say, would be waited for for ever.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    try:
        there = path.is_file()
    except OSError as error:  # a folder above it that may not be entered, a disk that fails
        raise UserError(f"cannot read image {str(path)!r}: {error.strerror}") from error
    if not there:
        kind = "a folder" if path.is_dir() else "not a file" if path.exists() else "no such file"
        raise UserError(f"cannot read image {str(path)!r}: {kind}")
    return path


@contextmanager
def _opened(source: Path | BinaryIO, name: str) -> Iterator[Image.Image]:
    """An image of an acceptable size; what is wrong with it, here or inside, told in a line."""
    try:
        with quiet(), Image.open(source, formats=_FORMATS) as image:
            _refuse_bomb(image.width, image.height)
            yield image
    except Exception as error:  # Pillow's decoders raise nearly every type there is
        reason = str(error).partition("\n")[0] or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "empty file" if _is_empty(source) else "not an image, or a damaged one"
        elif isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        raise UserError(f"cannot read image {name}: {reason}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings about metadata or size, which would break into progress bars.

    What is to be shown is known to all threads together: only the main one changes it, and
    whoever starts others does so in here.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _is_empty(source: Path | BinaryIO) -> bool:
    return (source.stat().st_size if isinstance(source, Path) else source.seek(0, 2)) == 0


def _refuse_bomb(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{width} x {height} pixels; at most {MAX_PIXELS:,} are accepted, make it smaller"
        )


def rgb_pixels(image: Image.Image) -> Tensor:
    """A Pillow image as RGB, uint8 (3, H, W), as ``read_image`` describes."""
    if _orientation(image) != 1:
        image.load()  # by which a TIFF is turned already
        how = _UPRIGHT.get(_orientation(image))
        image = image if how is None else image.transpose(how)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, or 32; Pillow's own conversion clips at 255
        wide = np.asarray(image)
        low, high = int(wide.min()), int(wide.max())
        if low < 0 or high >= 1 << 16:
            raise ValueError(
                f"pixels from {low} to {high} have no fixed range; save it with 8 bits"
            )
        image = Image.fromarray((wide >> 8 if high > 255 else wide).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _orientation(image: Image.Image) -> int:
    """As the EXIF data have it; 1, upright, where these are damaged, which the picture is not."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises whatever it meets there
        return 1


def frame(pixels: Tensor, image_size: int) -> Tensor:
    """Fit uint8 images (…, 3, H, W) into (…, 3, image_size, image_size) for evaluation.

    The shorter side is resized to image_size / 0.875 and the centre cut out, as is usual on
    ImageNet. An image that lies inside the target already is enlarged whole: sets of small
    images (digits, CIFAR) are framed tightly and have no margin to give.
    """
    height, width = pixels.shape[-2:]
    short, long = min(height, width), max(height, width)
    if long > 4 * short:  # resizing the ends first, only to cut them off, could fill the memory
        pixels = tv.center_crop(pixels, [min(height, 4 * short), min(width, 4 * short)])
    side = image_size if long <= image_size else round(image_size / CROP)
    if short != side:
        pixels = tv.resize(pixels, [side], antialias=True)
    return tv.center_crop(pixels, [image_size, image_size])


def normalizer(mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[[Tensor], Tensor]:
    """uint8 (…, 3, H, W) → float32, (x / 255 - mean) / std for each channel."""
    return v2.Compose(
        [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std), inplace=True)]
    )


def image_transform(
    image_size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[Image.Image | Tensor], Tensor]:
    """What evaluation does to an image: ``frame``, then ``normalizer``.

    The result takes a Pillow image or a uint8 tensor (3, H, W), and returns float32
    (3, image_size, image_size).
    """
    normalize = normalizer(mean, std)

    def transform(image: Image.Image | Tensor) -> Tensor:
        pixels = image if isinstance(image, Tensor) else rgb_pixels(image)
        if pixels.dtype != torch.uint8 or pixels.dim() != 3 or pixels.shape[0] != 3:
            raise ValueError(
                f"expected a uint8 image (3, H, W), got {pixels.dtype} {tuple(pixels.shape)}"
            )
        return normalize(frame(pixels, image_size)).contiguous()

    return transform
