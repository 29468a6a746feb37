"""What the parts of a dataflow graph are: feature maps, sums, projections, gates, units."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from .graph import Graph, Node

__all__ = [
    "REARRANGING",
    "Transformation",
    "before_scaling",
    "convolutions",
    "existing_gate",
    "gate_on",
    "goes_up",
    "is_depthwise",
    "is_feature_map",
    "is_pooled",
    "projects_only",
    "roots",
    "unit_end",
]

_SLICING = {"getitem", "split", "chunk", "narrow", "split_with_sizes", "tensor_split"}
REARRANGING = {
    *("permute", "transpose", "movedim", "swapaxes"),
    *("view", "reshape", "flatten", "unflatten", "contiguous"),
}


@dataclass(frozen=True)
class Transformation:
    """One F_tr of a network.

    Args:
        kind: "residual", "parallel" (branches of one kind and their sum), "inception", "dense" or
            "chain".
        start: the node that enters it.
        end: the node that leaves it, before drop-path and layer-scale.
        join: the sum or concatenation it feeds; for "inception" and "chain" its own end.
        region: bit set of the nodes that compute it.
        shortcuts: the other terms of the sum, for "residual"; for "dense" those of the sum that
            takes another part of what it makes (DPN), else none.
        path: a module to name it by.
    """

    kind: str
    start: int
    end: int
    join: int
    region: int
    shortcuts: tuple[int, ...]
    path: str


def is_feature_map(node: Node) -> bool:
    """It has channels and at least one more dimension."""
    return node.channel_dim is not None and len(node.shape) >= 3


def _operands(graph: Graph, node: Node) -> tuple[int, ...]:
    """What a sum or concatenation takes: its arguments, or what its argument is a stack of."""
    parents = [graph.nodes[i] for i in node.parents]
    stacked = node.kind == "add" and len(parents) == 1 and parents[0].kind == "stack"
    return tuple(dict.fromkeys(parents[0].parents if stacked else node.parents))


def _flat_terms(graph: Graph, node: Node, kind: str) -> tuple[int, ...]:
    """The terms of a nest of sums (or concatenations), each counted once, in order."""
    terms: list[int] = []
    for operand in _operands(graph, node):
        inner = graph.nodes[operand]
        # A sum that a module inside makes is that module's own.
        nested = inner.module == node.module and inner.kind == kind
        if nested and graph.consumers[operand] == (node.index,):
            terms += _flat_terms(graph, inner, kind)
        else:
            terms.append(operand)
    return tuple(dict.fromkeys(terms))


def roots(graph: Graph, kind: str) -> Iterator[tuple[Node, tuple[int, ...]]]:
    """Each outermost sum ("add") or concatenation ("cat") of a nest of them, and its terms."""
    for node in graph.nodes:
        if node.kind != kind or not is_feature_map(node):
            continue
        after = [graph.nodes[i] for i in graph.consumers[node.index]]
        single = len(after) == 1 and after[0].module == node.module
        if single and after[0].kind == kind:
            continue  # one term of a larger nest
        terms = _flat_terms(graph, node, kind)
        if len(terms) > 1:
            yield node, terms


def convolutions(graph: Graph, bits: int) -> list[Node]:
    """The convolutions of a set of nodes, in order."""
    return [node for node in graph.members(bits) if node.kind == "conv"]


def is_depthwise(node: Node) -> bool:
    """A convolution of each channel by itself."""
    return node.kind == "conv" and node.groups > 1 and node.groups == node.channels


def projects_only(graph: Graph, bits: int) -> bool:
    """One convolution, or a depthwise and a pointwise one, and no non-linearity after it."""
    found = convolutions(graph, bits)
    after = graph.descendants[found[0].index] & bits if found else bits
    return len(found) <= 2 and all(n.kind != "activation" for n in graph.members(after))


def is_pooled(graph: Graph, node: Node, start: int) -> bool:
    """One position is left because of a global pooling, not because the maps shrank to it."""
    if any(n > 1 for n in node.positions):
        return False
    past = graph.ancestors[node.index]
    return any(_reduces_all(graph, n) for n in graph.members(past)) or start == node.index


def _reduces_all(graph: Graph, node: Node) -> bool:
    if node.kind not in ("pool", "mean") or not node.parents:
        return False
    before = graph.nodes[node.parents[0]]
    spatial = [n for n in before.positions if n > 1]
    return bool(spatial) and (len(node.shape) < 3 or not any(n > 1 for n in node.positions))


def existing_gate(graph: Graph, bits: int) -> Node | None:
    """A product of a feature map and one number a channel that was pooled from it."""
    for node in graph.members(bits):
        if node.kind != "mul" or len(set(node.parents)) < 2 or not is_feature_map(node):
            continue
        for parent in set(node.parents):
            gate = graph.nodes[parent]
            while gate.op in ("expand", "expand_as", "broadcast_to"):
                gate = graph.nodes[gate.parents[0]]
            history = graph.members(graph.ancestors[gate.index] & bits)
            # One number a channel, however the layers that made it arrange them.
            one_each = math.prod(gate.shape[1:]) == node.channels
            if one_each and any(_reduces_all(graph, n) for n in history):
                return node
    return None


def gate_on(graph: Graph, end: int) -> Node | None:
    """A channel gate that multiplies the node itself."""
    products = [i for i in graph.consumers[end] if graph.nodes[i].kind == "mul"]
    inside = (graph.descendants[end] & graph.ancestors[i] for i in products)
    return next((gate for bits in inside if (gate := existing_gate(graph, bits))), None)


def before_scaling(graph: Graph, term: int) -> int:
    """Walk back from a term past drop-path, layer-scale and scalars to the transformation."""
    end, node = term, graph.nodes[term]
    while True:
        scaled = (node.kind == "mul" and len(set(node.parents)) == 1) or node.op in (
            "neg",
            "negative",
        )
        sliced = node.op in _SLICING and node.module == graph.nodes[term].module
        if not (scaled or node.kind == "drop" or node.op in REARRANGING or sliced):
            break
        node = graph.nodes[node.parents[0]]
        if node.kind == "input":
            break
        # What rearranges or scales inside a module of its own stays that module's business
        # unless something before it can be wrapped.
        if node.channel_dim is not None and graph.producers.get(node.index):
            end = node.index
    return end


def goes_up(graph: Graph, bits: int) -> bool:
    """It enlarges a feature map, as the decoder of an encoder-decoder does."""
    ups = ("interpolate", "upsample", "pixel_shuffle")
    return any(n.op in ups or n.op.startswith("conv_transpose") for n in graph.members(bits))


def unit_end(graph: Graph, conv: Node) -> Node:
    """The end of the unit that a convolution begins: norm and activation, in either order."""
    end, wanted = conv, {"norm", "activation"}
    while len(after := graph.consumers[end.index]) == 1 and graph.nodes[after[0]].kind in wanted:
        end = graph.nodes[after[0]]
        wanted.discard(end.kind)
    return end
