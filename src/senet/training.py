"""A training run from its options to a run directory, and its resumption."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from . import models, runs
from .adoption import ADOPTED_ATTRIBUTE
from .block import SqueezeExcite
from .catalogue import CATALOGUE
from .data import DataOptions, ImageData, load_data, train_loader, val_loader
from .errors import UserError
from .insertion import attached_plan, detach
from .options import TrainOptions
from .ranks import is_helper, processes_here
from .resumption import (
    CONFIG,
    begin_directory,
    check_data,
    check_directory,
    clear_leftovers,
    weights_fault,
    with_absolute_paths,
)
from .verification import verify
from .watching import workers_told

if TYPE_CHECKING:
    from .checkpoints import EpochRow, RunRecord
    from .twins import Comparison

__all__ = ["CONFIG", "TrainOptions", "TrainResult", "is_helper", "train"]

TWIN = Path("twin")
_WORTH_DRAWING = 10.0
"""Seconds that an epoch has to take for its curves to be drawn before the run ends."""


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Args:
        directory: the run directory.
        rows: metrics.csv, an `EpochRow` each epoch.
        best: the row whose weights model.safetensors holds.
        trained: whether there was something left to train.
        comparison: with the plain twin, whose run is in ``directory/twin``; None without one.
    """

    directory: Path
    rows: tuple[EpochRow, ...]
    best: EpochRow
    trained: bool
    comparison: Comparison | None = None


def train(
    options: TrainOptions,
    out: str | Path,
    *,
    resume: bool = False,
    bar: bool = False,
    pipes: bool = False,
    say: Callable[[str], None] = print,
) -> TrainResult:
    """Train a network and leave a run directory.

    Writes config.yaml, metrics.csv, curves.png, checkpoints/last.ckpt and best.ckpt, and the best
    epoch's weights as model.safetensors with model.json. With ``options.ema_decay`` these are the
    averaged weights, which are those that were validated.
    On the CPU, with a given number of threads, the result is a function of ``options``: a run
    that was stopped at any moment and resumed ends with the same bits.
    With ``options.twin`` the plain twin is trained after it, in ``out/twin``, and the two are
    compared in comparison.json and comparison.md; ``out/curves.png`` then shows both.

    Args:
        options: what to train, on what, and how.
        out: the run directory; made where it is missing.
        resume: go on with the run in ``out``; where there is none yet, begin.
        bar: show a progress bar.
        pipes: run the commands in ``pipe:COMMAND`` of data and val_data, because a person typed
            them: out of a file, a stranger's perhaps, they are refused.
        say: takes the lines that tell what is going on.

    Raises:
        UserError: an unknown model or data set, a directory that holds something else, options
            or data other than those of the run to be resumed, a loss that is not finite.
        VerificationError: an SE block that is not wired into the network.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM; resume to go on.
    """
    out, options = Path(out), with_absolute_paths(options)
    plain = plain_twin(options) if options.twin else None
    tell = _say_nothing if is_helper() else say
    with _threads(options.threads), memory_told(), workers_told():
        if plain is not None:  # before hours are spent on the first of the two
            record = check_directory(out / TWIN, plain, resume=resume)
            if plain.init and not record.rows and runs.read_card(Path(plain.init)).plan is not None:
                raise UserError(
                    f"twin needs a plain run to start both from; init {plain.init} has SE"
                )
        result = _train_one(options, out, resume=resume, bar=bar, pipes=pipes, say=tell)
        if plain is None:
            return result
        beside = _train_one(
            plain, out / TWIN, beside=out, resume=resume, bar=bar, pipes=pipes, say=tell
        )
        if is_helper():
            return result
        from .twins import compare, write_comparison

        comparison = compare(
            out, out / TWIN, batch_size=options.batch_size, device=_device(options.accelerator)
        )
    write_comparison(comparison, out)
    draw(out, {plain.model: beside.rows, options.model: result.rows})
    return replace(result, comparison=comparison)


def _train_one(
    options: TrainOptions,
    out: Path,
    *,
    beside: Path | None = None,
    resume: bool,
    bar: bool,
    pipes: bool,
    say: Callable[[str], None],
) -> TrainResult:
    """One network of `train`; ``beside`` is the run of the other, on the same data."""
    from .checkpoints import LAST, best_row, read_record, write_metrics

    record = check_directory(out, options, resume=resume)
    clear_leftovers(out)
    fault = weights_fault(out) if record.rows and not is_helper() else None
    finished = len(record.rows) >= options.epochs
    if finished:
        write_metrics(out, record.rows)
        if fault is None:
            return _finished(out, options, record, say)
    data_options = data_options_of(options)
    try:
        data = load_data(data_options, pipes=pipes, progress=bar and not is_helper())
    except UserError as error:
        if record.rows and not Path(options.data).exists():
            raise UserError(f"{error}; if it was moved, add --data NEW_PLACE") from error
        raise
    now = data.record()
    check_data(out, record, now)
    if beside is not None:
        check_data(beside, read_record(beside / LAST), now)
    if fault is not None:
        restore_weights(out, options, data)
        say(f"{out}: {runs.WEIGHTS} was {fault}, written anew from the best checkpoint")
    if finished:
        return _finished(out, options, record, say)

    from .classifier import seed_everything
    from .devices import check_shares
    from .fitting import fit, make_trainer

    seed_everything(options.seed)
    model = build(options, num_classes=len(data.classes))
    models.check_image_size(model, options.model, data.image_size)
    origin, so_far = None, list(record.rows)

    def report(row: EpochRow) -> None:
        say(progress_line(row, options.epochs))
        so_far.append(row)
        if row.seconds >= _WORTH_DRAWING:
            draw(out, {options.model: so_far})

    if options.init is not None and not record.rows:
        origin = start_from(model, Path(options.init), options.model, num_classes=len(data.classes))
    blocks = check_wiring(model, data)
    trainer = make_trainer(
        options,
        out,
        data=now,
        export=exporter(out, model, options, data),
        report=report,
        bar=bar,
        finished=len(record.rows),
    )
    check_shares(trainer, options, train=len(data.train), val=len(data.val))
    begin_directory(out, options)
    say(describe(options, model, data, blocks))
    if origin is not None:
        say(origin)
    if record.rows:
        say(f"{out}: going on after epoch {len(record.rows)} of {options.epochs}")
    elif resume:
        say(f"{out}: no finished epoch to resume from, beginning with the first")
    loaders = train_loader(data, data_options), val_loader(data, data_options)
    rows = fit(trainer, model, *loaders, options, out, classes=len(data.classes))
    draw(out, {options.model: rows})
    return TrainResult(out, tuple(rows), best_row(rows), trained=True)


def draw(out: Path, rows: Mapping[str, Sequence[EpochRow]]) -> None:
    """Draw the learning curves of the networks with these names, in one process of several."""
    if is_helper():
        return
    from .curves import write_curves  # matplotlib takes a third of a second

    write_curves(out, rows)


def _finished(
    out: Path, options: TrainOptions, record: RunRecord, say: Callable[[str], None]
) -> TrainResult:
    """The result of a run that has nothing left to train."""
    from .checkpoints import best_row
    from .curves import CURVES

    if not (out / CURVES).exists():  # killed before it was drawn
        draw(out, {options.model: record.rows})
    best = best_row(record.rows)
    say(
        f"{out} is finished: {len(record.rows)} epochs, "
        f"top-1 {best.val_top1:.2%} after epoch {best.epoch}"
    )
    return TrainResult(out, record.rows, best, trained=False)


def restore_weights(out: Path, options: TrainOptions, data: ImageData) -> None:
    """Write the weights and the card of a run anew from its best checkpoint.

    Raises:
        UserError: there is no such checkpoint, or it is another network's.
    """
    from .checkpoints import BEST, WholeFiles, read_record, refuse

    if not (out / BEST).exists():
        raise UserError(
            f"{out} has neither {runs.WEIGHTS} and {runs.CARD} in one piece nor {BEST}; restore "
            "one of them from a copy, or train again into another directory"
        )
    states = WholeFiles().load_checkpoint(out / BEST)["state_dict"]
    weights = {name.removeprefix("model."): tensor for name, tensor in states.items()}
    model = build(replace(options, pretrained=False), num_classes=len(data.classes))
    if options.precision == "64-true":
        model.double()
    if wrong := runs.differences(model.state_dict(), weights):
        raise refuse(out / BEST, f"it does not fit {options.model}: it {wrong}")
    model.load_state_dict(weights)
    export(out, model, options, data, read_record(out / BEST).rows[-1])


def data_options_of(options: TrainOptions) -> DataOptions:
    """The part of the options that `senet.data` takes; a folder's images get the network's size."""
    names = [field.name for field in fields(DataOptions) if field.name != "processes"]
    values = {name: getattr(options, name) for name in names}
    if options.image_size is None and options.data not in CATALOGUE:
        values["image_size"] = models.native_input_size(options.model)[1]
    values["processes"] = processes_here(options.devices, options.accelerator)
    return DataOptions(**values | {"data_root": Path(options.data_root)})


def plain_twin(options: TrainOptions) -> TrainOptions:
    """The same run of the same network without SE.

    Raises:
        UserError: the network has no SE to leave out.
    """
    plain, is_se = models.plain_name(options.model)
    if not is_se:
        raise UserError(
            f"twin trains a network with SE beside its plain twin, but model is {plain}; "
            f"use {models.twin_name(plain)}"
        )
    return options.without_se()


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
    if theirs is not None and ours is not None and theirs["sites"] != ours["sites"]:
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


def describe(options: TrainOptions, model: nn.Module, data: ImageData, blocks: int) -> str:
    """What is going to be trained, in a line."""
    parameters = sum(p.numel() for p in model.parameters())
    wired = f", {blocks} SE blocks, all wired" if blocks else ""
    return (
        f"{options.model}: {parameters:,} parameters{wired}; {options.data}: "
        f"{len(data.train):,} images to train on and {len(data.val):,} held out, "
        f"{len(data.classes)} classes, {data.image_size}×{data.image_size}"
    )


def progress_line(row: EpochRow, epochs: int) -> str:
    """An epoch in a line."""
    return (
        f"epoch {row.epoch:>{len(str(epochs))}}/{epochs}  loss {row.train_loss:.4f}  "
        f"val loss {row.val_loss:.4f}  top-1 {row.val_top1:7.2%}  "
        f"{row.seconds:.1f} s  {row.images_per_second:,.0f} images/s"
    )


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


def _device(accelerator: str) -> torch.device:
    """Where costs are measured: the kind of device that was trained on."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found if found is not None and accelerator != "cpu" else torch.device("cpu")


def _say_nothing(line: str) -> None:
    """What the processes of further devices say."""


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """PyTorch with so many CPU threads, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def memory_told() -> Iterator[None]:
    """Have a network or a batch that memory cannot hold told as the user's to mend."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(
            words in str(error) for words in ("can't allocate memory", "not enough memory")
        ):
            raise
        raise UserError(
            "not enough memory for this network, or for its batches; try a smaller --batch_size, "
            "--image_size, --hidden or network"
        ) from error
