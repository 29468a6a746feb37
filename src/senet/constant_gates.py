"""A gate that is the same for every image, multiplied into the weights beside it: one block less.

A constant gate s (C,) is a diagonal map. It commutes with whatever treats channels alike and one
by one, so it travels from the block, against the dataflow or with it, to a layer that takes it in
(``docs/slim.md`` has the algebra):

- a norm before it, γ ← s·γ and β ← s·β, or a convolution, W_c ← s_c·W_c and b ← s·b;
- a convolution after it, whose input channel c is multiplied by s_c;
- a BatchNorm in evaluation mode after it, whose statistics are those of the scaled tensor then;
- through ReLU and max-pooling where s ≥ 0, through averages always, through a concatenation into
  the end of every branch, through a sum into both terms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .adoption import ADOPTED_ATTRIBUTE
from .block import SqueezeExcite
from .errors import UserError
from .folding import obstacle
from .functional import in_float64
from .fusing import is_batch_norm
from .given import exchange
from .graph import Graph, Node
from .hooks import is_hooked
from .insertion import PLAN_ATTRIBUTE
from .neighbours import against_changing, seen_elsewhere
from .norm import Recalibrated
from .placement import forward_arguments
from .scaling import SIDES
from .tracing import trace

__all__ = ["Folding", "Share", "fold_gates", "foldings", "held_constant"]

_HOMOGENEOUS = ("relu", "leaky_relu", "prelu")
_MAXIMA = ("max_pool", "adaptive_max_pool")  # with the number of dimensions behind
"""f(s·x) = s·f(x) for s ≥ 0."""
_AVERAGES = ("avg_pool", "adaptive_avg_pool")
_SAME = ("same", "drop")
_LEAST = 1e-6
"""The smallest share of its largest that a gate may have before a norm, which divides by it."""


@dataclass(frozen=True)
class Share:
    """What one module takes in of a gate.

    Args:
        path: of the module.
        side: "output" (its output channels are multiplied) or "input".
        start, stop: the channels of the gate that it takes; all of them but behind a concatenation.
    """

    path: str
    side: str
    start: int
    stop: int


@dataclass(frozen=True)
class Folding:
    """Where a block's gate goes, were it constant.

    Args:
        path: of the block.
        name: what it is called in tables: the wrapped module's path, or its own.
        stage: log₂ of the stride to the network's input.
        channels: C.
        shares: the modules that take it in; none where it cannot be folded.
        positive: it passes something that only a gate of 0 or more may pass.
        why: why it cannot be folded, or "".
    """

    path: str
    name: str
    stage: int
    channels: int
    shares: tuple[Share, ...]
    positive: bool = False
    why: str = ""

    def against(self, gate: Tensor) -> str:
        """Why a gate of these values (C,) cannot be folded here, or ""."""
        if self.why:
            return self.why
        if self.positive and bool((gate < 0).any()):
            return "its gate is negative somewhere and does not pass an activation or maximum"
        divides = any(share.side == "statistics" for share in self.shares)
        if divides and bool(gate.abs().min() <= _LEAST * gate.abs().max()):
            return "its gate is zero somewhere, which no statistics of a norm make up for"
        return ""


class _CannotError(Exception):
    """The gate meets something that it does not commute with."""


def foldings(
    model: nn.Module, *, input_size: tuple[int, ...] | None = None, example_inputs: Any = None
) -> tuple[Folding, ...]:
    """Where the gate of each block would go, in order of execution; the model is not touched.

    Args:
        model: attached, adopted, or with blocks of ours in its own forward.
        input_size, example_inputs: as in `senet.plan`.

    Raises:
        UserError: the forward fails on this input.
    """
    graph = trace(model, *forward_arguments(model, input_size, example_inputs))
    search = _Search(model, graph)
    order = {call.path: number for number, call in reversed(list(enumerate(graph.calls)))}
    found = [
        search.folding(path, module)
        for path, module in model.named_modules()
        if isinstance(module, SqueezeExcite)
    ]
    return tuple(sorted(found, key=lambda each: order.get(each.path, len(order))))


def fold_gates(model: nn.Module, found: Mapping[str, Folding], gates: Mapping[str, Tensor]) -> None:
    """Multiply constant gates into their neighbours and take the blocks out, in place.

    Args:
        model: the network that ``found`` is of, or a copy of it.
        found: path of a block → its folding.
        gates: path of a block → s (C,), a warm start's constant included.

    Raises:
        UserError: one of them cannot be folded. The model is then as it was.
    """
    for path, gate in gates.items():
        if why := found[path].against(gate):
            raise UserError(f"the gate of {found[path].name} cannot be folded: {why}")
    modules = dict(model.named_modules(remove_duplicate=False))  # before paths change
    with torch.no_grad():
        for path, gate in gates.items():
            for share in found[path].shares:
                part = in_float64(gate[share.start : share.stop])
                SIDES[share.side](modules[share.path], part)
    dropped = [modules[path] for path in gates]
    wrappers = {id(m.se): m for m in modules.values() if isinstance(m, Recalibrated)}
    _forget(model, [wrappers[id(se)] for se in dropped if id(se) in wrappers], set(gates))
    for se in dropped:
        if wrapper := wrappers.get(id(se)):
            exchange(model, wrapper, wrapper.norm)
        else:
            exchange(model, se, nn.Identity())


@contextmanager
def held_constant(model: nn.Module, gates: Mapping[str, Tensor]) -> Iterator[None]:
    """For a while, blocks (by path) scale by these gates (C,) instead of their own."""

    def hook(gate: Tensor, last: bool) -> Callable[..., Tensor]:
        def scaled(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            u = args[0]
            shape = (1,) * (u.dim() - 1) + (-1,) if last else (1, -1) + (1,) * (u.dim() - 2)
            return u * gate.to(u).reshape(shape)

        return scaled

    with ExitStack() as stack:
        for path, gate in gates.items():
            block: Any = model.get_submodule(path)
            handle = block.register_forward_hook(hook(gate, block.channels_last))
            stack.callback(handle.remove)
        yield


class _Search:
    """The ways of the gates of one network along its dataflow graph."""

    def __init__(self, model: nn.Module, graph: Graph) -> None:
        self.graph = graph
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.positive = False
        owners: dict[int, int] = {}
        for module in model.modules():
            for parameter in module._parameters.values():
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
        self.tied = {identity for identity, count in owners.items() if count > 1}

    def folding(self, path: str, se: SqueezeExcite) -> Folding:
        parent = path.rpartition(".")[0]
        above = self.modules[parent]
        wrapped = isinstance(above, Recalibrated) and above.se is se
        name = (parent if wrapped else path) or "the model itself"
        none = Folding(path, name, 0, se.channels, ())
        if why := against_changing(self.graph, path, se):
            return replace(none, why=why)
        if not path or (wrapped and not parent):
            return replace(none, why="it cannot be taken out in place")
        if wrapped and is_hooked(above):
            return replace(none, why="a hook is on it")
        (call,) = self.graph.calls_by_path[path]
        before, after = call.inputs[0], call.outputs[0]
        none = replace(none, stage=self.graph.stage(self.graph.nodes[before]))
        axis = len(self.graph.nodes[before].shape) - 1 if se.channels_last else 1
        reasons: list[str] = []
        inside = f"{path}."
        for way in (
            lambda: self._backwards(
                before, axis, 0, lambda user: f"{user.module}.".startswith(inside)
            ),
            lambda: self._forwards(after, axis, se.channels),
        ):
            self.positive = False
            try:
                shares = tuple(dict.fromkeys(way()))
            except _CannotError as error:
                reasons.append(str(error))
                continue
            return replace(none, shares=shares, positive=self.positive)
        return replace(none, why=", and ".join(reasons))

    def _backwards(
        self, index: int, axis: int, start: int, known: Callable[[Node], bool]
    ) -> list[Share]:
        """Who takes in the gate's channels from ``start`` on, of what made this node."""
        node = self.graph.nodes[index]
        name = node.module or node.op
        if why := seen_elsewhere(self.graph, self.modules, index, known, name):
            raise _CannotError(why)
        channels = node.shape[axis]
        if path := self._maker(node, axis):
            return [Share(path, "output", start, start + channels)]
        if node.op == "cat" and len(set(node.parents)) == len(node.parents):
            sizes = [self.graph.nodes[parent].shape[axis] for parent in node.parents]
            if sum(sizes) == channels:
                shares: list[Share] = []
                for parent, size in zip(node.parents, sizes, strict=True):
                    shares += self._backwards(parent, axis, start, lambda user: user is node)
                    start += size
                return shares
        if node.op in ("add", "sub") and len(node.parents) == len(set(node.parents)) == 2:
            return [
                share
                for parent in node.parents
                if self._of_shape(parent, node)
                for share in self._backwards(parent, axis, start, lambda user: user is node)
            ]
        if len(node.parents) == 1 and self._passes(node, self.graph.nodes[node.parents[0]], axis):
            return self._backwards(node.parents[0], axis, start, lambda user: user is node)
        raise _CannotError(f"before it is {self._what(node)}")

    def _forwards(self, index: int, axis: int, channels: int) -> list[Share]:
        """Who takes in the gate of what takes this node: all of them have to."""
        node = self.graph.nodes[index]
        users = [self.graph.nodes[n] for n in self.graph.consumers[index]]
        why = seen_elsewhere(self.graph, self.modules, index, lambda user: True, "the block")
        if why or not users:
            raise _CannotError(why or "nothing takes what it makes")
        shares: list[Share] = []
        for user in users:
            if side := self._taker(user, node, axis):
                shares.append(Share(user.module, side, 0, channels))
            elif user.parents == (index,) and self._passes(user, node, axis):
                shares += self._forwards(user.index, axis, channels)
            else:
                raise _CannotError(f"after it is {self._what(user)}")
        return shares

    def _maker(self, node: Node, axis: int) -> str:
        """The layer whose output channels these are and can be scaled, or ""."""
        path = node.module
        module = self.modules[path]
        makes = any(call.path == path for call in self.graph.producers.get(node.index, ()))
        norm = _is_norm(module)
        # A norm that ends in its own activation makes what that takes, and gives it to nobody.
        if not (makes or (norm and node.kind == "norm")) or not self._can_change(path):
            return ""
        width = node.shape[axis]
        if norm:
            fits = axis == (len(node.shape) - 1 if isinstance(module, nn.LayerNorm) else 1)
            weight = module.weight
            whole = fits and isinstance(weight, Tensor) and tuple(weight.shape) == (width,)
            return path if whole else ""
        return path if not obstacle(module) and axis == _axis(module, node) else ""

    def _taker(self, user: Node, node: Node, axis: int) -> str:
        """How the layer that this consumer is in takes the gate in, or ""."""
        path = user.module
        module: Any = self.modules[path]
        calls = self.graph.calls_by_path.get(path, ())
        if len(calls) != 1 or calls[0].inputs != (node.index,) or not self._can_change(path):
            return ""
        if is_batch_norm(module):
            whole = module.weight is not None and module.running_mean is not None
            return "statistics" if whole and axis == 1 and not is_hooked(module) else ""
        return "input" if not obstacle(module) and axis == _axis(module, node) else ""

    def _can_change(self, path: str) -> bool:
        module = self.modules[path]
        return (
            len(self.graph.calls_by_path.get(path, ())) == 1
            and not self.graph.is_read_outside(path)
            and not is_hooked(module)
            and not any(
                id(parameter) in self.tied for parameter in module.parameters(recurse=False)
            )
        )

    def _passes(self, node: Node, parent: Node, axis: int) -> bool:
        """Whether scaling the parent along an axis is scaling the node along it."""
        if len(node.shape) <= axis or node.shape[axis] != parent.shape[axis]:
            return False
        if isinstance(self.modules[node.module], SqueezeExcite):
            return False
        if node.op in _HOMOGENEOUS or node.op.startswith(_MAXIMA):
            self.positive = True
            return axis == 1 or node.shape == parent.shape
        if node.op.startswith(_AVERAGES):
            return axis == 1
        if node.kind in _SAME or node.op == "mul":  # with a constant, or a parameter of shape (C,)
            return node.shape == parent.shape
        if node.op in ("mean", "flatten", "view", "reshape"):
            # Over positions, or where there is one of them only: (N, C, …) → (N, C).
            flat = node.op == "mean" or all(n == 1 for n in parent.positions)
            return axis == 1 and flat and node.shape[:2] == parent.shape[:2]
        return False

    def _of_shape(self, parent: int, node: Node) -> bool:
        if self.graph.nodes[parent].shape != node.shape:
            raise _CannotError(f"before it is {self._what(node)}")
        return True

    def _what(self, node: Node) -> str:
        module = self.modules[node.module]
        if _is_norm(module) and getattr(module, "weight", None) is None:
            return f"{node.module}, a {type(module).__name__} without weights"
        own = node.module and not list(module.children())
        return (
            f"{node.module} ({type(module).__name__})"
            if own
            else f"{node.op!r} in " + (node.module or "the forward")
        )


def _is_norm(module: nn.Module) -> bool:
    """A norm whose last step is an affine map of each channel, as is known of these."""
    plain = any(
        isinstance(module, kind) and type(module).forward is kind.forward
        for kind in (nn.GroupNorm, nn.LayerNorm)
    )
    return plain or is_batch_norm(module)


def _axis(module: nn.Module, node: Node) -> int:
    """Where the channels of what a layer takes and makes are."""
    return 1 if not isinstance(module, nn.Linear) else len(node.shape) - 1


def _forget(model: nn.Module, wrappers: list[Recalibrated], paths: set[str]) -> None:
    """Take blocks out of what `attach` and `adopt` noted on a network, or on a part of it."""
    for prefix, owner in model.named_modules():
        plan = vars(owner).get(PLAN_ATTRIBUTE)
        if plan is not None:
            inside = {id(module) for module in owner.modules()}
            gone = [wrapper.site for wrapper in wrappers if id(wrapper) in inside]
            left = tuple(site for site in plan.sites if site not in gone)
            if left:
                setattr(owner, PLAN_ATTRIBUTE, replace(plan, sites=left))
            else:
                delattr(owner, PLAN_ATTRIBUTE)
        adopted = vars(owner).get(ADOPTED_ATTRIBUTE)
        if adopted is not None:
            below = f"{prefix}." if prefix else ""
            kept = tuple(path for path in adopted if below + path not in paths)
            setattr(owner, ADOPTED_ATTRIBUTE, kept)
            if not kept:
                delattr(owner, ADOPTED_ATTRIBUTE)
