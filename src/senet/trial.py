"""A copy of a network runs forward and backward while its SE blocks are watched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._pytree import tree_leaves, tree_map

from .block import SqueezeExcite
from .errors import UserError
from .given import copied
from .norm import Recalibrated

__all__ = ["Observed", "Trial", "blocks_by_path"]


@dataclass
class Observed:
    """What a trial said of a block.

    Args:
        calls: in one forward.
        gate_gradient: the largest |∂L/∂s| over samples and channels.
        reached: a gradient came back to its output.
        recorded: autograd was on when it was called.
        enters: what it makes changes the results; asked only where no gradient says so.
    """

    calls: int = 0
    gate_gradient: float = 0.0
    reached: bool = False
    recorded: bool = False
    enters: bool = True


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
    """A copy of a model that runs with hooks on its blocks.

    Recomputed forwards (checkpointing) and repeated ones are not counted as calls.

    Args:
        model: is copied, and trainable as a whole in the copy.
        x: the arguments of its forward, as of `senet.verify`.

    Raises:
        UserError: the model cannot be copied.
    """

    def __init__(self, model: nn.Module, x: Any) -> None:
        self.types = {p.dtype for p in model.parameters() if p.is_floating_point()}
        # Gradients vanish in float16. Several types have to agree with each other as they are,
        # and bfloat16 has the range of float32.
        converted = not (len(self.types) > 1 or torch.bfloat16 in self.types)
        self.twin = _prepared(model, to_float32=converted)
        self.dtype = torch.float32 if converted else torch.bfloat16
        self.mixed = len(self.types) > 1
        self.given = x
        self.x = tree_map(self._several, x)
        self.counting = True
        self.blocks = dict(blocks_by_path(self.twin))
        self.observed = {path: Observed() for path in self.blocks}

    def observe(self) -> dict[str, Observed]:
        """Run forward and backward, and again for the blocks that no gradient reached.

        Raises:
            UserError: the forward fails.
        """
        for path, block in self.blocks.items():
            self._watch(block, self.observed[path])
        results = self._run()
        self.counting = False
        carriers = [t.float() for t in results if t.requires_grad]
        if carriers:
            torch.stack([(t * torch.randn_like(t)).sum() for t in carriers]).sum().backward()
        silent = [path for path, o in self.observed.items() if o.calls == 1 and not o.reached]
        if silent:
            with torch.no_grad():
                plain = self._run()
                for path in silent:
                    self.observed[path].enters = self._enters(self.blocks[path], plain)
        return self.observed

    def _watch(self, block: SqueezeExcite, observed: Observed) -> None:
        def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            observed.calls += self.counting
            observed.recorded |= self.counting and torch.is_grad_enabled()
            if output.requires_grad:
                entered = args[0].detach().clone()
                output.register_hook(lambda gradient: arrived(entered, gradient))

        def arrived(entered: Tensor, gradient: Tensor) -> None:
            # y = s · u, so ∂L/∂s sums g · u over the positions of a channel.
            product = (gradient * entered).double()
            channel_dim = product.dim() - 1 if block.channels_last else 1
            positions = [d for d in range(1, product.dim()) if d != channel_dim]
            total = product.sum(positions) if positions else product
            observed.gate_gradient = max(observed.gate_gradient, total.abs().max().item())
            observed.reached |= bool(gradient.count_nonzero())

        block.register_forward_hook(after)

    def _enters(self, block: SqueezeExcite, plain: Sequence[Tensor]) -> bool:
        """Whether the results are others where the block's output is."""

        def disturb(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output * (1 + torch.rand_like(output))

        handle = block.register_forward_hook(disturb)
        disturbed = self._run()
        handle.remove()
        same = len(plain) == len(disturbed) and all(map(torch.equal, plain, disturbed))
        return not same

    def _run(self) -> list[Tensor]:
        """The tensors that a forward results in."""
        torch.manual_seed(0)
        if results := _floating(self._forward()):
            return results
        # A detector that finds nothing returns empty tensors: what its parts make stands for it.
        made: dict[nn.Module, list[Tensor]] = {}

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            made[module] = _floating(output)

        handles = [module.register_forward_hook(keep) for module in self.twin.modules()]
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

    def _several(self, value: Any) -> Any:
        """A single sample becomes four slightly different ones: batch statistics need several."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        value = value.detach().clone() if self.mixed else value.detach().to(self.dtype, copy=True)
        if value.dim() < 2 or value.shape[0] != 1:
            return value
        several = value.repeat(4, *(1,) * (value.dim() - 1))
        return several + 0.1 * torch.randn_like(several)


def _prepared(model: nn.Module, *, to_float32: bool) -> nn.Module:
    """A trainable copy whose zeros do not hide a path."""
    twin = _copied(model).eval()
    twin = twin.float() if to_float32 else twin
    for module in twin.modules():
        if hasattr(module, "running_mean"):
            module.train()  # batch statistics keep a deep, untrained network in range
        if isinstance(module, _NormBase):
            module.register_forward_pre_hook(_use_statistics_of_several)
    for name, buffer in twin.named_buffers():
        # A frozen norm keeps its γ in a buffer; a zero-initialised one is as healthy as a trained.
        if name.rpartition(".")[2] == "weight" and not buffer.any():
            nn.init.uniform_(buffer, 0.5, 1.5)
    for parameter in twin.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
        if parameter.is_floating_point() and not parameter.any():
            nn.init.uniform_(parameter, 0.5, 1.5)
    for _, block in blocks_by_path(twin):
        nn.init.kaiming_normal_(block.fc2.weight, mode="fan_out", nonlinearity="sigmoid")
    return twin


def _use_statistics_of_several(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
    """A single value has no variance: there a norm takes the statistics that it keeps."""
    samples, positions = args[0].shape[0], args[0].shape[2:].numel()
    norm.train(positions > 1 or (samples > 1 and not isinstance(norm, _InstanceNorm)))


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copied(model)
    except Exception as error:  # each kind of sharding refuses in its own way
        cause = error.__cause__ or error
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
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


def _floating(output: Any) -> list[Tensor]:
    """The tensors of an output that can carry a gradient and have any elements.

    They may be in sequences, mappings, data classes and other plain objects.
    """
    found: list[Tensor] = []
    seen: set[int] = set()

    def look(value: Any) -> None:
        if id(value) in seen or isinstance(value, nn.Module | type):
            return
        seen.add(id(value))
        if isinstance(value, Tensor):
            found.extend([value] * (value.is_floating_point() and value.numel() > 0))
            return
        for part in _inside(value):
            look(part)

    look(output)
    return found


def _inside(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple | set):
        return list(value)
    if is_dataclass(value):
        return [getattr(value, each.name) for each in fields(value)]
    return list(getattr(value, "__dict__", {}).values())
