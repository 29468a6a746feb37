"""Networks whose gates are known, and statistics of gates the slow way."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from senet import SqueezeExcite

__all__ = ["Gated", "eta_squared", "moments"]


class Gated(nn.Module):
    """A block whose gate is σ of each image's pixel: images (N, C, 1, 1) → logits (N, C)."""

    def __init__(self, channels: int, gate: str = "sigmoid", gate_scale: float = 1.0) -> None:
        super().__init__()
        self.se = SqueezeExcite(channels, hidden=2 * channels, gate=gate, gate_scale=gate_scale)
        eye = torch.eye(channels)
        with torch.no_grad():  # δ is ReLU: x = δ(x) − δ(−x)
            self.se.fc1.weight.copy_(torch.cat([eye, -eye]))
            self.se.fc2.weight.copy_(torch.cat([eye, -eye], dim=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.se(x).flatten(1)


def moments(gates: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mean and population variance of each class, (K, C), NaN where there are no images."""
    of_class = [gates.double()[labels == k] for k in range(classes)]
    mean = torch.stack([g.mean(0) for g in of_class])
    return mean, torch.stack([(g - g.mean(0)).square().mean(0) for g in of_class])


def eta_squared(gates: Tensor, labels: Tensor) -> Tensor:
    """The between-class share of the variance of each channel, 0 where it is constant: (C,)."""
    gates = gates.double()
    total = (gates - gates.mean(0)).square().sum(0)
    between = torch.zeros_like(total)
    for k in labels.unique():
        own = gates[labels == k]
        between += len(own) * (own.mean(0) - gates.mean(0)).square()
    varies = (gates != gates[0]).any(0)
    return torch.where(varies, between / total, 0.0)
