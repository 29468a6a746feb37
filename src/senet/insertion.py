"""SE into a network and out again."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import replace
from itertools import takewhile
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from .adoption import AdoptedSqueezeExcite, adoptable, return_adopted
from .block import BlockOptions, SqueezeExcite
from .errors import UserError, nearest
from .given import check_module, check_network, exchange
from .hoisting import refuse_deployed
from .norm import Recalibrated, recalibrated_modules
from .placement import Reduction
from .placement import plan as make_plan
from .sites import Plan, Site, SiteFilter

__all__ = ["attach", "attached_plan", "detach", "recalibrate", "se_parameters"]

Network = TypeVar("Network", bound=nn.Module)
PLAN_ATTRIBUTE = "_senet_plan"
"""Where `attach` notes on the model what it did, so that `verify` sees what a conversion lost."""


def attach(
    model: Network,
    plan: Plan | None = None,
    *,
    warm_start: bool = False,
    input_size: tuple[int, ...] | None = None,
    example_inputs: Any = None,
    placement: str = "standard",
    reduction: Reduction = 16,
    sites: SiteFilter | Iterable[SiteFilter] | None = None,
    scope: str | None = None,
    hidden: int | None = None,
    min_hidden: int = 1,
    divisor: int | None = None,
    bias: bool = True,
    gate: str = "sigmoid",
    activation: str = "relu",
    squeeze: str = "avg",
) -> Network:
    """Put SE into ``model``, in place, and return it.

    Args:
        model: any network.
        plan: where, as `senet.plan` gave it; None plans with the options that follow, which
            are those of `senet.placement.plan`. With a plan they are refused, for it has them.
        warm_start: start every gate at exactly one (W₂ = 0, b₂ = 0 and a constant 1/σ(0) on
            the gate), so that the network computes what it did; the default initialisation
            changes its outputs.

    Raises:
        UserError: there is nowhere to attach, SE is already there, the plan does not fit the
            model, or an option makes no sense. The model is then as it was.

    >>> import torchvision
    >>> network = attach(torchvision.models.resnet18())
    >>> network.layer1[0].bn2.se
    SqueezeExcite(
      64, hidden=4
      (fc1): Linear(in_features=64, out_features=4, bias=True)
      (fc2): Linear(in_features=4, out_features=64, bias=True)
    )
    >>> type(network.layer1[0].bn2.norm).__name__
    'BatchNorm2d'
    """
    check_network(model)
    refuse_deployed(model)
    _refuse_attached(model)
    options: dict[str, Any] = {
        "input_size": input_size,
        "example_inputs": example_inputs,
        "placement": placement,
        "reduction": reduction,
        "sites": sites,
        "scope": scope,
        "hidden": hidden,
        "min_hidden": min_hidden,
        "divisor": divisor,
        "bias": bias,
        "gate": gate,
        "activation": activation,
        "squeeze": squeeze,
    }
    if plan is not None and not isinstance(plan, Plan):
        raise UserError(
            f"plan={plan!r} is not what senet.plan makes; to choose among its options, name them "
            "(placement=, sites=, …)"
        )
    if plan is None:
        plan = make_plan(model, **options)
    elif given := [name for name, value in options.items() if _differs(name, value)]:
        raise UserError(f"{given[0]}= goes to senet.plan; here the plan already says it")
    if not plan:
        raise UserError(_nothing(model, plan))
    if warm_start:
        plan = replace(plan, sites=tuple(map(_warm, plan.sites)))
    wrappers = [_wrapper(model, site) for site in plan.sites]
    for wrapper in wrappers:
        if warm_start:
            wrapper.se.zero_init()
        exchange(model, wrapper.norm, wrapper)
    setattr(model, PLAN_ATTRIBUTE, plan)
    return model


def attached_plan(model: nn.Module) -> Plan | None:
    """The plan that ``model`` was attached by, or None for a plain one."""
    found: Plan | None = getattr(model, PLAN_ATTRIBUTE, None)
    return found


def detach(model: Network) -> Network:
    """Take every block that `attach` put in out again, in place, and return the model.

    The wrapped modules return to their places: types, state-dict keys and, where nothing was
    trained since, outputs are those of the original. Adopted blocks return to their own kind,
    with the weights they have by now.

    Raises:
        UserError: the model has no attached block, is one itself, or is deployed.
    """
    check_network(model)
    refuse_deployed(model)
    found = dict(recalibrated_modules(model))
    if "" in found:
        raise UserError(
            "the model itself is what senet.recalibrate made; its .norm is the original"
        )
    if not return_adopted(model) and not found:
        raise UserError(
            f"{type(model).__name__} has no SE that was attached or adopted; nothing to detach"
        )
    for wrapper in reversed(found.values()):
        exchange(model, wrapper, wrapper.norm)
    for module in model.modules():  # the model may have been put into another one since
        vars(module).pop(PLAN_ATTRIBUTE, None)
    return model


def recalibrate(
    transform: nn.Module,
    channels: int,
    *,
    options: BlockOptions | None = None,
    channels_last: bool = False,
) -> Recalibrated:
    """The seed's sentence: for any transformation F_tr, the SE block that recalibrates it.

    Args:
        transform: F_tr, whose output is (N, channels, …).
        channels: C.
        options: what the block looks like; None is the paper's.
        channels_last: its output is (N, …, channels).

    Raises:
        UserError: ``transform`` is no module.

    >>> import torch
    >>> block = recalibrate(nn.Conv2d(3, 32, 3), channels=32)
    >>> block(torch.randn(1, 3, 8, 8)).shape
    torch.Size([1, 32, 6, 6])
    """
    check_module(transform)
    options = options or BlockOptions()
    place = _place_of("", transform)
    se = SqueezeExcite(channels, options=options, channels_last=channels_last, **place)
    params = sum(p.numel() for p in se.parameters())
    macs = sum(p.numel() for p in se.parameters() if p.ndim == 2)
    site = Site("", "chain", channels, se.fc2.in_features, 0, "standard", params, macs)
    return Recalibrated(transform, se, replace(site, block=options, channels_last=channels_last))


def se_parameters(model: nn.Module) -> list[dict[str, Any]]:
    """Two parameter groups for an optimiser, the network's own and the SE blocks'.

    Raises:
        UserError: the model is deployed, its blocks are part of its convolutions.

    >>> import torch, torchvision
    >>> network, blocks = se_parameters(attach(torchvision.models.resnet18()))
    >>> optimizer = torch.optim.SGD([network, blocks | {"lr": 0.5}], lr=0.05)
    >>> [group["lr"] for group in optimizer.param_groups]
    [0.05, 0.5]
    """
    refuse_deployed(model)
    blocks = [m for m in model.modules() if isinstance(m, SqueezeExcite)]
    ours = {id(p): p for block in blocks for p in block.parameters()}
    rest = [p for p in model.parameters() if id(p) not in ours]
    return [
        {"params": rest, "name": "network"},
        {"params": list(ours.values()), "name": "se"},
    ]


def _differs(option: str, value: Any) -> bool:
    """Whether an option of `attach` is not what it is when it is left out."""
    default = inspect.signature(attach).parameters[option].default
    if isinstance(value, str | int | float):
        return bool(value != default)
    return value is not default


def _refuse_attached(model: nn.Module) -> None:
    removable = {wrapper.se for _, wrapper in recalibrated_modules(model)}
    for path, module in model.named_modules():
        if isinstance(module, SqueezeExcite):
            ours = module in removable or isinstance(module, AdoptedSqueezeExcite)
            how = "senet.detach the model first"
            if not ours:
                how = "it is the network's own, which senet.detach leaves; take it out first"
            raise UserError(
                f"SE is already there ({path.removesuffix('.se') or 'the model itself'}); {how}"
            )


def _nothing(model: nn.Module, plan: Plan) -> str:
    looked = "sums with a convolved branch, Inception concatenations, convolution units"
    why = dict.fromkeys(entry.reason for entry in plan.skipped)
    left = f"; left out: {'; '.join(list(why)[:3])}" if why else ""
    own = len(adoptable(model))
    adopt = f"; the {own} SE blocks that it has become ours by senet.adopt" if own else ""
    return f"nothing to attach to in {type(model).__name__} (looked for {looked}){left}{adopt}"


def _warm(site: Site) -> Site:
    return replace(site, block=replace(site.block, gate_scale=site.block.warm_start_scale()))


def _wrapper(model: nn.Module, site: Site) -> Recalibrated:
    modules = dict(model.named_modules(remove_duplicate=False))
    if site.path not in modules or not site.path:
        known = nearest(site.path, modules)
        raise UserError(f"the plan names {site.path!r}, which this model does not have; {known}")
    module = modules[site.path]
    width = _width(module, site)
    if width != site.channels:
        raise UserError(
            f"the plan has {site.channels} channels at {site.path!r}, this model {width}; "
            "plan for this model instead"
        )
    if site.channels_last and isinstance(module, _CHANNELS_FIRST):
        raise UserError(
            f"the plan has the channels of {site.path!r} last, but {type(module).__name__} has "
            "them first; plan for this model instead"
        )
    se = SqueezeExcite(
        site.channels,
        options=site.block,
        channels_last=site.channels_last,
        **_place_of(site.path, model),
    )
    return Recalibrated(module, se.train(module.training), site)


_CHANNELS_FIRST = (_NormBase, nn.GroupNorm, _ConvNd)

# What takes and makes a fixed number of channels, and the attributes that say how many.
_WIDTHS: tuple[tuple[type[nn.Module], str, str], ...] = (
    (_NormBase, "num_features", "num_features"),
    (nn.GroupNorm, "num_channels", "num_channels"),
    (_ConvNd, "in_channels", "out_channels"),
    (nn.Linear, "in_features", "out_features"),
)


def _width(module: nn.Module, site: Site) -> int:
    """The channels that a site would gate at this module; those of the site if it cannot say."""
    for kind, taken, made in _WIDTHS:
        if isinstance(module, kind):
            return int(getattr(module, taken if site.before else made))
    return site.channels


def _place_of(path: str, model: nn.Module) -> dict[str, Any]:
    """Device and type of a module's floating-point tensors, else of those nearest to it."""
    owner = model.get_submodule(path)
    if found := _first_floating([*owner.parameters(), *owner.buffers()]):
        return found
    modules = list(model.named_modules(remove_duplicate=False))
    parts = [name.split(".") for name, _ in modules]
    at = [name for name, _ in modules].index(path)

    def distance(index: int) -> tuple[int, int]:
        shared = takewhile(
            lambda pair: pair[0] == pair[1], zip(parts[index], parts[at], strict=False)
        )
        return -len(list(shared)), abs(index - at)

    for index in sorted(range(len(modules)), key=distance):
        near = modules[index][1]
        if found := _first_floating([*near._parameters.values(), *near._buffers.values()]):
            return found
    return {}


def _first_floating(tensors: Iterable[Tensor | None]) -> dict[str, Any]:
    for tensor in tensors:
        if tensor is not None and tensor.is_floating_point():
            return {"device": tensor.device, "dtype": tensor.dtype}
    return {}
