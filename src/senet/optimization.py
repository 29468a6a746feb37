"""How the weights move: the optimizer of a run and the course of its learning rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from .checkpoints import mismatch
from .insertion import se_parameters
from .options import TrainOptions

__all__ = ["make_optimizer", "make_schedule", "unfit_moment"]


def make_optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """SGD or AdamW over the parameters that are trained, those of SE blocks in groups of their own.

    With ``decay_norms`` off, parameters of one dimension (biases, the affine of norms) are in
    groups of their own without weight decay.
    """
    groups: list[dict[str, Any]] = []
    for group in se_parameters(model):
        trained = [p for p in group["params"] if p.requires_grad]
        own = {"lr": options.se_lr} if group["name"] == "se" and options.se_lr else {}
        if options.decay_norms:
            groups.append({"params": trained} | own)
        else:
            groups.append({"params": [p for p in trained if p.ndim > 1]} | own)
            flat = [p for p in trained if p.ndim <= 1]
            groups.append({"params": flat, "weight_decay": 0.0} | own)
    groups = [group for group in groups if group["params"]]
    lr, decay = options.peak_lr, options.weight_decay
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr, weight_decay=decay)
    return torch.optim.SGD(
        groups,
        lr=lr,
        momentum=options.momentum,
        nesterov=options.nesterov,
        weight_decay=decay,
    )


def make_schedule(
    optimizer: torch.optim.Optimizer, options: TrainOptions, steps: int
) -> lr_scheduler.LRScheduler:
    """Warm-up and schedule in optimizer steps, ``steps`` an epoch.

    Milestones count from the beginning of the run. Cosine takes the epochs that warm-up leaves.
    """
    total = options.epochs * steps
    warmup = min(round(options.warmup_epochs * steps), total - 1)
    parts: list[lr_scheduler.LRScheduler] = []
    if warmup:
        parts.append(lr_scheduler.LinearLR(optimizer, options.warmup_factor, total_iters=warmup))
    if options.schedule == "step":
        milestones = [epoch * steps for epoch in options.milestones]
        parts.append(lr_scheduler.MultiStepLR(optimizer, milestones, options.gamma))
        return lr_scheduler.ChainedScheduler(parts, optimizer)
    parts.append(lr_scheduler.CosineAnnealingLR(optimizer, total - warmup))
    return lr_scheduler.SequentialLR(optimizer, parts, [warmup] if warmup else [])


def unfit_moment(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> str | None:
    """Where a saved optimizer lacks momenta, or has others than its parameters'; None if nowhere.

    ``state`` is a state dict with as many groups and parameters as ``optimizer`` has. Parameters
    that never had a gradient have no momenta; that none has any is damage.
    """
    wanted = _moments(optimizer)
    if wanted and not state["state"]:
        return "optimizer_states/0/state"
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, entries in state["state"].items():
        place = f"optimizer_states/0/state/{number}"
        if number not in range(len(parameters)) or not isinstance(entries, dict):
            return place
        if entries.keys() != wanted:
            return place
        for name, value in entries.items():
            # Adam counts its steps in a tensor, of float32 whatever the parameter is.
            expected = torch.zeros(()) if name == "step" else parameters[number]
            if mismatch(expected, value) is not None:
                return f"{place}/{name}"
    return None


def _moments(optimizer: torch.optim.Optimizer) -> set[str]:
    """What an optimizer of `make_optimizer` keeps for each parameter."""
    if isinstance(optimizer, torch.optim.AdamW):
        return {"step", "exp_avg", "exp_avg_sq"}
    return {"momentum_buffer"} if optimizer.defaults["momentum"] else set()
