"""``senet slim``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from .. import runs
from ..adoption import adoptable
from ..data import ImageData
from ..errors import UserError
from ..evaluation import evaluate
from ..insertion import attached_plan
from ..loading import ImageLoader
from ..models import split_name
from ..options import TrainOptions, options_yaml, read_options
from ..sampling import SubsetSampler, stratified_split
from ..slim_figure import draw_slimming
from ..slim_report import Point, Score, SlimReport, lost
from ..slimming import BY, Slimmed, check_budget, slim
from ..staging import fresh
from ..training import CONFIG, train
from ..watching import workers_told
from .parsing import add_device_and_json, command_parser, parse, pick_device
from .run_data import add_data_options, data_of_run, name_of_data

__all__ = ["main", "parser"]

FINETUNED = "finetuned"
_WIDE = 160  # columns, where no terminal says how many there are: names stay in one piece
_FILES = {"worth.csv": SlimReport.worth_csv, "slimming.csv": SlimReport.curve_csv}

_EPILOG = """
A block that is left out is replaced by its mean gate, multiplied into the layers beside it. The
held-out images of the run are divided by class: one half, the calibration images, ranks and
chooses, the other checks. OUT becomes an ordinary run directory, with worth.csv (the blocks,
ranked), slimming.csv and slimming.png (accuracy against parameters, multiply-adds, latency) and
slimming.json. Exit status: 0 done, 2 a mistake that is named, or a budget that cannot be met.
"""


def parser() -> ArgumentParser:
    """The options of the command."""
    made = command_parser(
        "slim", "Leave SE blocks out that a network can do without.", epilog=_EPILOG
    )
    made.add_argument("run", type=str, metavar="RUN", help="run directory")
    made.add_argument("--out", type=str, required=True, help="run directory to be made")
    made.add_argument(
        "--max_drop",
        type=float,
        default=0.1,
        help="top-1 that may be lost, in points: 0.1 is one image in a thousand",
    )
    made.add_argument(
        "--by",
        choices=BY,
        default="block",
        help="what is left out at a time: a block, or all blocks of a stage, as in the paper",
    )
    made.add_argument(
        "--finetune",
        type=int,
        default=0,
        metavar="EPOCHS",
        help="train what is left for so many epochs, at a tenth of the run's learning rate, into "
        f"OUT/{FINETUNED}; 0 does not",
    )
    add_data_options(made)
    made.add_argument(
        "--cache", action="store_true", help="hold decoded images in memory, for many passes"
    )
    made.add_argument(
        "--rounds",
        type=int,
        default=15,
        help="how often each network of the curve is timed; 0 leaves latency out",
    )
    add_device_and_json(made)
    return made


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    given = parse(parser(), argv)
    check_budget(given.max_drop, given.by)
    for name in ("finetune", "rounds"):
        if given[name] < 0:
            raise UserError(f"{name} is {given[name]}; it must be at least 0")
    run, out = Path(given.run), Path(given.out)
    device = pick_device(given.device)
    card = runs.read_card(run)
    options = read_options(run / CONFIG, whole=True) if (run / CONFIG).exists() else None
    if given.finetune and device.index:
        raise UserError(
            f"device is {given.device}, but fine-tuning takes the first GPU; leave --finetune out, "
            f"or have that one be the first: CUDA_VISIBLE_DEVICES={device.index}"
        )
    if given.finetune and options is None:
        raise UserError(f"{run} has no {CONFIG} to go on training by; leave --finetune out")
    model = runs.load(run, device=device)
    _check_blocks(run, card, model)
    with fresh(out) as place, workers_told():
        data = data_of_run(run, card, given, cache=given.cache)
        calibration, held_out = _halves(data, card, given)
        slimmed = _slim(model, calibration, held_out, given)
        options = _write(place, slimmed, card, options, given)
    stream = sys.stderr if given.json else sys.stdout
    width = None if stream.isatty() else _WIDE
    show = Console(file=stream, width=width, markup=False, emoji=False, highlight=False)
    _tell(slimmed.report, show, f"{card.name} ({run}), {given.data or card.data}, {device}")
    tuned = None
    if given.finetune and options is not None:
        tuned = _finetuned(options, out, held_out, card, device, given)
        show.print(_scores("fine-tuned", slimmed.report.before, tuned), soft_wrap=True)
    written = out if tuned is None else out / FINETUNED
    show.print(f"wrote {out}; try: senet evaluate {written}", soft_wrap=True)
    if given.json:
        document = slimmed.report.to_json()
        if tuned is not None:
            document = json.dumps(json.loads(document) | {"finetuned": asdict(tuned)}, indent=2)
        print(document.rstrip())
    return 0


def _check_blocks(run: Path, card: runs.ModelCard, model: torch.nn.Module) -> None:
    if card.plan is not None:
        return
    if adoptable(model):
        raise UserError(
            f"the SE blocks of {card.name} in {run} are its library's own, which a run directory "
            "cannot leave out; in Python: senet.slim(senet.adopt(senet.load(RUN)), …)"
        )
    raise UserError(f"{run} holds {card.name}, a plain network without SE; nothing to slim")


def _halves(
    data: ImageData, card: runs.ModelCard, given: Namespace
) -> tuple[ImageLoader, ImageLoader]:
    """The held-out images of the run in two, half of each class in either."""
    images, labels = data.val, data.val.labels
    if labels is None:
        labels = torch.tensor([images.source(index)[1] for index in range(len(images))])
    counts = torch.bincount(labels, minlength=len(card.classes))
    least = int(counts.argmin())
    if (count := int(counts[least])) < 2:
        raise UserError(
            f"class {card.classes[least]!r} has {count or 'no'} held-out image{'s' * (not count)} "
            f"in {given.data or card.data}; to choose by one half and check on the other takes "
            "two of each class"
        )
    calibration, held_out = (
        ImageLoader(
            images,
            SubsetSampler(part.tolist()),
            batch_size=given.batch_size,
            workers=given.workers,
        )
        for part in stratified_split(labels, 0.5, card.seed)
    )
    return calibration, held_out


def _slim(
    model: torch.nn.Module, calibration: ImageLoader, held_out: ImageLoader, given: Namespace
) -> Slimmed:
    bar = Progress(
        console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty() or given.json
    )
    with bar:
        task = bar.add_task("slimming", total=None)
        return slim(
            model,
            calibration,
            held_out,
            max_drop=given.max_drop,
            by=given.by,
            rounds=given.rounds,
            progress=lambda done, total, what: bar.update(
                task, completed=done, total=total, description=what
            ),
        )


def _write(
    place: Path,
    slimmed: Slimmed,
    card: runs.ModelCard,
    options: TrainOptions | None,
    given: Namespace,
) -> TrainOptions | None:
    """The run directory of the slim network; returns the options that make it."""
    report, model = slimmed.report, slimmed.model
    plan = attached_plan(model)
    # Of another data set's images the card would say that they are those of its own.
    top1 = None if given.data else _share(report.point.calibration, report.after)
    title = f"{card.name} on {name_of_data(card, given)}, SE blocks left out"
    card = replace(
        card,
        name=card.name if plan is not None else split_name(card.name)[0],
        plan=runs.plan_of(model),
        versions=runs.package_versions(),
        top1=top1,
    )
    runs.save_model(place, model, card)
    for file, as_text in _FILES.items():
        _put(place / file, as_text(report).encode())
    _put(place / "slimming.json", report.to_json().encode())
    _put(place / "slimming.png", draw_slimming(report, title))
    if options is None:
        return None
    if plan is None:
        options = options.without_se()
    else:
        options = replace(options, sites=",".join(site.path for site in plan), twin=False)
    options = replace(options, init=None, pretrained=False)
    text = f"# {card.name}, made by senet slim; the weights are in {runs.WEIGHTS}\n"
    _put(place / CONFIG, (text + options_yaml(options)).encode())
    return options


def _share(one: Score, other: Score) -> float:
    """Top-1 over both halves."""
    images = one.images + other.images
    return (one.top1 * one.images + other.top1 * other.images) / images


def _put(path: Path, data: bytes) -> None:
    runs.atomic_write(path, lambda file: file.write(data))


def _finetuned(
    options: TrainOptions,
    out: Path,
    held_out: ImageLoader,
    card: runs.ModelCard,
    device: torch.device,
    given: Namespace,
) -> Score:
    """Train the slim network on, from its weights, and look at the held-out images again.

    In this process and on the device that slimmed it, wherever and on however many the run was.
    """
    options = replace(
        options,
        init=str(out),
        data=given.data or options.data,
        val_data=given.val_data or (None if given.data else options.val_data),
        data_root=given.data_root or options.data_root,
        image_size=card.image_size,
        workers=given.workers or options.workers,
        cache=given.cache or options.cache,
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=1,
        nodes=1,
        strategy="auto",
        sync_batchnorm=False,
        epochs=given.finetune,
        lr=options.peak_lr / 10,
        se_lr=None if options.se_lr is None else options.se_lr / 10,
        schedule="cosine",
        warmup_epochs=0.0,
        ema_decay=None,
    )
    place = out / FINETUNED
    train(
        _as_precise(options, device),
        place,
        pipes=given.data is not None,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    model = runs.load(place, device=device)
    found = evaluate(model, held_out, classes=card.classes, device=device)
    return Score(found.top1, found.top5, found.loss, found.images)


def _as_precise(options: TrainOptions, device: torch.device) -> TrainOptions:
    """In the run's precision, or the nearest that this device has."""
    if (device.type, options.precision) == ("cpu", "16-mixed"):
        return replace(options, precision="bf16-mixed")
    if (device.type, options.precision) == ("mps", "64-true"):
        return replace(options, precision="32-true")
    return options


def _tell(report: SlimReport, console: Console, title: str) -> None:
    def say(line: str) -> None:
        console.print(line, soft_wrap=True)

    say(title)
    worth = _table(
        f"{report.by}s by worth, least first (each left out alone)",
        (report.by, "top-1 drop", "top-5 drop", "loss", "parameters", "gate deviation"),
    )
    for each in report.candidates:
        worth.add_row(
            each.name,
            _points(each.drop),
            "–" if each.top5_drop is None else _points(each.top5_drop),
            f"{each.loss:+.4f}",
            f"{each.parameters:,}",
            f"{each.deviation:.4f}",
        )
    console.print(worth)
    for name, why in report.kept.items():
        say(f"kept: {name} ({why})")
    curve = _table(
        "the curve",
        ("left out, in turn", "blocks", "parameters", "MACs", "ms", "top-1", "drop"),
    )
    for number, point in enumerate(report.points):
        curve.add_row(
            ("→ " if number == report.chosen else "  ") + (*point.left_out, "nothing")[number - 1],
            str(point.blocks),
            f"{point.parameters:,}",
            f"{point.macs / 1e6:,.2f} M",
            "–" if point.latency_ms is None else f"{point.latency_ms:.2f}",
            f"{point.calibration.top1:.2%}",
            _points(point.drop),
        )
    console.print(curve)
    whole, point = report.points[0], report.point
    images = point.calibration.images
    say(
        f"of {images:,} calibration images, of which one is {100 / images:.2g} points; "
        f"the budget is {report.max_drop:g} point{'s' * (report.max_drop != 1)} of top-1"
    )
    for number, drop in report.stepped_back:
        blocks = report.points[number].blocks
        say(f"stepped back from {blocks} blocks left: held out, that lost {drop:.2f} points")
    say(
        f"chosen (→): {point.blocks} of {whole.blocks} blocks left; SE adds "
        f"{_added(point)} to the plain network's parameters, before {_added(whole)}"
    )
    say(_scores("chosen", report.before, report.after))


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    name, *figures = columns
    table.add_column(name, overflow="fold")
    for figure in figures:
        table.add_column(figure.replace(" ", "\n"), justify="right", no_wrap=True)
    return table


def _points(drop: float) -> str:
    """A drop with its sign, and no sign for none."""
    return f"{drop:+.2f}" if abs(drop) >= 0.005 else "0.00"


def _added(point: Point) -> str:
    return f"{point.se_parameters / (point.parameters - point.se_parameters):.2%}"


def _scores(what: str, before: Score, after: Score) -> str:
    top5 = ""
    if before.top5 is not None and after.top5 is not None:
        top5 = f", top-5 {before.top5:.2%} → {after.top5:.2%}"
    return (
        f"{what}, on {after.images:,} held-out images: top-1 {before.top1:.2%} → {after.top1:.2%} "
        f"({_points(-lost(before, after))} points){top5}, loss {before.loss:.4f} → {after.loss:.4f}"
    )
