"""Whether a module may be changed for the sake of the next: who else runs, reads or sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from .graph import Graph, Node
from .hooks import is_hooked

__all__ = ["against_changing", "seen_elsewhere"]


def against_changing(graph: Graph, path: str, module: nn.Module) -> str:
    """Why the module is not one step from a tensor to a tensor, which could be another, or ""."""
    calls = graph.calls_by_path.get(path, ())
    if len(calls) != 1:
        return "it never runs" if not calls else f"it runs {len(calls)} times"
    if len(calls[0].inputs) != 1 or len(calls[0].outputs) != 1:
        return "it takes or returns more than a tensor"
    if graph.is_read_outside(path):
        return "weights of it are read outside of it"
    return "a hook is on it" if is_hooked(module) else ""


def seen_elsewhere(
    graph: Graph,
    modules: Mapping[str, nn.Module],
    node: int,
    known: Callable[[Node], bool],
    name: str,
) -> str:
    """Why a tensor cannot be another one, or "": something but the known takes it.

    Args:
        graph: of the forward.
        modules: of the network, by path.
        node: the tensor.
        known: whether the change is made with this consumer in mind.
        name: what the answer calls the module that makes the tensor.
    """
    others = [n for n in graph.consumers[node] if not known(graph.nodes[n])]
    if others or any(node in whole.outputs for whole in graph.calls_by_path[""]):
        return f"the output of {name} is used elsewhere too"
    for call in graph.calls:
        if node in (*call.inputs, *call.outputs) and is_hooked(modules[call.path]):
            return f"a hook on {call.path} sees the output of {name}"
    return ""
