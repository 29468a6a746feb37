"""One forward of a model on the meta device → its dataflow graph.

The forward of a structural copy runs under a `TorchFunctionMode`, which sees every call of a
torch function, with hooks on every module, which say whose call it was. Nothing is symbolic, so
any Python in the forward is allowed; the model itself is never touched.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from .errors import UserError

__all__ = ["Call", "Graph", "Node", "meta_copy", "trace"]

_KINDS: Mapping[str, str] = {
    name: kind
    for kind, names in {
        "conv": "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d "
        "convolution",
        "linear": "linear addmm mm",
        "attention": "matmul bmm baddbmm einsum scaled_dot_product_attention "
        "multi_head_attention_forward softmax",
        "norm": "batch_norm layer_norm group_norm instance_norm local_response_norm rms_norm",
        "add": "add",
        "mul": "mul multiply div true_divide truediv",
        "cat": "cat concat concatenate",
        "mean": "mean sum amax max std var",
        "activation": "relu relu6 silu gelu sigmoid hardswish hardsigmoid leaky_relu elu selu "
        "prelu mish tanh hardtanh softplus celu rrelu clamp threshold",
        "drop": "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout "
        "feature_dropout",
        "same": "contiguous to float half bfloat16 double type type_as clone detach alias",
    }.items()
    for name in names.split()
}


@dataclass(frozen=True)
class Node:
    """A tensor of the forward, and the call of a torch function that made it.

    Args:
        index: its number in order of execution; parents have smaller ones.
        op: the function's name, without in-place and operator underscores.
        kind: "input", "conv", "norm", "add", …, or "other".
        parents: the nodes of its tensor arguments; parameters and constants are not nodes.
        shape: of the tensor.
        module: dotted path of the innermost module that was running, "" for the model itself.
        channel_dim: which dimension holds the channels, or None where that is not known.
        kernel: for a convolution, its kernel size; else empty.
        groups: for a convolution, its groups; else 1.
    """

    index: int
    op: str
    kind: str
    parents: tuple[int, ...]
    shape: tuple[int, ...]
    module: str
    channel_dim: int | None
    kernel: tuple[int, ...] = ()
    groups: int = 1

    @property
    def channels(self) -> int | None:
        """C, or None where the channels' dimension is not known."""
        return None if self.channel_dim is None else self.shape[self.channel_dim]

    @property
    def positions(self) -> tuple[int, ...]:
        """The sizes of the spatial dimensions."""
        return tuple(n for d, n in enumerate(self.shape) if d not in (0, self.channel_dim))


@dataclass(frozen=True)
class Call:
    """One call of a module's forward: which nodes went in and came out."""

    path: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """Nodes in order of execution, module calls in order of return (inner before outer).

    Sets of nodes are bit sets: bit i stands for node i.
    """

    nodes: tuple[Node, ...]
    calls: tuple[Call, ...]

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """For each node, the nodes that take it as an argument."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for parent in set(node.parents):
                found[parent].append(node.index)
        return tuple(map(tuple, found))

    @cached_property
    def ancestors(self) -> tuple[int, ...]:
        """For each node, the bit set of itself and all it was computed from."""
        sets: list[int] = []
        for node in self.nodes:
            bits = 1 << node.index
            for parent in node.parents:
                bits |= sets[parent]
            sets.append(bits)
        return tuple(sets)

    @cached_property
    def descendants(self) -> tuple[int, ...]:
        """For each node, the bit set of itself and all that was computed from it."""
        sets = [1 << node.index for node in self.nodes]
        for node in reversed(self.nodes):
            for parent in node.parents:
                sets[parent] |= sets[node.index]
        return tuple(sets)

    @cached_property
    def calls_by_path(self) -> Mapping[str, tuple[Call, ...]]:
        """All calls of each module."""
        found: dict[str, list[Call]] = {}
        for call in self.calls:
            found.setdefault(call.path, []).append(call)
        return {path: tuple(calls) for path, calls in found.items()}

    @cached_property
    def producers(self) -> Mapping[int, tuple[Call, ...]]:
        """For each node, the module calls that made it their only output, innermost first.

        A module that hands its input on (an `Identity`, drop-path in evaluation) makes nothing.
        """
        found: dict[int, list[Call]] = {}
        for call in self.calls:
            if len(call.outputs) == 1 and call.outputs[0] not in call.inputs:
                found.setdefault(call.outputs[0], []).append(call)
        return {node: tuple(calls) for node, calls in found.items()}

    @cached_property
    def handed_on(self) -> Mapping[int, tuple[Call, ...]]:
        """For each node, the calls of modules that took and returned just it, in order."""
        found: dict[int, list[Call]] = {}
        for call in self.calls:
            if call.path and len(call.outputs) == 1 and call.inputs == call.outputs:
                found.setdefault(call.outputs[0], []).append(call)
        return {node: tuple(calls) for node, calls in found.items()}

    @cached_property
    def takers(self) -> Mapping[int, tuple[Call, ...]]:
        """For each node, the calls of modules whose only input it was, innermost first."""
        found: dict[int, list[Call]] = {}
        for call in self.calls:
            if call.path and len(call.inputs) == 1 and call.inputs != call.outputs:
                found.setdefault(call.inputs[0], []).append(call)
        return {node: tuple(calls) for node, calls in found.items()}

    def common_ancestor(self, terms: Sequence[int]) -> int | None:
        """The last node that all terms were computed from (it may be one of them)."""
        common = self.ancestors[terms[0]]
        for term in terms[1:]:
            common &= self.ancestors[term]
        return common.bit_length() - 1 if common else None

    def between(self, start: int, end: int) -> int:
        """The bit set of nodes on paths from ``start`` (left out) to ``end`` (included)."""
        return self.descendants[start] & self.ancestors[end] & ~(1 << start)

    def members(self, bits: int) -> Iterator[Node]:
        """The nodes of a bit set, in order."""
        while bits:
            low = bits & -bits
            yield self.nodes[low.bit_length() - 1]
            bits ^= low


def meta_copy(model: nn.Module) -> nn.Module:
    """A structural copy on the meta device, in evaluation mode; no tensor data is copied.

    Parameters, buffers and other tensors on modules become meta tensors of the same shape;
    forward hooks stay behind, so that a user's hooks do not see the trace.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in (*module._parameters.values(), *module._buffers.values()):
            if value is not None and id(value) not in memo:
                memo[id(value)] = _to_meta(value)
        for value in vars(module).values():
            if isinstance(value, Tensor) and id(value) not in memo:
                memo[id(value)] = _to_meta(value)
    return _without_hooks(copy.deepcopy(model, memo))


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
    _check_plain(model)
    with _preserved_generators(model), torch.no_grad():
        try:
            on_meta = tree_map(lambda x: _to_meta(x) if isinstance(x, Tensor) else x, inputs)
            keywords_on_meta = tree_map(
                lambda x: _to_meta(x) if isinstance(x, Tensor) else x, dict(keywords)
            )
            with torch.device("meta"):
                return _Recorder(meta_copy(model)).run(on_meta, keywords_on_meta)
        except Exception:
            # Data-dependent code is legitimate; a forward that is really at odds with its
            # input fails again below and is told there.
            if any(p.is_meta for p in model.parameters()):
                raise
        try:
            return _Recorder(_without_hooks(copy.deepcopy(model))).run(inputs, keywords)
        except Exception as error:
            shapes = [tuple(x.shape) for x in tree_leaves(inputs) if isinstance(x, Tensor)]
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"the forward of {type(model).__name__} failed on input of shape "
                f"{', '.join(map(str, shapes)) or 'none'}: {reason}; "
                "give input_size=(C, …) or example_inputs= that it accepts"
            ) from error


def _check_plain(model: nn.Module) -> None:
    if hasattr(model, "_orig_mod"):
        raise UserError(
            "the model is compiled, its graph is fixed; use the module before torch.compile "
            "(model._orig_mod) and compile afterwards"
        )
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(f"module {name!r} is scripted, its graph is fixed; use the eager model")
    for name, parameter in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(parameter):
            raise UserError(f"{name!r} is a lazy parameter; run the model once on real input first")


def _to_meta(value: Tensor) -> Tensor:
    if isinstance(value, nn.Parameter):
        return nn.Parameter(value.detach().to("meta"), requires_grad=value.requires_grad)
    return value.detach().to("meta")


def _without_hooks(model: nn.Module) -> nn.Module:
    for module in model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return model.eval()


@contextmanager
def _preserved_generators(model: nn.Module) -> Iterator[None]:
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    try:
        with torch.random.fork_rng(devices=sorted(d for d in devices if d is not None)):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _name(function: Callable[..., Any]) -> str:
    """``Tensor.__iadd__``, ``Tensor.add_`` and ``torch.add`` are all "add"."""
    name = getattr(function, "__name__", "call")
    if name.startswith("__") and name.endswith("__"):
        inner = name[2:-2]
        if inner[:1] in "ir" and inner[1:] in ("add", "mul", "truediv", "sub"):
            inner = inner[1:]
        return inner
    return name.rstrip("_")


def _kind(op: str) -> str:
    return "pool" if "pool" in op else _KINDS.get(op, "other")


def _channel_dim(
    op: str, kind: str, args: tuple[Any, ...], like: Node, shape: tuple[int, ...]
) -> int | None:
    """Where the channels are, given where they were in the first argument."""
    rank = len(shape)
    if kind == "conv" or (kind == "norm" and op != "layer_norm"):
        return 1
    if kind == "linear" or op == "layer_norm":
        return rank - 1
    if op in ("view", "reshape", "flatten"):
        return _reshaped_channel_dim(like, shape)
    if like.channel_dim is None:
        return None
    if op == "permute":
        order = args[1] if isinstance(args[1], Sequence) else args[1:]
        return [d % rank for d in order].index(like.channel_dim)
    if op == "transpose":
        swapped = {args[1] % rank: args[2] % rank, args[2] % rank: args[1] % rank}
        return swapped.get(like.channel_dim, like.channel_dim)
    return like.channel_dim if rank == len(like.shape) else None


def _reshaped_channel_dim(before: Node, shape: tuple[int, ...]) -> int | None:
    """Channels stay where they are if nothing moves, and are the second dimension again where
    groups of them, (N, groups, C / groups, …), are joined (a channel shuffle)."""
    if shape == before.shape:
        return before.channel_dim
    spatial = len(shape) - 2
    if spatial < 1 or len(before.shape) <= spatial or shape[0] != before.shape[0]:
        return None
    joined = math.prod(before.shape[1:-spatial]) == shape[1]
    return 1 if joined and before.shape[-spatial:] == shape[-spatial:] else None


class _Recorder(TorchFunctionMode):
    """Notes each torch function and each module call while a model runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.nodes: list[Node] = []
        self.calls: list[Call] = []
        self.running: list[str] = [""]
        self.entered: list[tuple[int, ...]] = []
        self.node_of: dict[int, int] = {}
        self.kept: list[Tensor] = []  # an id is only good while its tensor lives

    def run(self, inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> Graph:
        for path, module in self.model.named_modules():
            module.register_forward_pre_hook(self._enter(path), with_kwargs=True)
            module.register_forward_hook(self._leave(path))
        for tensor in tree_leaves((inputs, dict(keywords))):
            if isinstance(tensor, Tensor):
                self._add(tensor, "input", "input", (), 1 if tensor.dim() > 1 else None)
        with self:
            self.model(*inputs, **keywords)
        return Graph(tuple(self.nodes), tuple(self.calls))

    def _enter(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, keywords: Any) -> None:
            self.running.append(path)
            self.entered.append(self._nodes_in((args, keywords)))

        return hook

    def _leave(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            inputs = self.entered.pop()
            for tensor in tree_leaves(output):
                # Scripted functions are not seen by the mode: the module stands for them.
                if isinstance(tensor, Tensor) and id(tensor) not in self.node_of and inputs:
                    like = self.nodes[inputs[0]]
                    dim = like.channel_dim if tensor.dim() == len(like.shape) else None
                    self._add(tensor, type(module).__name__, "other", inputs, dim)
            self.running.pop()
            self.calls.append(Call(path, inputs, self._nodes_in(output)))

        return hook

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        parents = self._nodes_in((args, kwargs))
        result = func(*args, **kwargs)
        if not parents:
            return result
        op = _name(func)
        kind = _kind(op)
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor):
                continue
            handed_on = id(tensor) in self.node_of
            if handed_on and kind in ("same", "drop", "other") and not _in_place(func, kwargs):
                continue
            known = [p for p in map(self.nodes.__getitem__, parents) if p.channel_dim is not None]
            like = next((p for p in known if len(p.shape) == tensor.dim()), self.nodes[parents[0]])
            dim = _channel_dim(op, kind, args, like, tuple(tensor.shape))
            kernel, groups = _convolution(args, kwargs) if kind == "conv" else ((), 1)
            self._add(tensor, op, kind, parents, dim, kernel, groups)
        return result

    def _nodes_in(self, tree: Any) -> tuple[int, ...]:
        found = (self.node_of.get(id(x)) for x in tree_leaves(tree) if isinstance(x, Tensor))
        return tuple(node for node in found if node is not None)

    def _add(
        self,
        tensor: Tensor,
        op: str,
        kind: str,
        parents: tuple[int, ...],
        channel_dim: int | None,
        kernel: tuple[int, ...] = (),
        groups: int = 1,
    ) -> None:
        index = len(self.nodes)
        self.kept.append(tensor)
        self.node_of[id(tensor)] = index
        shape, module = tuple(tensor.shape), self.running[-1]
        node = Node(index, op, kind, parents, shape, module, channel_dim, kernel, groups)
        self.nodes.append(node)


def _in_place(function: Callable[..., Any], keywords: Mapping[str, Any]) -> bool:
    name = getattr(function, "__name__", "")
    return bool(keywords.get("inplace")) or (name.endswith("_") and not name.endswith("__"))


def _convolution(args: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[tuple[int, ...], int]:
    weight = keywords.get("weight", args[1] if len(args) > 1 else None)
    source = keywords.get("input", args[0] if args else None)
    if not isinstance(weight, Tensor) or not isinstance(source, Tensor):
        return (), 1
    # (out, in / groups, *kernel); transposed ones hold (in, …) first and are not told apart here
    return tuple(weight.shape[2:]), max(1, source.shape[1] // max(1, weight.shape[1]))
