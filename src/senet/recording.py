"""What a forward does, noted while it runs: torch functions and module calls → a `Graph`."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from .graph import Call, Graph, Node

__all__ = ["Recorder"]

_KINDS: Mapping[str, str] = {
    name: kind
    for kind, names in {
        "conv": "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d "
        "convolution",
        "linear": "linear addmm mm",
        "attention": "matmul bmm baddbmm einsum scaled_dot_product_attention "
        "multi_head_attention_forward softmax",
        "norm": "batch_norm layer_norm group_norm instance_norm local_response_norm rms_norm",
        "stack": "stack",
        "mul": "mul multiply div true_divide truediv neg negative",
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

_SUMS: Mapping[str, tuple[str, ...]] = {
    "add": ("input", "other"),
    "sub": ("input", "other"),
    "subtract": ("input", "other"),
    "rsub": ("input", "other"),
    "addcmul": ("input", "tensor1", "tensor2"),
    "addcdiv": ("input", "tensor1", "tensor2"),
    "lerp": ("input", "end", "weight"),
}
"""What counts as a sum, with the names of its arguments: two terms, and what scales the second.
The sum of a stack over the stacked dimension is one too."""

_REORDERS = (
    *("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "adjoint"),
    *("t", "T", "mT", "H", "mH"),
)
"""What puts dimensions in another order."""


def _name(function: Callable[..., Any]) -> str:
    """``Tensor.__iadd__``, ``Tensor.add_``, ``torch.add``, ``torch.ops.aten.add.Tensor``: "add"."""
    name = getattr(function, "__name__", "call").partition(".")[0]
    if name == "__get__":  # of an attribute: x.mT
        name = getattr(getattr(function, "__self__", None), "__name__", name)
    if name.startswith("__") and name.endswith("__"):
        inner = name[2:-2]
        if inner[:1] in "ir" and inner[1:] in ("add", "mul", "truediv", "sub"):
            inner = inner[1:]
        return inner
    return name.rstrip("_")


def _kind(op: str) -> str:
    if op in _SUMS:
        return "add"
    return "pool" if "pool" in op else _KINDS.get(op, "other")


def _channel_dim(
    op: str, kind: str, call: Callable[[Tensor], Tensor], like: Node, shape: tuple[int, ...]
) -> int | None:
    """Where the channels are, given where they were in ``like``.

    ``call`` calls the function as it was called, with another tensor in like's place.
    """
    rank = len(shape)
    if kind == "linear" or op in ("layer_norm", "rms_norm"):
        return rank - 1
    if kind in ("conv", "norm"):
        return 1
    if op in ("view", "reshape", "flatten"):
        return _reshaped_channel_dim(like, shape)
    if like.channel_dim is None:
        return None
    if op in _REORDERS:  # shown where each dimension goes, for no two are of a size
        sizes = range(2, 2 + len(like.shape))
        moved = call(torch.empty(tuple(sizes), device="meta")).shape
        return moved.index(sizes[like.channel_dim])
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


class Recorder(TorchFunctionMode):
    """Notes each torch function and each module call while a model runs.

    Args:
        model: the network.
        apart: paths of modules that are to return a view, where they return what they were given.
    """

    def __init__(self, model: nn.Module, apart: Container[str] = ()) -> None:
        super().__init__()
        self.model = model
        self.apart = apart
        self.nodes: list[Node] = []
        self.calls: list[Call] = []
        self.running: list[str] = [""]
        self.entered: list[tuple[tuple[int, ...], int | None]] = []
        self.node_of: dict[int, int] = {}
        self.stacked: dict[int, int] = {}  # along which dimension, of the node of a stack
        self.kept: list[Tensor] = []  # an id is only good while its tensor lives
        self.owners: dict[int, set[str]] = {}  # of parameters and buffers, by their id
        self.reads: set[tuple[str, str]] = set()

    def run(self, inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> Graph:
        """The graph of one forward on these arguments."""
        for path, module in self.model.named_modules():
            module.register_forward_pre_hook(self._enter(path), with_kwargs=True)
            module.register_forward_hook(self._leave(path))
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    self.owners.setdefault(id(tensor), set()).add(path)
        for tensor in tree_leaves((inputs, dict(keywords))):
            if isinstance(tensor, Tensor):
                self._add(tensor, "input", "input", (), 1 if tensor.dim() > 1 else None)
        with self:
            self.model(*inputs, **keywords)
        return Graph(tuple(self.nodes), tuple(self.calls), frozenset(self.reads))

    def _enter(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, keywords: Any) -> None:
            self.running.append(path)
            first = self.node_of.get(id(args[0])) if args else None
            self.entered.append((self._nodes_in((args, keywords)), first))

        return hook

    def _leave(self, path: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            inputs, first = self.entered.pop()
            if path in self.apart and isinstance(output, Tensor):
                output = output.view_as(output)
            for tensor in tree_leaves(output):
                # Scripted functions are not seen by the mode: the module stands for them.
                if isinstance(tensor, Tensor) and id(tensor) not in self.node_of and inputs:
                    like = self.nodes[inputs[0]]
                    dim = like.channel_dim if tensor.dim() == len(like.shape) else None
                    self._add(tensor, type(module).__name__, "other", inputs, dim)
            self.running.pop()
            made, bare = self._nodes_in(output), isinstance(output, Tensor)
            self.calls.append(Call(path, inputs, made, first, bare))
            return output

        return hook

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        self._note_owners((args, kwargs))
        parents = self._nodes_in((args, kwargs))
        result = func(*args, **kwargs)
        if not parents:
            return result
        op = _name(func)
        kind = _kind(op)
        made = args[0] if op == "setitem" else result  # it returns nothing, but changes its first
        if kind == "add":
            parents = self._terms(op, args, kwargs) or parents
        elif self._sums_a_stack(op, args, kwargs):
            kind = "add"
        for tensor in tree_leaves(made):
            if not isinstance(tensor, Tensor):
                continue
            handed_on = id(tensor) in self.node_of
            if handed_on and kind in ("same", "drop", "other") and not _in_place(func, kwargs):
                continue
            sources = [self.nodes[p] for p in parents]
            if kind == "add" and sources[0].kind == "stack":
                sources = [self.nodes[p] for p in sources[0].parents]
            known = [source for source in sources if source.channel_dim is not None]
            like = next((p for p in known if len(p.shape) == tensor.dim()), sources[0])
            kernel, groups = _convolution(args, kwargs) if kind == "conv" else ((), 1)
            if kernel and tensor.dim() != len(kernel) + 2:
                dim = None  # of one sample without a batch, whose channels come first
            else:
                call = partial(_with_tensor, func, args, kwargs)
                dim = _channel_dim(op, kind, call, like, tuple(tensor.shape))
            node = self._add(tensor, op, kind, parents, dim, kernel, groups)
            if kind == "stack":
                self.stacked[node] = _argument("dim", 1, args, kwargs, 0) % tensor.dim()
        return result

    def _terms(self, op: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
        """The terms of a sum; one that is scaled by a computed tensor becomes a product first."""
        names = _SUMS[op]
        given = dict(zip(names, args, strict=False)) | dict(kwargs)
        first, second, *scale = (self._nodes_in(given.get(name)) for name in names)
        if second and scale and scale[0]:
            factors = second + scale[0]
            one, other = (self.nodes[i] for i in factors)
            shape = tuple(torch.broadcast_shapes(one.shape, other.shape))
            like = one if len(one.shape) == len(shape) else other
            second = (self._append("mul", "mul", factors, shape, like.channel_dim),)
        return first + (second or (scale[0] if scale else ()))

    def _sums_a_stack(self, op: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """A sum (or mean) over just the dimension along which tensors were stacked."""
        if op not in ("sum", "mean"):
            return False
        node = self._nodes_in(_argument("input", 0, args, kwargs))
        if len(node) != 1 or node[0] not in self.stacked:
            return False
        over = _argument("dim", 1, args, kwargs, kwargs.get("axis"))
        over = (over,) if isinstance(over, int) else over or ()
        return [d % len(self.nodes[node[0]].shape) for d in over] == [self.stacked[node[0]]]

    def _note_owners(self, tree: Any) -> None:
        """Note whose parameters are used here by another module than the one they belong to."""
        for leaf in tree_leaves(tree):
            owners = self.owners.get(id(leaf)) if isinstance(leaf, Tensor) else None
            if owners and self.running[-1] not in owners:
                self.reads |= {(owner, self.running[-1]) for owner in owners}

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
    ) -> int:
        shape = tuple(tensor.shape)
        index = self._append(op, kind, parents, shape, channel_dim, kernel, groups)
        self.kept.append(tensor)
        self.node_of[id(tensor)] = index
        return index

    def _append(
        self,
        op: str,
        kind: str,
        parents: tuple[int, ...],
        shape: tuple[int, ...],
        channel_dim: int | None,
        kernel: tuple[int, ...] = (),
        groups: int = 1,
    ) -> int:
        index, module = len(self.nodes), self.running[-1]
        node = Node(index, op, kind, parents, shape, module, channel_dim, kernel, groups)
        self.nodes.append(node)
        return index


def _with_tensor(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], tensor: Tensor
) -> Any:
    """The function of these arguments, ``tensor`` in the place of those that are tensors."""
    args, kwargs = tree_map(
        lambda value: tensor if isinstance(value, Tensor) else value, (args, dict(kwargs))
    )
    return function(*args, **kwargs)


def _argument(
    name: str, position: int, args: tuple[Any, ...], kwargs: Mapping[str, Any], default: Any = None
) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def _in_place(function: Callable[..., Any], keywords: Mapping[str, Any]) -> bool:
    name = getattr(function, "__name__", "")
    ends_in_one = name.endswith("_") and not name.endswith("__")
    return bool(keywords.get("inplace")) or ends_in_one or name == "__setitem__"


def _convolution(args: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[tuple[int, ...], int]:
    weight = _argument("weight", 1, args, keywords)
    source = _argument("input", 0, args, keywords)
    if not isinstance(weight, Tensor) or not isinstance(source, Tensor):
        return (), 1
    # (out, in / groups, *kernel); transposed ones hold (in, …) first and are not told apart here
    return tuple(weight.shape[2:]), max(1, source.shape[1] // max(1, weight.shape[1]))
