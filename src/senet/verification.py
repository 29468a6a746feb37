"""Proof that every SE block is wired: it runs as planned, and a gradient goes through it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .block import SqueezeExcite
from .errors import UserError
from .insertion import PLAN_ATTRIBUTE
from .norm import Recalibrated, recalibrated_modules

__all__ = ["BlockCheck", "VerificationError", "verify"]


class VerificationError(UserError):
    """A block of the network is not wired; the message names it and the usual cause."""


@dataclass(frozen=True)
class BlockCheck:
    """What one forward and backward said of a block.

    Args:
        path: of the block, or of the wrapper that holds it.
        channels: that it gates.
        gate_gradient: the largest |∂L/∂s| over samples and channels, finite and positive.
        frozen: none of its parameters is trained (``requires_grad`` is off).
    """

    path: str
    channels: int
    gate_gradient: float
    frozen: bool


@dataclass
class _Observed:
    calls: int = 0
    gate_gradient: float = 0.0
    reached: bool = False


@dataclass
class _Watch:
    """Hooks on the blocks of a copy; recomputed forwards (checkpointing) are not calls."""

    forward: bool = True
    blocks: dict[str, _Observed] = field(default_factory=dict)

    def on(self, path: str, block: SqueezeExcite) -> None:
        observed = self.blocks.setdefault(path, _Observed())

        def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            observed.calls += self.forward
            if output.requires_grad:
                entered = args[0].detach().clone()
                output.register_hook(lambda gradient: arrived(entered, gradient))

        def arrived(entered: Tensor, gradient: Tensor) -> None:
            # y = s · u, so ∂L/∂s sums g · u over the positions of a channel.
            product = (gradient * entered).double()
            channel_dim = product.dim() - 1 if block.channels_last else 1
            positions = [d for d in range(1, product.dim()) if d != channel_dim]
            total = product.sum(positions) if positions else product
            observed.gate_gradient = max(observed.gate_gradient, total.abs().max().item())
            observed.reached |= bool(gradient.count_nonzero())

        block.register_forward_hook(after)


def verify(model: nn.Module, x: Any) -> list[BlockCheck]:
    """Check that every SE block of ``model`` is wired; the model is not touched.

    A copy, its dropped-out and stochastic parts off, runs forward and backward on ``x``. So
    that the weights of the day do not matter (last affines set to zero, a warm start's zero
    matrix), parameters of the copy that are all zero and the blocks' second matrices are
    replaced by random ones. Each block must be where its plan put it, run exactly once, and get
    a finite, non-zero gradient on its gate.

    Args:
        model: a network with SE, by `attach` or with `SqueezeExcite` in its own code.
        x: a batch, (N, C, …) with N ≥ 1, or a tuple of positional or a dict of keyword
            arguments of the forward.

    Returns:
        One `BlockCheck` a block, in order of registration.

    Raises:
        VerificationError: naming the block and the usual cause.
        UserError: the model cannot be copied; sharded ones (FSDP) cannot.
    """
    model = _innermost(model)
    blocks = dict(_blocks(model))
    problems = _lost(model)
    if not blocks and not problems:
        raise VerificationError(f"{type(model).__name__} has no SE block; senet.attach puts it in")
    frozen = {
        path: not any(p.requires_grad for p in block.parameters()) for path, block in blocks.items()
    }
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.manual_seed(0)
        watch = _run(_prepared(model), x)
    checks = []
    for path, observed in watch.blocks.items():
        if problem := _problem(observed):
            problems.append(f"{path}: {problem}")
        check = BlockCheck(path, blocks[path].channels, observed.gate_gradient, frozen[path])
        checks.append(check)
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


def _blocks(model: nn.Module) -> list[tuple[str, SqueezeExcite]]:
    """The blocks, each under its wrapper's path where it has one."""
    modules = dict(model.named_modules())
    found = []
    for path, module in modules.items():
        if isinstance(module, SqueezeExcite):
            parent = path.rpartition(".")[0]
            wrapped = isinstance(modules.get(parent), Recalibrated)
            found.append((parent if wrapped else path, module))
    return found


def _lost(model: nn.Module) -> list[str]:
    """Sites of a noted plan that no wrapper holds any more."""
    problems = []
    for prefix, owner in model.named_modules():
        plan = getattr(owner, PLAN_ATTRIBUTE, None) or ()
        held = {wrapper.site for _, wrapper in recalibrated_modules(owner)} if plan else set()
        modules = dict(owner.named_modules(remove_duplicate=False)) if plan else {}
        for site in plan:
            if site not in held:
                now = modules.get(site.path)
                what = "nothing" if now is None else f"a {type(now).__name__}"
                path = f"{prefix}.{site.path}" if prefix else site.path
                problems.append(
                    f"{path}: the block is gone, there is {what} in its place; "
                    "a conversion or assignment replaced the wrapper (attach after converting)"
                )
    return problems


def _prepared(model: nn.Module) -> nn.Module:
    """A trainable float32 copy whose zeros do not hide a path."""
    twin = _copied(model).float().eval()
    for module in twin.modules():
        if hasattr(module, "running_mean"):
            module.train()  # batch statistics keep a deep, untrained network in range
    for name, buffer in twin.named_buffers():
        # A frozen norm keeps its γ in a buffer; a zero-initialised one is as healthy as a trained.
        if name.rpartition(".")[2] == "weight" and not buffer.any():
            nn.init.uniform_(buffer, 0.5, 1.5)
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
        if parameter.is_floating_point() and not parameter.any():
            nn.init.uniform_(parameter, 0.5, 1.5)
    for _, block in _blocks(twin):
        nn.init.kaiming_normal_(block.fc2.weight, mode="fan_out", nonlinearity="sigmoid")
    return twin


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # each kind of sharding refuses in its own way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{type(model).__name__} cannot be copied ({reason}); "
            "verify a model before it is sharded or otherwise tied to its process"
        ) from error


def _run(twin: nn.Module, x: Any) -> _Watch:
    watch = _Watch()
    for path, block in _blocks(twin):
        watch.on(path, block)
    output = _forward(twin, tree_map(_several, x))
    watch.forward = False
    leaves = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.requires_grad]
    if leaves:
        loss = torch.stack([(t.float() * torch.randn_like(t.float())).sum() for t in leaves]).sum()
        loss.backward()
    return watch


def _several(value: Any) -> Any:
    """A single sample becomes four slightly different ones: batch statistics need several."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    value = value.detach().float()
    if value.dim() < 2 or value.shape[0] != 1:
        return value
    several = value.repeat(4, *(1,) * (value.dim() - 1))
    return several + 0.1 * torch.randn_like(several)


def _forward(model: nn.Module, x: Any) -> Any:
    if isinstance(x, Mapping):
        return model(**x)
    return model(*x) if isinstance(x, tuple) else model(x)


def _problem(observed: _Observed) -> str | None:
    if observed.calls == 0:
        return (
            "the block was never called; the forward goes round the module that was wrapped "
            "(it may keep its own reference to it)"
        )
    if observed.calls > 1:
        return f"the block was called {observed.calls} times in one forward; the module is shared"
    if not observed.reached:
        return "no gradient reaches the block; what it makes does not enter the output"
    if not 0 < observed.gate_gradient < float("inf"):
        return (
            f"the gradient on its gate is {observed.gate_gradient:g}; it is fed by a dead branch "
            "(constant zero, or values out of range)"
        )
    return None
