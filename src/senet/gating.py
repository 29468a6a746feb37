"""A transformation and a placement → the tensors to gate, and the modules to wrap for them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from .graph import Call, Graph, Node
from .regions import Transformation, unit_end
from .sites import Skipped

__all__ = ["Gated", "place"]

_BEFORE_ACTIVATION = (
    "gated before the activation, which is a function call or a module that is called repeatedly"
)


@dataclass(frozen=True)
class Gated:
    """A node to gate, the module to wrap for it, whether it is that module's input, a note."""

    node: Node
    path: str
    before: bool = False
    note: str = ""


def place(
    graph: Graph,
    modules: Mapping[str, nn.Module],
    what: Transformation,
    placement: str,
    on_shortcuts: Container[str] = (),
) -> list[Gated | Skipped]:
    """The tensors that a placement gates in a transformation, and the modules to wrap.

    That is one, except for "inner" where several paths lead through a transformation.
    ``on_shortcuts`` are the modules that hand what they were given on to a sum.
    """
    if placement == "inner":
        return _inner(graph, modules, what)
    if placement == "pre":
        return [_pre(graph, what)]
    # Where there is nothing beside a shortcut, the placements of a sum are all one.
    if placement == "post" and what.shortcuts:
        return [_post(graph, modules, what)]
    if placement == "identity" and what.shortcuts:
        return [_identity(graph, modules, what, on_shortcuts)]
    return [_wrappable(graph, modules, graph.nodes[what.end], what)]


def _pre(graph: Graph, what: Transformation) -> Gated | Skipped:
    """F(SE(X)): the input of the branch's first module."""
    inside = [i for i in graph.consumers[what.start] if (what.region >> i) & 1]
    alone = graph.entered_at(what.start, what.region)
    for call in _taking(graph, what.start) if alone else ():
        made = graph.between(what.start, call.outputs[0]) if len(call.outputs) == 1 else 0
        within = made and not made & ~what.region
        if within and all((made >> i) & 1 for i in inside):
            start = graph.nodes[what.start]
            return _no_map(start, what) or Gated(start, call.path, before=True)
    return Skipped(what.path, "no single module of the branch takes the block's input")


def _post(graph: Graph, modules: Mapping[str, nn.Module], what: Transformation) -> Gated | Skipped:
    """SE(ReLU(P(X) + F(X))): after the sum and its activation."""
    node = graph.nodes[what.join]
    after = graph.consumers[node.index]
    if len(after) == 1 and graph.nodes[after[0]].kind == "activation":
        # With one that begins a module that takes the sum, the next block begins (pre-activation).
        taken = graph.takers.get(node.index, ())
        if all(call.outputs == after for call in taken):
            node = graph.nodes[after[0]]
    return _wrappable(graph, modules, node, what)


def _identity(
    graph: Graph,
    modules: Mapping[str, nn.Module],
    what: Transformation,
    on_shortcuts: Container[str],
) -> Gated | Skipped:
    """ReLU(SE(P(X)) + F(X)): what the shortcut's module makes, projection or Identity."""
    shortcut = graph.nodes[what.shortcuts[0]]
    if shortcut.index != what.start:
        return _wrappable(graph, modules, shortcut, what)
    block = graph.nodes[what.join].module
    for call in _once(graph, graph.handed_on.get(shortcut.index, ())):
        if call.path not in on_shortcuts:
            continue
        if not block or call.path.startswith(block + "."):
            return _no_map(shortcut, what) or Gated(shortcut, call.path)
    return Skipped(what.path, "its shortcut is no module (an Identity, say) that could be wrapped")


def _inner(
    graph: Graph, modules: Mapping[str, nn.Module], what: Transformation
) -> list[Gated | Skipped]:
    """After the last k × k convolution of each path to the end, its norm and activation."""
    last: set[int] = set()
    unseen, behind = what.region, [what.end]
    while behind:
        node = graph.nodes[behind.pop()]
        if not (unseen >> node.index) & 1:
            continue
        unseen ^= 1 << node.index
        if node.kind == "conv" and any(k > 1 for k in node.kernel):
            last.add(node.index)
        else:
            behind += node.parents
    if not last:
        return [Skipped(what.path, "its branch has no convolution larger than 1×1")]
    ends = [unit_end(graph, graph.nodes[index]) for index in sorted(last)]
    if what.kind == "parallel":  # one convolution in the end
        ends = [graph.nodes[what.end]]
    return [_wrappable(graph, modules, end, what) for end in ends]


def _once(graph: Graph, calls: Iterable[Call]) -> list[Call]:
    """The calls of modules that run once in a forward: one wrapper is then one site."""
    return [call for call in calls if call.path and len(graph.calls_by_path[call.path]) == 1]


def _taking(graph: Graph, index: int) -> list[Call]:
    """The calls of modules whose wrapper could gate the node before it hands it to them."""
    calls = _once(graph, graph.takers.get(index, ()))
    return [call for call in calls if call.first == index]


def _wrappable(
    graph: Graph, modules: Mapping[str, nn.Module], node: Node, what: Transformation
) -> Gated | Skipped:
    """The module to wrap for a node: the one that makes it, or an `Identity` that hands it on.

    Where there is none, the one that takes it, or the module before its activation. In a plain
    stack the latter comes first: there the module that takes it has a site of its own.
    """
    if unfit := _no_map(node, what):
        return unfit
    found = _made(graph, modules, node) or _handed_on(graph, modules, node)
    if what.kind == "chain":
        found = found or _before_activation(graph, modules, node)
    found = found or _taken(graph, node) or _before_activation(graph, modules, node)
    if found:
        return found
    makers = graph.producers.get(node.index, ())
    repeated = next((call.path for call in makers if call.path), None)
    if repeated is None:
        where = node.module or "the model itself"
        return Skipped(
            what.path, f"it ends in a function call ({node.op} in {where}), not a module"
        )
    return Skipped(what.path, _shared(graph, repeated))


def _shared(graph: Graph, path: str) -> str:
    """Why a module that runs several times gets no block, and what its owner can do."""
    times = len(graph.calls_by_path[path])
    parts = path.split(".")
    above = (".".join(parts[:n]) for n in range(1, len(parts)))
    whole = next((p for p in above if len(graph.calls_by_path.get(p, ())) == times), None)
    advice = (
        f"for blocks inside the shared {whole}, attach to that module by itself"
        if whole
        else "give each place a module of its own"
    )
    return f"its end {path} is called {times} times in one forward; {advice}"


def _no_map(node: Node, what: Transformation) -> Skipped | None:
    """Why a node is no feature map that could be gated, or None where it is one."""
    if node.channels is None:
        unclear = f"which dimension of {node.shape}, from {node.op}, is channels is not clear"
        return Skipped(what.path, unclear)
    if node.channel_dim not in (1, len(node.shape) - 1):
        between = f"its channels are dimension {node.channel_dim} of {node.shape}"
        return Skipped(what.path, f"{between}, neither the second nor the last")
    if not node.positions:
        return Skipped(what.path, f"its end has shape {node.shape}, no positions to squeeze")
    return None


def _made(graph: Graph, modules: Mapping[str, nn.Module], node: Node) -> Gated | None:
    """The innermost module whose only output is the node; a norm rather than its activation."""
    makers = _once(graph, graph.producers.get(node.index, ()))
    norms = [call for call in makers if _is_norm(modules[call.path])]
    return next((Gated(node, call.path) for call in norms or makers), None)


def _handed_on(graph: Graph, modules: Mapping[str, nn.Module], node: Node) -> Gated | None:
    calls = _once(graph, graph.handed_on.get(node.index, ()))
    identities = (call for call in calls if isinstance(modules[call.path], nn.Identity))
    return next((Gated(node, call.path) for call in identities), None)


def _taken(graph: Graph, node: Node) -> Gated | None:
    if len(graph.consumers[node.index]) != 1:
        return None
    calls = _taking(graph, node.index)
    return next((Gated(node, call.path, before=True) for call in calls), None)


def _before_activation(graph: Graph, modules: Mapping[str, nn.Module], node: Node) -> Gated | None:
    """What makes an activation's input; a positive gate and a ReLU may change places."""
    if node.kind != "activation" or graph.consumers[node.parents[0]] != (node.index,):
        return None
    before = graph.nodes[node.parents[0]]
    found = _made(graph, modules, before) if before.kind in ("conv", "norm") else None
    return found and replace(found, note=_BEFORE_ACTIVATION)


def _is_norm(module: nn.Module) -> bool:
    return hasattr(module, "running_mean") or isinstance(
        module, nn.GroupNorm | nn.LayerNorm | nn.RMSNorm
    )
