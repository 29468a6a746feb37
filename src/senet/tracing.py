"""One forward of a model on the meta device → its dataflow graph.

The forward of a structural copy runs under a `TorchFunctionMode`, which sees every call of a
torch function, with hooks on every module, which say whose call it was. Nothing is symbolic, so
any Python in the forward is allowed; the model itself is never touched.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .errors import UserError
from .given import check_network, preserved_generators
from .graph import Graph
from .recording import Recorder

__all__ = ["meta_copy", "trace"]


def meta_copy(model: nn.Module) -> nn.Module:
    """A structural copy on the meta device, in evaluation mode; no tensor data is copied.

    Parameters, buffers and other tensors on modules become meta tensors of the same shape;
    hooks stay behind, so that a user's hooks do not see the trace, except those with which torch
    itself computes a weight (`weight_norm` and `spectral_norm` of old, pruning).
    """
    return _copied(model, on_meta=True)


def trace(model: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> Graph:
    """Run the model once on meta tensors like ``inputs`` and record the dataflow.

    Where the forward cannot run on meta tensors (it asks for a value, say), a copy runs for
    real on the model's device. Random number generators are left as they were.

    Args:
        model: any module; compiled, scripted or lazy ones are refused.
        inputs, keywords: the arguments of its forward.

    Raises:
        UserError: the model is not a plain, initialised module, or its forward fails.
    """
    check_network(model)
    twin = meta_copy(model)
    with preserved_generators(model), torch.no_grad():
        try:
            on_meta = tree_map(lambda x: _to_meta(x) if isinstance(x, Tensor) else x, inputs)
            keywords_on_meta = tree_map(
                lambda x: _to_meta(x) if isinstance(x, Tensor) else x, dict(keywords)
            )
            with torch.device("meta"):
                return Recorder(twin).run(on_meta, keywords_on_meta)
        except Exception as error:
            # Data-dependent code is legitimate; a forward that is really at odds with its
            # input fails again below and is told there.
            if any(p.is_meta for p in model.parameters()):
                raise _failed(model, (inputs, dict(keywords)), error) from error
        real = _copied(model, on_meta=False)
        try:
            return Recorder(real).run(inputs, keywords)
        except Exception as error:
            raise _failed(model, (inputs, dict(keywords)), error) from error


def _failed(model: nn.Module, inputs: Any, error: Exception) -> UserError:
    shapes = [tuple(x.shape) for x in tree_leaves(inputs) if isinstance(x, Tensor)]
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(
        f"the forward of {type(model).__name__} failed on input of shape "
        f"{', '.join(map(str, shapes)) or 'none'}: {reason}; "
        "give input_size=(C, …) or example_inputs= that it accepts"
    )


def _to_meta(value: Tensor) -> Tensor:
    if isinstance(value, nn.Parameter):
        return nn.Parameter(value.detach().to("meta"), requires_grad=value.requires_grad)
    return value.detach().to("meta")


def _copied(model: nn.Module, *, on_meta: bool) -> nn.Module:
    """A deep copy in evaluation mode, also of tensors that are part of a graph of autograd."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if name.startswith(("_forward", "_backward")) and isinstance(value, dict):
                pre = name == "_forward_pre_hooks"
                kept = {k: hook for k, hook in value.items() if pre and _is_of_torch(hook)}
                memo[id(value)] = type(value)(kept)
        for value in tree_leaves(vars(module)):
            if isinstance(value, Tensor) and (on_meta or not value.is_leaf):
                memo[id(value)] = _to_meta(value) if on_meta else value.detach().clone()
    try:
        return copy.deepcopy(model, memo).eval()
    except (TypeError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{type(model).__name__} cannot be copied ({reason}); "
            "keep what cannot be copied out of its modules' attributes"
        ) from error


def _is_of_torch(hook: object) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils.")
