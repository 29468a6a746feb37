"""Template, style, script and data put into one file that asks no network for anything."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from .document import document, thumbnail_document
from .thumbnails import Picture, choose_thumbnails

if TYPE_CHECKING:
    from ..excitations import Excitations

__all__ = ["LARGEST", "page_html"]

LARGEST = 9_500_000
"""Bytes of a page, about: what the numbers leave of them is for pictures."""

_SCRIPTS = (
    "reading.js",
    "plot.js",
    "checklist.js",
    "depth.js",
    "panels.js",
    "detail.js",
    "page.js",
)
_FOR_LAYOUT = 100_000  # bytes, for style, script and markup


def page_html(
    excitations: Excitations,
    *,
    title: str,
    data: str,
    blocks: Sequence[int],
    classes: Sequence[int],
    picture: Callable[[int], Picture] | None = None,
    largest: int = LARGEST,
    note: Callable[[float], object] = lambda share: None,
) -> str:
    """The page: HTML that needs no other file, no network and no server.

    Names of classes, blocks and images are put in as JSON and shown as text: whatever they are,
    nothing in them is executed. The page's own policy allows its own script and style by their
    hashes, pictures inside of it, and nothing else.

    Args:
        excitations: What was recorded.
        title: The network, in words.
        data: The images, in words.
        blocks: Numbers of the blocks shown at first.
        classes: Numbers of the classes shown at first.
        picture: Number of an image → the image; None for a page without pictures.
        largest: Bytes that pictures may fill the page up to.
        note: Told the share of the pictures that is done.
    """
    shown = document(excitations, title=title, data=data, blocks=blocks, classes=classes)
    room = largest - len(_json(shown)) - _FOR_LAYOUT
    thumbnails = choose_thumbnails(excitations, picture, max(0, room), note)
    shown["pictures"] = thumbnail_document(thumbnails)
    style = "\n" + _read("page.css")
    script = '\n(() => {\n"use strict";\n' + "".join(map(_read, _SCRIPTS)) + "})();\n"
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "title": html.escape(_as_text(title)),
        "style": style,
        "script": script,
        "data": _json(shown),
    }
    # In one pass: what is put in is not looked at again, whatever it holds.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _read("template.html"))


def _json(value: dict[str, Any]) -> str:
    """JSON in ASCII without <, > and &, so that it cannot end the element it is in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _as_text(name: str) -> str:
    return name.encode("utf-8", "replace").decode()


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
