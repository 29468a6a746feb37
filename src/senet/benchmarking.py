"""What SE costs beside the plain network: timed in turn within one run, as pairwise ratios.

Single times on a shared machine say little. Here all contenders run one after the other, round
after round, and a round gives each a ratio to the plain network of the same round; the median of
these is reported, with their quartiles. The plain network runs twice: what its second self comes
to is what the machine alone does to a ratio.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cost import saved_for_backward
from .deployment import deploy
from .errors import UserError, nearest
from .exchange import FORMATS, Job
from .machine import describe
from .timing import quartiles, time_in_turn

__all__ = [
    "COLUMNS",
    "CONTROL",
    "LAYOUTS",
    "PLAIN",
    "RUNTIMES",
    "Measured",
    "Setting",
    "as_csv",
    "check",
    "measure",
    "ratio_columns",
    "records",
]

PLAIN, CONTROL = "plain", "plain again"
LAYOUTS: Mapping[str, torch.memory_format] = MappingProxyType(
    {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
)
RUNTIMES = ("onnxruntime", "openvino")
"""Columns of other runtimes: in float32 on the CPU, and in a layout that they choose themselves."""
Run = Callable[[], object]


class Setting(NamedTuple):
    """What is measured, and on what.

    Attributes:
        column: a name of `COLUMNS`, or "bytes".
        batch: images.
        size: their height and width in pixels.
        layout: a name of `LAYOUTS`.
        device: where the networks and images are.
        dtype: "float32", or what autocast computes in: "bfloat16", "float16".
    """

    column: str
    batch: int
    size: int
    layout: str = "nchw"
    device: str = "cpu"
    dtype: str = "float32"

    def images(self) -> Tensor:
        """A batch (N, 3, H, W) of noise, always the same."""
        noise = torch.Generator().manual_seed(0)
        x = torch.randn(self.batch, 3, self.size, self.size, generator=noise)
        return x.to(self.device).contiguous(memory_format=LAYOUTS[self.layout])

    def place(self, model: Any) -> nn.Module:
        """The model on the device, in the layout."""
        placed: nn.Module = model.to(device=self.device, memory_format=LAYOUTS[self.layout])
        return placed

    def autocast(self) -> torch.autocast:
        """The context in which the networks run."""
        enabled = self.dtype != "float32"
        dtype = getattr(torch, self.dtype) if enabled else None
        return torch.autocast(self.device, dtype, enabled=enabled)


@dataclass(frozen=True)
class Measured:
    """One figure: a contender in a column, beside the plain network.

    Args:
        row: the contender.
        setting: the column, and what was measured on.
        value: median milliseconds; bytes in the column "bytes".
        low, ratio, high: lower quartile, median and upper quartile of the ratios to the plain
            network, round by round.
        rounds: how many; 1 for an exact count.
    """

    row: str
    setting: Setting
    value: float
    low: float
    ratio: float
    high: float
    rounds: int


def check(setting: Setting) -> None:
    """Refuse what cannot be measured.

    Raises:
        UserError: an unknown column or layout, or one that the column has not.
    """
    if setting.column not in (*COLUMNS, "bytes"):
        known = nearest(setting.column, (*COLUMNS, "bytes"))
        raise UserError(f"unknown column {setting.column!r}; {known}")
    if setting.layout not in LAYOUTS:
        raise UserError(f"unknown layout {setting.layout!r}; {nearest(setting.layout, LAYOUTS)}")
    own = Setting(setting.column, setting.batch, setting.size)
    if setting.column in RUNTIMES and setting != own:
        raise UserError(
            f"the column {setting.column!r} is measured in float32 on the CPU, of images in NCHW; "
            f"got {setting.dtype}, {setting.device}, {setting.layout}"
        )


def measure(
    contenders: Mapping[str, Callable[[], nn.Module]],
    setting: Setting,
    *,
    rounds: int = 15,
    progress: Callable[[str], None] = lambda _: None,
    until: float = math.inf,
) -> list[Measured]:
    """One column of the table.

    Args:
        contenders: row → a function that builds its network; one of them is `PLAIN`.
        setting: the column.
        rounds: how often each runs, after two rounds that do not count.
        progress: is told what goes on, a few words at a time.
        until: when to stop, by `time.monotonic`: fewer rounds are timed then.

    Raises:
        UserError: see `check`; or no round.
        TimeoutError: not a round was whole by then.
    """
    check(setting)
    if rounds < 1:
        raise UserError(f"rounds is {rounds}, but must be at least 1")
    if setting.column == "bytes":
        times = {row: [_saved_bytes(make(), setting)] for row, make in contenders.items()}
    else:
        runs = {}
        for row, make in contenders.items():
            if time.monotonic() > until:
                raise TimeoutError("no round was whole in time")
            progress(row)
            torch.manual_seed(0)
            runs[row] = COLUMNS[setting.column](make(), setting)
        times = time_in_turn(
            runs, rounds=rounds, device=setting.device, progress=progress, until=until
        )
    return [
        Measured(row, setting, statistics.median(own), *quartiles(own, times[PLAIN]), len(own))
        for row, own in times.items()
    ]


def _training(model: nn.Module, setting: Setting, compiled: bool = False) -> Run:
    """Forward, cross-entropy and backward over one batch."""
    model, x = setting.place(model).train(), setting.images()
    labels = torch.zeros(setting.batch, dtype=torch.long, device=setting.device)
    parameters = list(model.parameters())
    forward: Any = torch.compile(model) if compiled else model

    def run() -> None:
        for parameter in parameters:
            parameter.grad = None
        with setting.autocast():
            logits = forward(x)
        F.cross_entropy(logits.float(), labels).backward()

    return run


def _inference(model: nn.Module, setting: Setting, compiled: bool = False) -> Run:
    """A forward of the deployed network; a plain one has its norms folded all the same."""
    x = setting.images()
    forward: Any = setting.place(deploy(model, example_inputs=x[:1].cpu()))
    if compiled:
        # On a GPU there is no prepacking of weights to win, but launches to save.
        options: dict[str, Any] = (
            {"freezing": True} if setting.device == "cpu" else {"triton.cudagraphs": True}
        )
        forward = torch.compile(forward, options=options)

    def run() -> None:
        with torch.no_grad(), setting.autocast():
            forward(x)

    return run


def _exported(model: nn.Module, setting: Setting, name: str) -> Run:
    """The deployed network in another runtime."""
    format = FORMATS[name]
    format.require(writing=True)
    x = setting.images()
    example = x[:1].repeat(2, 1, 1, 1)  # one image would be taken for a batch that is always one
    job = Job(deploy(model, example_inputs=x[:1]), example, "")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / f"network{format.suffix}"
        format.write(job, path)
        _, runner = format.run(path)
    return lambda: runner(x)


COLUMNS: Mapping[str, Callable[[nn.Module, Setting], Run]] = MappingProxyType(
    {
        "train": _training,
        "train-compiled": partial(_training, compiled=True),
        "infer": _inference,
        "infer-compiled": partial(_inference, compiled=True),
        "onnxruntime": partial(_exported, name="onnx"),
        "openvino": partial(_exported, name="openvino"),
    }
)
"""What is timed: (model, setting) ↦ a function that runs it once."""


def _saved_bytes(model: nn.Module, setting: Setting) -> float:
    model = setting.place(model).train()
    with setting.autocast():
        return float(saved_for_backward(model, setting.images()))


def records(network: str, found: Sequence[Measured]) -> list[dict[str, object]]:
    """The figures as rows of a table, with device and versions."""
    return [
        {
            **describe(one.setting.device),
            "model": network,
            "column": one.setting.column,
            "batch": one.setting.batch,
            "size": one.setting.size,
            "layout": one.setting.layout,
            "dtype": one.setting.dtype,
            "device_type": one.setting.device,
            "row": one.row,
            "value": int(one.value) if one.setting.column == "bytes" else round(one.value, 3),
            "unit": "bytes" if one.setting.column == "bytes" else "ms",
            "ratio": round(one.ratio, 4),
            "ratio_quartiles": [round(one.low, 4), round(one.high, 4)],
            "rounds": one.rounds,
        }
        for one in found
    ]


def ratio_columns(name: str, own: Sequence[float], plain: Sequence[float]) -> dict[str, object]:
    """The median of the ratios own / plain, pair by pair, and their quartiles, as two columns.

    >>> ratio_columns("ratio", [3.0, 30.0, 3.0], [2.0, 20.0, 2.0])
    {'ratio': 1.5, 'ratio_quartiles': '1.5000-1.5000'}
    """
    low, middle, high = quartiles(own, plain)
    return {name: round(middle, 4), f"{name}_quartiles": f"{low:.4f}-{high:.4f}"}


def as_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows of the same columns as comma-separated values, with a header; a pair is low-high."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        pairs = {name: f"{v[0]}-{v[1]}" for name, v in row.items() if isinstance(v, list)}
        writer.writerow({**row, **pairs})
    return text.getvalue()
