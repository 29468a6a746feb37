"""A network drawn at random and deployed: the same outputs, or the test fails here."""

from __future__ import annotations

from typing import Any

import torch
from networks import randomise
from torch import Tensor, nn

from senet import (
    SqueezeExcite,
)
from senet.deployment import deploy

__all__ = ["SMALL", "counts", "deployed", "difference", "drawn", "images", "outcome"]

SMALL = (3, 16, 16)


def drawn(model: Any, seed: int = 0) -> Any:
    """In evaluation mode, with every affine, statistic and gate at random."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, SqueezeExcite):
            nn.init.normal_(module.fc2.weight, std=module.fc2.in_features**-0.5)
            if module.fc2.bias is not None:
                nn.init.normal_(module.fc2.bias)
    return randomise(model, seed).eval()


def images(*size: int, count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(seed))


def difference(one: Tensor, truth: Tensor) -> float:
    """The relative error: how long the difference is, beside what it should have been."""
    assert one.shape == truth.shape
    return ((one - truth).norm() / truth.norm()).item()


def deployed(model: Any, size: tuple[int, ...] = SMALL, **options: Any) -> Any:
    """The deployed model, after a look at its outputs."""
    fast = deploy(model, input_size=size, **options)
    x = images(*size)
    with torch.no_grad():
        assert difference(fast(x), model(x)) <= 1e-5
    return fast


def outcome(fast: Any) -> dict[str, tuple[str, str]]:
    return {rewrite.path: (rewrite.what, rewrite.why) for rewrite in fast.report.rewrites}


def counts(fast: Any) -> dict[str, int]:
    return {r.what: fast.report.count(r.what) for r in fast.report.rewrites}
