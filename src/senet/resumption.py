"""What is in a run directory when a run is to begin or to go on there, and whether it may."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from . import runs
from .catalogue import CATALOGUE
from .data import absolute
from .data_record import DataRecord
from .errors import UserError
from .locking import LOCK, DirectoryLock
from .mending import read_progress
from .options import TrainOptions, changed_option, in_yaml, options_yaml, read_options
from .piped import PIPE
from .ranks import is_helper

if TYPE_CHECKING:
    from .checkpoints import RunRecord

__all__ = [
    "CONFIG",
    "advice_where_moved",
    "begin_directory",
    "check_data",
    "check_directory",
    "clear_leftovers",
    "lock_directory",
    "with_absolute_paths",
]

CONFIG = Path("config.yaml")


def with_absolute_paths(options: TrainOptions) -> TrainOptions:
    """The options with folders that mean the same from wherever the run is resumed."""
    init, root = options.init, options.data_root
    if init is not None:
        init = os.path.abspath(runs.expanded(init))
    if not root.startswith("~"):  # the home folder is the reader's, on another machine too
        root = os.path.abspath(root)
    val_data = None if options.val_data is None else absolute(options.val_data)
    return replace(
        options, data=absolute(options.data), val_data=val_data, data_root=root, init=init
    )


def check_directory(out: Path, options: TrainOptions, *, resume: bool) -> RunRecord:
    """Whether a run may be written to ``out``, and what is finished there.

    A directory whose run never finished an epoch is no obstacle: there is nothing to lose.

    Raises:
        UserError: ``out`` is a file, holds something else, or holds a run that is not to be
            resumed, one with other options, or one whose last checkpoint is gone.
    """
    from .checkpoints import LAST, read_record

    if is_helper():
        return read_progress(out, mend=False)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a directory for the run")
    if not (out / CONFIG).exists():
        if out.is_dir() and any(not _is_left_over(path) for path in out.iterdir()):
            raise UserError(f"{out} is not empty and holds no run; name another directory")
        return read_record(out / LAST)
    if resume:
        record = read_progress(out, mend=False)
        _check_options(out, options, record)
        _check_files(out)
        return _with_its_options(out, record)
    if _has_results(out):
        raise UserError(
            f"{out} holds another run; add --resume to go on with it, or name another directory"
        )
    return read_record(out / LAST)


def _is_left_over(path: Path) -> bool:
    """Whether a file is what a killed process left, or macOS's Finder, and nobody's work."""
    return path.name in (LOCK, ".DS_Store") or runs.is_temporary(path)


def _check_options(out: Path, options: TrainOptions, record: RunRecord) -> None:
    old = with_absolute_paths(read_options(out / CONFIG, whole=True))
    name = changed_option(_where_data_is(old, options, record), options)
    if name is None:
        return
    otherwise = "train into another directory"
    if not _has_results(out):
        otherwise = "leave --resume out to begin anew, for no epoch is finished"
    raise UserError(
        f"{name} is {in_yaml(getattr(options, name))} but the run in {out} has "
        f"{in_yaml(getattr(old, name))}; leave it out to resume, or {otherwise}"
    )


def _with_its_options(out: Path, record: RunRecord) -> RunRecord:
    """The record of a run, which was trained with the options that are in its config.yaml."""
    from .checkpoints import LAST

    trained = record.options
    written = read_options(out / CONFIG, whole=True)
    if trained is None:
        return record
    if name := changed_option(_where_data_is(trained, written, record), written):
        raise UserError(
            f"{name} is {in_yaml(getattr(written, name))} in {out / CONFIG}, but "
            f"{in_yaml(getattr(trained, name))} in {LAST}: one was edited, or is another run's; "
            "put it back to resume, or train into another directory"
        )
    return record


def _where_data_is(old: TrainOptions, new: TrainOptions, record: RunRecord) -> TrainOptions:
    """``old``, the data where ``new`` has it if nothing is left in the place where it was.

    `check_data` then knows the files by what they are.
    """
    if record.data is None or not record.data.files:
        return old
    places = {name: getattr(old, name) for name in ("data", "val_data")}
    moved = {
        name: getattr(new, name) for name, place in places.items() if place and _is_gone(place)
    }
    return replace(old, **moved)


def advice_where_moved(data: str, val_data: str | None) -> str:
    """What to type if the folders of data that are gone were moved; "" where none is gone."""
    gone = [
        f"--{name} NEW_PLACE"
        for name, place in (("data", data), ("val_data", val_data))
        if place and place not in CATALOGUE and _is_gone(place)
    ]
    return f"if it was moved, add {' '.join(gone)}" if gone else ""


def _is_gone(place: str) -> bool:
    """Whether a folder, or one of those of a pattern, is not there any more."""
    return not place.startswith(PIPE) and not all(
        _folder_of(part).exists() for part in place.split("::")
    )


def _folder_of(place: str) -> Path:
    """The folder that ``place`` is, or the last one before it is a pattern or a file."""
    path = runs.expanded(place.partition("{")[0] + "x" if "{" in place else place)
    is_file = "{" in place or path.suffix in (".tar", ".json")
    return path.parent if is_file else path


def _check_files(out: Path) -> None:
    """Refuse to begin anew where the results of finished epochs would be written over.

    Earlier versions wrote the first epoch's files in the order best.ckpt, weights, last.ckpt,
    metrics.csv: a run of theirs that was killed between them has nothing to go on from, and begins
    with the first epoch.
    """
    from .checkpoints import BEST, LAST, METRICS, read_record

    if (out / LAST).exists():
        return
    later = len(read_record(out / BEST).rows) > 1
    without_best = not (out / BEST).exists() and _has_results(out)
    if later or without_best or (out / METRICS).exists():
        raise UserError(
            f"{out} has finished epochs but no {LAST} to go on from; restore it from a copy, or "
            "train into another directory"
        )


def _has_results(out: Path) -> bool:
    """Whether ``out`` has a file that only the end of an epoch leaves."""
    from .checkpoints import BEST, LAST, METRICS

    return any((out / name).exists() for name in (METRICS, LAST, BEST, runs.WEIGHTS, runs.CARD))


def check_data(out: Path, record: RunRecord, now: DataRecord) -> None:
    """Refuse to go on with a run on data other than it began with.

    Raises:
        UserError: classes, numbers of images or a folder's files have changed.
    """
    if is_helper() or record.data is None:
        return
    if difference := record.data.difference(now):
        raise UserError(
            f"the data has changed since the run in {out} began: {difference}; put it back as it "
            "was to resume, or train into another directory"
        )


def clear_leftovers(out: Path) -> None:
    """Remove what a killed process left half written in a run directory."""
    if is_helper():
        return
    for path in [*out.glob("*"), *(out / "checkpoints").glob("*")]:
        if runs.is_temporary(path):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise UserError(f"cannot remove {path}: {error.strerror}") from None


def lock_directory(lock: DirectoryLock, out: Path) -> None:
    """Keep other trainings out of ``out``, which is there, while this one goes on.

    Raises:
        UserError: another one is under way there.
    """
    if not is_helper() and not lock.take():
        raise UserError(
            f"another training is under way in {out}; wait until it has ended, or name another "
            "directory"
        )


def begin_directory(out: Path, options: TrainOptions, lock: DirectoryLock) -> None:
    """Make the directory, lock it and note the options there."""
    if is_helper():
        return
    runs.make_directory(out)
    lock_directory(lock, out)
    text = f"# senet train --config {CONFIG} --out DIR\n{options_yaml(options)}"
    runs.atomic_write(out / CONFIG, lambda file: file.writelines([text.encode()]))
