"""The dataflow graph → the transformations F_tr that the paper recalibrates.

A residual network's transformations are the non-identity branches of its sums, an Inception
network's its whole modules, a dense network's the new features of each layer, a plain stack's its
convolution units. All are read off the graph; no class is known by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from .graph import Graph, Node
from .sites import Skipped

__all__ = ["Transformation", "find_transformations", "unit_end"]

_SLICING = {"getitem", "split", "chunk", "narrow", "split_with_sizes", "tensor_split"}
_REARRANGING = {"permute", "transpose", "view", "reshape", "contiguous", "movedim", "swapaxes"}


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
        shortcuts: the other terms of the sum, for "residual".
        path: a module to name it by.
    """

    kind: str
    start: int
    end: int
    join: int
    region: int
    shortcuts: tuple[int, ...]
    path: str


def find_transformations(graph: Graph) -> tuple[list[Transformation], list[Skipped]]:
    """All transformations of a network in order, and the sums and concatenations left out.

    Convolution units are transformations only where there is nothing else (plain stacks).
    """
    found: list[Transformation] = []
    skipped: list[Skipped] = []
    for node, terms in _sums(graph):
        _sort(_residual(graph, node, terms, found), found, skipped)
    for node, terms in _concatenations(graph):
        _sort(_concatenated(graph, node, terms, found), found, skipped)
    gated = any("existing" in entry.reason for entry in skipped)
    if not found and not gated:
        found = list(_chain(graph))
    unique = {entry.end: entry for entry in reversed(found)}
    return sorted(unique.values(), key=lambda t: t.end), skipped


def _sort(
    results: list[Transformation] | Skipped | None,
    found: list[Transformation],
    skipped: list[Skipped],
) -> None:
    if isinstance(results, Skipped):
        skipped.append(results)
    elif results:
        found.extend(results)


# ---------------------------------------------------------------------------- sums


def _is_feature_map(node: Node) -> bool:
    return node.channel_dim is not None and len(node.shape) >= 3


def _flat_terms(graph: Graph, node: Node, kind: str) -> tuple[int, ...]:
    """The terms of a nest of sums (or concatenations), each counted once, in order."""
    terms: list[int] = []
    for parent in node.parents:
        inner = graph.nodes[parent]
        # A sum that a module inside makes is that module's own.
        nested = inner.module == node.module and inner.kind == kind and len(set(inner.parents)) > 1
        if nested and graph.consumers[parent] == (node.index,):
            terms += _flat_terms(graph, inner, kind)
        else:
            terms.append(parent)
    return tuple(dict.fromkeys(terms))


def _roots(graph: Graph, kind: str) -> Iterator[tuple[Node, tuple[int, ...]]]:
    for node in graph.nodes:
        if node.kind != kind or len(set(node.parents)) < 2 or not _is_feature_map(node):
            continue
        after = [graph.nodes[i] for i in graph.consumers[node.index]]
        single = len(after) == 1 and after[0].module == node.module
        if single and after[0].kind == kind and len(set(after[0].parents)) > 1:
            continue  # one term of a larger nest
        yield node, _flat_terms(graph, node, kind)


def _sums(graph: Graph) -> Iterator[tuple[Node, tuple[int, ...]]]:
    for node, terms in _roots(graph, "add"):
        if len(terms) > 1:
            yield node, terms


def _convolutions(graph: Graph, bits: int) -> list[Node]:
    return [node for node in graph.members(bits) if node.kind == "conv"]


def _projects_only(graph: Graph, bits: int) -> bool:
    """One convolution, or a depthwise and a pointwise one, and no non-linearity after it."""
    convolutions = _convolutions(graph, bits)
    after = graph.descendants[convolutions[0].index] & bits if convolutions else bits
    return len(convolutions) <= 2 and all(n.kind != "activation" for n in graph.members(after))


def _residual(
    graph: Graph, node: Node, terms: tuple[int, ...], found: list[Transformation]
) -> list[Transformation] | Skipped | None:
    path = node.module or "the model itself"
    start = graph.common_ancestor(terms)
    if start is None:
        return Skipped(path, "a sum of two separate inputs, no transformation of one")
    regions = {term: graph.between(start, term) for term in terms}
    counts = {term: len(_convolutions(graph, regions[term])) for term in terms}
    if not any(counts.values()):
        inside = [n for bits in regions.values() for n in graph.members(bits)]
        attends = any(n.kind == "attention" for n in inside)
        what = "attention arithmetic, " if attends else ""
        return Skipped(path, f"{what}a sum without a convolution in its terms")
    if _is_pooled(graph, node, start):
        return Skipped(path, "attention arithmetic, a sum after global pooling")
    most = max(counts.values())
    shortcuts = tuple(
        t for t in terms if counts[t] < most and _projects_only(graph, regions[t] or 0)
    )
    branches = [t for t in terms if t not in shortcuts]
    whole = 0
    for bits in regions.values():
        whole |= bits
    linear = all(_projects_only(graph, regions[t]) for t in terms)
    normed = any(n.kind == "norm" for t in shortcuts for n in graph.members(regions[t]))
    if linear and (len(branches) > 1 or normed):  # re-parameterised: one convolution in the end
        if gate := _gate_on(graph, node.index):
            return Skipped(gate.module or path, "an existing SE block or channel gate after it")
        if node.index in graph.handed_on:
            return [Transformation("parallel", start, node.index, node.index, whole, (), path)]
        if shortcuts:
            return Skipped(path, "a convolution re-parameterised as a sum, no transformation")
    if not shortcuts:
        each = ", ".join(str(counts[t]) for t in terms)
        return Skipped(path, f"a sum with no shortcut (convolutions in its terms: {each})")
    # Where a slice of the branch's end is added to one of the shortcut, the sum is of parts
    # (DPN's other part is concatenated); slices that enter the branch make it Res2Net's.
    part = all(graph.nodes[t].op in _SLICING for t in branches)
    if not part and any(_narrows(graph, start, regions[t]) for t in shortcuts):
        return Skipped(path, "a sum of slices of one tensor, no shortcut around it")
    results = []
    for term in branches:
        region = regions[term]
        inner = [other for other in found if (region >> other.join) & 1]
        if any(other.kind != "parallel" for other in inner):
            return Skipped(path, "a long skip, its branch holds transformations of its own")
        for other in inner:
            found.remove(other)  # a re-parameterised convolution of this branch
        if _goes_up(graph, region):
            return Skipped(path, "a skip of an encoder-decoder, its branch goes down and up again")
        if gate := _existing_gate(graph, region):
            return Skipped(gate.module or path, "an existing SE block or channel gate in a branch")
        end = _before_scaling(graph, term)
        shape = Transformation("residual", start, end, node.index, region, shortcuts, path)
        results.append(shape)
    return results


def _is_pooled(graph: Graph, node: Node, start: int) -> bool:
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


def _narrows(graph: Graph, start: int, bits: int) -> bool:
    """The way of a shortcut loses channels: a chunk (Res2Net), not the block's input."""
    whole = graph.nodes[start].channels
    return any(
        n.kind == "other" and n.channels is not None and whole is not None and n.channels < whole
        for n in graph.members(bits)
    )


def _existing_gate(graph: Graph, bits: int) -> Node | None:
    """A product of a feature map and one number a channel that was pooled from it."""
    for node in graph.members(bits):
        if node.kind != "mul" or len(set(node.parents)) < 2 or not _is_feature_map(node):
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


def _gate_on(graph: Graph, end: int) -> Node | None:
    """A channel gate that multiplies the node itself."""
    products = [i for i in graph.consumers[end] if graph.nodes[i].kind == "mul"]
    inside = (graph.descendants[end] & graph.ancestors[i] for i in products)
    return next((gate for bits in inside if (gate := _existing_gate(graph, bits))), None)


def _before_scaling(graph: Graph, term: int) -> int:
    """Walk back from a term past drop-path, layer-scale and scalars to the transformation."""
    end, node = term, graph.nodes[term]
    while True:
        scaled = node.kind == "mul" and len(set(node.parents)) == 1
        rearranged = node.op in _REARRANGING and node.channel_dim is not None
        sliced = node.op in _SLICING and node.module == graph.nodes[term].module
        if not (scaled or node.kind == "drop" or rearranged or sliced):
            break
        node = graph.nodes[node.parents[0]]
        if node.channel_dim is None or node.kind == "input":
            break
        # What rearranges or scales inside a module of its own stays that module's business
        # unless something before it can be wrapped.
        if graph.producers.get(node.index):
            end = node.index
    return end


# ---------------------------------------------------------------------------- concatenations


def _concatenations(graph: Graph) -> Iterator[tuple[Node, tuple[int, ...]]]:
    for node, terms in _roots(graph, "cat"):
        channels = [graph.nodes[t].channels for t in terms]
        if None not in channels and sum(c or 0 for c in channels) == node.channels:
            yield node, terms


def _concatenated(
    graph: Graph, node: Node, terms: tuple[int, ...], found: list[Transformation]
) -> list[Transformation] | Skipped | None:
    path = node.module or "the model itself"
    if any((t.region >> node.index) & 1 for t in found if t.kind != "dense"):
        return None  # part of a transformation that is recalibrated as a whole
    if _runs(graph, terms):
        return _dense(graph, node, terms, found)
    # What the module took in and passes on (a skip into a later block) is no branch of its own.
    taken = {i for call in graph.calls_by_path.get(node.module, ()) for i in call.inputs}
    branches = [t for t in terms if t not in taken]
    whole_input = len(taken) == 1 and len(branches) == len(terms) - 1
    start = graph.common_ancestor(terms if whole_input else branches or terms)
    if start is None:
        return Skipped(path, "a concatenation of separate inputs")
    regions = {term: graph.between(start, term) for term in terms}
    whole = 0
    for term in branches:
        whole |= regions[term]
    if any((whole >> other.join) & 1 for other in found):
        return Skipped(path, "a concatenation whose branches hold transformations of their own")
    if _goes_up(graph, whole):
        return Skipped(path, "a skip of an encoder-decoder, its branch goes down and up again")
    convolved = [t for t in branches if _convolutions(graph, regions[t])]
    if not convolved:
        return Skipped(path, "a concatenation without a convolution in its branches")
    if gate := _existing_gate(graph, whole):
        return Skipped(gate.module or path, "an existing SE block or channel gate in a branch")
    if len(convolved) == 1:
        return _beside_identity(graph, node, start, convolved[0], regions, terms)
    if not any((graph.ancestors[start] >> i) & 1 for i in taken) or not node.module:
        return Skipped(path, "a concatenation of what was made in different modules")
    if any(t != u and (graph.ancestors[u] >> t) & 1 for t in branches for u in branches):
        end = _after_aggregation(graph, node)
    else:
        end = _after_shuffling(graph, node.index)
    region = graph.between(start, end)
    if gate := _gate_on(graph, end):
        return Skipped(gate.module or path, "an existing SE block or channel gate after it")
    return [Transformation("inception", start, end, end, region, (), path)]


def _goes_up(graph: Graph, bits: int) -> bool:
    ups = ("interpolate", "upsample", "pixel_shuffle")
    return any(n.op in ups or n.op.startswith("conv_transpose") for n in graph.members(bits))


def _runs(graph: Graph, terms: tuple[int, ...]) -> bool:
    """A running concatenation: a term was made from a concatenation of the terms before it."""
    first = min(terms)
    return any(
        inner.kind == "cat" and any((graph.ancestors[inner.index] >> t) & 1 for t in terms)
        for term in terms
        if term != first
        for inner in graph.members(graph.between(first, term))
    )


def _beside_identity(
    graph: Graph,
    node: Node,
    start: int,
    term: int,
    regions: dict[int, int],
    terms: tuple[int, ...],
) -> list[Transformation] | Skipped:
    path = node.module or "the model itself"
    if _projects_only(graph, regions[term]) or len(_convolutions(graph, regions[term])) < 2:
        return Skipped(path, "a stem or downsample path, one convolution beside a pooling")
    others = tuple(t for t in terms if t != term)
    pooled = [n for t in others for n in graph.members(regions[t]) if n.kind == "pool"]
    if any(1.5 * n.positions[-1] > graph.nodes[n.parents[0]].positions[-1] for n in pooled):
        return Skipped(path, "a stem, a branch beside a pooling that keeps the size")
    end = _before_scaling(graph, term)
    return [Transformation("residual", start, end, node.index, regions[term], others, path)]


def _dense(
    graph: Graph, node: Node, terms: tuple[int, ...], found: list[Transformation]
) -> list[Transformation] | Skipped:
    """The new features of each layer that a running concatenation holds."""
    path = node.module or "the model itself"
    results = []
    for term in sorted(terms)[1:]:
        sources = [t for t in terms if t != term and (graph.ancestors[term] >> t) & 1]
        if not sources:
            continue
        start = max(sources)
        region = graph.between(start, term)
        if any((region >> other.join) & 1 for other in found if other.kind != "dense"):
            continue  # an aggregation of blocks that are recalibrated themselves (DLA)
        if _convolutions(graph, region) and not _existing_gate(graph, region):
            end = _before_scaling(graph, term)
            results.append(Transformation("dense", start, end, node.index, region, (), path))
    return results or Skipped(path, "a running concatenation without new convolved features")


def _after_aggregation(graph: Graph, node: Node) -> int:
    """One-shot aggregation (VoVNet): the 1×1 units of its block that take the concatenation."""
    inside, beside = f"{node.module}.", node.module.rpartition(".")[0] + "."
    end = node
    while len(after := graph.consumers[end.index]) == 1:
        conv = graph.nodes[after[0]]
        if conv.kind != "conv" or set(conv.kernel) != {1}:
            break
        # In the block itself, or in its module for the branches (then the unit stands beside it).
        if not conv.module.startswith(inside) and not (
            conv.module.startswith(beside) and _is_list_of_branches(graph, node)
        ):
            break
        end = unit_end(graph, conv)
    return end.index


def _is_list_of_branches(graph: Graph, node: Node) -> bool:
    """The module of a concatenation returns it as it is: it holds the branches alone."""
    return any(call.path == node.module for call in graph.producers.get(node.index, ()))


def _after_shuffling(graph: Graph, index: int) -> int:
    """Walk on over a channel shuffle, which only renames channels, to a module's output."""
    while index not in graph.producers:
        after = graph.consumers[index]
        if len(after) != 1 or graph.nodes[after[0]].op not in _REARRANGING:
            return index
        index = after[0]
    return index


# ---------------------------------------------------------------------------- plain stacks


def unit_end(graph: Graph, conv: Node) -> Node:
    """The end of the unit that a convolution begins: norm and activation, in either order."""
    end, wanted = conv, {"norm", "activation"}
    while len(after := graph.consumers[end.index]) == 1 and graph.nodes[after[0]].kind in wanted:
        end = graph.nodes[after[0]]
        wanted.discard(end.kind)
    return end


def _chain(graph: Graph) -> Iterator[Transformation]:
    """conv(-norm)(-activation) units; where there are depthwise + pointwise pairs, each pair."""
    units: list[tuple[Node, Node]] = []
    depthwise: dict[int, Node] = {}
    for conv in graph.nodes:
        end = unit_end(graph, conv)
        # Neither norm nor activation (an embedding, a head), or nothing to squeeze: no unit.
        if conv.kind != "conv" or end == conv or all(n == 1 for n in end.positions):
            continue
        if conv.groups > 1 and conv.groups == conv.channels:
            depthwise[end.index] = conv
        else:
            units.append((conv, end))
    pairs = [
        (depthwise[conv.parents[0]], end)
        for conv, end in units
        if conv.parents[0] in depthwise and set(conv.kernel) == {1}
    ]
    if pairs:  # what comes before the first pair is a stem (MobileNet v1)
        units = [unit for unit in units if unit[0].index > pairs[0][0].index]
    for conv, end in units:
        start = depthwise.get(conv.parents[0], conv).parents[0]
        region = graph.between(start, end.index)
        yield Transformation("chain", start, end.index, end.index, region, (), conv.module)
