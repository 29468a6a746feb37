"""The wrapper: a module, in most networks a norm, that ends in SE."""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any

from torch import Tensor, nn

from .block import SqueezeExcite
from .errors import UserError
from .fusing import block_operands, is_synchronised, norm_operands, obstacle
from .kernels import Choice, norm_excite, select
from .sites import Site

__all__ = ["Recalibrated", "recalibrated_modules"]


_OWN = frozenset(("norm", "se", "site", "implementation", "training"))
"""What the wrapper has itself, whatever the wrapped module has."""


class Recalibrated(nn.Module):
    """A transformation's last module together with the SE block that gates what it makes.

    Two children: ``norm``, the wrapped module itself, and ``se``. Parameters are named after
    them (``bn3.norm.weight``, ``bn3.se.fc1.weight``); a state dict of the plain network, in
    which the wrapped module's keys have no ``norm.``, loads too: its parameters go to ``norm``
    and ``se`` stays as it is.

    It is deliberately no BatchNorm: code that converts or freezes BatchNorms
    (`convert_sync_batchnorm`, timm's `freeze_batch_norm_2d`) replaces modules of that type with
    new ones and would drop the block; in a wrapper it replaces the child and keeps the block.

    Where ``norm`` is a BatchNorm, the two run as one operation (`senet.kernels`) that costs about
    what the norm does, but for small maps on a CPU; `choice` says what runs and why. Set
    ``implementation`` to one of `senet.kernels.IMPLEMENTATIONS` to have that or an error;
    "reference" calls the two modules.

    Attributes that the wrapper has not are those of ``norm``, to read and to set.

    Args:
        norm: the wrapped module, its output or first input (N, C, …).
        se: the block.
        site: where in the network this is, as planned.
    """

    def __init__(self, norm: nn.Module, se: SqueezeExcite, site: Site) -> None:
        super().__init__()
        self.norm = norm
        self.se = se
        self.site = site
        self.implementation: str | None = None
        self.training = norm.training

    def forward(self, x: Any = None, /, *args: Any, **kwargs: Any) -> Any:
        """The wrapped module's output, recalibrated (its input, where ``site.before``).

        The arguments are the wrapped module's, whatever it calls them.
        """
        alone = not (x is None or args or kwargs)
        if self._composed_because(x, alone):
            if self.site.before:
                return self.norm(self.se(x), *args, **kwargs)
            given = () if x is None and not args else (x, *args)  # by name, or left out
            return self.se(self.norm(*given, **kwargs))
        operands = norm_operands(self.norm, x), block_operands(self.se)
        return norm_excite(x, *operands, self.implementation)

    def choice(self, x: Tensor) -> Choice:
        """What would run for this input, and why; nothing runs.

        Raises:
            UserError: ``implementation`` was set to one that cannot.
        """
        if reason := self._composed_because(x):
            return Choice("reference", reason)
        operands = norm_operands(self.norm, x, count=False), block_operands(self.se)
        return select(x, *operands, self.implementation)

    def _composed_because(self, x: Tensor, alone: bool = True) -> str:
        """Why the two modules are called one after the other, or nothing.

        Args:
            x: the input.
            alone: it comes by its place, and nothing with it.

        Raises:
            UserError: ``implementation`` asks for something else.
        """
        if self.implementation == "reference":
            return "asked for"
        if self.site.before:
            reason = "the block comes before the module"
        elif not alone:
            reason = "the module is called with more than its input, or with that by name"
        else:
            reason = obstacle(self.norm, self.se, x)
        if not reason and is_synchronised(self.norm):
            # The composed form of the operation knows one process only; the module knows all.
            operands = norm_operands(self.norm, x, count=False), block_operands(self.se)
            choice = select(x, *operands)
            reason = choice.reason if choice.implementation == "reference" else ""
        if reason and self.implementation:
            raise UserError(
                f"implementation {self.implementation!r} cannot run at "
                f"{self.site.path or 'this module'}: {reason}"
            )
        return reason

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        self._rename_plain_keys(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _rename_plain_keys(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Give the keys of a plain network's state dict the names they have in the wrapper."""
        # The wrapped module may have a child of its own that is called norm or se, so a single
        # key does not tell the two forms apart; which form explains more of the keys does.
        plain, block = _names(self.norm), self.se.state_dict()
        gates = {f"se.{name}" for name in block}
        ours = {f"norm.{name}" for name in plain} | gates
        present = {key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)}
        if len(present & ours) > len(present & plain) or (plain and not present):
            return
        for name in sorted(present & plain):
            state_dict[f"{prefix}norm.{name}"] = state_dict.pop(prefix + name)
        # A plain checkpoint says nothing of the block: it stays as it is, also when strict.
        if not present & gates - plain:
            state_dict.update({f"{prefix}se.{name}": value for name, value in block.items()})

    def __getattr__(self, name: str) -> Any:
        """What else is asked of the wrapper is the wrapped module's: ``weight``, ``stride`` …

        Forwards, initialisers and converters read such attributes. Methods do not come through:
        what they make would go round the block (timm's ``fuse`` would even replace it).
        """
        try:
            return super().__getattr__(name)
        except AttributeError:
            norm = self.__dict__.get("_modules", {}).get("norm")  # not there while unpickling
            if norm is None or name.startswith("_"):
                raise
            value = getattr(norm, name)
            if isinstance(value, MethodType):
                raise AttributeError(
                    f"{name}() of the wrapped {type(norm).__name__} would leave the SE block out; "
                    f"call the wrapper, or {name}() of its .norm"
                ) from None
            return value

    def __setattr__(self, name: str, value: Any) -> None:
        """What is read from the wrapped module is set there too: ``momentum``, ``eps`` …"""
        norm = self.__dict__.get("_modules", {}).get("norm")
        own = name in _OWN or name.startswith("_") or hasattr(type(self), name)
        if norm is not None and not own and _has_value(norm, name):
            setattr(norm, name, value)
        else:
            super().__setattr__(name, value)

    def extra_repr(self) -> str:
        """Which tensor is gated."""
        return f"{self.site.kind}, {self.site.placement}"


def _has_value(module: nn.Module, name: str) -> bool:
    """Whether a module has such an attribute, and it is no method."""
    return hasattr(module, name) and not isinstance(getattr(module, name), MethodType)


def _names(module: nn.Module) -> set[str]:
    """The keys that a module's state dict may have, for each wrapper in it plain or not."""
    names = set(module.state_dict())
    modules = list(module.named_modules(remove_duplicate=False))
    for path, inside in reversed(modules):  # from the inside out, so that all forms come about
        if isinstance(inside, Recalibrated):
            prefix = f"{path}.norm." if path else "norm."
            short = prefix.removesuffix("norm.")
            names |= {short + key.removeprefix(prefix) for key in names if key.startswith(prefix)}
    return names


def recalibrated_modules(model: nn.Module) -> Iterator[tuple[str, Recalibrated]]:
    """The wrappers of a network with their paths."""
    for path, module in model.named_modules():
        if isinstance(module, Recalibrated):
            yield path, module
