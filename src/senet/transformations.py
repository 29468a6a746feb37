"""The dataflow graph → the transformations F_tr that the paper recalibrates.

A residual network's transformations are the non-identity branches of its sums, an Inception
network's its whole modules, a dense network's the new features of each layer, a plain stack's its
convolution units. All are read off the graph; no class is known by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .concatenations import cell, concatenated, concatenations
from .graph import Graph, Node
from .regions import (
    Transformation,
    existing_gate,
    gate_on,
    goes_up,
    is_depthwise,
    roots,
    unit_end,
)
from .sites import Skipped
from .sums import residual

__all__ = ["Findings", "find_transformations"]


@dataclass
class Findings:
    """What a network has.

    Args:
        found: its transformations.
        skipped: the sums and concatenations left out.
        without: bit set of the nodes that compute those left out, up to where they fork.
    """

    found: list[Transformation] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    without: int = 0


def find_transformations(graph: Graph) -> Findings:
    """All transformations of a network in order, and what was left out.

    Convolution units are transformations only where there is nothing else (plain stacks).
    """
    all_cells = (cell(graph, node, terms) for node, terms in concatenations(graph))
    cells = [one for one in all_cells if one]
    result = Findings()
    for one in cells:
        if gate := existing_gate(graph, one.region) or gate_on(graph, one.end):
            reason = "an existing SE block or channel gate in a cell or after it"
            result.skipped.append(Skipped(gate.module or one.path, reason))
            result.without |= graph.inside(one.path)
        else:
            result.found.append(one)
    sums: dict[int, Skipped] = {}
    for node, terms in roots(graph, "add"):
        if not any((one.region >> node.index) & 1 for one in cells):
            outcome = residual(graph, node, terms, result.found)
            _sort(graph, terms, node, outcome, result)
            if isinstance(outcome, Skipped):
                sums[node.index] = outcome
    # One of branches without a shortcut among them may be all of the branch of another sum.
    taken = [sums.get(_unscaled(graph, one.end)) for one in result.found]
    result.skipped = [entry for entry in result.skipped if not any(entry is t for t in taken)]
    branches = result.without  # of sums: no units of a stack
    for node, terms in concatenations(graph):
        whole = [*cells, *(t for t in result.found if t not in cells)]
        _sort(graph, terms, node, concatenated(graph, node, terms, whole), result)
    gated = any("existing" in entry.reason for entry in result.skipped)
    if not result.found and not gated:
        result.found = list(_chain(graph, branches))
    unique = {entry.end: entry for entry in reversed(result.found)}
    result.found = sorted(unique.values(), key=lambda t: t.end)
    return result


def _sort(
    graph: Graph,
    terms: tuple[int, ...],
    node: Node,
    found: list[Transformation] | Skipped | None,
    into: Findings,
) -> None:
    if isinstance(found, Skipped):
        into.skipped.append(found)
        start = graph.common_ancestor(terms)
        region = 0 if start is None else graph.between(start, node.index)
        # Long skips go round much that is left out, or not, for reasons of its own.
        if not goes_up(graph, region) and not any((region >> t.join) & 1 for t in into.found):
            into.without |= region
    elif found:
        into.found.extend(found)


def _unscaled(graph: Graph, index: int) -> int:
    """Walk back over products with constants (the mean of Shake-Shake's branches)."""
    node = graph.nodes[index]
    while node.kind == "mul" and len(node.parents) == 1:
        node = graph.nodes[node.parents[0]]
    return node.index


def _chain(graph: Graph, branches: int) -> Iterator[Transformation]:
    """conv(-norm)(-activation) units; where there are depthwise + pointwise pairs, each pair.

    Those in ``branches``, a bit set of nodes, run beside others and are no units.
    """
    units: list[tuple[Node, Node]] = []
    depthwise: dict[int, Node] = {}
    for conv in graph.nodes:
        end = unit_end(graph, conv)
        # Neither norm nor activation (an embedding, a head), or nothing to squeeze: no unit.
        if conv.kind != "conv" or end == conv or all(n == 1 for n in end.positions):
            continue
        if (branches >> conv.index) & 1:
            continue
        if is_depthwise(conv):
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
