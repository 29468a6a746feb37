"""``senet inspect``."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .. import runs
from ..adoption import adopt, adoptable
from ..block import SqueezeExcite
from ..errors import UserError, nearest
from ..excitations import Excitations, record
from ..figures import CLASSES, default_blocks, short_names, spread
from ..gate_tables import DepthRow, depth_rows
from ..image_sets import FileImages, ImageSet
from ..images import frame
from ..inspection import PAGE, Picture, write_inspection
from ..loading import ImageLoader
from ..progress import share_told
from ..sampling import EpochSampler
from ..staging import staged
from ..watching import workers_told
from .parsing import add_device_and_json, command_parser, parse, pick_device
from .run_data import add_data_options, data_of_run, name_of_data

__all__ = ["main", "parser"]

GATES = "gates"

_EPILOG = """
Looks at the images held out in training, prepared as there. DIR gets index.html, a page to explore
(one file, no network), activations, specificity and saturation as .png and .svg, and every number
as .csv. It is written whole or not at all; an earlier inspection there is replaced.
"""


def parser() -> ArgumentParser:
    """The options of the command."""
    made = command_parser(
        "inspect",
        "What the gates of a trained network learned, by depth and class.",
        epilog=_EPILOG,
    )
    made.add_argument("run", type=str, metavar="RUN", help="run directory")
    made.add_argument("--out", type=str, required=True, metavar="DIR", help="folder to be made")
    made.add_argument(
        "--classes",
        type=str | None,
        default=None,
        help="names with commas between them, drawn in the figure and shown first in the page; "
        f"null is {CLASSES} of them, evenly spaced",
    )
    made.add_argument(
        "--blocks",
        type=str | None,
        default=None,
        help="globs over the paths of blocks with commas between them, likewise; null is the last "
        "block of each stage and the last three",
    )
    made.add_argument(
        "--channels", type=int, default=50, help="evenly spaced channels of a block in the figure"
    )
    made.add_argument(
        "--examples", type=int, default=9, help="images at each end of a channel's gate"
    )
    made.add_argument(
        "--permutations",
        type=int,
        default=20,
        help="times that labels are shuffled, for the η² that chance gives",
    )
    made.add_argument(
        "--gates", action="store_true", help=f"write every gate to {GATES}/ as safetensors, too"
    )
    add_data_options(made)
    add_device_and_json(made)
    return made


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    given = parse(parser(), argv)
    for name, least in (("channels", 2), ("examples", 1), ("permutations", 0)):
        if getattr(given, name) < least:
            raise UserError(f"{name} is {getattr(given, name)}; it must be at least {least}")
    device = pick_device(given.device)
    run, out = Path(given.run), Path(given.out)
    card = runs.read_card(run)
    model = runs.load(run, device=device)
    if card.plan is None and adoptable(model):
        adopt(model)
    paths = [path for path, module in model.named_modules() if isinstance(module, SqueezeExcite)]
    if not paths:
        raise UserError(
            f"{str(run)!r} has no SE block to look into: its network is {card.name!r}; train one "
            "with SE, such as se_resnet20"
        )
    chosen_classes = _classes(given.classes, card.classes)
    chosen_blocks = _matched(given.blocks, paths)
    progress = sys.stderr.isatty()
    data = data_of_run(run, card, given)
    if data.val.labels is not None:  # else it comes out when all images were read
        counts = data.val.labels.bincount(minlength=len(card.classes))
        _refuse_empty(counts, card.classes, given.data or card.data)
    data_name = name_of_data(card, given)
    sampler = EpochSampler(len(data.val), seed=0, shuffle=False)
    loader = ImageLoader(data.val, sampler, batch_size=given.batch_size, workers=given.workers)
    facts: dict[str, Any] = {"network": card.name}
    with staged(out, "inspection", facts) as folder:
        with workers_told():
            excitations = record(
                model,
                loader,
                classes=card.classes,
                gates_dir=folder / GATES if given.gates else None,
                permutations=given.permutations,
                examples=min(given.examples, len(data.val)),
                device=device,
                progress=progress,
            )
        _refuse_empty(excitations.blocks[0].counts, card.classes, given.data or card.data)
        rows = depth_rows(excitations)
        facts |= {"images": excitations.images, "blocks": [row.document() for row in rows]}
        with share_told("drawing" if progress else "") as note:
            write_inspection(
                excitations,
                folder,
                title=f"{card.name} · {data_name}",
                data=f"{data_name}, held out",
                blocks=_numbers(chosen_blocks, excitations),
                classes=chosen_classes,
                channels=given.channels,
                picture=_pictures(data.val, card.image_size),
                note=note,
            )
    _tell(rows, excitations, given, card.name)
    return 0


def _classes(text: str | None, known: Sequence[str]) -> list[int]:
    """Numbers of the classes named, each once, in the order given."""
    if text is None:
        return spread(len(known), CLASSES)
    # A name with a comma can be given alone, or in double quotes.
    names = [text] if text in known else next(csv.reader([text], skipinitialspace=True))
    for name in names:
        if name not in known:
            raise UserError(f"classes has {name!r}, which the run has not; {nearest(name, known)}")
    return list(dict.fromkeys(known.index(name) for name in names))


def _matched(text: str | None, paths: Sequence[str]) -> set[str] | None:
    """The paths that one of the globs matches, in full or as figures and page have them."""
    if text is None:
        return None
    names = dict(zip(paths, short_names(paths), strict=True))
    found: set[str] = set()
    for glob in (part.strip() for part in text.split(",")):
        matching = {
            path
            for path, name in names.items()
            if any(fnmatchcase(one, glob) for one in (path, path.removesuffix(".se"), name))
        }
        if not matching:
            near = nearest(glob, names.values())
            raise UserError(f"blocks has {glob!r}, which no SE block matches; {near}")
        found |= matching
    return found


def _numbers(wanted: set[str] | None, excitations: Excitations) -> list[int]:
    """Numbers of those blocks, in the order of execution; `default_blocks` for None."""
    if wanted is None:
        return default_blocks(excitations)
    found = [n for n, block in enumerate(excitations.blocks) if block.path in wanted]
    if not found:
        raise UserError(f"none of the blocks asked for ran: {', '.join(sorted(wanted))}")
    return found


def _refuse_empty(counts: Tensor, classes: Sequence[str], data: str) -> None:
    """Refuse data in which a class has none of the (K,) numbers of images."""
    empty = [name for name, count in zip(classes, counts.tolist(), strict=True) if not count]
    if empty:
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        raise UserError(
            f"{data} has no held-out image of {', '.join(map(repr, empty[:3]))}{more}; what gates "
            "do there is not known, use data that has every class"
        )


def _pictures(images: ImageSet, size: int) -> Callable[[int], Picture]:
    """The images as the network sees them, but in their own colours."""

    def picture(index: int) -> Picture:
        pixels, label = images.source(index)
        # Without its folder: where the data lies is nobody else's business.
        name = Path(images.path(index)).name if isinstance(images, FileImages) else ""
        return Picture(frame(pixels, size), label, name)

    return picture


def _tell(rows: list[DepthRow], excitations: Excitations, given: Namespace, network: str) -> None:
    if given.json:
        result = {
            "network": network,
            "images": excitations.images,
            "classes": len(excitations.classes),
            "blocks": [row.document() for row in rows],
            "out": given.out,
        }
        print(json.dumps(result, allow_nan=False))
        return
    of = f"{excitations.images:,} held-out images, {len(excitations.classes)} classes"
    print(f"{network} ({given.run}): {of}")
    print("near 0, 1: in the lowest, highest twentieth of a gate's range; chance: labels shuffled")
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for title in ("block", "stage", "gates", "mean", "near 0", "near 1", "η²", "chance", "p"):
        table.add_column(title, justify="left" if title == "block" else "right", overflow="fold")
    names = short_names([row.block for row in rows])
    for name, row in zip(names, rows, strict=True):
        table.add_row(
            name,
            "–" if row.stage is None else str(row.stage),
            str(row.channels),
            _number(row.mean),
            f"{row.low:.1%}",
            f"{row.high:.1%}",
            _number(row.specificity),
            _number(row.null),
            _number(row.p),
        )
    Console(markup=False, emoji=False, highlight=False).print(table)
    print(f"wrote {Path(given.out)}; open {Path(given.out) / PAGE}")


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
