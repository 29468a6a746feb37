"""Sums → residual branches, and sums of branches of one kind."""

from __future__ import annotations

from .graph import Graph, Node
from .regions import (
    Transformation,
    before_scaling,
    convolutions,
    existing_gate,
    gate_on,
    goes_up,
    is_depthwise,
    is_pooled,
    projects_only,
)
from .sites import Skipped

__all__ = ["residual"]


def residual(
    graph: Graph, node: Node, terms: tuple[int, ...], found: list[Transformation]
) -> list[Transformation] | Skipped:
    """The branches of a sum beside its shortcut, or their sum, or why there are none.

    Args:
        node, terms: the sum.
        found: transformations so far; convolutions re-parameterised inside a branch leave it.
    """
    path = node.module or "the model itself"
    start = graph.common_ancestor(terms)
    if start is None:
        return Skipped(path, "a sum of two separate inputs, no transformation of one")
    regions = {term: graph.between(start, term) for term in terms}
    counts = {term: len(convolutions(graph, regions[term])) for term in terms}
    inside = [n for bits in regions.values() for n in graph.members(bits)]
    what = "attention arithmetic, " if any(n.kind == "attention" for n in inside) else ""
    if not any(counts.values()):
        return Skipped(path, f"{what}a sum without a convolution in its terms")
    if is_pooled(graph, node, start):
        return Skipped(path, "attention arithmetic, a sum after global pooling")
    most = max(counts.values())
    # What was made of something else too (in attention, in a cell) is no projection of its input.
    projected = {
        t for t, r in regions.items() if projects_only(graph, r) and graph.entered_at(start, r)
    }
    shortcuts = tuple(t for t in terms if counts[t] < most and t in projected)
    branches = [t for t in terms if t not in shortcuts]
    linear = len(projected) == len(terms)
    normed = any(n.kind == "norm" for t in shortcuts for n in graph.members(regions[t]))
    if linear and (len(branches) > 1 or normed):  # re-parameterised: one convolution in the end
        if gate := gate_on(graph, node.index):
            return Skipped(gate.module or path, "an existing SE block or channel gate after it")
        whole = graph.between(start, node.index)
        # With a module for the sum, or as a unit of a stack: what is depthwise is half a unit.
        half = all(map(is_depthwise, convolutions(graph, whole)))
        if node.index in graph.handed_on or (_is_activated(graph, node) and not half):
            return [Transformation("parallel", start, node.index, node.index, whole, (), path)]
        if shortcuts:
            return Skipped(path, "a convolution re-parameterised as a sum, no transformation")
    if not shortcuts:
        each = ", ".join(str(counts[t]) for t in terms)
        return Skipped(path, f"{what}a sum with no shortcut (convolutions in its terms: {each})")
    # Where a slice of the shortcut alone is added, the sum is of a part (DPN's other part is
    # concatenated); a slice that enters the branch too makes it Res2Net's.
    if any(_is_part(graph, start, regions[t]) for t in shortcuts) and all(
        _is_part(graph, start, _entry(graph, start, regions[t])) for t in branches
    ):
        return Skipped(path, "a sum of slices of one tensor, no shortcut around it")
    results = []
    for term in branches:
        region = regions[term]
        inner = [other for other in found if (region >> other.join) & 1]
        if any(other.kind != "parallel" for other in inner):
            return Skipped(path, "a long skip, its branch holds transformations of its own")
        for other in inner:
            found.remove(other)  # a re-parameterised convolution of this branch
        if goes_up(graph, region):
            return Skipped(path, "a skip of an encoder-decoder, its branch goes down and up again")
        if gate := existing_gate(graph, region):
            return Skipped(gate.module or path, "an existing SE block or channel gate in a branch")
        end = before_scaling(graph, term)
        shape = Transformation("residual", start, end, node.index, region, shortcuts, path)
        results.append(shape)
    return results


def _is_activated(graph: Graph, node: Node) -> bool:
    """Nothing takes the node but an activation."""
    after = graph.consumers[node.index]
    return len(after) == 1 and graph.nodes[after[0]].kind == "activation"


def _entry(graph: Graph, start: int, bits: int) -> int:
    """Those of a set of nodes that take ``start``."""
    return sum(1 << i for i in graph.consumers[start] if (bits >> i) & 1)


def _is_part(graph: Graph, start: int, bits: int) -> bool:
    """Channels are lost on the way: it is of a chunk (Res2Net), not of the block's input."""
    whole = graph.nodes[start].channels
    return any(
        n.kind == "other" and n.channels is not None and whole is not None and n.channels < whole
        for n in graph.members(bits)
    )
