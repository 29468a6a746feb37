"""Two processes train attached networks together, and say what each finds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from ordinary_networks import attached, images, plain, run_and_note
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel

from senet import UserError, verify
from senet.kernels import selection

WORLD = 2
_FSDP1 = "_fsdp_wrapped_module."


def _reference(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and the gradients averaged over the processes, of an unwrapped model."""
    output = model(x)
    output.square().sum().backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        gradients[name] = parameter.grad / WORLD
        dist.all_reduce(gradients[name])
    return output, gradients


def _error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def _spread(value: Tensor) -> float:
    """How far the processes are apart on a value, relative to its size."""
    values = [torch.empty_like(value) for _ in range(WORLD)]
    dist.all_gather(values, value.contiguous())
    return _error(values[1], values[0])


def _trained(
    wrapped: nn.Module,
    x: Tensor,
    reference: tuple[Tensor, dict[str, Tensor]],
    gradients: Callable[[], Mapping[str, Tensor]],
) -> dict[str, Any]:
    output, calls = run_and_note(wrapped, x)
    output.square().sum().backward()
    found = gradients()
    return {
        "calls": calls,
        "output": _error(output, reference[0]),
        "names": sorted(found) == sorted(reference[1]),
        "gradient": max(_error(found[name], value) for name, value in reference[1].items()),
        "spread": max(_spread(value) for value in found.values()),
    }


def _ddp(name: str, x: Tensor) -> dict[str, Any]:
    reference = _reference(attached(name), x)
    # Each process starts from weights of its own: DDP has to give all of them the first one's.
    wrapped = DistributedDataParallel(attached(name, seed=dist.get_rank()))
    found = _trained(
        wrapped, x, reference, lambda: {n: p.grad for n, p in wrapped.module.named_parameters()}
    )
    # A second step: DDP raises here if a parameter took no part in the first.
    wrapped(x).square().sum().backward()
    return found | {"verified": len(verify(wrapped, x))}


def _fsdp2(name: str, x: Tensor) -> dict[str, Any]:
    reference = _reference(attached(name), x)
    model = attached(name)
    mesh = init_device_mesh("cpu", (WORLD,))
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4, model):
        fully_shard(stage, mesh=mesh)
    found = _trained(
        model, x, reference, lambda: {n: p.grad.full_tensor() for n, p in model.named_parameters()}
    )
    return found | {"refused": _refusal(model, x)}


def _fsdp1(name: str, x: Tensor) -> dict[str, Any]:
    model = attached(name)
    reference = _reference(copy.deepcopy(model), x)
    wrapped = FullyShardedDataParallel(
        model,
        use_orig_params=True,
        device_id=torch.device("cpu"),
        # BatchNorms as well, so that the wrapped module of a site is itself sharded.
        auto_wrap_policy=ModuleWrapPolicy({type(model.layer1[0]), nn.BatchNorm2d}),
    )

    def gradients() -> dict[str, Tensor]:
        with FullyShardedDataParallel.summon_full_params(wrapped, with_grads=True):
            return {n.replace(_FSDP1, ""): p.grad.clone() for n, p in wrapped.named_parameters()}

    found = _trained(wrapped, x, reference, gradients)
    found["keys"] = set(wrapped.state_dict()) == set(attached(name).state_dict())
    # A plain checkpoint loads into the sharded model too, and its blocks stay as they are.
    checkpoint = plain(name, seed=3).state_dict()
    wrapped.load_state_dict(checkpoint, strict=True)
    unsharded = attached(name)
    unsharded.load_state_dict(checkpoint, strict=True)
    found["loaded"] = _error(wrapped(x), unsharded(x))
    return found | {"refused": _refusal(wrapped, x)}


def _refusal(model: nn.Module, x: Tensor) -> str:
    try:
        verify(model, x)
    except UserError as error:
        return str(error)
    return ""


def share(rank: int, world: int, name: str) -> dict[str, Any]:
    """What process ``rank`` finds of a network of `ordinary_networks`; for `call_group`."""
    selection.SMALL = 0  # as the fixture one_operation has it
    dist.init_process_group("gloo", rank=rank, world_size=world)
    x = images(seed=rank)
    ways = {"ddp": _ddp, "fsdp2": _fsdp2, "fsdp1": _fsdp1}
    findings = {f"{way}-{name}": act(name, x) for way, act in ways.items()}
    dist.destroy_process_group()
    return findings
