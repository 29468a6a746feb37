"""Two processes, one batch between them: what SyncBatchNorm and its block find in each."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from senet import recalibrate
from senet.block import BlockOptions

CHANNELS, SPLIT = 6, (3, 5)
"""The shares are uneven, so that the processes do not weigh the same."""


def network(norm: type[nn.Module]) -> nn.Module:
    """A norm that ends in SE, all of it drawn at random."""
    torch.manual_seed(0)
    model = recalibrate(norm(CHANNELS).double(), CHANNELS)
    for tensor in model.parameters():
        nn.init.normal_(tensor)
    return model.double()


def batch() -> tuple[Tensor, Tensor]:
    """x and ∂L/∂y of the whole batch, (8, 6, 5, 4)."""
    rng = torch.Generator().manual_seed(1)
    shape = (sum(SPLIT), CHANNELS, 5, 4)
    offset = torch.arange(8, dtype=torch.float64).view(-1, 1, 1, 1)  # the shares differ in mean
    x = torch.randn(shape, generator=rng, dtype=torch.float64) + offset
    return x, torch.randn(shape, generator=rng, dtype=torch.float64)


def findings(model: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Two steps: the second's output, gradients and running statistics."""
    for _ in range(2):
        model.zero_grad()
        x = x.detach().requires_grad_()
        y = model(x)
        y.backward(g)
    found = {"y": y.detach(), "x": x.grad}
    found |= {name: p.grad for name, p in model.named_parameters()}
    found |= dict(model.named_buffers())
    return {name.removeprefix("module."): t for name, t in found.items() if t is not None}


def _by_the_maximum() -> nn.Module:
    """What has no algebra, so that norm and block have to be called one after the other."""
    options = BlockOptions(squeeze="max")
    return recalibrate(nn.SyncBatchNorm(CHANNELS), CHANNELS, options=options).double()


def _compiled() -> Callable[[Tensor], Tensor]:
    return torch.compile(network(nn.SyncBatchNorm), backend="eager")


def share(rank: int, world: int) -> dict[str, Tensor | str]:
    """What process ``rank`` finds with its part of the batch; for `processes.call_group`."""
    dist.init_process_group("gloo", rank=rank, world_size=world)
    x, g = (t.split(SPLIT)[rank] for t in batch())
    model = DistributedDataParallel(network(nn.BatchNorm2d))
    # Around a SyncBatchNorm on the CPU it would refuse, as PyTorch's own has no such forward.
    model.module.norm = nn.SyncBatchNorm.convert_sync_batchnorm(model.module.norm)
    found: dict[str, Tensor | str] = dict(findings(model, x, g))
    found["fused"] = torch.tensor(model.module.choice(x).implementation == "aten")
    # A process without images takes part in the others' statistics and gradients all the same.
    x, g = (t[: 8 * rank] for t in batch())
    alone = findings(network(nn.SyncBatchNorm), x, g)
    found |= {f"alone.{name}": t for name, t in alone.items()}
    # PyTorch's own has no form for the CPU, and says so: better than one process's statistics.
    for name, build in {"max": _by_the_maximum, "compiled": _compiled}.items():
        try:
            build()(x)
        except Exception as error:
            found[f"said.{name}"] = str(error)
    dist.destroy_process_group()
    return found
