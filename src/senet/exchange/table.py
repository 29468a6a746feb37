"""The formats, and a file of any of them as a network."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..runs import ModelCard
from . import archive, onnx, openvino, torch_export
from .job import Job, Runner

__all__ = ["FORMATS", "ExportedNetwork", "Format", "format_of", "read_exported"]

Reader = Callable[[Path], tuple[str | None, Runner]]


@dataclass(frozen=True)
class Format:
    """One row of the table.

    Args:
        name: as ``--format`` takes it.
        suffix: of its files.
        packages: that it needs besides torch.
        write: a job to a file (and what belongs beside it, of the same stem).
        run: a file just written, by the runtime it is for.
        read: a file from anywhere; nothing in it is executed.
    """

    name: str
    suffix: str
    packages: tuple[str, ...]
    write: Callable[[Job, Path], None]
    run: Reader
    read: Reader

    def require(self, *, writing: bool = False) -> None:
        """Refuse to begin without the packages.

        Raises:
            UserError: one is not installed.
        """
        for package in self.packages if writing else self.packages[:1]:
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise UserError(
                    f'{self.name} files need {package}: pip install "senet[export]" ({error})'
                ) from error


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        row.name: row
        for row in (
            Format(
                "onnx",
                ".onnx",
                ("onnxruntime", "onnx", "onnxscript"),
                onnx.write,
                onnx.read,
                onnx.read,
            ),
            Format("openvino", ".xml", ("openvino",), openvino.write, openvino.read, openvino.read),
            Format("torch", ".pt2", (), torch_export.write, torch_export.run_own, archive.read),
        )
    }
)
"""The formats by name. The first package runs a file, all of them write it."""


class ExportedNetwork(nn.Module):
    """An exported file in a network's place: images (N, 3, H, W) on the CPU → logits.

    Args:
        runner: of the file.
    """

    def __init__(self, runner: Runner) -> None:
        super().__init__()
        self.runner = runner

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes)."""
        return self.runner(images)


def format_of(path: Path) -> Format | None:
    """The format that a file name says, if it says one."""
    return next((row for row in FORMATS.values() if row.suffix == path.suffix.lower()), None)


def read_exported(path: Path) -> tuple[ModelCard, nn.Module]:
    """The model card and the network of an exported file; nothing in it is executed.

    Raises:
        UserError: no such file, not of the format that its name says, without a model card, or
            it does not run; or what runs it is not installed.
    """
    row = format_of(path)
    if row is None:
        known = ", ".join(each.suffix for each in FORMATS.values())
        raise UserError(f"{str(path)!r} is no exported file; their names end in {known}")
    if not path.is_file():
        raise UserError(f"exported file {str(path)!r} does not exist")
    row.require()
    document, runner = row.read(path)
    if document is None:
        raise UserError(
            f"{str(path)!r} does not say which classes and images it is for; "
            "`senet export` writes files that do"
        )
    card = ModelCard.from_json(document, source=path)
    network = ExportedNetwork(runner)
    _try(network, card, path)
    return card, network


def _try(network: nn.Module, card: ModelCard, path: Path) -> None:
    """One run, so that a file that cannot is told before any image is read."""
    size = (1, 3, card.image_size, card.image_size)
    try:
        with torch.inference_mode():
            logits = network(torch.zeros(size))
    except UserError:
        raise
    except (RuntimeError, TypeError, KeyError, ValueError, IndexError, ArithmeticError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{str(path)!r} does not run on images {size}: {reason}") from error
    if logits.shape != (1, card.num_classes):
        raise UserError(
            f"{str(path)!r} makes {tuple(logits.shape)} of images {size}; (1, {card.num_classes}) "
            "was expected, for its classes"
        )
