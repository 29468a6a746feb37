"""Squeeze-and-Excitation for any PyTorch network: put it in, train it, look inside it, ship it.

Importing this imports torch and nothing heavier; what needs more is imported when it is called.
"""

from __future__ import annotations

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


def __dir__() -> list[str]:
    return __all__  # and not the modules, of which completion would show many
