"""``senet pack``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser

from ..errors import UserError
from .parsing import command_parser, parse

if TYPE_CHECKING:
    from ..packing import Packed

__all__ = ["main", "parser"]

_EPILOG = """
Train from them with senet train --data OUT, or with anything that reads WebDataset shards. The
files of the images go in as they are, each decoded once to see that it can be. Exit status: 0
packed, 2 a mistake that is named, 130 interrupted (Ctrl-C); nothing is left then, and the same
command begins anew.
"""


def parser() -> ArgumentParser:
    """The options of the command."""
    made = command_parser(
        "pack", "Pack a folder of images into tar shards with a manifest.", epilog=_EPILOG
    )
    made.add_argument(
        "folder",
        type=str,
        metavar="FOLDER",
        help="images by class: train/<class>/… and val/<class>/…, or <class>/… to be split",
    )
    made.add_argument("--out", type=str, required=True, help="folder to be made for the shards")
    made.add_argument("--shard_size", type=float, default=500.0, help="size of a shard in MB")
    made.add_argument(
        "--val_fraction",
        type=float,
        default=0.2,
        help="share of each class that is held out, where there is no val/",
    )
    made.add_argument(
        "--seed",
        type=int,
        default=7,
        help="decides which images are held out, and the order of the others in the shards",
    )
    made.add_argument(
        "--json", action="store_true", help="one JSON document on standard output, nothing else"
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    given = parse(parser(), argv)
    if not 0.01 <= given.shard_size <= 1e6:
        raise UserError(f"shard_size is {given.shard_size:g} MB, but must be 0.01 to 1,000,000")
    if not 0 < given.val_fraction < 1:
        raise UserError(f"val_fraction is {given.val_fraction:g}, but must be above 0 and below 1")
    if not 0 <= given.seed < 2**63:
        raise UserError(f"seed is {given.seed}, but must be at least 0 and below 2**63")
    from ..packing import pack  # and torch, which the help does not wait for

    try:
        packed = pack(
            Path(given.folder),
            Path(given.out),
            shard_bytes=int(given.shard_size * 1e6),
            val_fraction=given.val_fraction,
            seed=given.seed,
            progress=sys.stderr.isatty(),
        )
    except KeyboardInterrupt:
        print("senet: interrupted; nothing was packed, run it again", file=sys.stderr)
        return 130
    print(json.dumps(_document(packed)) if given.json else _told(packed))
    return 0


def _document(packed: Packed) -> dict[str, object]:
    from ..manifests import PARTS

    counts = {
        part: {
            "shards": len(entries),
            "images": sum(entry.count for entry in entries),
            "bytes": sum(entry.bytes for entry in entries),
        }
        for part in PARTS
        for entries in (getattr(packed.manifest, part),)
    }
    return {"out": str(packed.directory), "classes": list(packed.manifest.classes), **counts}


def _told(packed: Packed) -> str:
    from ..manifests import PARTS

    lines = [
        f"{part}: {sum(entry.count for entry in entries):,} images in {len(entries):,} "
        f"{'shard' if len(entries) == 1 else 'shards'}, "
        f"{sum(entry.bytes for entry in entries) / 1e6:,.1f} MB"
        for part in PARTS
        for entries in (getattr(packed.manifest, part),)
    ]
    lines.append(
        f"{len(packed.manifest.classes)} classes; next: senet train --data {packed.directory}"
    )
    return "\n".join(lines)
