"""A sweep: variants × seeds, each a training run of its own, and one table of them all."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from .. import cost
from ..data import DataOptions, ImageData, load_data
from ..errors import UserError
from ..models import check_image_size
from ..ranks import is_helper
from ..run_network import build, start_from
from ..training import data_options_of, memory_told
from .directory import begin, keep, results_so_far
from .one_run import RunPlan, train_run
from .processes import train_at_once
from .recipe import Sweep
from .results import FAILED, FINISHED, RunResult

__all__ = ["run_sweep"]

Say = Callable[[str], None]


def run_sweep(
    sweep: Sweep,
    out: str | Path,
    *,
    variants: Sequence[str] | None = None,
    retry: bool = False,
    jobs: int = 1,
    bar: bool = False,
    say: Say = print,
) -> list[RunResult]:
    """Train what is left of a sweep and keep its results up to date.

    ``out`` gets sweep.yaml at the start, a run directory ``VARIANT/seed-N`` for each run, and
    results.csv and table.md after each. A run that was interrupted goes on after its last
    finished epoch; one that is finished is kept, and so is one that failed unless ``retry``. A
    run that fails does not stop the others. Each seed is trained with all variants before the
    next one, so that the table of an unfinished sweep has pairs.

    Args:
        sweep: what to train.
        out: the sweep's directory; made where it is missing.
        variants: train only these; None is all.
        retry: train those that failed once more, from their last finished epoch.
        jobs: runs to train at the same time, each in a process of its own where there are
            several, taking turns with the devices there are.
        bar: show progress bars; not of several runs at a time.
        say: takes the lines that tell what is going on.

    Returns:
        The results of all runs that have ended, those of other times and variants too.

    Raises:
        UserError: the directory is another sweep's, or a variant cannot be trained at all (told
            before anything is).
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM; run it again to go on.
    """
    if is_helper():
        raise UserError("a sweep is started once, and each of its runs has one device")
    out = Path(out)
    rows = results_so_far(sweep, out)
    names = list(sweep.options) if variants is None else list(variants)
    planned = [_plan(sweep, out, name, seed) for seed in sweep.seeds for name in names]
    left = [plan for plan in planned if _is_left(plan, rows, retry=retry)]
    plans = _checked(left, sweep.recipe.optional, say)
    begin(sweep, out)
    keep(sweep, out, rows)
    at_once = jobs > 1 and len(plans) > 1
    # Closed whatever happens here, for there may be processes to end.
    with closing(
        train_at_once(plans, jobs, say) if at_once else _in_turn(plans, bar, say)
    ) as ended:
        for row in ended:
            rows[row.variant, row.seed] = row
            keep(sweep, out, rows)
    return list(rows.values())


def _in_turn(plans: Sequence[RunPlan], bar: bool, say: Say) -> Generator[RunResult, None, None]:
    for number, plan in enumerate(plans, start=1):
        tell = partial(_tell, say, f"[{number}/{len(plans)}] {plan.variant}, seed {plan.seed}: ")
        row = train_run(plan, bar=bar, say=tell)
        if row.status == FAILED:
            tell(f"failed: {row.reason}")
        yield row


def _tell(say: Say, title: str, line: str) -> None:
    say(title + line)


def _plan(sweep: Sweep, out: Path, variant: str, seed: int) -> RunPlan:
    return RunPlan(variant, sweep.run_options(variant, seed), out / variant / f"seed-{seed}")


def _is_left(plan: RunPlan, rows: Mapping[tuple[str, int], RunResult], *, retry: bool) -> bool:
    row = rows.get((plan.variant, plan.seed))
    if row is None:
        return True
    return not plan.directory.is_dir() if row.status == FINISHED else retry


def _checked(plans: Sequence[RunPlan], optional: Sequence[str], say: Say) -> list[RunPlan]:
    """The runs with what their networks cost, of which each variant is built once.

    Raises:
        UserError: there is no such data set, network, device, or SE as a variant asks for.
    """
    data: dict[DataOptions, ImageData] = {}
    first = {plan.variant: plan for plan in reversed(plans)}
    costs: dict[str, RunPlan] = {}
    for variant, plan in reversed(first.items()):
        try:
            key = data_options_of(plan.options)
            if key not in data:
                say(f"looking at {plan.options.data}, and at what is to be trained on it")
                data[key] = load_data(key)
            costs[variant] = _with_costs(plan, data[key])
        except UserError as error:
            if variant not in optional:
                raise UserError(f"variant {variant}: {error}") from error
            say(f"variant {variant} is left out: {error}")
    return [
        replace(costs[plan.variant], options=plan.options, directory=plan.directory)
        for plan in plans
        if plan.variant in costs
    ]


def _with_costs(plan: RunPlan, data: ImageData) -> RunPlan:
    from ..fitting import make_trainer

    options, classes = plan.options, len(data.classes)
    with memory_told():
        model = build(options, num_classes=classes)
        if options.init is not None:
            start_from(model, Path(options.init), options.model, num_classes=classes)
        check_image_size(model, options.model, data.image_size)
    alone = replace(options, tensorboard=False)  # which would write
    make_trainer(alone, plan.directory, export=_nothing, report=_nothing)
    return replace(
        plan,
        parameters=cost.count_parameters(model),
        macs=cost.count_macs(model, (3, data.image_size, data.image_size)),
        image_size=data.image_size,
    )


def _nothing(row: object) -> None:
    """What the trainer reports that is made only to see whether it can be."""
