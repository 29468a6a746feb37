"""What was recorded as the JSON document that the page reads: numbers in 8 or 16 bits, base64."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..figures import short_names, spread
from ..gate_tables import depth_rows

if TYPE_CHECKING:
    from ..excitations import BlockExcitations, Excitations
    from .thumbnails import Thumbnails

__all__ = ["document", "packed", "thumbnail_document"]

MEANS = 3_500_000
"""Bytes that the means by class may take in the page."""

_FINE = 1_000_000  # bytes up to which numbers get 16 bits
_TYPES: dict[int, np.dtype[Any]] = {8: np.dtype("u1"), 16: np.dtype("<u2"), 32: np.dtype("<u4")}


def packed(values: npt.ArrayLike, bits: int) -> dict[str, Any]:
    """Numbers as codes in base64: low + code · (high − low) / (2^bits − 2); the last is no value.

    An error is at most half a step.
    """
    array = np.asarray(values, dtype=float)
    known = np.isfinite(array)
    low = float(array[known].min()) if known.any() else 0.0
    high = float(array[known].max()) if known.any() else 0.0
    none = 2**bits - 1
    steps = (array - low) * ((none - 1) / (high - low)) if high > low else np.zeros(array.shape)
    codes = np.where(known, np.rint(np.where(known, steps, 0.0)), none).astype(_TYPES[bits])
    return {"bits": bits, "low": low, "high": high, "codes": _base64(codes)}


def document(
    excitations: Excitations,
    *,
    title: str,
    data: str,
    blocks: Sequence[int],
    classes: Sequence[int],
) -> dict[str, Any]:
    """All that the page shows but the pictures.

    Args:
        excitations: What was recorded.
        title: Of the page.
        data: The images, in words.
        blocks: Numbers of the blocks shown at first.
        classes: Numbers of the classes shown at first.
    """
    channels = sum(block.channels for block in excitations.blocks)
    bits, kept = _fitting(len(excitations.classes), channels, classes)
    rows = depth_rows(excitations)
    names = short_names([row.block for row in rows])
    return {
        "title": title,
        "data": data,
        "images": excitations.images,
        "names": list(excitations.classes),
        "classes": kept,
        "chosenBlocks": list(blocks),
        "chosenClasses": list(classes),
        "blocks": [
            row.document() | {"name": name} | _block(block, kept, bits)
            for row, name, block in zip(rows, names, excitations.blocks, strict=True)
        ],
    }


def _fitting(classes: int, channels: int, chosen: Sequence[int]) -> tuple[int, list[int]]:
    """Bits for a mean, and the classes whose means fit: all, or an even sample and the chosen."""
    if _size(classes * channels, 16) <= _FINE:
        return 16, list(range(classes))
    if _size(classes * channels, 8) <= MEANS:
        return 8, list(range(classes))
    count = max(1, MEANS // _size(channels, 8) - len(chosen))
    return 8, sorted({*spread(classes, count), *chosen})


def _size(count: int, bits: int) -> int:
    """Bytes of so many numbers in base64."""
    return count * bits // 6


def _block(block: BlockExcitations, classes: Sequence[int], bits: int) -> dict[str, Any]:
    means = block.mean.numpy()
    known = means[~np.isnan(means).all(axis=1)]
    none = np.full(block.channels, np.nan)
    null = block.null.double().numpy()
    values = {
        "mean": block.total_mean,
        "deviation": block.deviation,
        "specificity": block.eta_squared,
        "null": null.max(axis=0) if len(null) else none,
        "low": block.low,
        "high": block.high,
        "lowest": known.min(axis=0) if len(known) else none,
        "highest": known.max(axis=0) if len(known) else none,
    }
    across = block.null_specificity.numpy()
    return {
        "nullRange": _range(across),
        "shuffles": int(across.size),
        "means": packed(means[list(classes)], bits),
        "values": {name: packed(value, 16) for name, value in values.items()},
        "most": _ranked(block.most, block.most_images),
        "least": _ranked(block.least, block.least_images),
    }


def _range(values: npt.NDArray[np.float64]) -> list[float] | None:
    return [float(values.min()), float(values.max())] if values.size else None


def _ranked(gates: Tensor, images: Tensor) -> dict[str, Any]:
    bits = 16 if not images.numel() or int(images.max()) < 2**16 else 32
    return {
        "count": images.shape[1],
        "bits": bits,
        "images": _base64(images.numpy().astype(_TYPES[bits])),
        "gates": packed(gates, 16 if _size(images.numel(), 16) < _FINE // 20 else 8),
    }


def thumbnail_document(thumbnails: Thumbnails) -> dict[str, Any]:
    """The pictures, and how many channels have all of theirs."""
    return {
        "complete": len(thumbnails.channels),
        "of": thumbnails.total,
        "images": {
            str(number): [thumbnail.label, thumbnail.name, thumbnail.jpeg]
            for number, thumbnail in sorted(thumbnails.images.items())
        },
    }


def _base64(array: npt.NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()
