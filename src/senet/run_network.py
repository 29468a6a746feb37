"""The network of a run: built from its options, started from another's, checked, written."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from . import models, runs
from .adoption import ADOPTED_ATTRIBUTE
from .block import SqueezeExcite
from .data import DataOptions, ImageData
from .errors import UserError
from .insertion import attached_plan, detach
from .options import TrainOptions
from .verification import verify

if TYPE_CHECKING:
    from .checkpoints import EpochRow, RunRecord

__all__ = [
    "build",
    "check_wiring",
    "export",
    "exporter",
    "normalised_as_trained",
    "restore_weights",
    "start_from",
]


def build(options: TrainOptions, *, num_classes: int) -> nn.Module:
    """The network of the options, initialised from the global generator."""
    return models.create_model(
        options.model,
        num_classes=num_classes,
        pretrained=options.pretrained,
        drop_path=options.drop_path,
        placement=options.placement,
        sites=options.site_filters,
        reduction=options.reductions,
        hidden=options.hidden,
        min_hidden=options.min_hidden,
        divisor=options.divisor,
        bias=options.bias,
        gate=options.gate,
        activation=options.activation,
        squeeze=options.squeeze,
        warm_start=options.warm_start,
    )


def normalised_as_trained(
    wanted: DataOptions,
    options: TrainOptions,
    out: Path,
    record: RunRecord,
    *,
    beside: tuple[Path, RunRecord] | None = None,
) -> DataOptions:
    """The data, its images normalised as those that the network's weights were trained with.

    A run that goes on is trained as it was, a twin as the run ``beside`` it. One that begins has
    it from the run of ``init``, from timm for pretrained weights, else as is usual for the data.

    Raises:
        UserError: the run of ``init`` cannot be read.
    """
    known = None
    if record.rows:
        known = _normalization_of(out, record)
    elif beside is not None:
        known = _normalization_of(*beside)
    elif options.init is not None:
        card = runs.read_card(Path(options.init))
        known = card.mean, card.std
    elif options.pretrained and models.plain_name(options.model)[0].startswith("timm/"):
        known = models.native_normalization(options.model)
    return wanted if known is None else replace(wanted, mean=known[0], std=known[1])


Normalization = tuple[tuple[float, ...], tuple[float, ...]]


def _normalization_of(run: Path, record: RunRecord) -> Normalization | None:
    """Mean and deviation that a run was trained with; None for those usual for its data."""
    if record.data is not None and record.data.mean is not None and record.data.std is not None:
        return record.data.mean, record.data.std
    try:
        card = runs.read_card(run)
    except UserError:  # an earlier version's run, which had those usual for its data
        return None
    return card.mean, card.std


def start_from(model: nn.Module, run: Path, name: str, *, num_classes: int) -> str:
    """Give a network the weights of a run, of the same network or of its plain twin.

    Returns:
        what it started from, in a line.

    Raises:
        UserError: the run holds another network, another number of classes, or SE blocks of
            another kind.
    """
    card = runs.read_card(run)
    if card.num_classes != num_classes:
        raise UserError(
            f"init {run} tells {card.num_classes} classes apart (of {card.data}), but the data "
            f"here has {num_classes}; start from a run with as many"
        )
    theirs, ours = card.plan, runs.plan_of(model)
    if theirs is not None and ours is None:
        raise UserError(f"init {run} holds {card.name}, which has SE, but {name} has none")
    if theirs is not None and ours is not None and _blocks(theirs) != _blocks(ours):
        raise UserError(
            f"init {run} holds {card.name} with SE blocks of other options than {name} here; "
            "give the same options, or start from a plain run"
        )
    weights = runs.load(run).state_dict()
    same_kind = (theirs is None) == (ours is None)
    alike = model if same_kind else detach(deepcopy(model))
    if wrong := runs.differences(alike.state_dict(), weights):
        raise UserError(
            f"init {run} holds {card.name}, whose weights do not fit {name}: it {wrong}"
        )
    model.load_state_dict(weights)
    top1 = "" if card.top1 is None else f", which had top-1 {card.top1:.2%} on its held-out images"
    return f"starting from {card.name} in {run}{top1}"


def _blocks(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """The sites of a plan's document without what is said of them, which may be put otherwise."""
    return [{key: value for key, value in site.items() if key != "note"} for site in plan["sites"]]


def check_wiring(model: nn.Module, data: ImageData) -> int:
    """Verify every SE block on a few images of the data set; return how many there are.

    Raises:
        VerificationError: a block does not take part in forward or backward as planned.
    """
    blocks = any(isinstance(module, SqueezeExcite) for module in model.modules())
    if not blocks and attached_plan(model) is None and not hasattr(model, ADOPTED_ATTRIBUTE):
        return 0
    images = torch.stack([data.val[i][0] for i in range(min(4, len(data.val)))])
    return len(verify(model, images))


def export(
    out: Path, model: nn.Module, options: TrainOptions, data: ImageData, row: EpochRow
) -> None:
    """Write the model's weights and its card to the run directory."""
    card = runs.ModelCard(
        name=options.model,
        num_classes=len(data.classes),
        plan=runs.plan_of(model),
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        image_size=data.image_size,
        versions=runs.package_versions(),
        data=options.data,
        seed=options.seed,
        top1=row.val_top1,
        val_fraction=options.val_fraction,
    )
    runs.save_model(out, model, card)


def exporter(
    out: Path, model: nn.Module, options: TrainOptions, data: ImageData
) -> Callable[[EpochRow], None]:
    """What writes the network of a new best epoch, of which the first process may have a part."""
    if options.strategy == "fsdp":  # but the checkpoint was put together from all parts
        return lambda row: restore_weights(out, options, data)
    return partial(export, out, model, options, data)


def restore_weights(out: Path, options: TrainOptions, data: ImageData) -> None:
    """Write the weights and the card of a run anew from its best checkpoint.

    Raises:
        UserError: there is no such checkpoint, or it is another network's.
    """
    from .checkpoints import BEST, WholeFiles, network_weights, record_of, refuse

    if not (out / BEST).exists():
        raise UserError(
            f"{out} has neither {runs.WEIGHTS} and {runs.CARD} in one piece nor {BEST}; restore "
            "one of them from a copy, or train again into another directory"
        )
    checkpoint = WholeFiles().load_checkpoint(out / BEST)
    weights = network_weights(checkpoint)
    model = build(replace(options, pretrained=False), num_classes=len(data.classes))
    if options.precision == "64-true":
        model.double()
    if wrong := runs.differences(model.state_dict(), weights):
        raise refuse(out / BEST, f"it does not fit {options.model}: it {wrong}")
    model.load_state_dict(weights)
    export(out, model, options, data, record_of(checkpoint).rows[-1])
