"""The dataflow graph of one forward: tensors, the calls that made them, the modules that ran."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

__all__ = ["Call", "Graph", "Node"]


@dataclass(frozen=True)
class Node:
    """A tensor of the forward, and the call of a torch function that made it.

    Args:
        index: its number in order of execution; parents have smaller ones.
        op: the function's name, without in-place and operator underscores.
        kind: "input", "conv", "norm", "add", …, or "other".
        parents: the nodes of its tensor arguments; parameters and constants are not nodes.
        shape: of the tensor.
        module: dotted path of the innermost module that was running, "" for the model itself.
        channel_dim: which dimension holds the channels, or None where that is not known.
        kernel: for a convolution, its kernel size; else empty.
        groups: for a convolution, its groups; else 1.
    """

    index: int
    op: str
    kind: str
    parents: tuple[int, ...]
    shape: tuple[int, ...]
    module: str
    channel_dim: int | None
    kernel: tuple[int, ...] = ()
    groups: int = 1

    @property
    def channels(self) -> int | None:
        """C, or None where the channels' dimension is not known."""
        return None if self.channel_dim is None else self.shape[self.channel_dim]

    @property
    def positions(self) -> tuple[int, ...]:
        """The sizes of the spatial dimensions."""
        return tuple(n for d, n in enumerate(self.shape) if d not in (0, self.channel_dim))


@dataclass(frozen=True)
class Call:
    """One call of a module's forward: which nodes went in and came out.

    Args:
        path: of the module, "" for the model itself.
        inputs: all nodes among its arguments, however deep in lists and dicts.
        outputs: all nodes in what it returned.
        first: the node that is its first positional argument; None where that is no tensor.
        bare: it returned a tensor itself, not one in a tuple, a list or a dict.
    """

    path: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    first: int | None = None
    bare: bool = True


@dataclass(frozen=True)
class Graph:
    """Nodes in order of execution, module calls in order of return (inner before outer).

    Sets of nodes are bit sets: bit i stands for node i.

    Args:
        nodes: the tensors.
        calls: the calls of modules.
        reads: (owner, reader): of modules whose parameters or buffers are used while another one
            runs, as in ``F.conv2d(x, self.conv.weight)`` of a module above ``conv``.
    """

    nodes: tuple[Node, ...]
    calls: tuple[Call, ...]
    reads: frozenset[tuple[str, str]] = frozenset()

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """For each node, the nodes that take it as an argument."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for parent in set(node.parents):
                found[parent].append(node.index)
        return tuple(map(tuple, found))

    @cached_property
    def ancestors(self) -> tuple[int, ...]:
        """For each node, the bit set of itself and all it was computed from."""
        sets: list[int] = []
        for node in self.nodes:
            bits = 1 << node.index
            for parent in node.parents:
                bits |= sets[parent]
            sets.append(bits)
        return tuple(sets)

    @cached_property
    def descendants(self) -> tuple[int, ...]:
        """For each node, the bit set of itself and all that was computed from it."""
        sets = [1 << node.index for node in self.nodes]
        for node in reversed(self.nodes):
            for parent in node.parents:
                sets[parent] |= sets[node.index]
        return tuple(sets)

    @cached_property
    def calls_by_path(self) -> Mapping[str, tuple[Call, ...]]:
        """All calls of each module."""
        found: dict[str, list[Call]] = {}
        for call in self.calls:
            found.setdefault(call.path, []).append(call)
        return {path: tuple(calls) for path, calls in found.items()}

    @cached_property
    def producers(self) -> Mapping[int, tuple[Call, ...]]:
        """For each node, the module calls that made and returned just it, innermost first.

        A module that hands its input on (an `Identity`, drop-path in evaluation) makes nothing.
        """
        found: dict[int, list[Call]] = {}
        for call in self.calls:
            if call.bare and len(call.outputs) == 1 and call.outputs[0] not in call.inputs:
                found.setdefault(call.outputs[0], []).append(call)
        return {node: tuple(calls) for node, calls in found.items()}

    @cached_property
    def handed_on(self) -> Mapping[int, tuple[Call, ...]]:
        """For each node, the calls of modules that took and returned just it, in order."""
        found: dict[int, list[Call]] = {}
        for call in self.calls:
            if call.path and call.bare and call.inputs == call.outputs and len(call.outputs) == 1:
                found.setdefault(call.outputs[0], []).append(call)
        return {node: tuple(calls) for node, calls in found.items()}

    @cached_property
    def takers(self) -> Mapping[int, tuple[Call, ...]]:
        """For each node, the calls of modules whose only input it was, innermost first."""
        found: dict[int, list[Call]] = {}
        for call in self.calls:
            if call.path and len(call.inputs) == 1 and call.inputs != call.outputs:
                found.setdefault(call.inputs[0], []).append(call)
        return {node: tuple(calls) for node, calls in found.items()}

    def common_ancestor(self, terms: Sequence[int]) -> int | None:
        """The last node that all terms were computed from (it may be one of them)."""
        common = self.ancestors[terms[0]]
        for term in terms[1:]:
            common &= self.ancestors[term]
        return common.bit_length() - 1 if common else None

    def between(self, start: int, end: int) -> int:
        """The bit set of nodes on paths from ``start`` (left out) to ``end`` (included)."""
        return self.descendants[start] & self.ancestors[end] & ~(1 << start)

    def inside(self, path: str) -> int:
        """The bit set of the nodes that a module and the modules in it made."""
        below = f"{path}." if path else ""
        made = (n for n in self.nodes if n.module == path or n.module.startswith(below))
        return sum(1 << node.index for node in made)

    def stage(self, node: Node) -> int:
        """log₂ of a feature map's stride to the network's input; 0 where that has no meaning."""
        entry = self.nodes[0].positions
        if not entry or not node.positions or len(entry) != len(node.positions):
            return 0
        return max(0, round(math.log2(entry[-1] / node.positions[-1])))

    def is_read_outside(self, path: str) -> bool:
        """Whether weights of a module, or of one in it, are used by one that is not in it."""
        return any(_within(path, owner) and not _within(path, by) for owner, by in self.reads)

    def entered_at(self, start: int, bits: int) -> bool:
        """Whether the nodes of a bit set were computed from nothing but ``start``."""
        known = bits | 1 << start
        return all((known >> p) & 1 for node in self.members(bits) for p in node.parents)

    def members(self, bits: int) -> Iterator[Node]:
        """The nodes of a bit set, in order."""
        while bits:
            low = bits & -bits
            yield self.nodes[low.bit_length() - 1]
            bits ^= low


def _within(path: str, other: str) -> bool:
    return not path or other == path or other.startswith(f"{path}.")
