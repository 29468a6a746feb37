"""``senet bench``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.status import Status
from rich.table import Table

from .. import models
from ..benchmarking import (
    COLUMNS,
    CONTROL,
    LAYOUTS,
    PLAIN,
    Measured,
    Setting,
    as_csv,
    check,
    measure,
    records,
)
from ..contenders import contenders
from ..errors import UserError
from ..machine import describe
from ..runs import atomic_write
from .parsing import command_parser, parse, pick_device

__all__ = ["main", "parser", "show"]

_EPILOG = f"""
Columns: bytes (kept for backward, counted exactly), {", ".join(COLUMNS)}. All networks of a
column run in turn; a figure is the median ratio to the plain network of the same round, with
quartiles below it; "{CONTROL}" is what the machine alone does to a ratio. Inference is of the
deployed networks: a plain one has its norms folded too.
"""


def parser() -> ArgumentParser:
    """The options of the command."""
    made = command_parser(
        "bench", "What SE costs a network: ratios to the plain one, timed in turn.", epilog=_EPILOG
    )
    made.add_argument("name", type=str, metavar="NAME", help="plain network, or timm/NAME")
    made.add_argument(
        "--columns",
        type=str,
        default="bytes,train,infer",
        help="what to measure, separated by commas",
    )
    made.add_argument("--batch", type=int, default=16, help="images in a training step")
    made.add_argument(
        "--infer_batch", type=str, default="1,8", help="images in a forward, one column for each"
    )
    made.add_argument(
        "--image_size",
        type=int | None,
        default=None,
        help="height and width in pixels; null is what the network was designed for",
    )
    made.add_argument(
        "--layout", type=str, default="nchw", help=f"layout of the images: {', '.join(LAYOUTS)}"
    )
    made.add_argument(
        "--dtype", type=str, default="float32", help="float32, or autocast to bfloat16 or float16"
    )
    made.add_argument("--rounds", type=int, default=15, help="rounds that count")
    made.add_argument("--device", type=str, default="cpu", help="auto, cpu, cuda, …")
    made.add_argument("--threads", type=int | None, default=None, help="CPU threads; null is all")
    made.add_argument("--csv", type=Path | None, default=None, help="write the figures here, too")
    made.add_argument(
        "--json", action="store_true", help="one JSON document on standard output, nothing else"
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    given = parse(parser(), argv)
    if given.threads is not None:
        if given.threads < 1:
            raise UserError(f"threads is {given.threads}, but must be at least 1")
        torch.set_num_threads(given.threads)
    if given.dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"dtype is {given.dtype!r}, but must be float32, bfloat16 or float16")
    if given.csv is not None and not given.csv.parent.is_dir():
        raise UserError(f"csv is {str(given.csv)!r}, but {str(given.csv.parent)!r} is no folder")
    rows = contenders(given.name)
    device = str(pick_device(given.device))
    size = given.image_size
    if size is None:
        size = models.native_input_size(given.name)[1]
    models.check_image_size(next(iter(rows.values()))(), given.name, size)
    settings = list(_settings(given, size, device))
    if not settings:
        raise UserError(f"columns is {given.columns!r}, which names none; try bytes,train,infer")
    for setting in settings:
        check(setting)
    console = Console(stderr=True)
    found: list[Measured] = []
    with console.status("") as status:
        for setting in settings:
            title = f"{_title(setting)}: "
            found += measure(
                rows,
                setting,
                rounds=given.rounds,
                progress=partial(_tell, status, title),
            )
    lines = records(given.name, found)
    if given.json:
        print(json.dumps(lines, indent=2))
    else:
        show(found, f"{given.name}, {size}×{size}, {describe(device)['device']}")
    if given.csv is not None:  # last: where it cannot be written, the figures have been shown
        atomic_write(given.csv, lambda file: file.write(as_csv(lines).encode()))
    return 0


def _settings(given: Namespace, size: int, device: str) -> Iterator[Setting]:
    columns = [name.strip() for name in given.columns.split(",") if name.strip()]
    try:
        batches = [int(n) for n in given.infer_batch.split(",")]
    except ValueError:
        raise UserError(f"infer_batch is {given.infer_batch!r}, but must be like 1,8") from None
    least = {"infer_batch": min(batches), "batch": given.batch, "image_size": size}
    for name, value in least.items():
        if value < 1:
            raise UserError(f"{name} is {value}, but must be at least 1")
    for column in columns:
        training = column in ("bytes", "train", "train-compiled")
        for batch in [given.batch] if training else batches:
            yield Setting(column, batch, size, given.layout, device, given.dtype)


def _tell(status: Status, title: str, what: str) -> None:
    status.update(title + what)


def _title(setting: Setting) -> str:
    return f"{setting.column} ×{setting.batch}"


def show(found: Sequence[Measured], title: str) -> None:
    """Print the ratios: a row for each contender, a column for each setting.

    As many columns in a table as its figures have room for, and the others in the next.
    """
    console = Console()
    rows = list(dict.fromkeys(one.row for one in found))
    settings = list(dict.fromkeys(one.setting for one in found))
    first = max(map(len, ("over plain", *rows)))
    texts = (*map(_title, settings), *(line for one in found for line in _cell(one).splitlines()))
    room = max(1, (console.width - first - 4) // (max(map(len, texts)) + 3))
    for begin in range(0, len(settings), room):
        some = settings[begin : begin + room]
        table = Table(title=title, title_justify="left")
        table.add_column("over plain", no_wrap=True)
        for setting in some:
            table.add_column(_title(setting), justify="right", no_wrap=True)
        for row in rows:
            cells = {one.setting: _cell(one) for one in found if one.row == row}
            table.add_row(row, *(cells.get(setting, "") for setting in some))
        console.print(table)


def _cell(one: Measured) -> str:
    if one.setting.column == "bytes":
        return f"{one.ratio:.3f}\n{one.value / 2**20:.1f} MiB"
    if one.row == PLAIN:
        return f"{one.value:.1f} ms\n"
    return f"{one.ratio:.3f}\n{one.low:.3f}–{one.high:.3f}"
