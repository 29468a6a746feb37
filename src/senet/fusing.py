"""From a norm and a block, two modules, to the operands of one operation, where they are one."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .block import SqueezeExcite
from .hooks import is_hooked
from .kernels import Excitation, Norm

__all__ = ["block_operands", "is_batch_norm", "is_synchronised", "norm_operands", "obstacle"]

_BATCH_NORMS = frozenset(
    f"{package}.{name}"
    for package, names in (
        ("torch", ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")),
        ("timm", ("BatchNormAct2d", "SyncBatchNormAct", "FrozenBatchNormAct2d")),
        ("torchvision", ("FrozenBatchNorm2d",)),
        ("senet", ("SynchronisedBatchNorm",)),
    )
    for name in names
)
"""Whose forward is known to be that of a BatchNorm: package and class; a subclass may differ."""


def is_batch_norm(module: nn.Module) -> bool:
    """Whether the module is a BatchNorm, frozen or not, perhaps with an activation at its end."""
    package = type(module).__module__.partition(".")[0]
    return f"{package}.{type(module).__name__}" in _BATCH_NORMS


def obstacle(norm: nn.Module, se: nn.Module, x: Tensor) -> str:
    """Why ``se(norm(x))`` has to run as the two modules it is, or nothing.

    The operation reads their parameters and calls neither, so that nothing may be hung on them.
    """
    if isinstance(x, torch.fx.Proxy) or torch.jit.is_tracing() or torch.compiler.is_exporting():
        return "a trace shows the modules' own operators"
    if not is_batch_norm(norm):
        return f"{type(norm).__name__} is not a BatchNorm"
    ends = (getattr(norm, "drop", None), getattr(norm, "act", None))
    for end in ends:
        if not (end is None or type(end) is nn.Identity):
            return f"the norm ends in its own {type(end).__name__}"
    if type(se) is not SqueezeExcite or se.channels_last:
        return "the block is of another kind, or has its channels last"
    if not (type(se.fc1) in (nn.Linear, nn.Identity) and type(se.fc2) is nn.Linear):
        return "a layer of the block was replaced"
    if any(map(is_hooked, (norm, se, se.fc1, se.fc2, *filter(None, ends)))):
        return "a hook waits for a module to be called"
    return ""


def norm_operands(norm: nn.Module, x: Tensor, *, count: bool = True) -> Norm:
    """What a call of the BatchNorm ``norm`` would use.

    Args:
        norm: one that `obstacle` has nothing against.
        x: its input.
        count: this is a call: move the norm's count of batches on.

    Raises:
        ValueError: x has not the dimensions that this norm takes.
    """
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return _frozen(norm)
    norm._check_input_dim(x)
    momentum = 0.0 if norm.momentum is None else norm.momentum
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        if count:
            norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            momentum = 1.0 / max(float(norm.num_batches_tracked), 1.0)
    tracked = not norm.training or norm.track_running_stats
    return Norm(
        norm.weight,
        norm.bias,
        norm.running_mean if tracked else None,
        norm.running_var if tracked else None,
        momentum,
        norm.eps,
        norm.training or norm.running_mean is None,
        _group(norm),
    )


def block_operands(se: SqueezeExcite) -> Excitation:
    """The block's weights and options."""
    options = se.options
    fc1 = se.fc1 if options.bottleneck else None
    return Excitation(
        None if fc1 is None else fc1.weight,  # type: ignore[arg-type]
        None if fc1 is None else fc1.bias,  # type: ignore[arg-type]
        se.fc2.weight,
        se.fc2.bias,
        options.gate,
        options.activation,
        options.gate_scale,
        options.squeeze,
        se.observer,
    )


def is_synchronised(norm: nn.Module) -> bool:
    """Whether the norm takes the batches of several processes for one, here and now."""
    return _group(norm) is not None


def _frozen(norm: Any) -> Norm:
    """A FrozenBatchNorm has buffers only, and never takes statistics of a batch."""
    tensors = norm.weight, norm.bias, norm.running_mean, norm.running_var
    return Norm(*tensors, eps=norm.eps, batch_statistics=False)


def _group(norm: nn.Module) -> dist.ProcessGroup | None:
    """The processes whose batches this norm takes for one."""
    # nn.SyncBatchNorm and `senet.synchronised` have it; of what `is_batch_norm` knows nobody else.
    if not (norm.training and hasattr(norm, "process_group")):
        return None
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group: Any = norm.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None
