"""Operands drawn at random, and what an implementation answers: output, statistics, gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from senet.kernels import Excitation, Norm, norm_excite

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


class Case(NamedTuple):
    shape: tuple[int, ...]
    channels_last: bool = False
    batch_statistics: bool = True
    running: bool = True
    affine: bool = True
    bias: bool = True
    bottleneck: bool = True
    gate: str = "sigmoid"
    activation: str = "relu"
    gate_scale: float = 1.0

    @property
    def memory_format(self) -> torch.memory_format:
        if not self.channels_last:
            return torch.contiguous_format
        return FORMATS.get(len(self.shape), torch.contiguous_format)


class Drawn(NamedTuple):
    x: Tensor
    g: Tensor
    vectors: dict[str, Tensor | None]
    running: tuple[Tensor, Tensor] | None


def draw(case: Case, seed: int = 0, mean: float = 0.5) -> Drawn:
    """Everything in float64; x has the given mean and unit variance."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    channels = case.shape[1]
    hidden = 3 if case.bottleneck else channels
    vectors = {
        "weight": normal(channels) if case.affine else None,
        "bias": normal(channels) if case.affine else None,
        "w1": normal(hidden, channels) if case.bottleneck else None,
        "b1": normal(hidden) if case.bottleneck and case.bias else None,
        "w2": normal(channels, hidden),
        "b2": normal(channels) if case.bias else None,
    }
    running = (normal(channels) + mean, normal(channels).square() + 0.5) if case.running else None
    return Drawn(normal(*case.shape) + mean, normal(*case.shape), vectors, running)


def answers(
    case: Case,
    drawn: Drawn,
    implementation: str | None,
    dtype: torch.dtype = torch.float64,
    parameters: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """The output, the running statistics and every gradient, in float64.

    ``drawn`` is rounded to ``dtype`` (the vectors to ``parameters``) first.
    """
    parameters = parameters or dtype
    x = drawn.x.to(dtype, copy=True).contiguous(memory_format=case.memory_format).requires_grad_()
    vectors = {
        name: None if t is None else t.to(parameters, copy=True).requires_grad_()
        for name, t in drawn.vectors.items()
    }
    mean, var = (None, None)
    if drawn.running is not None:
        mean, var = (t.to(parameters, copy=True) for t in drawn.running)
    norm = Norm(vectors["weight"], vectors["bias"], mean, var, 0.3, 1e-5, case.batch_statistics)
    w2 = vectors["w2"]
    assert w2 is not None
    block = Excitation(
        vectors["w1"], vectors["b1"], w2, vectors["b2"],
        case.gate, case.activation, case.gate_scale,
    )  # fmt: skip
    y = norm_excite(x, norm, block, implementation)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=case.memory_format)
    y.backward(drawn.g.to(dtype).contiguous(memory_format=case.memory_format))
    found: dict[str, Tensor | None] = {"y": y.detach(), "x": x.grad, "mean": mean, "var": var}
    found |= {name: None if t is None else t.grad for name, t in vectors.items()}
    return {name: t.double() for name, t in found.items() if t is not None}


def rounded(drawn: Drawn, dtype: torch.dtype, parameters: torch.dtype | None = None) -> Drawn:
    """What is left of ``drawn`` in a narrower type, in float64 again."""
    parameters = parameters or dtype
    return Drawn(
        drawn.x.to(dtype).double(),
        drawn.g.to(dtype).double(),
        {n: None if t is None else t.to(parameters).double() for n, t in drawn.vectors.items()},
        drawn.running and tuple(t.to(parameters).double() for t in drawn.running),
    )


def error(found: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """The largest absolute difference of each answer, relative to its largest value."""
    assert found.keys() == truth.keys()
    return {
        name: ((found[name] - t).abs().max() / t.abs().max().clamp_min(1e-12)).item()
        for name, t in truth.items()
    }
