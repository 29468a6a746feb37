"""What the gates learned, written into a folder: figures, tables and the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .drawing import png_of, svg_of
from .figures import (
    CLASSES,
    FIGURES,
    activation_figure,
    default_blocks,
    saturation_figure,
    specificity_figure,
    spread,
)
from .gate_tables import write_tables
from .page import Picture, page_html
from .runs import atomic_write, make_directory

if TYPE_CHECKING:
    from .excitations import Excitations

__all__ = ["PAGE", "Picture", "write_inspection"]

PAGE = "index.html"


def write_inspection(
    excitations: Excitations,
    folder: Path,
    *,
    title: str,
    data: str = "the data",
    blocks: Sequence[int] | None = None,
    classes: Sequence[int] | None = None,
    channels: int = 50,
    picture: Callable[[int], Picture] | None = None,
    note: Callable[[float], object] = lambda share: None,
) -> None:
    """Write ``index.html``, the figures as PNG and SVG and the tables as CSV into a folder.

    Args:
        excitations: What `senet.record` returned.
        folder: Made where it is not; files of these names are replaced, each whole.
        title: The network, in words.
        data: The images, in words.
        blocks: Numbers of the blocks in the figure of activations, and shown first in the page;
            by default the last of each stage and the network's last three.
        classes: Numbers of the classes likewise; by default up to five, evenly spaced.
        channels: Evenly spaced channels of a block in that figure.
        picture: Number of an image, in the order of the loader, → the image; None for a page
            without pictures.
        note: Told the share of the pictures that is done.

    Raises:
        UserError: fewer than two channels, no block, or the folder cannot be made or written.
    """
    folder = Path(folder)
    make_directory(folder)
    blocks = default_blocks(excitations) if blocks is None else blocks
    classes = spread(len(excitations.classes), CLASSES) if classes is None else classes
    figures = (
        activation_figure(excitations, blocks, classes, channels=channels),
        specificity_figure(excitations),
        saturation_figure(excitations),
    )
    for name, figure in zip(FIGURES, figures, strict=True):
        for ending, of in ((".png", png_of), (".svg", svg_of)):
            _write(folder / (name + ending), of(figure))
    write_tables(excitations, folder)
    page = page_html(
        excitations,
        title=title,
        data=data,
        blocks=blocks,
        classes=classes,
        picture=picture,
        note=note,
    )
    _write(folder / PAGE, page.encode())


def _write(path: Path, content: bytes) -> None:
    atomic_write(path, lambda file: file.write(content))
