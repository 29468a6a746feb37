"""Proof that every SE block is wired: it runs as planned, and a gradient goes through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .adoption import ADOPTED_ATTRIBUTE, AdoptedSqueezeExcite
from .errors import UserError
from .given import check_module, preserved_generators
from .hoisting import refuse_deployed
from .insertion import PLAN_ATTRIBUTE
from .norm import Recalibrated
from .trial import Observed, Trial, blocks_by_path

__all__ = ["BlockCheck", "VerificationError", "verify"]

NO_GRADIENT = "its output carries no gradient"


class VerificationError(UserError):
    """A block of the network is not wired; the message names it and the usual cause."""


@dataclass(frozen=True)
class BlockCheck:
    """What one forward and backward said of a block.

    Args:
        path: of the block, or of the wrapper that holds it.
        channels: that it gates.
        gate_gradient: the largest |∂L/∂s| over samples and channels, finite and positive; zero
            for a frozen block whose output carries no gradient.
        frozen: it is not trained: ``requires_grad`` is off for all its parameters, or the forward
            runs it under `torch.no_grad` or `torch.inference_mode`.
        note: why the gradient is zero, or "".
    """

    path: str
    channels: int
    gate_gradient: float
    frozen: bool
    note: str = ""


def verify(model: nn.Module, x: Any) -> list[BlockCheck]:
    """Check that every SE block of ``model`` is wired; the model is not touched.

    A copy, its dropped-out and stochastic parts off, runs forward and backward on ``x``, in
    float32 unless it is in bfloat16 or its parameters are of several types. So that the weights
    of the day do not matter (last affines set to zero, a warm start's zero matrix), parameters of
    the copy that are all zero and the blocks' second matrices are replaced by random ones. Each
    block must be where it was put, run exactly once, on values that differ between samples,
    and get a finite, non-zero gradient on its gate. Where the forward itself turns autograd off,
    another forward with the block's gates changed shows that it is at work, and it counts as
    frozen.

    Then the copy runs as it is, norm and block as the operation that the wrapper chooses, and in
    training mode where its forward takes the same ``x`` there. Each operation must compute what
    the two modules do, and gradients must come to the parameters that they came to before.

    Nothing ties a block to a wrapper but its place: two blocks that changed places are two healthy
    blocks, though their weights were trained for others.

    Args:
        model: a network with SE, by `attach` or `adopt` or with `SqueezeExcite` in its own code.
        x: a batch, (N, C, …) with N ≥ 1, or a tuple of positional or a dict of keyword
            arguments of the forward.

    Returns:
        One `BlockCheck` a block, in order of registration.

    Raises:
        VerificationError: naming the block and the usual cause.
        UserError: the forward fails on ``x``, or the model cannot be copied (sharded ones, FSDP,
            cannot), has no values (on the meta device), or is deployed.
    """
    model = _innermost(model)
    check_module(model)
    refuse_deployed(model)
    blocks = dict(blocks_by_path(model))
    problems = _lost(model)
    if not blocks and not problems:
        raise VerificationError(f"{type(model).__name__} has no SE block; senet.attach puts it in")
    _refuse_meta(model)
    frozen = {
        path: not any(p.requires_grad for p in block.parameters()) for path, block in blocks.items()
    }
    with preserved_generators(model) as seed, torch.inference_mode(False), torch.enable_grad():
        observations = Trial(model, x, seed).observe()
    checks = []
    for path, observed in observations.items():
        if problem := _problem(observed, frozen[path]):
            problems.append(f"{path}: {problem}")
        note = "" if observed.reached else NO_GRADIENT
        unmoved = frozen[path] or not observed.reached
        channels = blocks[path].channels
        checks.append(BlockCheck(path, channels, observed.gate_gradient, unmoved, note))
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise VerificationError("; ".join(problems[:3]) + more)
    return checks


def _innermost(model: nn.Module) -> nn.Module:
    """The module itself inside `torch.compile` and `DistributedDataParallel`."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return _innermost(model.module)
    inner = getattr(model, "_orig_mod", None)
    return _innermost(inner) if isinstance(inner, nn.Module) else model


def _refuse_meta(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise UserError(
                f"{name!r} is on the meta device, which holds no values; "
                "verify the model once its weights are loaded on a real one"
            )


# Where blocks are, and where they were put


def _lost(model: nn.Module) -> list[str]:
    """What `attach` and `adopt` noted on the model and is not there any more, or elsewhere."""
    problems = []
    for prefix, owner in model.named_modules():
        noted = [(site, site.path) for site in getattr(owner, PLAN_ATTRIBUTE, None) or ()]
        noted += [(path, path) for path in getattr(owner, ADOPTED_ATTRIBUTE, ())]
        if not noted:
            continue
        held, there = _held(owner), _by_plain_path(owner)
        for key, path in noted:
            now = there.get(path)
            shown = f"{prefix}.{path}" if prefix else path
            places = held.get(key, [])
            if not places:
                problems.append(
                    f"{shown}: the block is gone, its place holds {_kind(now)}; "
                    "a conversion or assignment replaced it (attach or adopt after converting)"
                )
            elif now is not None and not any(_leads(path, place) for place in places):
                problems.append(
                    f"{shown}: its block has moved to {places[0]}, its place holds {_kind(now)}; "
                    "put it back, or detach and attach again"
                )
    return problems


def _kind(module: nn.Module | None) -> str:
    return "nothing" if module is None else type(module).__name__


def _held(owner: nn.Module) -> dict[Any, list[str]]:
    """The sites and adopted paths that have a block, and where that is."""
    found: dict[Any, list[str]] = {}
    for path, module in owner.named_modules(remove_duplicate=False):
        if isinstance(module, AdoptedSqueezeExcite):
            found.setdefault(module.path, []).append(path)
        elif isinstance(module, Recalibrated) and blocks_by_path(module.se):
            found.setdefault(module.site, []).append(path)
    return found


def _by_plain_path(owner: nn.Module) -> dict[str, nn.Module]:
    """The modules by the paths that they have without wrappers, the outermost of each path."""
    modules = dict(owner.named_modules(remove_duplicate=False))
    plain: dict[str, str] = {}
    found: dict[str, nn.Module] = {}
    for path, module in modules.items():
        parent, _, name = path.rpartition(".")
        wrapped = name == "norm" and isinstance(modules[parent], Recalibrated)
        above = plain.get(parent, "")
        plain[path] = above if wrapped else f"{above}.{name}".removeprefix(".")
        found.setdefault(plain[path], module)
    return found


def _leads(path: str, place: str) -> bool:
    """Whether ``place`` is ``path``, perhaps with other modules in between (checkpointing)."""
    steps = iter(place.split("."))
    return all(step in steps for step in path.split("."))


def _problem(observed: Observed, frozen: bool) -> str | None:
    if observed.calls == 0:
        return (
            "the block was never called; the forward goes round the module that was wrapped "
            "(it may keep its own reference to it)"
        )
    if observed.calls > 1:
        return f"the block was called {observed.calls} times in one forward; the module is shared"
    if not observed.varies:
        return (
            "it is fed by a dead branch: what it gates is the same for all samples "
            "(a constant, a branch multiplied by zero, units that never fire)"
        )
    if not observed.reached and not observed.enters:
        return "no gradient reaches the block; what it makes does not enter the output"
    if not observed.reached and observed.recorded and not frozen:
        return (
            "no gradient reaches the block, though what it makes enters the output: it is "
            "detached on the way; freeze the block (requires_grad_(False)) or let gradients pass"
        )
    if observed.reached and not 0 < observed.gate_gradient < float("inf"):
        return f"the gradient on its gate is {observed.gate_gradient:g}; values go out of range"
    if observed.differs:
        return (
            "norm and block as one operation are not the two one after the other: "
            f"{observed.differs}; set implementation = 'reference' on the wrapper, and report it"
        )
    if observed.untrained and not frozen:
        return (
            f"no finite gradient comes to its {observed.untrained}, though one does where the "
            "block is watched; the forward may use the block in evaluation mode alone"
        )
    return None
