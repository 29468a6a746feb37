"""The dataflow graph → the transformations F_tr that the paper recalibrates.

A residual network's transformations are the non-identity branches of its sums, an Inception
network's its whole modules, a dense network's the new features of each layer, a plain stack's its
convolution units. All are read off the graph; no class is known by name.
"""

from __future__ import annotations

from collections.abc import Iterator

from .concatenations import concatenated, concatenations
from .graph import Graph, Node
from .regions import Transformation, roots, unit_end
from .sites import Skipped
from .sums import residual

__all__ = ["find_transformations"]


def find_transformations(graph: Graph) -> tuple[list[Transformation], list[Skipped]]:
    """All transformations of a network in order, and the sums and concatenations left out.

    Convolution units are transformations only where there is nothing else (plain stacks).
    """
    found: list[Transformation] = []
    skipped: list[Skipped] = []
    for node, terms in roots(graph, "add"):
        _sort(residual(graph, node, terms, found), found, skipped)
    for node, terms in concatenations(graph):
        _sort(concatenated(graph, node, terms, found), found, skipped)
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
