"""A run's processes: how many, and which this is, as torchrun, SLURM, LSF and Lightning tell it."""

from __future__ import annotations

import os
from typing import Literal

import torch

from .errors import UserError

__all__ = ["is_helper", "processes_here"]


def processes_here(devices: int | Literal["auto"], accelerator: str) -> int:
    """The training processes of a machine, one for each of its devices.

    Args:
        devices: how many are asked for; "auto" is all that the machine has, one on the CPU.
        accelerator: Lightning's name of their kind.
    """
    if devices != "auto":
        return devices
    return 1 if accelerator == "cpu" else max(1, torch.accelerator.device_count())


def is_helper() -> bool:
    """Whether this is a process for a further device, which writes and says nothing.

    Known before PyTorch's processes have found each other, from the environment, which is asked
    in the order in which Lightning chooses the launcher it believes: a stale RANK of another
    program, or SLURM's variables under torchrun, count no more here than there.
    """
    return any(_number(name) > 0 for name in _deciding_variables())


def _number(name: str) -> int:
    text = os.environ.get(name) or "0"
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{name} is {text!r} in the environment, but must be a number") from None


def _deciding_variables() -> tuple[str, ...]:
    """The variables of which one is above zero in every process but the first."""
    known = os.environ
    if "TORCHELASTIC_RUN_ID" in known:
        return ("RANK",)
    if "SLURM_NTASKS" in known and known.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        return ("SLURM_PROCID",)
    if "JSM_NAMESPACE_SIZE" in known:
        return ("JSM_NAMESPACE_RANK",)
    # Lightning starts the processes of a machine; of several machines a user numbers each.
    return ("NODE_RANK" if "NODE_RANK" in known else "GROUP_RANK", "LOCAL_RANK")
