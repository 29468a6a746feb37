"""One run of a sweep: trained like any other, and what it came to, a failure too."""

from __future__ import annotations

import datetime
import gc
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .. import runs
from ..catalogue import CATALOGUE
from ..errors import UserError
from ..machine import describe
from ..options import TrainOptions
from ..training import CONFIG, TrainResult, train
from ..verification import VerificationError
from .results import FAILED, FINISHED, RunResult

__all__ = ["RunPlan", "failed", "train_run"]

_LONGEST_REASON = 300


@dataclass(frozen=True)
class RunPlan:
    """One run of a sweep.

    Args:
        variant: of the recipe.
        options: of the run; the seed is in them.
        directory: the run directory.
        parameters: of the network.
        macs: multiply-adds for one image.
        image_size: height and width in pixels.
    """

    variant: str
    options: TrainOptions
    directory: Path
    parameters: int = 0
    macs: int = 0
    image_size: int = 0

    @property
    def seed(self) -> int:
        """The seed of its options."""
        return self.options.seed


def train_run(plan: RunPlan, *, bar: bool, say: Callable[[str], None]) -> RunResult:
    """Train one run, or what is left of it.

    Raises:
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM. Whatever else is raised is a result.
    """
    trace = plan.directory.with_name(f"{plan.directory.name}.traceback.txt")
    resume = (plan.directory / CONFIG).exists()
    with _cleared(plan.options):
        try:
            result = train(plan.options, plan.directory, resume=resume, bar=bar, say=say)
        except (UserError, VerificationError) as error:
            return failed(plan, _in_a_line(error))
        except Exception as error:  # a fault of ours or of a library: the others go on
            runs.make_directory(trace.parent)
            text = traceback.format_exc().encode()
            runs.atomic_write(trace, lambda file: file.write(text))
            where = f"{plan.variant}/{trace.name}"
            return failed(plan, f"{type(error).__name__}: {_in_a_line(error)} (see {where})")
    trace.unlink(missing_ok=True)
    return _finished(plan, result)


@contextmanager
def _cleared(options: TrainOptions) -> Iterator[None]:
    """Leave nothing of a run behind for the next: what it compiled, and memory of a device."""
    try:
        yield
    finally:
        if options.compile:
            torch.compiler.reset()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _in_a_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"


def failed(plan: RunPlan, reason: str) -> RunResult:
    """The result of a run that failed; ``seconds`` and ``epochs`` are of what it had finished."""
    from ..checkpoints import LAST, read_record

    try:
        rows = read_record(plan.directory / LAST).rows
    except UserError:  # which may be why it failed
        rows = ()
    seconds = round(sum(row.seconds for row in rows), 3)
    return replace(_row(plan), status=FAILED, reason=reason, epochs=len(rows), seconds=seconds)


def _finished(plan: RunPlan, result: TrainResult) -> RunResult:
    last, best = result.rows[-1], result.best
    versions = runs.read_card(plan.directory).versions
    return replace(
        _row(plan),
        epochs=len(result.rows),
        top1=last.val_top1,
        top5=last.val_top5,
        best_epoch=best.epoch,
        best_top1=best.val_top1,
        best_top5=best.val_top5,
        seconds=round(sum(row.seconds for row in result.rows), 3),
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
    )


def _row(plan: RunPlan) -> RunResult:
    options = plan.options
    return RunResult(
        variant=plan.variant,
        seed=options.seed,
        status=FINISHED,
        network=options.model,
        data=options.data if options.data in CATALOGUE else Path(options.data).name,
        image_size=plan.image_size,
        parameters=plan.parameters,
        macs=plan.macs,
        device=_device_name(options.accelerator),
        date=datetime.date.today().isoformat(),
    )


def _device_name(accelerator: str) -> str:
    found = torch.accelerator.current_accelerator(check_available=True)
    if accelerator == "cpu" or found is None:
        return str(describe()["device"])
    return str(describe(found.type)["device"]) if found.type == "cuda" else found.type
