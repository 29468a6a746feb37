"""A network with SE beside its plain twin: what the blocks brought and what they cost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from . import cost, runs

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Comparison", "Member", "compare", "read_comparison", "write_comparison"]

HEADER = ("network", "top-1", "parameters", "MACs", "ms a step", "saved for backward")


JSON, MARKDOWN = "comparison.json", "comparison.md"


@dataclass(frozen=True)
class Member:
    """One of the two.

    Args:
        name: of the network.
        run: its run directory.
        top1: share of the held-out images that the best epoch's weights get right, of 1.
        parameters: see `senet.cost.count_parameters`.
        macs: multiply-adds for one image; see `senet.cost.count_macs`.
        step_ms: milliseconds of forward and backward over a batch; see `senet.cost.step_seconds`.
        saved_bytes: kept for backward over a batch; see `senet.cost.saved_for_backward`.
    """

    name: str
    run: str
    top1: float | None
    parameters: int
    macs: int
    step_ms: float
    saved_bytes: int


@dataclass(frozen=True)
class Comparison:
    """The two, and on what they were measured.

    Args:
        plain: the network without SE.
        se: the network with SE.
        data: the data set they were trained on.
        image_size: height and width, in pixels.
        batch_size: images in the batch of the last two columns.
        device: that these were measured on.
        versions: of what computed it.
    """

    plain: Member
    se: Member
    data: str
    image_size: int
    batch_size: int
    device: str
    versions: dict[str, str]

    def to_json(self) -> str:
        """One JSON document."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def rows(self) -> list[tuple[str, ...]]:
        """Two lines and their ratio, as text."""
        ratio = [
            f"{getattr(self.se, key) / getattr(self.plain, key):.3f}"
            for key in ("parameters", "macs", "step_ms", "saved_bytes")
        ]
        return [_line(self.plain), _line(self.se), ("SE / plain", self._gain(), *ratio)]

    def caption(self) -> str:
        """What the columns were measured on."""
        return (
            f"{self.data} at {self.image_size}×{self.image_size}; MACs for one image; "
            f"step (forward and backward) and bytes for a batch of {self.batch_size} "
            f"on {self.device}"
        )

    def to_markdown(self) -> str:
        """The table for a README."""
        lines = [HEADER, ("---", *("---:" for _ in HEADER[1:])), *self.rows()]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"{table}\n\n{self.caption()}.\n"

    def to_table(self) -> Table:
        """The table for a terminal."""
        from rich import box
        from rich.table import Table

        table = Table(
            box=box.SIMPLE,
            pad_edge=False,
            collapse_padding=True,
            caption=self.caption(),
            caption_justify="left",
        )
        # In 80 columns: figures stay whole, and the one long title takes two lines.
        name, *figures = HEADER
        table.add_column(name, overflow="fold")
        for title in figures:
            table.add_column(title.replace("for ", "for\n"), justify="right", no_wrap=True)
        *members, ratio = self.rows()
        for row in members:
            table.add_row(*row)
        table.add_section()
        table.add_row(*ratio)
        return table

    def _gain(self) -> str:
        if self.se.top1 is None or self.plain.top1 is None:
            return "–"
        return f"{100 * (self.se.top1 - self.plain.top1):+.2f} points"


def compare(
    se_run: Path, plain_run: Path, *, batch_size: int, device: torch.device | str = "cpu"
) -> Comparison:
    """Read two runs of one data set and measure what their networks cost.

    Steps are timed in turn, so that a change in the machine's speed meets both.

    Args:
        se_run: run directory of the network with SE.
        plain_run: run directory of its plain twin.
        batch_size: images in the batch that is timed; random ones, of the runs' size. Half as
            many, and half again, where the device's memory does not hold it.
        device: to measure on.

    Raises:
        UserError: one of them is not a run directory.
    """
    card = runs.read_card(se_run)
    size = (3, card.image_size, card.image_size)
    pair = {run: runs.load(run, device=device).train() for run in (plain_run, se_run)}
    while True:
        x = torch.randn(batch_size, *size, generator=torch.Generator().manual_seed(0)).to(device)
        try:
            plain, se = _measured(pair, x)
            break
        except RuntimeError as error:  # both at once, in float32, need more than training did
            if batch_size == 1 or "out of memory" not in str(error):
                raise
            batch_size //= 2
    return Comparison(
        plain=plain,
        se=se,
        data=card.data,
        image_size=card.image_size,
        batch_size=batch_size,
        device=str(x.device),
        versions=runs.package_versions(),
    )


def _measured(pair: dict[Path, nn.Module], x: Tensor) -> Iterator[Member]:
    seconds: dict[Path, list[float]] = {run: [] for run in pair}
    for turn in range(5):
        for run, model in pair.items():
            warmup = 2 if turn == 0 else 1
            seconds[run].append(cost.step_seconds(model, x, warmup=warmup, repeats=3))
    for run, model in pair.items():
        yield _member(run, model, x, step_ms=1000 * median(seconds[run]))


def read_comparison(directory: Path) -> Comparison | None:
    """What `write_comparison` wrote there; None where that is not, or not whole."""
    if not (directory / MARKDOWN).exists():
        return None
    try:
        document = json.loads((directory / JSON).read_bytes())
        members = {name: Member(**document[name]) for name in ("plain", "se")}
        return Comparison(**document | members)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_comparison(comparison: Comparison, directory: Path) -> None:
    """Write comparison.json and comparison.md, each whole."""
    document, table = comparison.to_json().encode(), comparison.to_markdown().encode()
    runs.atomic_write(directory / JSON, lambda file: file.writelines([document]))
    runs.atomic_write(directory / MARKDOWN, lambda file: file.writelines([table]))


def _member(run: Path, model: nn.Module, x: torch.Tensor, *, step_ms: float) -> Member:
    card = runs.read_card(run)
    return Member(
        name=card.name,
        run=str(run),
        top1=card.top1,
        parameters=cost.count_parameters(model),
        macs=cost.count_macs(model, tuple(x.shape[1:])),
        step_ms=round(step_ms, 3),
        saved_bytes=cost.saved_for_backward(model, x),
    )


def _line(member: Member) -> tuple[str, ...]:
    return (
        member.name,
        "–" if member.top1 is None else f"{member.top1:.2%}",
        f"{member.parameters:,}",
        _scaled(member.macs, 1e6, 1e3, "M", "G", digits=2),
        f"{member.step_ms:.1f}",
        _scaled(member.saved_bytes, 2**20, 2**10, "MiB", "GiB", digits=1),
    )


def _scaled(value: float, unit: float, step: float, small: str, large: str, *, digits: int) -> str:
    """``value`` in units, or in units ``step`` times as large where it has that many of them."""
    if value < unit * step:
        return f"{value / unit:.{digits}f} {small}"
    return f"{value / unit / step:,.{digits}f} {large}"
