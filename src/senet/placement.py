"""Where SE goes: the transformations of a network → sites → a `Plan`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from .block import BlockOptions
from .errors import UserError, nearest
from .gating import Gated, place
from .given import check_network
from .graph import Graph, Node
from .regions import Transformation
from .sites import PLACEMENTS, Plan, Site, SiteFilter, Skipped
from .tracing import ForwardError, trace
from .transformations import Findings, find_transformations

__all__ = ["Reduction", "default_input_size", "forward_arguments", "plan"]

Reduction = float | Mapping[int | str, float]
"""One r for all sites, or one for each stage number or path glob (16 where none matches)."""


def plan(
    model: nn.Module,
    *,
    input_size: tuple[int, ...] | None = None,
    example_inputs: Any = None,
    placement: str = "standard",
    reduction: Reduction = 16,
    sites: SiteFilter | Iterable[SiteFilter] | None = None,
    scope: str | None = None,
    hidden: int | None = None,
    min_hidden: int = 1,
    divisor: int | None = None,
    bias: bool = True,
    gate: str = "sigmoid",
    activation: str = "relu",
    squeeze: str = "avg",
) -> Plan:
    """Where SE would go in ``model``, and what it would add; the model is not touched.

    One forward of a structural copy on the meta device gives the dataflow graph, on which the
    paper's rules are applied (see `senet.transformations`).

    Args:
        model: any network; on any device, in either mode.
        input_size: (C, H, W) of one sample, or (C, L), (C, D, H, W); None asks the model's
            timm configuration, else (3, 224, 224).
        example_inputs: instead of a size, the arguments of the forward: a tensor, a tuple of
            positional or a dict of keyword arguments.
        placement: which tensor of a residual block is gated, one of `PLACEMENTS`.
        reduction: r, or a mapping from stage numbers or path globs to r.
        sites: keep only these: a glob over paths, a stage number, a predicate, or several.
        scope: only modules below this path. None means the backbone alone where the model has
            a module of that name (a detector, say), else everything, as "" always does.
        hidden, min_hidden, divisor, bias, gate, activation, squeeze: see
            `senet.block.BlockOptions`.

    Raises:
        UserError: the model cannot be traced, or an option or filter makes no sense. A plan
            may be empty; `attach` is what refuses it.

    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.conv1, self.conv2 = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 1)
    ...
    ...     def forward(self, x):
    ...         return x + self.conv2(self.conv1(x).relu())
    >>> [site.path for site in plan(Block(), input_size=(32, 8, 8))]
    ['conv2']
    """
    check_network(model)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        name = type(model).__name__
        raise UserError(
            f"the model is in a {name}, which would not know the new parameters; attach to its "
            f".module and put that into a new {name}"
        )
    if placement not in PLACEMENTS:
        raise UserError(f"unknown placement {placement!r}; {nearest(str(placement), PLACEMENTS)}")
    options = BlockOptions(
        hidden=hidden,
        min_hidden=min_hidden,
        divisor=divisor,
        bias=bias,
        gate=gate,
        activation=activation,
        squeeze=squeeze,
    )
    whole = _whole_plan(model, input_size, example_inputs, scope, placement, options, reduction)
    _check_reductions(reduction, whole)
    return whole if sites is None else whole.select(sites)


def _check_reductions(reduction: Reduction, whole: Plan) -> None:
    for key in reduction if isinstance(reduction, Mapping) else ():
        whole.select(key)  # refuses a stage or pattern that matches nothing


def _whole_plan(
    model: nn.Module,
    input_size: tuple[int, ...] | None,
    example_inputs: Any,
    scope: str | None,
    placement: str,
    options: BlockOptions,
    reduction: Reduction,
) -> Plan:
    backbone = model._modules.get("backbone")  # and no property, which has another name
    refused: ForwardError | None = None
    if scope is None and isinstance(backbone, nn.Module):
        if example_inputs is None:
            # A backbone takes images; what stands around it (a detector) may want much more.
            size = default_input_size(model) if input_size is None else input_size
            try:
                inner = _whole_plan(backbone, size, None, "", placement, options, reduction)
                return _below_prefix(inner, "backbone")
            except ForwardError as error:
                refused = error  # perhaps it takes what a module before it makes of an image
        scope = "backbone"
    scope = _checked_scope(model, scope or "")
    inputs, keywords = forward_arguments(model, input_size, example_inputs)
    try:
        graph = trace(model, inputs, keywords)
    except ForwardError as error:
        if refused is None:
            raise
        raise ForwardError(f"{error}; its backbone alone: {refused}") from error
    modules = dict(model.named_modules(remove_duplicate=False))
    findings = find_transformations(graph)
    skipped = findings.skipped
    chosen: list[Site] = []
    on_shortcuts: frozenset[str] = frozenset()
    if placement == "identity":
        on_shortcuts = _on_shortcuts(model, graph, inputs, keywords)
    for transformation in findings.found:
        for placed in place(graph, modules, transformation, placement, on_shortcuts):
            if isinstance(placed, Skipped):
                skipped.append(placed)
            elif any((site.path, site.before) == (placed.path, placed.before) for site in chosen):
                continue  # two branches of one sum share what comes after it, and its shortcut
            elif _below(placed.path, scope):
                chosen.append(_site(graph, placed, transformation, placement, options, reduction))
    skipped += _plain_units(graph, findings)
    size = graph.nodes[0].shape[1:] if graph.nodes else ()
    left = dict.fromkeys(entry for entry in skipped if _below(entry.path, scope))
    return Plan(tuple(chosen), tuple(left), size)


def _on_shortcuts(
    model: nn.Module, graph: Graph, inputs: tuple[Any, ...], keywords: Mapping[str, Any]
) -> frozenset[str]:
    """The modules that hand what they were given on to a sum, and to nothing else.

    An `Identity` at the beginning of a branch hands on the same tensor: which of the two a sum
    takes is seen in a second run, in which each returns a view of its own.
    """
    paths = {call.path for calls in graph.handed_on.values() for call in calls}
    if not paths:
        return frozenset()
    told = trace(model, inputs, keywords, apart=paths)

    def is_summed(node: Node) -> bool:
        after = [told.nodes[index] for index in told.consumers[node.index]]
        sums = (n.kind in ("add", "stack") or (is_view(n) and is_summed(n)) for n in after)
        return bool(after) and all(sums)

    def is_view(node: Node) -> bool:
        return node.op == "view_as" and node.module in paths

    return frozenset(node.module for node in told.nodes if is_view(node) and is_summed(node))


def _below_prefix(inner: Plan, prefix: str) -> Plan:
    sites = tuple(replace(site, path=f"{prefix}.{site.path}") for site in inner.sites)
    skipped = tuple(replace(entry, path=f"{prefix}.{entry.path}") for entry in inner.skipped)
    return replace(inner, sites=sites, skipped=skipped)


def default_input_size(model: nn.Module) -> tuple[int, ...]:
    """(C, H, W) of the model's timm configuration, else (3, 224, 224)."""
    for name in ("pretrained_cfg", "default_cfg"):
        configuration = getattr(model, name, None)
        if isinstance(configuration, Mapping) and configuration.get("input_size"):
            return tuple(configuration["input_size"])
    return (3, 224, 224)


def _checked_scope(model: nn.Module, scope: str) -> str:
    names = [name for name, _ in model.named_modules()]
    if scope not in names:
        raise UserError(f"the model has no module {scope!r} for scope=; {nearest(scope, names)}")
    return scope


def _below(path: str, scope: str) -> bool:
    return not scope or path == scope or path.startswith(scope + ".")


def forward_arguments(
    model: nn.Module, input_size: tuple[int, ...] | None, example_inputs: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a forward, from what `plan` is given."""
    if example_inputs is not None:
        if input_size is not None:
            raise UserError("input_size= and example_inputs= say the same twice; give one of them")
        if isinstance(example_inputs, Mapping):
            return (), dict(example_inputs)
        if isinstance(example_inputs, Tensor):
            return (example_inputs,), {}
        if not isinstance(example_inputs, tuple | list):
            raise UserError(
                f"example_inputs={example_inputs!r} is no tensor, tuple of positional or dict of "
                "keyword arguments"
            )
        return tuple(example_inputs), {}
    size = default_input_size(model) if input_size is None else input_size
    whole = isinstance(size, Sequence) and all(isinstance(n, int) and n > 0 for n in size)
    if not (whole and size):
        raise UserError(f"input_size={size} is not (C, H, W) of positive whole numbers")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return (torch.zeros(1, *size, dtype=like.dtype, device=like.device),), {}


def _site(
    graph: Graph,
    gated: Gated,
    what: Transformation,
    placement: str,
    options: BlockOptions,
    reduction: Reduction,
) -> Site:
    node, path = gated.node, gated.path
    channels = node.channels
    assert channels is not None  # else `place` left it out
    stage = graph.stage(node)
    options = replace(options, reduction=_reduction(reduction, stage, path))
    width = options.width(channels)
    options = replace(options, hidden=width)
    layers = 2 * channels * width
    return Site(
        path=path,
        kind=what.kind,
        channels=channels,
        hidden=width,
        stage=stage,
        placement=placement,
        params=layers + (channels + width if options.bias else 0),
        macs=layers * (math.prod(node.positions) if options.squeeze == "none" else 1),
        positions=node.positions,
        block=options,
        before=gated.before,
        note=gated.note or _note(graph, what, node, placement),
        channels_last=node.channel_dim == len(node.shape) - 1 and node.channel_dim != 1,
    )


def _note(graph: Graph, what: Transformation, node: Node, placement: str) -> str:
    """What a reader of the plan would ask: why here, or why not elsewhere."""
    if what.kind == "parallel":
        return "the sum of parallel branches, of which none is a shortcut"
    # MobileNetV2-like blocks end in a thin projection, which is a poor place for a gate.
    inside = [n.channels or 0 for n in graph.members(what.region) if n.kind == "conv"]
    thin = bool(inside) and max(inside) >= 2 * (node.channels or 0)
    if thin and what.kind == "residual" and placement == "standard":
        return 'branches end in a thin bottleneck; placement="inner" gates the wide part instead'
    return ""


def _reduction(reduction: Reduction, stage: int, path: str) -> float:
    if not isinstance(reduction, Mapping):
        return reduction
    for key, value in reduction.items():
        if key == stage or (isinstance(key, str) and fnmatchcase(path, key)):
            return value
    return 16


def _plain_units(graph: Graph, findings: Findings) -> list[Skipped]:
    """Convolutions outside every transformation: the stem, shortcuts, and what comes after.

    Those of sums and concatenations that were left out have the reasons of these.
    """
    transformations = findings.found
    if not transformations or transformations[0].kind == "chain":
        return []
    inside, downsampling = findings.without, 0
    body = {graph.nodes[each.end].module.partition(".")[0] for each in transformations}
    for each in transformations:
        inside |= each.region
        for shortcut in each.shortcuts:
            downsampling |= graph.between(each.start, shortcut)
    first = min(each.start for each in transformations)
    reasons: dict[str, str] = {}
    for node in graph.nodes:
        if node.kind != "conv" or (inside >> node.index) & 1:
            continue
        # What stands in the body, between blocks, is no stem, but the network's first layer is.
        outside = not reasons or node.module.partition(".")[0] not in body
        if (downsampling >> node.index) & 1:
            reason = "a downsample path, the shortcut of a sum"
        elif node.index <= first and outside:
            reason = "a stem, before the first transformation"
        else:
            reason = "a convolution outside every transformation"
        reasons.setdefault(node.module or "the model itself", reason)
    return [Skipped(path, reason) for path, reason in reasons.items()]
