"""What the gates learned, written into a folder: figures, tables and the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .figures import (
    CLASSES,
    FIGURES,
    activation_figure,
    default_blocks,
    rendered,
    saturation_figure,
    specificity_figure,
    spread,
)
from .gate_tables import write_tables
from .page import Picture, page_html
from .runs import make_directory

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
        folder: Made where it is not; files of these names are overwritten.
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
        UserError: fewer than two channels, no block, or the folder cannot be made.
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
        for ending, content in zip((".png", ".svg"), rendered(figure), strict=True):
            (folder / (name + ending)).write_bytes(content)
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
    (folder / PAGE).write_text(page, encoding="utf-8")
