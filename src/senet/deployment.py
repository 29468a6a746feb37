"""A network rewritten for inference: norms folded, gates moved before their convolutions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from .adoption import ADOPTED_ATTRIBUTE, AdoptedSqueezeExcite
from .block import SqueezeExcite
from .errors import UserError, nearest
from .folding import after_norm, fold, is_convolution, obstacle
from .fusing import is_batch_norm
from .given import become, check_network, copied
from .graph import Graph, Node
from .hoisting import InputGated, OutputGated, hoisting_pays
from .hooks import is_hooked
from .insertion import PLAN_ATTRIBUTE, attached_plan
from .neighbours import against_changing, seen_elsewhere
from .norm import Recalibrated
from .outputs import outputs_of, relative_difference, tolerance
from .placement import forward_arguments
from .tracing import trace

__all__ = ["GATES_FROM", "Report", "Rewrite", "deploy"]

Network = TypeVar("Network", bound=nn.Module)
GATES_FROM = ("cheaper", "input", "output")
"""Where a gate is computed from: what is read the least of, or always the convolution's side."""


@dataclass(frozen=True)
class Rewrite:
    """What was done with a norm or a block.

    Args:
        path: of the module in the network as it was.
        what: "folded", "gated from its input", "gated in place" or "left".
        why: how, or why not.
    """

    path: str
    what: str
    why: str


@dataclass(frozen=True)
class Report:
    """All norms and blocks of a network; its text is a table with the counts below."""

    rewrites: tuple[Rewrite, ...]

    def count(self, what: str) -> int:
        """How many have this in ``what``."""
        return sum(rewrite.what == what for rewrite in self.rewrites)

    def __str__(self) -> str:
        width = max((len(rewrite.path) for rewrite in self.rewrites), default=0)
        lines = [f"{r.path.ljust(width)}  {r.what.ljust(20)}  {r.why}" for r in self.rewrites]
        kinds = dict.fromkeys(rewrite.what for rewrite in self.rewrites)
        total = ", ".join(f"{self.count(what)} {what}" for what in kinds)
        return "\n".join([*lines, total or "nothing to rewrite"])


def deploy(
    model: Network,
    *,
    input_size: tuple[int, ...] | None = None,
    example_inputs: Any = None,
    gates: str = "cheaper",
) -> Network:
    """A copy of ``model`` for inference that computes the same and runs faster.

    Every BatchNorm that only follows one convolution, or a concatenation of several, is folded into
    it or them, in evaluation mode with its running statistics. The gate of a block that follows
    such a convolution, or one without a norm, is computed from the convolution's input where less
    is read there, and the output is scaled in place, as a concatenation is. The model may be
    attached, adopted or plain; of one that is deployed this makes a copy. What cannot be
    rewritten exactly is left alone; ``.report`` of the copy, a
    `Report`, has every norm and block.
    At the end both run on the same values. Where the outputs differ all is left as it was: a
    forward may ask what type its norm is, or whether its convolution has a bias.
    The dataflow is that of one input: where the forward goes another way for others (a larger
    batch, say), the copy is right for the way that was seen; give ``example_inputs`` that take
    the one that matters.

    Args:
        model: any network; it is not touched.
        input_size, example_inputs: as in `senet.plan`, for the dataflow and the comparison;
            None takes what the network was attached with.
        gates: "cheaper", or "input" or "output" to compute all gates from that side of the
            convolution.

    Returns:
        The copy in evaluation mode, without gradients.

    Raises:
        UserError: ``gates`` is unknown, or the forward fails.

    >>> import torchvision
    >>> from senet import attach
    >>> fast = deploy(attach(torchvision.models.resnet50()))
    >>> print(fast.report.count("folded"), fast.report.count("gated from its input"))
    53 16
    """
    check_network(model)
    if gates not in GATES_FROM:
        raise UserError(f"gates={gates!r} is unknown; {nearest(gates, GATES_FROM)}")
    plan = attached_plan(model)
    if plan is None and isinstance(getattr(model, "report", None), Report):
        return copied(model).eval().requires_grad_(False)
    if input_size is None and example_inputs is None and plan is not None:
        input_size = plan.input_size or None
    deployed = _prepared(model)
    arguments = forward_arguments(model, input_size, example_inputs)
    rewriting = _Rewriting(deployed, trace(deployed, *arguments), gates)
    before = outputs_of(deployed, *arguments)
    rewriting.fold_norms()
    rewriting.gate_early()
    rewrites = rewriting.rewrites
    if rewrites and (why := _difference(deployed, arguments, before)):
        deployed = _prepared(model)
        rewrites = [Rewrite(each.path, "left", why) for each in rewrites]
    deployed.report = Report(tuple(rewrites))
    deployed.eval().requires_grad_(False)  # the new modules too
    return deployed


def _prepared(model: nn.Module) -> Any:
    """A copy in evaluation mode, without what `attach` and `adopt` noted on it."""
    prepared = copied(model).eval()
    for module in prepared.modules():
        vars(module).pop(PLAN_ATTRIBUTE, None)  # what `verify` would look for is moved or gone
        vars(module).pop(ADOPTED_ATTRIBUTE, None)
        if isinstance(module, Recalibrated):  # a trace shows two modules, whatever was asked for
            module.implementation = None
    return prepared


def _difference(deployed: nn.Module, arguments: Any, before: Any) -> str:
    """Why the rewritten network cannot stand for the one that computed ``before``, or nothing."""
    what = "the forward asks how its modules are made: rewritten, "
    try:
        after = outputs_of(deployed, *arguments)
    except Exception as error:
        return what + f"it fails ({(str(error).strip() or type(error).__name__).splitlines()[0]})"
    found = relative_difference(after, before)
    return "" if found <= tolerance(before) else what + f"its outputs differ by {found:.1e}"


class _Rewriting:
    """The rewriting of one network along its dataflow graph."""

    def __init__(self, model: nn.Module, graph: Graph, gates: str) -> None:
        self.model = model
        self.graph = graph
        self.gates = gates
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.rewrites: list[Rewrite] = []
        # What a node is, once norms are folded: the output of this convolution as it now is.
        self.made_by: dict[int, str] = {}
        # Or a concatenation, which is a tensor of its own.
        self.joined = {node.index for node in graph.nodes if node.kind == "cat"}
        for node, calls in graph.producers.items():
            if calls[0].path and not obstacle(self.modules[calls[0].path]):
                self.made_by[node] = calls[0].path

    def fold_norms(self) -> None:
        """Fold what can be folded, in order of execution."""
        for path, norm in self._executed(is_batch_norm):
            why = self._against_folding(path, norm)
            if why:
                self._note(path, "left", why)
                continue
            (call,) = self.graph.calls_by_path[path]
            ends = self._ends(call.inputs[0])
            convs = [self.made_by[node] for node in ends]
            for conv, channels in zip(convs, ends.values(), strict=True):
                fold(self.modules[conv], norm, channels)
            rest = after_norm(norm)
            become(norm, rest)
            if isinstance(rest, nn.Identity):
                if len(convs) == 1:
                    self.made_by[call.outputs[0]] = convs[0]
                else:
                    self.joined.add(call.outputs[0])
            self._note(path, "folded", f"into {', '.join(convs)}")

    def gate_early(self) -> None:
        """Move gates to their convolutions, or at least gate in place."""
        for path, se in self._executed(lambda module: isinstance(module, SqueezeExcite)):
            assert isinstance(se, SqueezeExcite)
            why = self._against_gating(path, se)
            if why:
                self._note(path, "left", why)
                continue
            (call,) = self.graph.calls_by_path[path]
            conv_path = self.made_by.get(call.inputs[0], "")
            if against := self._against_hoisting(conv_path, se):
                self._put(path, OutputGated(copy.copy(se)))
                self._note(path, "gated in place", against)
            else:
                conv: Any = self.modules[conv_path]
                become(conv, InputGated(copy.copy(conv), se))
                self._put(path, nn.Identity())
                self._note(path, "gated from its input", f"that of {conv_path}")

    def _executed(self, kind: Callable[[nn.Module], bool]) -> list[tuple[str, nn.Module]]:
        """The modules of a kind in order of execution; those that never run come last."""
        calls = self.graph.calls_by_path
        found = [(path, m) for path, m in self.model.named_modules() if kind(m)]
        last = len(self.graph.calls)
        order = {call.path: index for index, call in reversed(list(enumerate(self.graph.calls)))}
        return sorted(found, key=lambda entry: order.get(entry[0], last) if calls else 0)

    def _against_folding(self, path: str, norm: nn.Module) -> str:
        if why := against_changing(self.graph, path, norm):
            return why
        if norm.training:
            return "it stays in training mode"
        if norm.running_mean is None:
            return "it has no running statistics, and so none of its own in evaluation"
        (call,) = self.graph.calls_by_path[path]
        (source,) = call.inputs
        ends = self._ends(source)
        if not ends:
            return self._against_source(source)
        for node in ends:
            conv = self.made_by[node]
            if self.graph.is_read_outside(conv):
                return f"weights of {conv} are read outside of it"
            if why := self._used_elsewhere(conv, node, path if node == source else source):
                return why
        return "" if source in ends else self._seen_elsewhere("a concatenation", source, path)

    def _ends(self, node: int) -> dict[int, slice]:
        """The outputs of convolutions that a tensor is made of, and which of its channels each is.

        It is one itself, or a concatenation of several along their channels; else there are none.
        """
        if node in self.made_by:
            return {node: slice(None)}
        whole, ends, begin = self.graph.nodes[node], {}, 0
        for parent in whole.parents if whole.kind == "cat" and whole.channel_dim == 1 else ():
            channels = self.graph.nodes[parent].channels
            if parent not in self.made_by or channels is None:
                return {}
            ends[parent] = slice(begin, begin + channels)
            begin += channels
        return ends if begin == whole.channels and len(ends) == len(whole.parents) else {}

    def _against_gating(self, path: str, se: SqueezeExcite) -> str:
        if why := against_changing(self.graph, path, se):
            return why
        if type(se) not in (SqueezeExcite, AdoptedSqueezeExcite):
            return f"{type(se).__name__} may compute something else"
        if se.channels_last:
            return "its channels are last"
        if se.options.squeeze != "avg":
            return f"its squeeze is {se.options.squeeze!r}, not a mean over positions"
        (call,) = self.graph.calls_by_path[path]
        (node,) = call.inputs
        if node in self.made_by:
            return self._used_elsewhere(self.made_by[node], node, path)
        if node in self.joined:
            return self._seen_elsewhere("a concatenation", node, path)
        return self._against_source(node)

    def _against_source(self, node: int) -> str:
        """Why what makes ``node`` cannot take in what comes after it."""
        makers = self.graph.producers.get(node)
        path = makers[0].path if makers else ""
        if self.graph.nodes[node].kind == "cat":
            after = f"it follows {path}: a concatenation" if path else "it follows a concatenation"
            return after + self._against_branches(self.graph.nodes[node].parents)
        if not path:
            return "it follows no module, but operators"
        return f"it follows {path}: {obstacle(self.modules[path])}"

    def _against_branches(self, ends: tuple[int, ...]) -> str:
        """Why their concatenation cannot take in what comes after it."""
        others = [self.graph.nodes[end].op for end in ends if end not in self.made_by]
        if not others:
            return f" of {len(ends)} convolutions, not each once and along its channels"
        which = "of which some" if len(others) < len(ends) else "that"
        what = " or ".join(dict.fromkeys(others))
        return f" of branches {which} end in {what}, not in a convolution"

    def _against_hoisting(self, path: str, se: SqueezeExcite) -> str:
        if not path:
            return "it follows a concatenation, not one convolution"
        conv = self.modules[path]
        if self.gates == "output":
            return "asked for"
        layers = {type(se.fc1), type(se.fc2)}
        if layers - {nn.Linear, nn.Identity} or is_hooked(se.fc1) or is_hooked(se.fc2):
            return "a layer of the block does more than multiply"
        if self.graph.is_read_outside(path):
            return f"weights of {path} are read outside of it"
        if not is_convolution(conv):
            return f"the input of a {type(conv).__name__} is not what it convolves"
        (call,) = self.graph.calls_by_path[path]
        h, u = (self.graph.nodes[n].shape for n in (*call.inputs, *call.outputs))
        if self.gates == "cheaper" and not hoisting_pays(conv, h, u):
            return f"no less is read before {path}"
        return ""

    def _used_elsewhere(self, conv: str, node: int, taker: str | int) -> str:
        """Why what a convolution makes cannot be another tensor, taken by one module or node."""
        if len(self.graph.calls_by_path[conv]) != 1:
            return f"{conv} runs {len(self.graph.calls_by_path[conv])} times"
        return self._seen_elsewhere(conv, node, taker)

    def _seen_elsewhere(self, name: str, node: int, taker: str | int) -> str:
        if self.graph.nodes[node].channel_dim != 1:
            return f"the channels of {name} are not where it looks for them"

        def known(user: Node) -> bool:
            inside = f"{user.module}.".startswith(f"{taker}.")
            return user.index == taker if isinstance(taker, int) else inside

        return seen_elsewhere(self.graph, self.modules, node, known, name)

    def _put(self, path: str, new: nn.Module) -> None:
        """``new`` in the place of a block, and of its wrapper too where little is left of that."""
        become(self.modules[path], new)
        above = path.removesuffix(".se")
        wrapper = self.modules.get(above)
        if not isinstance(wrapper, Recalibrated) or is_hooked(wrapper):
            return
        if isinstance(new, nn.Identity):
            become(wrapper, wrapper.norm)
        elif isinstance(wrapper.norm, nn.Identity):
            become(wrapper, new)

    def _note(self, path: str, what: str, why: str) -> None:
        self.rewrites.append(Rewrite(path, what, why))
