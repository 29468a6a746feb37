"""The algebra with its backward by hand, from operators that PyTorch has.

Forward: moments of each sample (one pass over x), the gate from them, one affine pass.
Backward: two sums for each sample and channel (one pass over g and x), the gate's small
backward, one pass for ∂L/∂x. Kept for it: x and vectors of at most (N, C). The derivation, line
by line, is in ``docs/algebra.md``. Where a channel's mean is far beyond its deviation, and a
sum in float32 would cancel its digits, the form is taken that keeps the mean in float64.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..functional import statistics_dtype
from . import broadcast, channels_last, gate, rows
from .operands import Excitation, Norm
from .statistics import batch_moments, sum_over, unversioned, update_running

__all__ = ["laid_out_like", "norm_excite", "passes_for", "sample_moments"]

FAR = 128.0
"""Deviations between a mean and zero from which on float32 is not enough: 2⁷ of 2²⁴."""


def norm_excite(x: Tensor, norm: Norm, excitation: Excitation) -> Tensor:
    """SE(BN(x)) for x (N, C, S₁, …, S_d): a fresh tensor of x's dtype and memory format.

    Raises:
        RuntimeError: in backward, where a second derivative is asked for.
    """
    w1, b1, w2, b2, *options = excitation
    # Parameters are arguments of their own, or autograd would not see them.
    y: Tensor = _NormExcite.apply(x, norm.weight, norm.bias, w1, b1, w2, b2, norm, options)
    return y


def sample_moments(x: Tensor, eps: float) -> tuple[ModuleType, Tensor, Tensor]:
    """The form of the passes for x, and by it mean and variance of each sample, (N, C) each."""
    passes, dtype = passes_for(x), statistics_dtype(x.dtype)
    m, v = passes.moments(x, dtype)
    if passes is not broadcast and dtype != torch.float64 and _is_far(m, v, eps):
        passes = broadcast
        m, v = passes.moments(x, dtype)
    return passes, m, v


def passes_for(x: Tensor, means: torch.dtype | None = None) -> ModuleType:
    """The form of the four passes that suits where x lies and how, and the type of its means.

    Args:
        x: the feature map.
        means: None is the type that x's statistics have as a rule.
    """
    if x.device.type != "cpu" or x.numel() == 0:
        return broadcast
    if means not in (None, statistics_dtype(x.dtype)):
        return broadcast
    if x.is_contiguous():
        return rows
    if x.dim() in (4, 5) and x.movedim(1, -1).is_contiguous():
        return channels_last
    return broadcast


class _NormExcite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        w1: Tensor | None,
        b1: Tensor | None,
        w2: Tensor,
        b2: Tensor | None,
        norm: Norm,
        options: list[Any],
    ) -> Tensor:
        count = x.numel() // x.shape[1]
        with torch.autocast(x.device.type, enabled=False):
            passes, m, v = sample_moments(x, norm.eps)
            if norm.batch_statistics:
                mean, var, count = batch_moments(m, v, count, norm.group)
                update_running(unversioned(norm), mean, var, count)
            else:
                mean, var = norm.fixed_statistics(m.dtype)
                mean = mean.clone()  # kept for backward; training may move the running one first
            r = torch.rsqrt(var + norm.eps).to(v.dtype)
            gamma, beta = _or_ones(weight, r), _or_zeros(bias, r)
            deviation = (m - mean).to(r.dtype) * r
            z = torch.addcmul(beta, gamma, deviation)
            block = Excitation(w1, b1, w2, b2, *options)
            p, q = gate.forward(block, z)
            s = gate.gate(block, q)
            y = passes.affine(x, s * (gamma * r), s * beta, mean)
        ctx.save_for_backward(x, weight, bias, w1, w2, mean, r, deviation, p, q)
        ctx.options, ctx.count, ctx.group = options[:4], count, norm.group  # no observer
        ctx.batch_statistics = norm.batch_statistics
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the fused norm and SE block has no second derivative (create_graph=True); "
                "set implementation = 'reference' on the network's Recalibrated modules"
            )
        x, weight, bias, w1, w2, mean, r, deviation, p, q = ctx.saved_tensors
        needs = ctx.needs_input_grad
        passes = passes_for(x, mean.dtype)
        g = laid_out_like(gradients[0], x)
        with torch.autocast(x.device.type, enabled=False):
            gamma, beta = _or_ones(weight, r), _or_zeros(bias, r)
            a = gamma * r
            block = Excitation(w1, None, w2, None, *ctx.options)  # no gradient asks for b₁ and b₂
            z, s = torch.addcmul(beta, gamma, deviation), gate.gate(block, q)
            s0, s1 = passes.sums(g, x, mean)
            d_s = torch.addcmul(a * s1, beta, s0)
            zeta, *of_block = gate.backward(block, z, p, q, d_s, needs[3:7])
            d_beta = torch.addcmul(zeta, s, s0).sum(0)
            d_gamma = torch.addcmul(zeta * deviation, s * r, s1).sum(0)
            d_x = None
            if needs[0]:
                of_mean = zeta / x.shape[2:].numel()
                if ctx.batch_statistics:
                    # Every process needs the sums of all; its own gradients it leaves to DDP.
                    beta_sum, gamma_sum = sum_over(ctx.group, d_beta, d_gamma)
                    slope = -a * r * gamma_sum / ctx.count
                    shift = a * (of_mean - beta_sum / ctx.count)
                    d_x = passes.combine(g, s * a, x, slope, shift, mean)
                else:
                    d_x = passes.affine(g, s * a, a * of_mean, torch.zeros_like(a))
        d_weight = d_gamma.to(weight.dtype) if needs[1] else None
        d_bias = d_beta.to(bias.dtype) if needs[2] else None
        return d_x, d_weight, d_bias, *of_block, None, None


def _is_far(m: Tensor, v: Tensor, eps: float) -> bool:
    """Whether |m| > 128·√(v + ε) anywhere."""
    return bool((m.square() > FAR**2 * (v + eps)).any())


def _or_ones(weight: Tensor | None, like: Tensor) -> Tensor:
    return torch.ones_like(like) if weight is None else weight.to(like.dtype)


def _or_zeros(bias: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if bias is None else bias.to(like.dtype)


def laid_out_like(g: Tensor, x: Tensor) -> Tensor:
    """g with x's strides: a gradient may be an expanded scalar, or come in another format."""
    return g if g.stride() == x.stride() else torch.empty_like(x, dtype=g.dtype).copy_(g)
