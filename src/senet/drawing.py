"""An empty figure and the bytes of a drawn one: matplotlib, without a screen and without a word."""

from __future__ import annotations

import io
import logging
import warnings
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["empty_figure", "png_of", "svg_of"]


def empty_figure(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """A figure of so many inches.

    Args:
        layout: None where the places of the axes are given; to find them takes as long as to draw.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of its cache of fonts
    # Not pyplot, which would look for a screen, and keeps every figure it made.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout=layout)


def png_of(figure: Figure) -> bytes:
    """The figure as a PNG file, the same for the same figure."""
    return _bytes_of(figure, "png", {"Software": None})


def svg_of(figure: Figure) -> bytes:
    """The figure as an SVG file, likewise."""
    return _bytes_of(figure, "svg", {"Date": None})


def _bytes_of(figure: Figure, kind: str, metadata: dict[str, Any]) -> bytes:
    from matplotlib import rc_context

    file = io.BytesIO()
    with warnings.catch_warnings(), rc_context({"svg.hashsalt": "senet"}):
        # A name in a script that the font lacks shows boxes; page and tables have it as it is.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(file, format=kind, metadata=metadata)
    return file.getvalue()
