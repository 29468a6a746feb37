"""Gates of single images as files: safetensors, of bounded size, written whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .errors import UserError
from .runs import atomic_write, make_directory

__all__ = ["INDEX", "SHARD_BYTES", "GateFiles"]

INDEX = "gates.json"
SHARD_BYTES = 64 * 2**20
"""The most that the gates in one file take."""


class GateFiles:
    """Files ``gates-00000.safetensors`` … in a directory, and in the end their index.

    A file has ``images`` (n,), the numbers of its images, ``labels`` (n,), and for each block
    ``gates/PATH`` (n, C). ``gates.json`` says which files there are, and names classes and blocks;
    it is written last, so that a directory without one is not complete.

    Args:
        directory: where; made if it is not there.

    Raises:
        UserError: it cannot be made, or has such files already.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        make_directory(self.directory)
        there = [self.directory / INDEX, *self.directory.glob("gates-*.safetensors")]
        if found := [path.name for path in there if path.exists()]:
            raise UserError(
                f"{str(self.directory)!r} has recorded gates already ({found[0]}); "
                "give another directory, or remove them"
            )
        self._files: list[Path] = []
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._images = 0
        self._widths: dict[str, int] = {}

    def add(self, x: Tensor, labels: Tensor, widths: Mapping[str, int]) -> None:
        """Take the gates x (n, C) of the next images in, with their labels (n,).

        Args:
            widths: how many channels each block has, in order.
        """
        self._widths = dict(widths)
        self._waiting.append((x.cpu(), labels.cpu()))
        rows = max(1, SHARD_BYTES // (x.shape[1] * x.element_size()))
        if sum(len(labels) for _, labels in self._waiting) < rows:
            return
        gates, labels = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        while len(labels) >= rows:
            self._write(gates[:rows], labels[:rows])
            gates, labels = gates[rows:], labels[rows:]
        # Copies, or what is written would be held as well.
        self._waiting = [(gates.clone(), labels.clone())] if len(labels) else []

    def finish(self, classes: Sequence[str]) -> None:
        """Write what is left, and the index."""
        if self._waiting:
            self._write(*(torch.cat(parts) for parts in zip(*self._waiting, strict=True)))
            self._waiting = []
        document = {
            "images": self._images,
            "classes": list(classes),
            "blocks": [{"path": path, "channels": n} for path, n in self._widths.items()],
            "files": [path.name for path in self._files],
        }
        text = json.dumps(document, indent=1).encode()
        atomic_write(self.directory / INDEX, lambda file: file.write(text))

    def discard(self) -> None:
        """Remove what was written, for the rest will not come."""
        for path in self._files:
            path.unlink(missing_ok=True)

    def _write(self, gates: Tensor, labels: Tensor) -> None:
        from safetensors.torch import save

        parts = gates.split(list(self._widths.values()), dim=1)
        tensors = {
            "images": torch.arange(self._images, self._images + len(labels)),
            "labels": labels.clone(),
            **{f"gates/{p}": t.clone() for p, t in zip(self._widths, parts, strict=True)},
        }
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        data = save(tensors, metadata={"format": "pt"})
        path = self.directory / f"gates-{len(self._files):05}.safetensors"
        self._files.append(path)
        atomic_write(path, lambda file: file.write(data))
        self._images += len(labels)
