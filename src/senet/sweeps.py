"""A sweep: variants × seeds, each a training run of its own, and one table of them all."""

from __future__ import annotations

import datetime
import gc
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from . import cost, runs
from .catalogue import CATALOGUE
from .data import DataOptions, ImageData, load_data
from .errors import UserError
from .machine import describe
from .options import TrainOptions
from .ranks import is_helper
from .sweep_recipes import Sweep, read_recipe, resolve, sweep_yaml
from .sweep_results import (
    FAILED,
    FINISHED,
    RunResult,
    as_mapping,
    read_results,
    write_results,
)
from .training import CONFIG, TrainResult, build, data_options_of, memory_told, start_from, train
from .verification import VerificationError

__all__ = ["SWEEP", "RunPlan", "begin", "run_sweep"]

SWEEP = Path("sweep.yaml")
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


def begin(sweep: Sweep, out: Path) -> list[RunResult]:
    """Make the directory of a sweep or go on with that which is there; its results so far.

    Raises:
        UserError: ``out`` is a file, holds something else, or another sweep.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a directory for the sweep")
    path = out / SWEEP
    if path.exists():
        if difference := resolve(read_recipe(path), {}).difference(sweep):
            raise UserError(
                f"{out} holds another sweep, which differs in {difference}; name another "
                f"directory, or go on with it: senet sweep {path} --out {out}"
            )
        for leftover in filter(runs.is_temporary, list(out.iterdir())):
            leftover.unlink(missing_ok=True)
        return _known(sweep, read_results(out), out)
    if out.is_dir() and any(not runs.is_temporary(entry) for entry in out.iterdir()):
        raise UserError(f"{out} is not empty and holds no sweep; name another directory")
    runs.make_directory(out)
    text = sweep_yaml(sweep).encode()
    runs.atomic_write(path, lambda file: file.write(text))
    return []


def _known(sweep: Sweep, rows: Sequence[RunResult], out: Path) -> list[RunResult]:
    for row in rows:
        if row.variant not in sweep.options or row.seed not in sweep.seeds:
            raise UserError(
                f"{out} has results of variant {row.variant}, seed {row.seed}, which its {SWEEP} "
                "does not name; one of them was edited: put it back"
            )
    return list(as_mapping(rows).values())


def run_sweep(
    sweep: Sweep,
    out: str | Path,
    *,
    variants: Sequence[str] | None = None,
    retry: bool = False,
    bar: bool = False,
    say: Callable[[str], None] = print,
) -> list[RunResult]:
    """Train what is left of a sweep, one run after another, and keep its results up to date.

    ``out`` gets sweep.yaml at the start, a run directory ``VARIANT/seed-N`` for each run, and
    results.csv and table.md after each. A run that was interrupted goes on after its last
    finished epoch; one that is finished is kept, and so is one that failed unless ``retry``. A
    run that fails does not stop the others.

    Args:
        sweep: what to train.
        out: the sweep's directory; made where it is missing.
        variants: train only these; None is all.
        retry: train those that failed once more, from their last finished epoch.
        bar: show progress bars.
        say: takes the lines that tell what is going on.

    Returns:
        The results of all runs that have ended, those of other times and variants too.

    Raises:
        UserError: the directory is another sweep's, or a variant cannot be trained at all (told
            before anything is).
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM; run it again to go on.
    """
    if is_helper():
        raise UserError("a sweep is one process, and each of its runs has one device")
    out = Path(out)
    wanted = list(sweep.options) if variants is None else list(variants)
    planned = [_plan(sweep, out, name, seed) for seed in sweep.seeds for name in wanted]
    before = as_mapping(_results_of(out))
    left = [plan for plan in planned if _is_left(plan, before, retry=retry)]
    checked = _checked(left, say)
    rows = as_mapping(begin(sweep, out))
    for number, plan in enumerate(checked, start=1):
        title = f"[{number}/{len(checked)}] {plan.variant}, seed {plan.options.seed}"
        row = _train(plan, out, bar=bar, say=lambda line, title=title: say(f"{title}: {line}"))  # type: ignore[misc]
        if row.status == FAILED:
            say(f"{title}: failed: {row.reason}")
        rows = {**rows, (row.variant, row.seed): row}
        write_results(out, sweep, rows.values())
    if not checked:
        write_results(out, sweep, rows.values())
    return list(rows.values())


def _results_of(out: Path) -> list[RunResult]:
    return read_results(out) if (out / SWEEP).exists() else []


def _plan(sweep: Sweep, out: Path, variant: str, seed: int) -> RunPlan:
    return RunPlan(variant, sweep.run_options(variant, seed), out / variant / f"seed-{seed}")


def _is_left(plan: RunPlan, rows: Mapping[tuple[str, int], RunResult], *, retry: bool) -> bool:
    row = rows.get((plan.variant, plan.options.seed))
    if row is None:
        return True
    if row.status == FINISHED:
        return not (plan.directory / runs.CARD).exists()
    return retry


def _checked(plans: Sequence[RunPlan], say: Callable[[str], None]) -> list[RunPlan]:
    """The runs with what their networks cost, of which each variant is built once.

    Raises:
        UserError: there is no such data set, network, device, or SE as a variant asks for.
    """
    data: dict[DataOptions, ImageData] = {}
    costs: dict[str, RunPlan] = {}
    for plan in plans:
        if plan.variant in costs:
            continue
        options = plan.options
        if not costs:
            say(f"checking {len({p.variant for p in plans})} variants")
        try:
            key = data_options_of(options)
            if key not in data:
                data[key] = load_data(key)
            costs[plan.variant] = _with_costs(plan, data[key])
        except (UserError, VerificationError) as error:
            raise UserError(f"variant {plan.variant}: {error}") from error
    return [
        replace(costs[plan.variant], options=plan.options, directory=plan.directory)
        for plan in plans
    ]


def _with_costs(plan: RunPlan, data: ImageData) -> RunPlan:
    from .fitting import make_trainer

    options, classes = plan.options, len(data.classes)
    with memory_told():
        model = build(options, num_classes=classes)
        if options.init is not None:
            start_from(model, Path(options.init), options.model, num_classes=classes)
    make_trainer(options, plan.directory, export=_nothing, report=_nothing)
    size = (3, data.image_size, data.image_size)
    return replace(
        plan,
        parameters=cost.count_parameters(model),
        macs=cost.count_macs(model, size),
        image_size=data.image_size,
    )


def _nothing(row: object) -> None:
    """What the trainer that is made to see whether it can be made has to report."""


def _train(plan: RunPlan, out: Path, *, bar: bool, say: Callable[[str], None]) -> RunResult:
    """Train one run, or what is left of it; a failure is a result too."""
    trace = out / plan.variant / f"seed-{plan.options.seed}.traceback.txt"
    resume = (plan.directory / CONFIG).exists()
    with _cleared(plan.options):
        try:
            result = train(plan.options, plan.directory, resume=resume, bar=bar, say=say)
        except (UserError, VerificationError) as error:
            return _failed(plan, _in_a_line(error))
        except Exception as error:  # a fault of ours or of a library: the others go on
            runs.make_directory(trace.parent)
            text = traceback.format_exc().encode()
            runs.atomic_write(trace, lambda file: file.write(text))
            where = trace.relative_to(out)
            return _failed(plan, f"{_in_a_line(error)} ({type(error).__name__}, see {where})")
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


def _failed(plan: RunPlan, reason: str) -> RunResult:
    return replace(_row(plan), status=FAILED, reason=reason)


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
