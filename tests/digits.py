"""The built-in digits as two splits of tensors, and a short training on them."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["digits", "fit"]


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """1400 images (1, 8, 8) with their labels, and the 397 others."""
    loaded = load_digits()
    order = torch.randperm(len(loaded.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(loaded.images, dtype=torch.float32)[order, None] / 16
    labels = torch.tensor(loaded.target)[order]
    return (images[:1400], labels[:1400]), (images[1400:], labels[1400:])


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    epochs: int,
) -> None:
    """Train in batches of 50, in an order that follows the global seed."""
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
