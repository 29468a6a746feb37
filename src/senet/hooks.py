"""What is hung on a module: whether a call of it does more than its class says."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as global_hooks

__all__ = ["is_hooked"]


def is_hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its class says."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or global_hooks._global_forward_hooks
        or global_hooks._global_forward_pre_hooks
        or global_hooks._global_backward_hooks
        or global_hooks._global_backward_pre_hooks
        or "forward" in vars(module)
    )
