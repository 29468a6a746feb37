"""Sums → residual branches, and sums of branches of one kind."""

from __future__ import annotations

from .graph import Graph, Node
from .regions import (
    SLICING,
    Transformation,
    before_scaling,
    convolutions,
    existing_gate,
    gate_on,
    goes_up,
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
    if not any(counts.values()):
        inside = [n for bits in regions.values() for n in graph.members(bits)]
        attends = any(n.kind == "attention" for n in inside)
        what = "attention arithmetic, " if attends else ""
        return Skipped(path, f"{what}a sum without a convolution in its terms")
    if is_pooled(graph, node, start):
        return Skipped(path, "attention arithmetic, a sum after global pooling")
    most = max(counts.values())
    shortcuts = tuple(t for t in terms if counts[t] < most and projects_only(graph, regions[t]))
    branches = [t for t in terms if t not in shortcuts]
    whole = 0
    for bits in regions.values():
        whole |= bits
    linear = all(projects_only(graph, regions[t]) for t in terms)
    normed = any(n.kind == "norm" for t in shortcuts for n in graph.members(regions[t]))
    if linear and (len(branches) > 1 or normed):  # re-parameterised: one convolution in the end
        if gate := gate_on(graph, node.index):
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
    part = all(graph.nodes[t].op in SLICING for t in branches)
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
        if goes_up(graph, region):
            return Skipped(path, "a skip of an encoder-decoder, its branch goes down and up again")
        if gate := existing_gate(graph, region):
            return Skipped(gate.module or path, "an existing SE block or channel gate in a branch")
        end = before_scaling(graph, term)
        shape = Transformation("residual", start, end, node.index, region, shortcuts, path)
        results.append(shape)
    return results


def _narrows(graph: Graph, start: int, bits: int) -> bool:
    """The way of a shortcut loses channels: a chunk (Res2Net), not the block's input."""
    whole = graph.nodes[start].channels
    return any(
        n.kind == "other" and n.channels is not None and whole is not None and n.channels < whole
        for n in graph.members(bits)
    )
