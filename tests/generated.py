"""Generated images for the tests: small, real files, the same for the same arguments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["make_image", "make_image_folder"]


def make_image(size: tuple[int, int], hue: float, rng: np.random.Generator) -> Image.Image:
    """An RGB picture of ``size`` (width, height): stripes whose colour and pitch follow ``hue``.

    Pictures of one hue in [0, 1] are alike and those of different hues differ plainly, so that
    a network can learn to tell them apart in a few steps.
    """
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    wave = np.sin((x * (0.2 + hue) + y * (1.2 - hue)) + rng.uniform(0, 2 * np.pi))
    colour = np.array([hue, 1.0 - hue, 0.5])
    picture = (0.5 + 0.35 * wave)[..., None] * colour + rng.normal(0, 0.03, (height, width, 3))
    return Image.fromarray((picture.clip(0, 1) * 255).astype(np.uint8))


def make_image_folder(
    root: Path,
    classes: Sequence[str] = ("cat", "dog"),
    per_class: int = 6,
    size: tuple[int, int] = (40, 36),
    split: bool = True,
    seed: int = 0,
) -> Path:
    """Write PNG files under ``root`` and return it.

    With ``split`` the layout is ``root/train/<class>/0.png`` … (``per_class`` images a class)
    and ``root/val/<class>/…`` (half as many, at least one); without it ``root/<class>/…``.
    ``size`` is (width, height) in pixels.
    """
    rng = np.random.default_rng(seed)
    parts = {"train": per_class, "val": max(1, per_class // 2)} if split else {"": per_class}
    for part, count in parts.items():
        for place, name in enumerate(classes):
            folder = Path(root) / part / name
            folder.mkdir(parents=True)
            hue = place / max(1, len(classes) - 1)
            for number in range(count):
                make_image(size, hue, rng).save(folder / f"{number}.png")
    return Path(root)
