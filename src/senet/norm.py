"""The wrapper: a module, in most networks a norm, that ends in SE."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from .block import SqueezeExcite
from .sites import Site

__all__ = ["Recalibrated", "recalibrated_modules"]


class Recalibrated(nn.Module):
    """A transformation's last module together with the SE block that gates what it makes.

    Two children: ``norm``, the wrapped module itself, and ``se``. Parameters are named after
    them (``bn3.norm.weight``, ``bn3.se.fc1.weight``); a state dict of the plain network, in
    which the wrapped module's keys have no ``norm.``, loads too: its parameters go to ``norm``
    and ``se`` stays as it is.

    It is deliberately no BatchNorm: code that converts or freezes BatchNorms
    (`convert_sync_batchnorm`, timm's `freeze_batch_norm_2d`) replaces modules of that type with
    new ones and would drop the block; in a wrapper it replaces the child and keeps the block.

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
        self.training = norm.training

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The wrapped module's output, recalibrated (its input, where ``site.before``)."""
        if self.site.before:
            return self.norm(self.se(x), *args, **kwargs)
        return self.se(self.norm(x, *args, **kwargs))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        self._rename_plain_keys(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _rename_plain_keys(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Give the keys of a plain network's state dict the names they have in the wrapper."""
        # The wrapped module may have a child of its own that is called norm or se, so a single
        # key does not tell the two forms apart; which form explains more of the keys does.
        inner, block = set(self.norm.state_dict()), self.se.state_dict()
        ours = {f"norm.{name}" for name in inner} | {f"se.{name}" for name in block}
        present = {key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)}
        if len(present & ours) > len(present & inner) or (inner and not present):
            return
        for name in sorted(present & inner):
            state_dict[f"{prefix}norm.{name}"] = state_dict.pop(prefix + name)
        # A plain checkpoint says nothing of the block: it stays as it is, also when strict.
        if not any(f"se.{name}" in present for name in block):
            state_dict.update({f"{prefix}se.{name}": value for name, value in block.items()})

    # Initialisers and converters of other libraries look for these on the end of a branch.

    @property
    def weight(self) -> Any:
        """The wrapped module's weight, γ of a norm."""
        return self.norm.weight

    @property
    def bias(self) -> Any:
        """The wrapped module's bias, β of a norm."""
        return self.norm.bias

    @property
    def num_features(self) -> Any:
        """The wrapped norm's number of channels."""
        return self.norm.num_features

    def extra_repr(self) -> str:
        """Which tensor is gated."""
        return f"{self.site.kind}, {self.site.placement}"


def recalibrated_modules(model: nn.Module) -> Iterator[tuple[str, Recalibrated]]:
    """The wrappers of a network with their paths."""
    for path, module in model.named_modules():
        if isinstance(module, Recalibrated):
            yield path, module
