"""A training run from its options to a run directory, and its resumption."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from . import models, runs
from .block import SqueezeExcite
from .data import DataOptions, ImageData, load_data, train_loader, val_loader
from .errors import UserError
from .insertion import attached_plan
from .options import TrainOptions, changed_option, options_yaml, read_options
from .verification import verify

if TYPE_CHECKING:
    from .checkpoints import EpochRow
    from .twins import Comparison

__all__ = ["CONFIG", "TrainOptions", "TrainResult", "is_helper", "train"]

CONFIG = Path("config.yaml")
CHECKPOINTS = Path("checkpoints")
TWIN = Path("twin")


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
    say: Callable[[str], None] = print,
) -> TrainResult:
    """Train a network and leave a run directory.

    Writes config.yaml, metrics.csv, checkpoints/last.ckpt and best.ckpt, and the best epoch's
    weights as model.safetensors with model.json. On the CPU, with a given number of threads,
    the result is a function of ``options``: a run that was stopped at any moment and resumed
    ends with the same bits.
    With ``options.twin`` the plain twin is trained after it, in ``out/twin``, and the two are
    compared in comparison.json and comparison.md.

    Args:
        options: what to train, on what, and how.
        out: the run directory; made where it is missing.
        resume: go on with the run in ``out``; where there is none yet, begin.
        bar: show a progress bar.
        say: takes the lines that tell what is going on.

    Raises:
        UserError: an unknown model or data set, a directory that holds something else, options
            other than those of the run to be resumed, a loss that is not finite.
        VerificationError: an SE block that is not wired into the network.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM; resume to go on.
    """
    out = Path(out)
    plain = plain_twin(options) if options.twin else None
    if (
        plain is not None
        and options.init
        and not resume
        and runs.read_card(Path(options.init)).plan is not None
    ):
        raise UserError(f"twin needs a plain run to start both from; init {options.init} has SE")
    tell = _say_nothing if is_helper() else say
    with _threads(options.threads):
        result = _train_one(options, out, resume=resume, bar=bar, say=tell)
        if plain is None:
            return result
        _train_one(plain, out / TWIN, resume=resume, bar=bar, say=tell)
        if is_helper():
            return result
        from .twins import compare, write_comparison

        comparison = compare(
            out, out / TWIN, batch_size=options.batch_size, device=_device(options.accelerator)
        )
    write_comparison(comparison, out)
    return replace(result, comparison=comparison)


def _train_one(
    options: TrainOptions, out: Path, *, resume: bool, bar: bool, say: Callable[[str], None]
) -> TrainResult:
    """One network of `train`."""
    from .checkpoints import best_row, write_metrics

    rows = check_directory(out, options, resume=resume)
    if len(rows) >= options.epochs:
        write_metrics(out, rows)
        best = best_row(rows)
        say(
            f"{out} is finished: {len(rows)} epochs, "
            f"top-1 {best.val_top1:.2%} after epoch {best.epoch}"
        )
        return TrainResult(out, tuple(rows), best, trained=False)

    from .fitting import fit, make_trainer, seed_everything

    data_options = data_options_of(options)
    data = load_data(data_options)
    seed_everything(options.seed)
    model = build(options, num_classes=len(data.classes))
    if options.init is not None and not rows:
        start_from(model, Path(options.init), options.model)
    blocks = check_wiring(model, data)
    trainer = make_trainer(
        options,
        out,
        export=partial(export, out, model, options, data),
        report=lambda row: say(progress_line(row, options.epochs)),
        bar=bar,
    )
    begin_directory(out, options)
    say(describe(options, model, data, blocks))
    if rows:
        say(f"{out}: going on after epoch {len(rows)} of {options.epochs}")
    elif resume:
        say(f"{out}: no finished epoch to resume from, beginning with the first")
    loaders = train_loader(data, data_options), val_loader(data, data_options)
    rows = fit(trainer, model, *loaders, options, out, classes=len(data.classes))
    return TrainResult(out, tuple(rows), best_row(rows), trained=True)


def check_directory(out: Path, options: TrainOptions, *, resume: bool) -> list[EpochRow]:
    """Whether a run may be written to ``out``, and the epochs that are finished there.

    Raises:
        UserError: ``out`` is a file, holds something else, or holds a run that is not to be
            resumed, or one with other options.
    """
    from .checkpoints import read_rows

    if is_helper():
        return read_rows(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a directory for the run")
    if (out / CONFIG).exists():
        if not resume:
            raise UserError(
                f"{out} holds another run; add --resume to go on with it, or name another directory"
            )
        old = read_options(out / CONFIG)
        name = changed_option(old, options)
        if name is not None:
            raise UserError(
                f"{name} is {getattr(options, name)} but the run in {out} has "
                f"{getattr(old, name)}; leave it out to resume, or train into another directory"
            )
    elif out.is_dir() and any(not runs.is_temporary(path) for path in out.iterdir()):
        raise UserError(f"{out} is not empty and holds no run; name another directory")
    return read_rows(out)


def begin_directory(out: Path, options: TrainOptions) -> None:
    """Make the directory, clear away what a killed process left half written, note the options."""
    if is_helper():
        return
    out.mkdir(parents=True, exist_ok=True)
    for path in [*out.iterdir(), *(out / CHECKPOINTS).glob("*")]:
        if runs.is_temporary(path):
            path.unlink()
    text = f"# senet train --config {CONFIG} --out DIR\n{options_yaml(options)}"
    runs.atomic_write(out / CONFIG, lambda file: file.writelines([text.encode()]))


def is_helper() -> bool:
    """Whether this is a process for a further device, which writes and says nothing."""
    rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
    return int(rank) > 0


def data_options_of(options: TrainOptions) -> DataOptions:
    """The part of the options that `senet.data` takes."""
    names = [field.name for field in fields(DataOptions)]
    values = {name: getattr(options, name) for name in names}
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
            f"use se_{plain}"
        )
    untouched = TrainOptions()
    return replace(
        options,
        model=plain,
        twin=False,
        placement=untouched.placement,
        reduction=untouched.reduction,
        min_hidden=untouched.min_hidden,
        bias=untouched.bias,
        warm_start=untouched.warm_start,
        se_lr=untouched.se_lr,
    )


def build(options: TrainOptions, *, num_classes: int) -> nn.Module:
    """The network of the options, initialised from the global generator."""
    return models.create_model(
        options.model,
        num_classes=num_classes,
        pretrained=options.pretrained,
        placement=options.placement,
        reduction=options.reduction,
        min_hidden=options.min_hidden,
        bias=options.bias,
        warm_start=options.warm_start,
    )


def start_from(model: nn.Module, run: Path, name: str) -> None:
    """Give a network the weights of a run, of the same network or of its plain twin.

    Raises:
        UserError: the run holds another network, other classes, or SE blocks of another kind.
    """
    card = runs.read_card(run)
    theirs, ours = card.plan, runs.plan_of(model)
    if theirs is not None and (ours is None or theirs["sites"] != ours["sites"]):
        raise UserError(
            f"init {run} holds {card.name} with SE blocks of other options than {name} here; "
            "give the same options, or start from a plain run"
        )
    try:
        model.load_state_dict(runs.load(run).state_dict())
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"init {run} holds {card.name} with {card.num_classes} classes, whose weights do not "
            f"fit {name} here: {reason}"
        ) from None


def check_wiring(model: nn.Module, data: ImageData) -> int:
    """Verify every SE block on a few images of the data set; return how many there are.

    Raises:
        VerificationError: a block does not take part in forward or backward as planned.
    """
    blocks = any(isinstance(module, SqueezeExcite) for module in model.modules())
    if not blocks and attached_plan(model) is None:
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
    )
    runs.save_model(out, model, card)


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
