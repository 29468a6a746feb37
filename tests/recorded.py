"""Statistics of gates made up for the tests: as `senet.record` returns them, of any size."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from senet.excitations import BlockExcitations, Excitations
from senet.page import Picture

__all__ = ["make_excitations", "make_picture"]


def make_excitations(
    classes: Sequence[str] = ("cat", "dog", "eel"),
    widths: Sequence[int] = (6, 6, 12, 12),
    stages: Sequence[int | None] | None = None,
    images: int = 60,
    examples: int = 3,
    permutations: int = 20,
    seed: int = 0,
) -> Excitations:
    """Gates whose classes differ the more the deeper a block is; the same for the same call."""
    draw = torch.Generator().manual_seed(seed)
    stages = [2 + n * 4 // len(widths) for n in range(len(widths))] if stages is None else stages
    blocks = []
    for depth, (width, stage) in enumerate(zip(widths, stages, strict=True)):
        base = torch.rand(width, generator=draw, dtype=torch.float64) * 0.6 + 0.2
        pull = torch.randn(len(classes), width, generator=draw, dtype=torch.float64)
        mean = (base + 0.2 * depth / len(widths) * pull).clamp(0.001, 0.999)
        null = torch.rand(permutations, width, generator=draw, dtype=torch.float64)
        gates = torch.rand(2, width, examples, generator=draw, dtype=torch.float64)
        numbers = torch.randint(images, (2, width, examples), generator=draw)
        shares = torch.rand(2, width, generator=draw, dtype=torch.float64) * depth / len(widths)
        blocks.append(
            BlockExcitations(
                path=f"layer{depth}.bn2.se",
                stage=stage,
                depth=depth,
                counts=torch.full((len(classes),), -(-images // len(classes))),
                mean=mean,
                variance=torch.full_like(mean, 0.01),
                low=shares[0] / 2,
                high=shares[1] / 2,
                null=0.02 + 0.02 * null,
                most=gates[0].sort(descending=True).values,
                most_images=numbers[0],
                least=gates[1].sort().values,
                least_images=numbers[1],
            )
        )
    return Excitations(tuple(blocks), tuple(classes), images)


def make_picture(index: int, size: int = 64, classes: int = 3) -> Picture:
    """A photograph-like picture: smooth colours with grain, another for each index."""
    draw = torch.Generator().manual_seed(index)
    coarse = torch.rand(1, 3, 6, 6, generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")[0]
    grain = 0.06 * torch.randn(3, size, size, generator=draw)
    pixels = ((smooth + grain).clamp(0, 1) * 255).to(torch.uint8)
    return Picture(pixels, index % classes, f"{index}.png")
