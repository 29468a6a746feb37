"""Tar files for the tests, well-formed and otherwise."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from generated import make_image

__all__ = ["member", "png", "samples", "write_tar"]


def png(number: int = 0, size: tuple[int, int] = (12, 10)) -> bytes:
    """A picture's file, another for each number."""
    file = io.BytesIO()
    make_image(size, number % 5 / 5, np.random.default_rng(number)).save(file, "PNG")
    return file.getvalue()


def member(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    """A member; ``fields`` are those of its header: type, linkname, …"""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    for key, value in fields.items():
        setattr(header, key, value)
    return header, data


def samples(labels: Sequence[int], start: int = 0) -> list[tuple[tarfile.TarInfo, bytes]]:
    """A picture and a .cls for each label."""
    return [
        part
        for number, label in enumerate(labels, start)
        for part in (
            member(f"{number:04d}.cls", str(label).encode()),
            member(f"{number:04d}.png", png(number)),
        )
    ]


def write_tar(
    path: Path,
    members: Sequence[tuple[tarfile.TarInfo, bytes]],
    format: int = tarfile.USTAR_FORMAT,
) -> Path:
    """A tar file of these members, in a folder that is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as file:
        for header, data in members:
            file.addfile(header, io.BytesIO(data))
    return path
