"""Batches whose images, and labels with them, are mixed: mixup and CutMix."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from .options import TrainOptions
from .sampling import drawing_by, mix

__all__ = ["BatchMixing"]

_STREAM = 3
"""Tells these draws from those of single images, which are functions of the seed too."""


class BatchMixing:
    """Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) by torchvision, a choice a batch.

    What happens to a batch is a function of the seed and of the batch's place in the run: nothing
    is remembered that a crash could lose, and the global generators stay as they are.

    Args:
        options: ``mixup``, ``cutmix``, ``mix_prob``, ``seed`` and ``repeats`` are used.
        classes: how many there are.
    """

    def __init__(self, options: TrainOptions, *, classes: int) -> None:
        kinds = ((v2.MixUp, options.mixup), (v2.CutMix, options.cutmix))
        mixers = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha > 0]
        self._mixer: Any = None
        if mixers and options.mix_prob > 0:
            self._mixer = v2.RandomApply([v2.RandomChoice(mixers)], p=options.mix_prob)
        self._seed = options.seed
        self._shuffles = options.repeats > 1

    def __call__(
        self, images: Tensor, labels: Tensor, *, epoch: int, batch: int, rank: int
    ) -> tuple[Tensor, Tensor]:
        """Mix a batch, or leave it as it is.

        Args:
            images: float (N, 3, H, W).
            labels: int64 (N,).
            epoch: which one, from 0.
            batch: its number in the epoch.
            rank: of the process.

        Returns:
            Images (N, 3, H, W); labels int64 (N,), or probabilities float32 (N, classes) where
            they were mixed.
        """
        if self._mixer is None:
            return images, labels
        draw = mix(self._seed, epoch, batch, rank, _STREAM)
        with drawing_by(int(draw[0] >> np.uint64(1))):
            if self._shuffles:
                # Images are mixed with their neighbours, which are versions of themselves.
                order = torch.randperm(len(labels)).to(labels.device)
                images, labels = images[order], labels[order]
            mixed: tuple[Tensor, Tensor] = self._mixer(images, labels)
        return mixed
