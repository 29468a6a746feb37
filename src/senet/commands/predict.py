"""``senet predict``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from ..errors import UserError
from .parsing import add_device_and_json, command_parser, parse, pick_device

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ..runs import ModelCard

__all__ = ["main", "parser"]

_EPILOG = """
An image that cannot be read is reported and the rest go on. Exit status: 0 all images were
classified, 1 some could not be read, 2 a mistake that is named (and nothing was classified).
"""


def parser() -> ArgumentParser:
    """The options of the command."""
    made = command_parser("predict", "The likeliest classes of images.", epilog=_EPILOG)
    made.add_argument(
        "run",
        type=str,
        metavar="RUN",
        help="run directory, or a file that senet export wrote (.onnx, .xml, .pt2)",
    )
    made.add_argument(
        "images",
        type=str,
        nargs="+",
        metavar="IMAGE",
        help="image files, or folders, all of whose images are taken",
    )
    made.add_argument("--top", type=int, default=5, help="classes to give for an image")
    add_device_and_json(made)
    return made


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    given = parse(parser(), argv)
    from ..evaluation import predict  # and torch, which the help does not wait for
    from ..images import image_transform

    card, network, device = _network(Path(given.run), given.device)
    files = [file for name in given.images for file in _expand(Path(name))]
    transform = image_transform(card.image_size, card.mean, card.std)
    errors: dict[int, str] = {}
    guesses = iter(
        predict(
            network,
            _readable(files, transform, errors),
            classes=card.classes,
            top=given.top,
            device=device,
        )
    )
    documents = [
        {"file": str(file), "error": errors[number]}
        if number in errors
        else {"file": str(file), "top": _top(next(guesses))}
        for number, file in enumerate(files)
    ]
    if given.json:
        print(json.dumps(documents, allow_nan=False))
    else:
        _tell(documents)
    return 1 if errors else 0


def _network(run: Path, device: str) -> tuple[ModelCard, nn.Module, torch.device]:
    """What classifies, where, and the card that says how; exported files run on the CPU."""
    import torch

    from .. import runs
    from ..exchange import format_of, read_exported

    if format_of(run) is None or run.is_dir():
        picked = pick_device(device)
        return runs.read_card(run), runs.load(run, device=picked), picked
    if device not in ("auto", "cpu"):
        raise UserError(f"exported files run on the CPU, not on {device!r}; leave --device out")
    return *read_exported(run), torch.device("cpu")


def _expand(path: Path) -> list[Path]:
    from ..images import list_images

    return list_images(path) if path.is_dir() else [path]


def _readable(
    files: list[Path], transform: Callable[[Tensor], Tensor], errors: dict[int, str]
) -> Iterator[Tensor]:
    """The images that can be read, one at a time; the reasons for the others go to ``errors``."""
    from ..images import read_image
    from ..progress import tracked

    doing = "classifying" if sys.stderr.isatty() else ""
    for number, file in enumerate(tracked(files, doing)):
        try:
            yield transform(read_image(file))
        except UserError as error:
            errors[number] = str(error)


def _top(classes: list[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"class": name, "probability": probability} for name, probability in classes]


def _tell(documents: list[dict[str, Any]]) -> None:
    width = max(len(document["file"]) for document in documents)
    for document in documents:
        if "error" in document:
            print(f"senet: {document['error']}", file=sys.stderr)
            continue
        guesses = "  ".join(f"{g['class']} {g['probability']:6.1%}" for g in document["top"])
        print(f"{document['file']:<{width}}  {guesses}")
