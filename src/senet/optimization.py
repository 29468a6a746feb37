"""How the weights move: the optimizer of a run and the course of its learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from .checkpoints import mismatch
from .insertion import se_parameters
from .options import TrainOptions

__all__ = ["lengths", "make_optimizer", "make_schedule", "unfit_moment"]


def make_optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """SGD or AdamW over the parameters that are trained, those of SE blocks in groups of their own.

    With ``decay_norms`` off, parameters of one dimension (biases, the affine of norms) are in
    groups of their own without weight decay. With ``layer_decay`` each layer has its groups, the
    last layer's first, and a learning rate that is ``layer_decay`` times that of the next layer;
    SE blocks have that of their layer, or ``se_lr`` as it is.
    """
    lr, decay = options.peak_lr, options.weight_decay
    layers = {} if options.layer_decay is None else _layers(model)
    top = max(layers.values(), default=0)
    groups: dict[tuple[int, str, bool], dict[str, Any]] = {}
    for group in se_parameters(model):
        own = options.se_lr if group["name"] == "se" else None
        for parameter in group["params"]:
            if not parameter.requires_grad:
                continue
            below = top - layers.get(parameter, top) if own is None else 0
            spared = not options.decay_norms and parameter.ndim <= 1
            rate = own or lr * (options.layer_decay or 1.0) ** below
            made = {"params": [], "lr": rate, "weight_decay": 0.0 if spared else decay}
            groups.setdefault((below, group["name"], spared), made)["params"].append(parameter)
    ordered = [groups[key] for key in sorted(groups)]
    fused = _fused(model, options)
    if options.optimizer == "adamw":
        return torch.optim.AdamW(ordered, lr=lr, weight_decay=decay, fused=fused)
    sgd = torch.optim.SGD(
        ordered,
        lr=lr,
        momentum=options.momentum,
        nesterov=options.nesterov,
        weight_decay=decay,
        fused=fused,
    )
    if options.momentum:
        sgd.register_step_pre_hook(_begin_momenta)
    return sgd


def _begin_momenta(sgd: torch.optim.Optimizer, *_: Any) -> None:
    """Momenta of 0 where there are none, as a gradient may come later than others do.

    The fused kernel takes those of all parameters, or of none.
    """
    for group in sgd.param_groups:
        for parameter in group["params"] if group["fused"] else ():
            state = sgd.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


def _fused(model: nn.Module, options: TrainOptions) -> bool | None:
    """Whether a step is one kernel for each parameter; None leaves it to PyTorch.

    On a CPU it takes a Python loop over several operators if left to itself. Lightning refuses to
    clip the gradients of a fused optimizer in mixed precision.
    """
    on_cpu = all(p.device.type == "cpu" for p in model.parameters())
    clipped = options.precision.endswith("-mixed") and options.clip_norm is not None
    return True if on_cpu and not clipped else None


def _layers(model: nn.Module) -> dict[nn.Parameter, int]:
    """The layer of each parameter, from 0 at the images to that of the classifier.

    timm's networks say what their layers are. In ours they are the units in the order of their
    definition, which is that of their depth.
    """
    named = dict(model.named_parameters())
    matcher: Callable[..., Any] | None = getattr(model, "group_matcher", None)
    if matcher is not None:
        from timm.models import group_parameters

        numbers = group_parameters(model, matcher(coarse=False), reverse=True)
        return {named[name]: number for name, number in numbers.items()}
    units = {name: _unit(name) for name in named}
    order = {unit: number for number, unit in enumerate(dict.fromkeys(units.values()))}
    return {parameter: order[units[name]] for name, parameter in named.items()}


def _unit(name: str) -> tuple[str, ...]:
    """The unit of one of our networks that a parameter is in: (stage2, unit1), (classifier,)."""
    parts = name.split(".")
    return tuple(parts[: 2 if parts[0].startswith("stage") else 1])


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


def lengths(state: Any) -> list[object]:
    """What of a schedule's state says how many steps it is made for, wherever it is inside."""
    if isinstance(state, list | tuple):
        return [found for each in state for found in lengths(each)]
    if not isinstance(state, dict):
        return []
    own = [dict(v) if isinstance(v, dict) else v for k, v in state.items() if k in _LENGTHS]
    return own + [found for k, v in state.items() if k not in _LENGTHS for found in lengths(v)]


_LENGTHS = ("T_max", "milestones", "_milestones", "total_iters")
