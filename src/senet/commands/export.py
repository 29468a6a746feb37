"""``senet export``."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from torch import Tensor, nn

from .. import runs
from ..catalogue import IMAGENET_MEAN, IMAGENET_STD
from ..data import DataOptions, load_data
from ..errors import UserError
from ..exchange import FORMATS, OPSETS, Shipment, ship
from ..models import build_plain, check_image_size, create_model, native_input_size, plain_name
from ..options import TrainOptions, read_options
from ..training import CONFIG
from .parsing import command_parser, parse

__all__ = ["main", "parser"]

_IMAGES = 8  # that PyTorch and the runtime are compared on
_SMALLEST = 8  # pixels, as for training
_GENERATED = "generated images"

_EPILOG = """
The network is rewritten for inference (norms folded, gates moved before their convolutions),
written for any number of images at a time, run by onnxruntime, openvino or torch.export, and
compared with the network as it was in PyTorch. Latency is that of a batch, the plain twin's
exported alike and timed in turn. Exit status: 0 written, 1 the runtime's outputs differ by more
than the tolerance (nothing is written), 2 a mistake that is named.
"""


def parser() -> ArgumentParser:
    """The options of the command."""
    made = command_parser(
        "export", "A network as a file for another runtime, checked there.", epilog=_EPILOG
    )
    made.add_argument(
        "run",
        type=str,
        metavar="RUN|NAME",
        help="run directory, or the name of a network, which gets initial weights",
    )
    made.add_argument(
        "--format",
        choices=tuple(FORMATS),
        default="onnx",
        help="of the file: .onnx, openvino's .xml with a .bin beside it, or torch.export's .pt2",
    )
    made.add_argument("--out", type=str, required=True, help="file to be written")
    made.add_argument(
        "--as_trained", action="store_true", help="leave the rewriting for inference out"
    )
    made.add_argument(
        "--image_size",
        type=int | None,
        default=None,
        help="height and width in pixels, fixed in the file; null is the run's or the network's",
    )
    made.add_argument(
        "--opset",
        type=int,
        default=20,
        help=f"version of ONNX's operators, {OPSETS[0]} to {OPSETS[-1]}",
    )
    made.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="largest difference of a logit, as a share of the largest logit",
    )
    made.add_argument("--batch", type=int, default=1, help="images in a batch that is timed")
    made.add_argument(
        "--json", action="store_true", help="one JSON document on standard output, nothing else"
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    given = parse(parser(), argv)
    _check(given)
    run = Path(given.run)
    is_run = run.exists() or (os.sep in given.run and not _is_of_timm(given.run))
    card, model = (runs.read_card(run), runs.load(run)) if is_run else _by_name(given.run)
    card = replace(card, image_size=given.image_size or card.image_size)
    check_image_size(model, card.name, card.image_size)
    images, whence = _held_out(run, card) if is_run else (_generated(card), _GENERATED)
    plain, has_se = plain_name(card.name)
    with Console(stderr=True).status("") as status:
        shipment = ship(
            model,
            card,
            Path(given.out),
            images=images,
            format=given.format,
            plain=build_plain(plain, card.num_classes).eval() if has_se else None,
            as_trained=given.as_trained,
            opset=given.opset,
            tolerance=given.tolerance,
            batch=given.batch,
            progress=lambda what: status.update(what) if what else status.stop(),
        )
    if given.json:
        _print_json(shipment, given, whence, plain)
    elif shipment.files:
        _tell(shipment, given, whence, plain)
    if not shipment.files:
        why = _compared(shipment, given, whence)
        print(f"senet: {given.out} was not written: {why}", file=sys.stderr)
        return 1
    return 0


def _check(given: Namespace) -> None:
    for name, least in (("batch", 1), ("image_size", _SMALLEST)):
        value = getattr(given, name)
        if value is not None and value < least:
            raise UserError(f"{name} is {value}; it must be at least {least}")
    if not 0 <= given.tolerance < math.inf:
        raise UserError(f"tolerance is {given.tolerance}; it must be a number, 0 or above")


def _is_of_timm(name: str) -> bool:
    return name.removeprefix("se_").startswith("timm/")


def _by_name(name: str) -> tuple[runs.ModelCard, nn.Module]:
    """A network with initial weights, and a card that says so."""
    size = native_input_size(name)[1]
    model = create_model(name).eval()
    classes = 1000
    card = runs.ModelCard(
        name=name,
        num_classes=classes,
        plan=runs.plan_of(model),
        classes=tuple(f"class {label}" for label in range(classes)),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        image_size=size,
        versions=runs.package_versions(),
        data="none: initial weights",
        seed=torch.initial_seed(),
    )
    return card, model


def _held_out(run: Path, card: runs.ModelCard) -> tuple[Tensor, str]:
    """The first held-out images of what the run was trained on, if they are there."""
    config = run / CONFIG
    options = read_options(config) if config.exists() else TrainOptions()
    try:
        data = load_data(
            DataOptions(
                data=card.data,
                val_data=options.val_data,
                data_root=Path(options.data_root),
                download=False,
                image_size=card.image_size,
                mean=card.mean,
                std=card.std,
                augment=False,
                val_fraction=card.val_fraction,
                seed=card.seed,
            )
        )
    except UserError as error:
        print(
            f"the data of the run is not to be had, so generated images take its place: {error}; "
            "they say little about accuracy",
            file=sys.stderr,
        )
        return _generated(card), _GENERATED
    count = min(_IMAGES, len(data.val))
    images = torch.stack([data.val[index][0] for index in range(count)])
    return images, f"{count} held-out images of {card.data}"


def _generated(card: runs.ModelCard) -> Tensor:
    size = (_IMAGES, 3, card.image_size, card.image_size)
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


def _compared(shipment: Shipment, given: Namespace, whence: str) -> str:
    return (
        f"largest difference {shipment.difference:.1e} of the largest logit, "
        f"{shipment.largest:.3g} (tolerance {given.tolerance:g}), on {whence}"
    )


def _print_json(shipment: Shipment, given: Namespace, whence: str, plain: str) -> None:
    timing, report = shipment.timing, shipment.report
    difference = shipment.difference if math.isfinite(shipment.difference) else None
    document = {
        "files": [str(path) for path in shipment.files],
        "format": given.format,
        "opset": given.opset if given.format == "onnx" else None,
        "images": whence,
        "difference": difference,
        "tolerance": given.tolerance,
        "largest_logit": shipment.largest if math.isfinite(shipment.largest) else None,
        "batch": given.batch,
        "threads": torch.get_num_threads(),
        "ms": timing and timing.ms,
        "plain": plain if timing and timing.ratio is not None else None,
        "plain_ms": timing and timing.plain_ms,
        "ratio": timing and timing.ratio,
        "rewritten": None if report is None else [asdict(each) for each in report.rewrites],
    }
    print(json.dumps(document, allow_nan=False))


def _tell(shipment: Shipment, given: Namespace, whence: str, plain: str) -> None:
    if shipment.report is not None:
        print(str(shipment.report).splitlines()[-1])
    print(_compared(shipment, given, whence))
    if (timing := shipment.timing) is not None:
        beside = (
            ""
            if timing.ratio is None
            else (
                f", {plain} {timing.plain_ms:.2f} ms; median of the turns' ratios "
                f"{timing.ratio:.3f}"
            )
        )
        threads = torch.get_num_threads()
        print(f"batch of {given.batch}, {threads} threads: {timing.ms:.2f} ms{beside}")
    opset = f", opset {given.opset}" if given.format == "onnx" else ""
    sizes = ", ".join(f"{path} ({path.stat().st_size / 2**20:.1f} MiB)" for path in shipment.files)
    print(f"wrote {sizes}{opset}; try: senet predict {shipment.files[0]} IMAGE")
