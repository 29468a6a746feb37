"""One forward of a model on the meta device → its dataflow graph.

The forward of a structural copy runs under a `TorchFunctionMode`, which sees every call of a
torch function, with hooks on every module, which say whose call it was. Nothing is symbolic, so
any Python in the forward is allowed; the model itself is never touched.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .errors import UserError
from .given import check_network, copied, preserved_generators, refuse_compiled, to_meta
from .graph import Graph
from .recording import Recorder

__all__ = ["ForwardError", "meta_copy", "trace"]


class ForwardError(UserError):
    """The forward of a network fails on the input that it was given."""


def meta_copy(model: nn.Module) -> nn.Module:
    """A structural copy on the meta device, in evaluation mode; no tensor data is copied.

    Parameters, buffers and other tensors on modules become meta tensors of the same shape;
    hooks stay behind, so that a user's hooks do not see the trace, except those with which torch
    itself computes a weight (`weight_norm` and `spectral_norm` of old, pruning).
    """
    return copied(model, hooks=False, on_meta=True).eval()


def trace(
    model: nn.Module,
    inputs: tuple[Any, ...],
    keywords: Mapping[str, Any],
    *,
    apart: Container[str] = (),
) -> Graph:
    """Run the model once on meta tensors like ``inputs`` and record the dataflow.

    Where the forward cannot run on meta tensors (it asks for a value, say), a copy runs for
    real on the model's device. Random number generators are left as they were.

    Args:
        model: any module; compiled, scripted or lazy ones are refused.
        inputs, keywords: the arguments of its forward.
        apart: see `Recorder`.

    Raises:
        ForwardError: its forward fails on these arguments.
        UserError: the model is not a plain, initialised module, or cannot be copied.
    """
    check_network(model)
    for name, module in model.named_modules():
        refuse_compiled(name, module)
    twin = meta_copy(model)
    with preserved_generators(model), torch.no_grad():
        try:
            on_meta = tree_map(lambda x: to_meta(x) if isinstance(x, Tensor) else x, inputs)
            keywords_on_meta = tree_map(
                lambda x: to_meta(x) if isinstance(x, Tensor) else x, dict(keywords)
            )
            with torch.device("meta"):
                return Recorder(twin, apart).run(on_meta, keywords_on_meta)
        except Exception as error:
            # Data-dependent code is legitimate; a forward that is really at odds with its
            # input fails again below and is told there.
            if any(p.is_meta for p in model.parameters()):
                raise _failed(model, (inputs, dict(keywords)), error) from error
        real = copied(model, hooks=False).eval()
        try:
            # Copies, for a forward may work on them in place.
            cloned = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs)
            keywords = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, dict(keywords))
            return Recorder(real, apart).run(cloned, keywords)
        except Exception as error:
            raise _failed(model, (inputs, dict(keywords)), error) from error


def _failed(model: nn.Module, inputs: Any, error: Exception) -> ForwardError:
    shapes = [tuple(x.shape) for x in tree_leaves(inputs) if isinstance(x, Tensor)]
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ForwardError(
        f"the forward of {type(model).__name__} failed on input of shape "
        f"{', '.join(map(str, shapes)) or 'none'}: {reason}; "
        "give input_size=(C, …) or example_inputs= that it accepts"
    )
