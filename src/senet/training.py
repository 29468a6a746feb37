"""A training run from its options to a run directory, and its resumption."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from . import models, runs
from .catalogue import CATALOGUE
from .data import DataOptions, ImageData, load_data, train_loader, val_loader
from .data_record import DataRecord
from .errors import UserError
from .locking import DirectoryLock
from .mending import read_progress, weights_fault
from .options import TrainOptions
from .ranks import is_helper, processes_here
from .resumption import (
    CONFIG,
    advice_where_moved,
    begin_directory,
    check_data,
    check_directory,
    clear_leftovers,
    lock_directory,
    with_absolute_paths,
)
from .run_network import (
    build,
    check_wiring,
    exporter,
    normalised_as_trained,
    restore_weights,
    start_from,
)
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
    lock = DirectoryLock(out)
    with lock, _threads(options.threads), memory_told(), workers_told():
        if plain is not None:  # before hours are spent on the first of the two
            record = check_directory(out / TWIN, plain, resume=resume)
            if plain.init and not record.rows and runs.read_card(Path(plain.init)).plan is not None:
                raise UserError(
                    f"twin needs a plain run to start both from; init {plain.init} has SE"
                )
        result = _train_one(options, out, lock, resume=resume, bar=bar, pipes=pipes, say=tell)
        if plain is None:
            return result
        with DirectoryLock(out / TWIN) as twins:
            beside = _train_one(
                plain, out / TWIN, twins, beside=out, resume=resume, bar=bar, pipes=pipes, say=tell
            )
        if is_helper():
            return result
        from .checkpoints import LAST, read_record
        from .twins import compare, read_comparison, write_comparison

        finished = not (result.trained or beside.trained)
        if finished and (before := read_comparison(out)) is not None:
            return replace(result, comparison=before)

        known = read_record(out / LAST).data
        most = options.batch_size if known is None else min(options.batch_size, known.train)
        comparison = compare(out, out / TWIN, batch_size=most, device=_device(options.accelerator))
    draw(out, {plain.model: beside.rows, options.model: result.rows})
    write_comparison(comparison, out)
    return replace(result, comparison=comparison)


def _train_one(
    options: TrainOptions,
    out: Path,
    lock: DirectoryLock,
    *,
    beside: Path | None = None,
    resume: bool,
    bar: bool,
    pipes: bool,
    say: Callable[[str], None],
) -> TrainResult:
    """One network of `train`; ``beside`` is the run of the other, on the same data."""
    from .checkpoints import LAST, read_record

    record, fault = _what_is_there(options, out, lock, resume=resume)
    finished = len(record.rows) >= options.epochs
    if finished and fault is None:
        return _finished(out, options, record, say)
    other = None if beside is None else (beside, read_record(beside / LAST))
    wanted = normalised_as_trained(data_options_of(options), options, out, record, beside=other)
    try:
        data = load_data(
            wanted,
            pipes=pipes,
            check=options.nodes * wanted.processes == 1,
            progress=bar and not is_helper(),
        )
    except UserError as error:
        if record.rows and (advice := advice_where_moved(options.data, options.val_data)):
            raise UserError(f"{error}; {advice}") from error
        raise
    now = data.record()
    check_data(out, record, now)
    if other is not None:
        check_data(*other, now)
    if fault is not None:
        restore_weights(out, options, data)
        say(f"{out}: {runs.WEIGHTS} was {fault}, written anew from the best checkpoint")
    if finished:
        return _finished(out, options, record, say)
    return _fitted(options, out, lock, record, data, now, wanted, resume=resume, bar=bar, say=say)


def _what_is_there(
    options: TrainOptions, out: Path, lock: DirectoryLock, *, resume: bool
) -> tuple[RunRecord, str | None]:
    """What is finished in the run directory, and what is wrong with the weights there."""
    if (out / CONFIG).exists():
        lock_directory(lock, out)
    record = check_directory(out, options, resume=resume)
    clear_leftovers(out)
    if not record.rows or is_helper():
        return record, None
    read_progress(out, mend=True)
    return record, weights_fault(out, record.rows)


def _fitted(
    options: TrainOptions,
    out: Path,
    lock: DirectoryLock,
    record: RunRecord,
    data: ImageData,
    now: DataRecord,
    loading: DataOptions,
    *,
    resume: bool,
    bar: bool,
    say: Callable[[str], None],
) -> TrainResult:
    """Train what is left of a run."""
    from .checkpoints import best_row
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
        check=data.check,
    )
    check_shares(trainer, options, train=len(data.train), val=len(data.val))
    begin_directory(out, options, lock)
    say(describe(options, model, data, blocks))
    if origin is not None:
        say(origin)
    if record.rows:
        say(f"{out}: going on after epoch {len(record.rows)} of {options.epochs}")
    elif resume:
        say(f"{out}: no finished epoch to resume from, beginning with the first")
    loaders = train_loader(data, loading), val_loader(data, loading)
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
    from .checkpoints import best_row, write_metrics
    from .curves import CURVES

    if not is_helper():
        write_metrics(out, record.rows)
    best = best_row(record.rows)
    say(
        f"{out} is finished: {len(record.rows)} epochs, "
        f"top-1 {best.val_top1:.2%} after epoch {best.epoch}"
    )
    if not (out / CURVES).exists():  # killed before it was drawn
        draw(out, {options.model: record.rows})
    return TrainResult(out, record.rows, best, trained=False)


def data_options_of(options: TrainOptions) -> DataOptions:
    """The part of the options that `senet.data` takes; a folder's images get the network's size."""
    own = {"processes", "mean", "std"}  # that are no options of a training
    names = [field.name for field in fields(DataOptions) if field.name not in own]
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


def _device(accelerator: str) -> torch.device:
    """Where costs are measured: the kind of device that was trained on."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found if found is not None and accelerator != "cpu" else torch.device("cpu")


def _say_nothing(line: str) -> None:
    """What the processes of further devices say."""


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """PyTorch with so many CPU threads, for a while.

    Where OMP_NUM_THREADS is not set, Lightning divides the cores among the processes of several
    devices instead, in this one too.
    """
    before, said = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(count or before)
    if count is not None:
        os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if said is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        else:
            os.environ["OMP_NUM_THREADS"] = said


@contextmanager
def memory_told() -> Iterator[None]:
    """Have a network or a batch that memory cannot hold told as the user's to mend."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(
            words in str(error)
            for words in ("can't allocate memory", "not enough memory", "out of memory")
        ):
            raise
        raise UserError(
            "not enough memory for this network, or for its batches; try a smaller --batch_size, "
            "--image_size, --hidden or network"
        ) from error
