"""Squeeze-and-Excitation for any PyTorch network: put it in, train it, look inside it, ship it.

The names are imported, and torch with them, when they are first asked for: `senet --help` does not
wait for that. What needs more than torch is imported when it is called.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adoption import adopt
    from .block import BlockOptions, SqueezeExcite
    from .deployment import deploy
    from .errors import UserError
    from .excitations import BlockExcitations, Excitations, record
    from .insertion import attach, attached_plan, detach, recalibrate, se_parameters
    from .models import create_model, list_models
    from .norm import Recalibrated
    from .placement import plan
    from .runs import load
    from .sites import Plan, Site
    from .slim_report import SlimReport
    from .slimming import Slimmed, slim
    from .verification import BlockCheck, VerificationError, verify

__all__ = [
    "BlockCheck",
    "BlockExcitations",
    "BlockOptions",
    "Excitations",
    "Plan",
    "Recalibrated",
    "Site",
    "SlimReport",
    "Slimmed",
    "SqueezeExcite",
    "UserError",
    "VerificationError",
    "__version__",
    "adopt",
    "attach",
    "attached_plan",
    "create_model",
    "deploy",
    "detach",
    "list_models",
    "load",
    "plan",
    "recalibrate",
    "record",
    "se_parameters",
    "slim",
    "verify",
]

__version__ = "0.1.0"

_HOMES = {
    "adoption": ("adopt",),
    "block": ("BlockOptions", "SqueezeExcite"),
    "deployment": ("deploy",),
    "errors": ("UserError",),
    "excitations": ("BlockExcitations", "Excitations", "record"),
    "insertion": ("attach", "attached_plan", "detach", "recalibrate", "se_parameters"),
    "models": ("create_model", "list_models"),
    "norm": ("Recalibrated",),
    "placement": ("plan",),
    "runs": ("load",),
    "sites": ("Plan", "Site"),
    "slim_report": ("SlimReport",),
    "slimming": ("Slimmed", "slim"),
    "verification": ("BlockCheck", "VerificationError", "verify"),
}
"""Module → the public names that come from it, as above."""


def __getattr__(name: str) -> Any:
    """A public name, or a module, which is imported now."""
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = value  # from now on without this function
            return value
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__  # and not the modules, of which completion would show many
