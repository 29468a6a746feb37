"""A network as its owner hands it in: refused where it is none, copied, and left as it was."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .errors import UserError

__all__ = [
    "become",
    "check_module",
    "check_network",
    "copied",
    "evaluation_mode",
    "exchange",
    "preserved_generators",
    "refuse_compiled",
    "to_meta",
]

Network = TypeVar("Network", bound=nn.Module)
_HOOKS = frozenset(
    name
    for name, value in vars(nn.Module()).items()
    if name.startswith(("_forward", "_backward")) and isinstance(value, dict)
)
"""Where a module keeps the hooks of its forward and backward."""


def check_module(model: object) -> None:
    """Refuse what is no module.

    Raises:
        UserError: it is not, but the name of a network, say.
    """
    if not isinstance(model, nn.Module):
        shown = repr(model) if isinstance(model, str) else f"a {type(model).__name__}"
        raise UserError(
            f"{shown} is no torch.nn.Module; give the network itself, "
            "as torchvision, timm or senet.create_model make it"
        )


def check_network(model: nn.Module) -> None:
    """Refuse what is no plain, initialised module.

    Raises:
        UserError: it is no module at all, or compiled, scripted or lazy.
    """
    check_module(model)
    refuse_compiled("", model)
    for name, module in model.named_modules():
        what = f"module {name!r}" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(f"{what} is scripted, its graph is fixed; use the eager one")
    for name, parameter in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(parameter):
            raise UserError(f"{name!r} is a lazy parameter; run the model once on real input first")


def refuse_compiled(name: str, module: nn.Module) -> None:
    """Refuse a module of this name if it is compiled, "" being the model itself."""
    if hasattr(module, "_orig_mod"):
        raise UserError(
            f"{f'module {name!r}' if name else 'the model'} is compiled, its graph is fixed; use "
            f"the module before torch.compile ({name or 'model'}._orig_mod) and compile afterwards"
        )


def copied(model: Network, *, hooks: bool = True, on_meta: bool = False) -> Network:
    """A deep copy; unlike `copy.deepcopy`, also of a module that keeps what it has computed.

    Such tensors (features kept for later, the weight that an old-style `weight_norm` computes)
    belong to a graph of autograd; their copies do not.

    Args:
        model: the network.
        hooks: False leaves a user's hooks behind, but not those with which torch itself computes
            a weight (`weight_norm` and `spectral_norm` of old, pruning).
        on_meta: copy the structure alone; all tensors of the copy are on the meta device.

    Raises:
        UserError: something on a module cannot be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if not hooks and name in _HOOKS:
                pre = name == "_forward_pre_hooks"
                kept = {k: hook for k, hook in value.items() if pre and _is_of_torch(hook)}
                memo[id(value)] = type(value)(kept)
        for value in tree_leaves(vars(module)):
            if isinstance(value, Tensor) and (on_meta or not value.is_leaf):
                memo[id(value)] = to_meta(value) if on_meta else value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:  # the last is FSDP's
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{type(model).__name__} cannot be copied ({reason}); "
            "keep what cannot be copied out of its modules' attributes"
        ) from error


def exchange(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` is registered in a model (a module may have several names)."""
    places = [
        (parent, name)
        for parent in model.modules()
        if parent is not new  # a wrapper keeps what it wraps
        for name, child in parent._modules.items()
        if child is old
    ]
    assert places, type(old).__name__
    for parent, name in places:
        setattr(parent, name, new)


def become(module: nn.Module, new: nn.Module) -> None:
    """Make ``module`` what ``new`` is, for whoever holds it: a list, a partial, a bound method."""
    state = dict(vars(new))
    module.__class__ = type(new)
    vars(module).clear()
    vars(module).update(state)


def to_meta(value: Tensor) -> Tensor:
    """A tensor of the same shape without data; a parameter stays one."""
    if isinstance(value, nn.Parameter):
        return nn.Parameter(value.detach().to("meta"), requires_grad=value.requires_grad)
    return value.detach().to("meta")


def _is_of_torch(hook: object) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils.")


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; each module then has its own mode again, frozen ones too."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def preserved_generators(model: nn.Module) -> Iterator[Callable[[int], None]]:
    """Leave the random numbers of Python, NumPy, and torch on the model's devices as they were.

    Yields what seeds torch's generators on these devices: `torch.manual_seed` would seed those of
    every device, and where CUDA is not in use yet take the place of the seed that waits for it.
    """
    generators = _generators(model)
    states = [generator.get_state() for generator in generators]
    python_state = random.getstate()
    numpy_state = np.random.get_state()

    def seed(value: int) -> None:
        for generator in generators:
            generator.manual_seed(value)

    try:
        yield seed
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _generators(model: nn.Module) -> list[torch.Generator]:
    """Those that a forward draws from: the CPU's, and one for each device of the model."""
    tensors = (*model.parameters(), *model.buffers())
    devices = {tensor.device for tensor in tensors} - {torch.device("cpu"), torch.device("meta")}
    found = [torch.default_generator]
    for device in devices:
        of_kind = getattr(torch.get_device_module(device), "default_generators", ())
        found += of_kind[device.index or 0 : (device.index or 0) + 1]
    return found
