"""Who is compared: a plain network, ours, and the same network with the blocks of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from . import models
from .adoption import adopt, adoptable
from .benchmarking import CONTROL, PLAIN
from .errors import UserError
from .norm import recalibrated_modules

__all__ = ["contenders"]

_TIMM_TWINS: Mapping[str, str] = {
    "resnet50": "seresnet50",
    "resnet101": "seresnet101",
    "resnet152": "seresnet152",
    "timm/resnet50": "seresnet50",
    "timm/resnext50_32x4d": "seresnext50_32x4d",
}
"""Networks that timm has with SE as well."""


def contenders(name: str) -> dict[str, Callable[[], nn.Module]]:
    """Row → a function that builds its network, the plain one first and once more as control.

    Args:
        name: a plain network, ``resnet50`` or ``timm/NAME``. One that has SE blocks already is
            compared with itself as it came; ours is then the adopted one.

    Raises:
        UserError: the name is unknown, or that of an SE twin.
    """
    plain, is_se = models.plain_name(name)
    if is_se:
        raise UserError(f"{name!r} is compared with {plain!r}; give the plain network's name")
    if adoptable(models.build_plain(plain)):
        return {
            PLAIN: lambda: models.build_plain(plain),
            CONTROL: lambda: models.build_plain(plain),
            "senet": lambda: adopt(models.build_plain(plain)),
        }
    twin = models.twin_name(plain)
    rows: dict[str, Callable[[], nn.Module]] = {
        PLAIN: lambda: models.build_plain(plain),
        CONTROL: lambda: models.build_plain(plain),
        "senet": lambda: models.create_model(twin),
        "senet, two modules": lambda: _two_modules(models.create_model(twin)),
        "torchvision's block": lambda: _with_torchvision(models.create_model(twin)),
    }
    if plain in _TIMM_TWINS:
        rows["timm"] = lambda: models.build_plain(f"timm/{_TIMM_TWINS[plain]}")
    return rows


def _two_modules(model: nn.Module) -> nn.Module:
    """Norm and block called one after the other."""
    for _, wrapper in recalibrated_modules(model):
        wrapper.implementation = "reference"
    return model


def _with_torchvision(model: nn.Module) -> nn.Module:
    """torchvision's block after each norm instead of ours."""
    from torchvision.ops import SqueezeExcitation

    for path, wrapper in list(recalibrated_modules(model)):
        block = SqueezeExcitation(wrapper.site.channels, wrapper.site.hidden)
        model.set_submodule(path, nn.Sequential(wrapper.norm, block))
    return model
