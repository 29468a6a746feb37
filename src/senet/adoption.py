"""The SE blocks that a model already has become ours, and return to their own kind."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from . import functional
from .block import BlockOptions, SqueezeExcite
from .errors import UserError
from .given import check_network, exchange
from .hoisting import refuse_deployed
from .hooks import is_hooked

__all__ = ["ADOPTED_ATTRIBUTE", "AdoptedSqueezeExcite", "adopt", "adoptable", "return_adopted"]

Network = TypeVar("Network", bound=nn.Module)
ADOPTED_ATTRIBUTE = "_senet_adopted"
"""Where `adopt` notes on the model whose places it took, so that `verify` sees what was lost."""


@dataclass(frozen=True)
class _Anatomy:
    """Where a foreign block keeps its parts; all are paths below the block.

    Args:
        first: the reducing layer, None in effective SE.
        activation: δ.
        second: the expanding layer.
        gate: σ.
        idle: parts that have to be absent, false or an `Identity`, else the block is left alone.
        channels_last: it gates (N, …, C).
    """

    first: str | None
    activation: str | None
    second: str
    gate: str
    idle: tuple[str, ...] = ()
    channels_last: bool = False


# Known by name, so that none of these libraries has to be imported, or even installed.
_KNOWN: Mapping[str, _Anatomy] = {
    "timm.layers.squeeze_excite.SEModule": _Anatomy(
        "fc1", "act", "fc2", "gate", idle=("bn", "add_maxpool")
    ),
    "timm.layers.squeeze_excite.EffectiveSEModule": _Anatomy(
        None, None, "fc", "gate", idle=("add_maxpool",)
    ),
    "timm.layers.squeeze_excite.SqueezeExciteCl": _Anatomy(
        "fc1", "act", "fc2", "gate", idle=("bn",), channels_last=True
    ),
    "timm.models._efficientnet_blocks.SqueezeExcite": _Anatomy(
        "conv_reduce", "act1", "conv_expand", "gate"
    ),
    "timm.models.senet.SEModule": _Anatomy("fc1", "relu", "fc2", "sigmoid"),
    "torchvision.ops.misc.SqueezeExcitation": _Anatomy(
        "fc1", "activation", "fc2", "scale_activation"
    ),
    "transformers.models.regnet.modeling_regnet.RegNetSELayer": _Anatomy(
        "attention.0", "attention.1", "attention.2", "attention.3"
    ),
}


class AdoptedSqueezeExcite(SqueezeExcite):
    """A `SqueezeExcite` with the weights of a foreign block, which it keeps to return to.

    A state dict of the foreign block loads as well as one of ours.

    Args:
        original: the block that it stands for.
        anatomy: where that keeps its parts.
        options: what it looks like in our words.
        path: where in the network it is.
    """

    def __init__(
        self, original: nn.Module, anatomy: _Anatomy, options: BlockOptions, path: str
    ) -> None:
        second = original.get_submodule(anatomy.second)
        weight: Any = second.weight
        super().__init__(
            weight.shape[0],
            options=options,
            channels_last=anatomy.channels_last,
            device=weight.device,
            dtype=weight.dtype,
        )
        self._original = [original]  # in a list, so that it is no child and has no parameters here
        self._anatomy = anatomy
        self.path = path
        self.train(original.training)
        _share_hooks(original, self)
        for ours, theirs in self._layers():
            layer = original.get_submodule(theirs)
            for name, own in ours.named_parameters():
                value: Any = getattr(layer, name)
                own.data.copy_(value.detach().reshape(own.shape))
                own.requires_grad_(value.requires_grad)

    def _layers(self) -> Iterator[tuple[nn.Module, str]]:
        if self._anatomy.first is not None:
            yield self.fc1, self._anatomy.first
        yield self.fc2, self._anatomy.second

    def returned(self) -> nn.Module:
        """The foreign block, with the weights that ours have by now, where ours are."""
        original = self._original[0].to(self.fc2.weight.device, self.fc2.weight.dtype)
        for ours, theirs in self._layers():
            layer = original.get_submodule(theirs)
            for name, own in ours.named_parameters():
                value: Any = getattr(layer, name)
                value.data.copy_(own.detach().reshape(value.shape))
                value.requires_grad_(own.requires_grad)
        _share_hooks(self, original)
        return original.train(self.training)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        for ours, theirs in zip(("fc2", "fc1"), reversed(list(self._layers())), strict=False):
            for name in ("weight", "bias"):
                key = f"{prefix}{theirs[1]}.{name}"
                if key in state_dict and f"{prefix}{ours}.{name}" != key:
                    state_dict[f"{prefix}{ours}.{name}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def adopt(model: Network) -> Network:
    """Turn the SE blocks that ``model`` already has into ours, in place, and return it.

    Known are timm's `SEModule`, `SqueezeExcite`, `SqueezeExciteCl`, effective SE and the legacy
    SENets' block, torchvision's `SqueezeExcitation`, and the RegNet blocks of Hugging Face's
    transformers. Weights and outputs stay the same; `senet.detach` gives the original blocks
    back. Hooks on a block stay on it. A block with something ours has not (a norm between its
    layers, a max-pooled term, a hook on one of its parts) is left as it is, with a warning that
    says so.

    Raises:
        UserError: the model has none of these blocks, is one itself, or is deployed.

    >>> import torchvision
    >>> network = adopt(torchvision.models.mobilenet_v3_small())
    >>> sum(isinstance(module, SqueezeExcite) for module in network.modules())
    9
    """
    check_network(model)
    refuse_deployed(model)
    found = adoptable(model)
    if "" in found:
        raise UserError(
            f"the model itself is an SE block ({type(model).__name__}), which cannot be replaced "
            "in place; adopt the network that it is in"
        )
    left: dict[str, str] = {}
    adopted: dict[str, tuple[nn.Module, AdoptedSqueezeExcite]] = {}
    for path, module in found.items():
        anatomy = _KNOWN[_qualified(module)]
        try:
            block = AdoptedSqueezeExcite(module, anatomy, _options(module, anatomy), path)
        except _NotOursError as error:
            left[path] = str(error)
        else:
            adopted[path] = (module, block)
    if not adopted:
        why = (
            f"; left as they are: {next(iter(left))} ({next(iter(left.values()))})" if left else ""
        )
        kinds = ", ".join(sorted({name.rpartition(".")[2] for name in _KNOWN}))
        raise UserError(
            f"{type(model).__name__} has no SE blocks to adopt (looked for {kinds}){why}; "
            "senet.attach puts new ones in"
        )
    for old, new in adopted.values():
        exchange(model, old, new)
    setattr(model, ADOPTED_ATTRIBUTE, (*getattr(model, ADOPTED_ATTRIBUTE, ()), *adopted))
    if left:
        path, reason = next(iter(left.items()))
        warnings.warn(
            f"{len(left)} of {len(found)} SE blocks are left as they are: {path} ({reason})",
            stacklevel=2,
        )
    return model


def adoptable(model: nn.Module) -> dict[str, nn.Module]:
    """The SE blocks of other libraries in a network, by path."""
    return {path: m for path, m in model.named_modules() if _qualified(m) in _KNOWN}


def return_adopted(model: nn.Module) -> int:
    """Give all adopted blocks their own kind back, in place; returns how many there were."""
    blocks = [m for m in model.modules() if isinstance(m, AdoptedSqueezeExcite)]
    for block in blocks:
        exchange(model, block, block.returned())
    for module in model.modules():  # the model may have been put into another one since
        vars(module).pop(ADOPTED_ATTRIBUTE, None)
    return len(blocks)


class _NotOursError(Exception):
    """A foreign block has a part that ours has not."""


def _qualified(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _share_hooks(source: nn.Module, target: nn.Module) -> None:
    """Hooks on the one are hooks on the other, so that their handles remove them from both."""
    for name in vars(nn.Module()):
        if "hook" in name:
            setattr(target, name, vars(source)[name])


def _options(block: nn.Module, anatomy: _Anatomy) -> BlockOptions:
    for name, part in block.named_modules():
        if name and is_hooked(part):
            raise _NotOursError(f"a hook is on its {name}")
        if nn.utils.parametrize.is_parametrized(part):
            raise _NotOursError(f"the weights of its {name} are computed anew each time")
    if "forward" in vars(block):
        raise _NotOursError("its forward was replaced")
    for name in anatomy.idle:
        part = getattr(block, name, None)
        if part and not isinstance(part, nn.Identity):
            raise _NotOursError(f"it has {name}")
    second = block.get_submodule(anatomy.second)
    gate = _named(block.get_submodule(anatomy.gate), functional.GATES, "gate")
    bias = second.bias is not None
    if anatomy.first is None or anatomy.activation is None:
        return BlockOptions(bias=bias, gate=gate, bottleneck=False)
    weight: Any = second.weight
    delta = block.get_submodule(anatomy.activation)
    return BlockOptions(
        hidden=weight.shape[1],
        reduction=weight.shape[0] / weight.shape[1],
        bias=bias,
        gate=gate,
        activation=_named(delta, functional.ACTIVATIONS, "activation"),
    )


def _named(module: nn.Module, known: Mapping[str, Callable[[Tensor], Tensor]], what: str) -> str:
    """The name of the function that a module computes, by its values: classes have many names."""
    if any(True for _ in module.parameters()):
        raise _NotOursError(f"its {what} is {type(module).__name__}, which learns")
    at = torch.linspace(-20, 20, 401, device="cpu")
    with torch.no_grad():
        values = module(at.clone())
        for name, function in known.items():
            if torch.allclose(values, function(at), atol=1e-6):
                return name
    raise _NotOursError(f"its {what} is {type(module).__name__}")
