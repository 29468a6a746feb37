"""Checkpoints written whole or not at all, and the record of a run that travels in them."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO
from zipfile import BadZipFile, ZipFile

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from packaging.version import InvalidVersion, Version
from torch import Tensor

from .data_record import DataRecord
from .errors import UserError
from .options import TrainOptions
from .runs import atomic_write, make_directory

__all__ = [
    "BEST",
    "LAST",
    "METRICS",
    "RECORDER",
    "TRAINED",
    "EpochRow",
    "RunRecord",
    "WholeFiles",
    "best_row",
    "copy_checkpoint",
    "is_dense",
    "mismatch",
    "network_weights",
    "read_record",
    "record_of",
    "refuse",
    "rows_of",
    "write_metrics",
]

LAST = Path("checkpoints", "last.ckpt")
BEST = Path("checkpoints", "best.ckpt")
METRICS = Path("metrics.csv")
RECORDER = "RunRecorder"
"""Where Lightning keeps the state of `senet.recorder.RunRecorder` among the callbacks'."""
TRAINED = "trained_state_dict"
"""Where a checkpoint has the weights that are trained, if ``state_dict`` has their average."""


@dataclass(frozen=True)
class EpochRow:
    """A line of metrics.csv: what one epoch came to.

    Args:
        epoch: counted from 1.
        step: optimizer steps taken since the beginning of the run.
        train_loss: mean over the images of the epoch, as they were trained on.
        val_loss: mean cross-entropy over the validation images, without label smoothing.
        val_top1: share of validation images whose class is the highest logit.
        val_top5: share whose class is among the five highest logits.
        lr: learning rate of the epoch's last step.
        seconds: wall clock of the epoch, validation included.
        images_per_second: training images over the wall clock of training alone.
        train_top1: share of the epoch's images whose class was the highest logit as they were
            trained on: augmented, by the weights of the moment, and where two were mixed that of
            the larger part; None where a version that did not count it left the row.
    """

    epoch: int
    step: int
    train_loss: float
    val_loss: float
    val_top1: float
    val_top5: float
    lr: float
    seconds: float
    images_per_second: float
    train_top1: float | None = None


@dataclass(frozen=True)
class RunRecord:
    """What a checkpoint says of the run so far.

    Args:
        rows: the finished epochs.
        data: what they were trained on; None in checkpoints that do not say.
        options: what they were trained with; likewise.
    """

    rows: tuple[EpochRow, ...] = ()
    data: DataRecord | None = None
    options: TrainOptions | None = None


class WholeFiles(TorchCheckpointIO):
    """Checkpoint files that are replaced whole and read without running anything in them."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write ``checkpoint`` beside ``path``, sync it to the disk and move it over ``path``.

        Raises:
            UserError: it cannot be written, on a full disk for one; ``path`` is as it was.
        """
        path = Path(path)
        make_directory(path.parent)
        data = io.BytesIO()  # torch.save, into a file on a full disk, hides what went wrong
        torch.save(checkpoint, data)
        atomic_write(path, lambda file: file.write(data.getbuffer()))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint with ``weights_only=True``, whatever is asked for.

        Raises:
            UserError: the file is missing, cut short, not a checkpoint of a run, or holds
                objects that would have to be executed.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: no such checkpoint")
        with path.open("rb") as file:
            if file.read(2) != b"PK":  # what torch.save writes is a zip archive
                raise refuse(path, "it is not a checkpoint of senet")
        try:
            with ZipFile(path) as archive:  # torch.load does not look at the checksums
                if archive.testzip() is not None:
                    raise BadZipFile
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
        except UnpicklingError:
            raise refuse(path, "it is not a checkpoint of senet") from None
        except Exception as error:  # a damaged archive raises nearly every type there is
            raise refuse(path, "it is cut short or damaged") from error
        if reason := _damage(checkpoint):
            raise refuse(path, reason)
        return checkpoint


def refuse(path: str | Path, reason: str) -> UserError:
    """The error for a checkpoint that no run can go on from."""
    return UserError(
        f"cannot go on from {path}: {reason}; restore it from a copy, or train again into "
        "another directory"
    )


_PARTS: dict[str, type] = {
    "state_dict": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": dict,
    "callbacks": dict,
    "epoch": int,
    "global_step": int,
    "pytorch-lightning_version": str,
}
_OLDEST = Version("2.5")


def _damage(checkpoint: Any) -> str | None:
    """What a checkpoint lacks to be one of a run, as far as the file alone can tell."""
    if not isinstance(checkpoint, dict):
        return "it is not a checkpoint of senet"
    callbacks = checkpoint.get("callbacks")
    if not isinstance(callbacks, dict) or RECORDER not in callbacks:
        return "it is not a checkpoint of senet"
    if (option := _unknown_option(callbacks[RECORDER])) is not None:
        return f"it has an option {option!r}, which this version of senet does not know"
    for name, kind in _PARTS.items():
        if not isinstance(checkpoint.get(name), kind):
            return f"its {name!r} is {'damaged' if name in checkpoint else 'missing'}"
    for name in ("state_dict", TRAINED):
        state = checkpoint.get(name, {})
        if not isinstance(state, dict) or not all(map(is_dense, state.values())):
            return f"its {name!r} is damaged"
    try:
        version = Version(checkpoint["pytorch-lightning_version"])
    except InvalidVersion:
        return "its 'pytorch-lightning_version' is damaged"
    if version < _OLDEST:  # which Lightning would rewrite into what it takes for today's form
        return f"its 'pytorch-lightning_version' is {version}, and senet needs {_OLDEST}"
    try:
        rows = record_of(checkpoint).rows
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return "its rows of metrics.csv are damaged"
    epochs, step = checkpoint["epoch"] + 1, checkpoint["global_step"]
    in_order = all(row.epoch == number for number, row in enumerate(rows, 1))
    if len(rows) != epochs or not in_order or rows[-1].step != step:
        return f"its rows of metrics.csv are not those of {epochs} epochs and {step} steps"
    return None


def _unknown_option(state: Any) -> str | None:
    """An option that the run was trained with and that there is not, or not yet; None for none."""
    options = state.get("options") if isinstance(state, dict) else None
    known = {field.name for field in fields(TrainOptions)}
    unknown = options.keys() - known if isinstance(options, dict) else ()
    return min(map(str, unknown), default=None)


def mismatch(
    expected: Any, found: Any, where: str = "", *, flags_may_miss: bool = False
) -> str | None:
    """Where the value found in a checkpoint cannot stand for the one that is expected.

    Mappings need the expected keys, lists the expected length, tensors the expected shape and
    dtype; numbers and texts must be of their kind, and numbers finite.

    Args:
        expected: a state dict of ours.
        found: the one in the checkpoint.
        where: path of the two, which the result begins with.
        flags_may_miss: allow true, false and null to be missing, as do PyTorch's optimizers and
            schedules: later versions add such, and give those of older checkpoints their default.

    Returns:
        the path of the first difference, such as ``param_groups/0/lr``; None where there is none.

    >>> mismatch({"lr": [0.1]}, {"lr": ["a"]})
    'lr/0'
    >>> mismatch({"lr": 0.1, "fused": None}, {"lr": 1}, flags_may_miss=True)
    """
    if isinstance(expected, dict):
        if not isinstance(found, dict):
            return where
        pairs = [
            (key, value, found.get(key, _MISSING))
            for key, value in expected.items()
            if key in found or not (flags_may_miss and _is_flag(value))
        ]
    elif isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            return where
        pairs = list(zip(range(len(expected)), expected, found, strict=True))
    else:
        return None if _is_like(expected, found) else where
    paths = (
        mismatch(value, other, f"{where}/{key}".lstrip("/"), flags_may_miss=flags_may_miss)
        for key, value, other in pairs
    )
    return next((path for path in paths if path is not None), None)


_MISSING = object()


def _is_flag(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _is_like(expected: Any, found: Any) -> bool:
    if isinstance(expected, Tensor):
        return is_dense(found) and found.shape == expected.shape and found.dtype == expected.dtype
    if _is_flag(expected):
        return _is_flag(found)
    if isinstance(expected, int | float):
        return _is_number(found)
    return isinstance(found, type(expected))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def is_dense(value: Any) -> bool:
    """Whether a value is a tensor with all its elements: not sparse, nested or on meta."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def best_row(rows: Sequence[EpochRow]) -> EpochRow:
    """The row of highest top-1, of equals that of the lowest loss, of these the first."""
    return max(rows, key=lambda row: (row.val_top1, -row.val_loss))


def copy_checkpoint(source: Path, target: Path) -> None:
    """Put a copy of a checkpoint in the place of another, whole or not at all."""

    def copy(file: BinaryIO) -> None:
        with source.open("rb") as original:
            shutil.copyfileobj(original, file, 2**22)

    atomic_write(target, copy)


def network_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The validated weights in a checkpoint, by the names of the network's own state."""
    states: dict[str, Tensor] = checkpoint["state_dict"]
    return {name.removeprefix("model."): tensor for name, tensor in states.items()}


def read_record(path: Path) -> RunRecord:
    """What a checkpoint says of its run; nothing where there is no checkpoint.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    if not path.exists():
        return RunRecord()
    return record_of(WholeFiles().load_checkpoint(path))


def write_metrics(run: Path, rows: Sequence[EpochRow]) -> None:
    """Write metrics.csv anew from all the rows, whole; nothing where it has just these."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(EpochRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    data = text.getvalue().encode()
    path = run / METRICS
    if not path.is_file() or path.read_bytes() != data:  # a finished run's disk may be read-only
        atomic_write(path, lambda file: file.writelines([data]))


def record_of(checkpoint: dict[str, Any]) -> RunRecord:
    """What the recorder noted in a checkpoint.

    `WholeFiles` has looked at it; of others KeyError, TypeError or ValueError where it is damaged.
    """
    state = checkpoint["callbacks"][RECORDER]
    data, options = state.get("data"), state.get("options")
    if data is not None:
        listed = ("classes", *(name for name in ("mean", "std") if data.get(name) is not None))
        data = DataRecord(**data | {name: tuple(data[name]) for name in listed})
        colours = [three for three in (data.mean, data.std) if three is not None]
        if not all(map(_is_number, (data.train, data.val, *chain(*colours)))):
            raise ValueError("a count of images, or a mean of theirs, is not a number")
        if any(len(three) != 3 for three in colours):
            raise ValueError("images have three channels")
    if options is not None:
        options = TrainOptions(**options)
    return RunRecord(tuple(rows_of(state)), data, options)


def rows_of(state: dict[str, Any]) -> list[EpochRow]:
    """The rows in the state of a `senet.recorder.RunRecorder`; ValueError where they are none."""
    rows = [EpochRow(**row) for row in state["rows"]]
    values = [pair for row in rows for pair in asdict(row).items() if pair != ("train_top1", None)]
    if not rows or not all(_is_number(value) for _, value in values):
        raise ValueError("a row is not of numbers")
    return rows
