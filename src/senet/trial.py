"""A copy of a network runs forward and backward, its SE blocks watched, and then as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._pytree import tree_leaves

from .block import SqueezeExcite
from .errors import UserError
from .given import copied
from .norm import Recalibrated, recalibrated_modules
from .outputs import floating_tensors
from .samples import are_distinct, several

__all__ = ["Observed", "Trial", "blocks_by_path"]


DRAWS = 4
"""Forwards in which a block may be left out by chance (stochastic depth) before it counts."""


@dataclass
class Observed:
    """What a trial said of a block.

    Args:
        calls: how often its gates were computed in one forward.
        gate_gradient: the largest |∂L/∂s| over samples and channels.
        reached: a gradient came back to its gates.
        recorded: autograd was on when it was called.
        enters: what it makes changes the results; asked only where no gradient says so.
        varies: what it gates is not the same whatever the network is given.
        differs: what its wrapper computes, run as it is, is not norm and block one after the
            other; says how, or "".
        untrained: a gradient that comes to its parameters here is missing where the model runs as
            it is; says which, or "".
    """

    calls: int = 0
    gate_gradient: float = 0.0
    reached: bool = False
    recorded: bool = False
    enters: bool = True
    varies: bool = True
    differs: str = ""
    untrained: str = ""


def blocks_by_path(model: nn.Module) -> list[tuple[str, SqueezeExcite]]:
    """The blocks, each under its wrapper's path where it has one."""
    modules = dict(model.named_modules())
    found = []
    for path, module in modules.items():
        if isinstance(module, SqueezeExcite):
            parent = path.rpartition(".")[0]
            wrapped = isinstance(modules.get(parent), Recalibrated)
            found.append((parent if wrapped else path, module))
    return found


class Trial:
    """A copy of a model that runs twice: with its blocks watched, and as it is.

    First norms and blocks are called one after the other, so that gates can be watched; then the
    wrappers run what they choose to run, in training mode where the forward allows it.
    Recomputed forwards (checkpointing) and repeated ones are not counted as calls.

    Args:
        model: is copied, and trainable as a whole in the copy.
        x: the arguments of its forward, as of `senet.verify`.
        seed: seeds torch's generators on the model's devices.

    Raises:
        UserError: the model cannot be copied.
    """

    def __init__(self, model: nn.Module, x: Any, seed: Callable[[int], None]) -> None:
        self.types = {p.dtype for p in model.parameters() if p.is_floating_point()}
        # Gradients vanish in float16. Several types have to agree with each other as they are,
        # and bfloat16 has the range of float32.
        converted = not (len(self.types) > 1 or torch.bfloat16 in self.types)
        self.seed = seed
        self.seed(0)
        self.twin = _prepared(model, to_float32=converted)
        self.mixed = len(self.types) > 1
        self.given = x
        dtype = torch.float32 if converted else torch.bfloat16
        self.x = several(x, None if self.mixed else dtype)
        self.distinct = are_distinct(self.x)
        self.counting = True
        self.disturbed: SqueezeExcite | None = None
        self.blocks = dict(blocks_by_path(self.twin))
        self.wrappers = dict(recalibrated_modules(self.twin))
        self.observed = {path: Observed() for path in self.blocks}
        self.statistics = _Statistics(self.twin)

    def observe(self) -> dict[str, Observed]:
        """Run forward and backward, again for the blocks that no gradient reached, and as it is.

        Raises:
            UserError: the forward fails.
        """
        wanted = {wrapper: wrapper.implementation for wrapper in self.wrappers.values()}
        for wrapper in wanted:
            wrapper.implementation = "reference"
        own = {block: vars(block).get("gates") for block in self.blocks.values()}
        for path, block in self.blocks.items():
            self._watch(block, self.observed[path])
        results = self._run()
        self.counting = False
        _backward(results)
        silent = [path for path, o in self.observed.items() if o.calls == 1 and not o.reached]
        if silent:
            with torch.no_grad():
                plain = self._run()
                for path in silent:
                    self.disturbed = self.blocks[path]
                    disturbed = self._run()
                    same = len(plain) == len(disturbed) and all(map(torch.equal, plain, disturbed))
                    self.observed[path].enters = not same
        for block, method in own.items():
            vars(block).pop("gates") if method is None else vars(block).update(gates=method)
        for wrapper, implementation in wanted.items():
            wrapper.implementation = implementation
        self._run_as_it_is()
        return self.observed

    def _watch(self, block: SqueezeExcite, observed: Observed) -> None:
        compute = block.gates

        def gates(u: Tensor) -> Tensor:
            s = compute(u)
            if self.counting:
                observed.calls += 1
                observed.recorded |= torch.is_grad_enabled()
                observed.varies &= _varies(u, self.distinct)
            if self.disturbed is block:
                return s * (1 + torch.rand_like(s))
            if torch.is_grad_enabled():
                # Layers without a derivative (quantised ones) do not keep the gate from having one.
                s = s if s.requires_grad else s.detach().clone().requires_grad_()
                s.register_hook(arrived)
            return s

        def arrived(gradient: Tensor | None) -> None:
            if gradient is not None and gradient.count_nonzero():  # None from quantised layers
                observed.reached = True
                largest = gradient.abs().max().item()
                observed.gate_gradient = max(largest, observed.gate_gradient)  # NaN comes first

        vars(block)["gates"] = gates  # not the block's forward: a user's may ask for gates alone

    def _run_as_it_is(self) -> None:
        """Forward and backward with nothing hung on norms and blocks, in training mode if it can.

        A hook on a wrapper leaves it the choice of what it runs.
        """
        moved = {path: _moved(block) for path, block in self.blocks.items()}
        self.statistics.settle()
        self.twin.zero_grad()
        prototype = self.twin
        for mode in ("training", "evaluation"):
            missing = moved
            try:
                for draw in range(DRAWS):
                    # On a copy, for a network may keep what it has computed, and its graph.
                    self.twin = copied(prototype)
                    self._listen(mode == "training")
                    _backward(self._run(draw))
                    still = {p: _moved(block) for p, block in self.blocks.items()}
                    missing = {path: names - still[path] for path, names in missing.items()}
                    if not any(missing.values()):
                        break
            except UserError:
                if mode == "evaluation":
                    raise
                continue  # it takes other arguments in training, as detectors take targets
            for path, names in missing.items():
                self.observed[path].untrained = f"{min(names)} in {mode} mode" if names else ""
            return

    def _listen(self, training: bool) -> None:
        self.blocks = dict(blocks_by_path(self.twin))
        self.wrappers = dict(recalibrated_modules(self.twin))
        for path, wrapper in self.wrappers.items():
            # Marked here and not where it is defined: marking imports the compiler.
            wrapper.register_forward_pre_hook(torch.compiler.disable(_take_any_size))
            apart = torch.compiler.disable(_compare)
            compare = partial(apart, self.observed.get(path, Observed()))
            wrapper.register_forward_hook(compare, with_kwargs=True, prepend=True)
        for module in self.twin.modules():
            # Only what is around the blocks: dropped-out parts stay as they are.
            if blocks_by_path(module):
                module.training = training

    def _run(self, seed: int = 0) -> list[Tensor]:
        """The tensors that a forward results in."""
        self.seed(seed)
        if results := floating_tensors(self._forward()):
            return results
        # A detector that finds nothing returns empty tensors: what its parts make stands for it.
        made: dict[nn.Module, list[Tensor]] = {}

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            made[module] = floating_tensors(output)

        wrappers = set(self.wrappers.values())
        within = {m for wrapper in wrappers for m in wrapper.modules()} - wrappers
        handles = [m.register_forward_hook(keep) for m in self.twin.modules() if m not in within]
        counting, self.counting = self.counting, False
        self._forward()
        self.counting = counting
        for handle in handles:
            handle.remove()
        return _parts(self.twin, made)

    def _forward(self) -> Any:
        try:
            if isinstance(self.x, Mapping):
                return self.twin(**self.x)
            return self.twin(*(self.x if isinstance(self.x, tuple) else (self.x,)))
        except Exception as error:
            shapes = [tuple(t.shape) for t in tree_leaves(self.given) if isinstance(t, Tensor)]
            names = sorted(str(t).removeprefix("torch.") for t in self.types)
            types = f" (its parameters are {' and '.join(names)})" if self.mixed else ""
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"the forward of {type(self.twin).__name__}{types} failed on input of shape "
                f"{', '.join(map(str, shapes)) or 'none'}: {reason}; give verify what it accepts"
            ) from error


class _Statistics:
    """Which statistics the norms of a network take.

    Those of the batch keep a deep, untrained network in range. A single value has no variance:
    there a norm takes the statistics that it keeps.
    """

    def __init__(self, network: nn.Module) -> None:
        self.of_batch: dict[nn.Module, bool] = {}
        self.handles: dict[nn.Module, Any] = {}
        for module in network.modules():
            if hasattr(module, "running_mean"):
                module.training = True
            if isinstance(module, _NormBase):
                self.handles[module] = module.register_forward_pre_hook(
                    self._choose, with_kwargs=True
                )

    def _choose(self, norm: nn.Module, args: tuple[Tensor, ...], kwargs: Any) -> None:
        (x, *_) = args or kwargs.values()
        samples, positions = x.shape[0], x.shape[2:].numel()
        norm.training = positions > 1 or (samples > 1 and not isinstance(norm, _InstanceNorm))
        self.of_batch[norm] = norm.training and self.of_batch.get(norm, True)

    def settle(self) -> None:
        """Leave the norms as they have run, without a hook."""
        for norm, handle in self.handles.items():
            handle.remove()
            norm.training = self.of_batch.get(norm, norm.training)


def _prepared(model: nn.Module, *, to_float32: bool) -> nn.Module:
    """A trainable copy whose zeros do not hide a path."""
    twin = _copied(model).eval()
    twin = twin.float() if to_float32 else twin
    for name, buffer in twin.named_buffers():
        # A frozen norm keeps its γ in a buffer; a zero-initialised one is as healthy as a trained.
        if name.rpartition(".")[2] == "weight" and not buffer.any():
            nn.init.uniform_(buffer, 0.5, 1.5)
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
        if parameter.is_floating_point() and not parameter.any():
            nn.init.uniform_(parameter, 0.5, 1.5)
    for _, block in blocks_by_path(twin):
        if isinstance(block.fc2, nn.Linear):  # else an adapter or a quantised layer
            nn.init.kaiming_normal_(block.fc2.weight, mode="fan_out", nonlinearity="sigmoid")
    return twin


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copied(model)
    except UserError as error:
        reason = (str(error.__cause__).strip() or type(error.__cause__).__name__).splitlines()[0]
        raise UserError(
            f"{type(model).__name__} cannot be copied ({reason}); "
            "verify a model before it is sharded or otherwise tied to its process"
        ) from error


def _parts(module: nn.Module, made: Mapping[nn.Module, list[Tensor]]) -> list[Tensor]:
    """What the modules inside ``module`` made, of each branch the outermost that made any."""
    found: list[Tensor] = []
    for child in module.children():
        if not isinstance(child, SqueezeExcite):
            found += made.get(child) or _parts(child, made)
    return found


def _backward(results: Sequence[Tensor]) -> None:
    carriers = [t.float() for t in results if t.requires_grad]
    if carriers:
        torch.stack([(t * torch.randn_like(t)).sum() for t in carriers]).sum().backward()


def _varies(u: Tensor, distinct: bool) -> bool:
    """Whether u, (N, C, S₁, …), differs between samples, as the network's ``distinct`` inputs do.

    Where these do not, or there is one sample, between positions will do; a single value may be
    anything.
    """
    u = u.detach()
    along = [0] if distinct and len(u) > 1 else [0, *range(2, u.dim())]
    if math.prod(u.shape[d] for d in along) < 2:
        return True
    spread = u.amax(along) - u.amin(along)
    rounding = 8 * torch.finfo(u.dtype).eps * u.abs().amax()
    return not bool((spread <= rounding).all())


def _moved(block: SqueezeExcite) -> set[str]:
    """The parameters of a block that have a finite gradient other than zero."""
    gradients = {name: p.grad for name, p in block.named_parameters()}
    return {
        name
        for name, gradient in gradients.items()
        if gradient is not None and gradient.any() and gradient.isfinite().all()
    }


def _take_any_size(wrapper: nn.Module, args: tuple[Any, ...]) -> None:
    """Have a small map run as one operation, as a larger one will in training."""
    assert isinstance(wrapper, Recalibrated)
    if wrapper.implementation is not None or not args:
        return
    if wrapper.choice(args[0]).implementation == "reference":
        wrapper.implementation = "aten"
        try:
            wrapper.choice(args[0])
        except UserError:  # it is not its size that is against it
            wrapper.implementation = None


@torch.no_grad()
def _compare(
    observed: Observed, wrapper: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any
) -> None:
    """Hold what a wrapper made against its norm and its block called one after the other."""
    assert isinstance(wrapper, Recalibrated)
    if len(args) != 1 or kwargs or (ran := wrapper.choice(args[0]).implementation) == "reference":
        return
    expected = wrapper.se(wrapper.norm(args[0]))
    largest = expected.abs().max().item()
    off = (output - expected).abs().max().item()
    # Sums in another order differ by rounding: by less than 1 % of the largest value in half
    # precision, than 0.1 % in single (with TF32). A gate left out is some ten percent.
    types = {output.dtype, args[0].dtype}
    if torch.is_autocast_enabled(output.device.type):
        types.add(torch.get_autocast_dtype(output.device.type))
    half = types & {torch.float16, torch.bfloat16}
    if not off <= (0.05 if half else 0.005) * largest:
        observed.differs = f"{ran!r} is {off:.2g} off where the largest value is {largest:.2g}"
