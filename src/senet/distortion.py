"""What training does to images at random beyond cropping and flipping: RandAugment and erasing.

Each image's chance is a number of its own, a function of (seed, epoch, index).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from .sampling import drawing_by

__all__ = ["Distortion"]

Draws = npt.NDArray[np.uint64]


class Distortion:
    """RandAugment (Cubuk et al. 2020) and random erasing (Zhong et al. 2020), by torchvision.

    Args:
        rand_augment: Magnitude, 0 to 30, of the two operations that an image goes through; what
            they leave empty is filled with the data set's mean. None leaves them out.
        erase: Probability that a rectangle of 2 to 33 % of the area becomes noise.
        mean: Of the red, green and blue channel, of 1.
    """

    def __init__(
        self,
        rand_augment: int | None = None,
        erase: float = 0.0,
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
    ) -> None:
        self._rand_augment: Callable[[Tensor], Tensor] | None = None
        self._erase: Callable[[Tensor], Tensor] | None = None
        if rand_augment is not None:
            self._rand_augment = v2.RandAugment(
                magnitude=rand_augment,
                interpolation=InterpolationMode.BILINEAR,
                fill=[round(255 * part) for part in mean],
            )
        if erase:
            self._erase = v2.RandomErasing(erase, value="random")

    def of_pixels(self, pixels: Tensor, draws: Draws) -> Tensor:
        """RandAugment of uint8 images (N, 3, H, W), each by its number in ``draws`` (N,)."""
        return _each(self._rand_augment, pixels, draws)

    def of_images(self, images: Tensor, draws: Draws) -> Tensor:
        """Erasing in normalised images, float32 (N, 3, H, W), likewise."""
        return _each(self._erase, images, draws)


def _each(change: Callable[[Tensor], Tensor] | None, images: Tensor, draws: Draws) -> Tensor:
    if change is None:
        return images
    changed = []
    for image, draw in zip(images, (draws >> np.uint64(1)).tolist(), strict=True):
        with drawing_by(draw):
            changed.append(change(image))
    return torch.stack(changed)
