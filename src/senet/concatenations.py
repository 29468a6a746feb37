"""Concatenations of channels → Inception modules, cells, aggregations and dense layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from .graph import Graph, Node
from .regions import (
    REARRANGING,
    Transformation,
    before_scaling,
    convolutions,
    existing_gate,
    gate_on,
    goes_up,
    is_depthwise,
    projects_only,
    roots,
    unit_end,
)
from .sites import Skipped

__all__ = ["cell", "concatenated", "concatenations"]

_DECODER = "a skip of an encoder-decoder, its branch goes down and up again"


def concatenations(graph: Graph) -> Iterator[tuple[Node, tuple[int, ...]]]:
    """Each outermost concatenation along the channels, and its terms."""
    for node, terms in roots(graph, "cat"):
        channels = [graph.nodes[t].channels for t in terms]
        if None not in channels and sum(c or 0 for c in channels) == node.channels:
            yield node, terms


def cell(graph: Graph, node: Node, terms: tuple[int, ...]) -> Transformation | None:
    """The cell of a searched architecture (NASNet) that ends in a concatenation, or None.

    Its terms are sums made beside one another: the cell is an Inception module whose branches
    are summed in pairs. It may take what several modules before it made.
    """
    own = [graph.nodes[t] for t in terms if graph.nodes[t].module == node.module]
    sums = [term.index for term in own if term.kind == "add"]
    beside = any(not (graph.ancestors[u] >> t) & 1 for t in sums for u in sums if t < u)
    calls = graph.calls_by_path.get(node.module, ())
    start = graph.common_ancestor(calls[0].inputs) if calls and calls[0].inputs else None
    if not node.module or not beside or start is None:
        return None
    inside = graph.inside(node.module)
    if not all(convolutions(graph, graph.ancestors[t] & inside) for t in sums):
        return None
    end = _after_shuffling(graph, node.index)
    region = graph.ancestors[end] & inside
    return Transformation("inception", start, end, end, region, (), node.module)


def concatenated(
    graph: Graph, node: Node, terms: tuple[int, ...], found: list[Transformation]
) -> list[Transformation] | Skipped | None:
    """The module that ends in a concatenation, or its new features, or why there are none.

    None where it is part of one of the transformations ``found`` so far.
    """
    path = node.module or "the model itself"
    if _reduces(graph, node, terms):
        normed = unit_end(graph, node).module or path
        return Skipped(normed, "a downsample path, strided 1×1 convolutions side by side")
    if any(_leads_to(graph, node, t, s) for t in found for s in t.shortcuts):
        return Skipped(
            unit_end(graph, node).module or path, "a downsample path, the shortcut of a sum"
        )
    if any((t.region >> node.index) & 1 for t in found if t.kind != "dense"):
        return None  # part of a transformation that is recalibrated as a whole
    if dual := _dual(graph, node, terms, found):
        return dual
    if _runs(graph, terms):
        return _dense(graph, node, terms, found)
    # What the module took in and passes on (a skip into a later block) is no branch of its own.
    taken = {i for call in graph.calls_by_path.get(node.module, ()) for i in call.inputs}
    branches = [t for t in terms if t not in taken]
    whole_input = len(taken) == 1 and len(branches) == len(terms) - 1
    start = graph.common_ancestor(branches if len(branches) > 1 and not whole_input else terms)
    if start is None:
        return Skipped(path, "a concatenation of separate inputs")
    regions = {term: graph.between(start, term) for term in terms}
    whole = 0
    for term in branches:
        whole |= regions[term]
    if any((whole >> other.join) & 1 for other in found):
        return Skipped(path, "a concatenation whose branches hold transformations of their own")
    if goes_up(graph, whole):
        return Skipped(path, _DECODER)
    convolved = [t for t in branches if convolutions(graph, regions[t])]
    if not convolved:
        return Skipped(path, "a concatenation without a convolution in its branches")
    if gate := existing_gate(graph, whole):
        return Skipped(gate.module or path, "an existing SE block or channel gate in a branch")
    new = [t for t in terms if t != start]
    if start in terms and _are_new(graph, new, regions):
        ends = [(before_scaling(graph, t), regions[t]) for t in new]
        return [Transformation("dense", start, e, node.index, bits, (), path) for e, bits in ends]
    if len(convolved) == 1:
        return _beside_identity(graph, node, start, convolved[0], regions, terms)
    if not any((graph.ancestors[start] >> i) & 1 for i in taken) or not node.module:
        return Skipped(path, "a concatenation of what was made in different modules")
    if any(t != u and (graph.ancestors[u] >> t) & 1 for t in branches for u in branches):
        end = _after_aggregation(graph, node)
    else:
        end = _after_shuffling(graph, node.index)
    region = graph.between(start, end)
    if gate := gate_on(graph, end):
        return Skipped(gate.module or path, "an existing SE block or channel gate after it")
    return [Transformation("inception", start, end, end, region, (), path)]


def _reduces(graph: Graph, node: Node, terms: tuple[int, ...]) -> bool:
    """A factorised reduction: each term is a strided projection of one input (NASNet)."""
    start = graph.common_ancestor(terms)
    if start is None or node.positions >= graph.nodes[start].positions:
        return False
    regions = [graph.between(start, t) for t in terms]
    kernels = [k for bits in regions for n in convolutions(graph, bits) for k in n.kernel]
    projected = all(projects_only(graph, b) and convolutions(graph, b) for b in regions)
    return projected and set(kernels) == {1}


def _dual(
    graph: Graph, node: Node, terms: tuple[int, ...], found: list[Transformation]
) -> list[Transformation]:
    """The new features of a dual path block (DPN): one part is summed, the rest concatenated."""
    summed = [t for t in found if t.kind == "residual" and t.join in terms]
    if len(summed) != 1:
        return []
    (beside,) = summed
    regions = {t: graph.between(beside.start, t) for t in terms if t != beside.join}
    return [
        replace(beside, kind="dense", end=before_scaling(graph, t), region=bits)
        for t, bits in regions.items()
        if not projects_only(graph, bits)
        and not goes_up(graph, bits)
        and not any((bits >> other.join) & 1 for other in found)
    ]


def _leads_to(graph: Graph, node: Node, what: Transformation, shortcut: int) -> bool:
    """The node is on the way from a block's input to the shortcut of its sum (Shake-Shake)."""
    summed = what.kind == "residual" and graph.nodes[what.join].kind == "add"
    return summed and bool((graph.between(what.start, shortcut) >> node.index) & 1)


def _are_new(graph: Graph, terms: list[int], regions: dict[int, int]) -> bool:
    """Features that a dense layer adds to its input, each made of it by itself.

    A depthwise convolution alone makes no new ones, it repeats them (GhostNet).
    """
    for term in terms:
        found = convolutions(graph, regions[term])
        alone = not any((graph.ancestors[term] >> t) & 1 for t in terms if t != term)
        if not alone or all(map(is_depthwise, found)):
            return False
    return True


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
    others = tuple(t for t in terms if t != term)
    pooled = [n for t in others for n in graph.members(regions[t]) if n.kind == "pool"]
    if projects_only(graph, regions[term]) or len(convolutions(graph, regions[term])) < 2:
        if pooled:
            return Skipped(path, "a stem or downsample path, one convolution beside a pooling")
        return Skipped(path, "one convolution beside its input or a part of it, no transformation")
    if any(1.5 * n.positions[-1] > graph.nodes[n.parents[0]].positions[-1] for n in pooled):
        return Skipped(path, "a stem, a branch beside a pooling that keeps the size")
    end = before_scaling(graph, term)
    return [Transformation("residual", start, end, node.index, regions[term], others, path)]


def _dense(
    graph: Graph, node: Node, terms: tuple[int, ...], found: list[Transformation]
) -> list[Transformation] | Skipped:
    """The new features of each layer that a running concatenation holds."""
    path = node.module or "the model itself"
    results, decodes = [], False
    for term in sorted(terms)[1:]:
        sources = [t for t in terms if t != term and (graph.ancestors[term] >> t) & 1]
        if not sources:
            continue
        start = max(sources)
        region = graph.between(start, term)
        entry = [i for i in graph.consumers[start] if (region >> i) & 1]
        if len(entry) == 1 and graph.nodes[entry[0]].kind == "cat":
            start = entry[0]  # the layer takes what all layers before it made
            region = graph.between(start, term)
        if any((region >> other.join) & 1 for other in found if other.kind != "dense"):
            continue  # an aggregation of blocks that are recalibrated themselves (DLA)
        if goes_up(graph, region):
            decodes = True
            continue
        if convolutions(graph, region) and not existing_gate(graph, region):
            end = before_scaling(graph, term)
            results.append(Transformation("dense", start, end, node.index, region, (), path))
    if decodes and not results:
        return Skipped(path, _DECODER)
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
        if len(after) != 1 or graph.nodes[after[0]].op not in REARRANGING:
            return index
        index = after[0]
    return index
