"""From the moments of each sample to those of the batch, also over processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from .operands import Norm

__all__ = ["batch_moments", "sum_over", "unversioned", "update_running"]


def batch_moments(
    mean: Tensor, var: Tensor, size: int, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, int]:
    """μ = mean_n m, σ² = mean_n v + var_n m, and M.

    With a process group, each weighs by its own number of values: M is the sum over processes.

    Args:
        mean, var: m and v, (N, C), the population moments of each sample; N may be 0. The means'
            type may be the wider one; each result has its own.
        size: N·S, the values of a channel in this process.
        group: the processes whose batches are one.
    """
    if len(mean):
        # Deviations from the first sample: with a large common mean nothing cancels.
        first = mean[0]
        mu = first + (mean - first).mean(0)
        sigma2 = var.mean(0) + (mean - mu).square().mean(0).to(var.dtype)
    else:
        mu, sigma2 = mean.new_zeros(mean.shape[1]), var.new_zeros(var.shape[1])
    if group is None:
        return mu, sigma2, size
    # In float64, for each process chooses by itself what it computes in.
    local = torch.cat([mu, sigma2, mu.new_tensor([float(size)])]).double()
    gathered = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, local, group=group)
    ranks = torch.stack(gathered)
    counts, mus, sigmas = ranks[:, -1:], *ranks[:, :-1].chunk(2, dim=1)
    total = counts.sum()
    share = counts / total
    mu = (share * mus).sum(0)
    sigma2 = (share * (sigmas + (mus - mu).square())).sum(0)
    return mu.to(mean.dtype), sigma2.to(var.dtype), int(total)


def sum_over(group: dist.ProcessGroup | None, *vectors: Tensor) -> tuple[Tensor, ...]:
    """Each (C,) vector summed over the processes of ``group``; themselves without one."""
    if group is None:
        return vectors
    together = torch.stack(vectors).double()
    dist.all_reduce(together, group=group)
    return tuple(together.to(vectors[0].dtype))


def unversioned(norm: Norm) -> Norm:
    """The same running statistics, without autograd hearing that they move.

    The backward of a pass before, which does not read them, may have them saved; BatchNorm's own
    kernel moves them in this way.
    """
    if norm.running_mean is None or norm.running_var is None:
        return norm
    return norm._replace(running_mean=norm.running_mean.data, running_var=norm.running_var.data)


def update_running(norm: Norm, mean: Tensor, var: Tensor, count: int) -> None:
    """Move the running statistics towards the batch's, the variance unbiased: σ²·M/(M−1)."""
    if norm.running_mean is None or norm.running_var is None:
        return
    with torch.no_grad():
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
        unbiased = var * (count / max(count - 1, 1))
        norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), norm.momentum)
