"""SE(BN(x)) over BN(x), forward and backward, at the sites of ResNet-50.

    python benchmarks/tail.py [--runs 3] [--rounds 11] [--device cpu] [--small]

Each of the four shapes is timed as often as ResNet-50 has it (3, 4, 6, 3 sites), batch 16, as at
224²; the contenders run in turn, and a round gives each the ratio of its summed time to that of
`F.batch_norm`. BatchNorm runs twice, as a control, and all of it is done three times. The bars are
1.30 (NCHW) and 1.40 (channels-last). Writes results/tail.csv, or results/tail-DEVICE.csv.

``--small`` takes single maps around `senet.kernels.selection.SMALL` values instead, where on a CPU
two operations become the faster ones, and writes results/tail-small.csv.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from senet.benchmarking import LAYOUTS, as_csv, ratio_columns
from senet.kernels import Excitation, Norm, norm_excite
from senet.machine import describe
from senet.runs import atomic_write
from senet.timing import time_in_turn

RESULTS = Path(__file__).parent / "results"
SHAPES = ((256, 56, 3), (512, 28, 4), (1024, 14, 6), (2048, 7, 3))
"""Channels, height and width, sites."""
SMALL_SHAPES = ((64, 8, 1), (32, 16, 1), (16, 32, 1), (512, 8, 1), (256, 16, 1), (128, 32, 1))
BATCH = 16
BARS = {"nchw": 1.30, "channels_last": 1.40}
BASE = "batch norm"


def operations(device: str) -> dict[str, Callable[[Tensor, Norm, Excitation], Tensor]]:
    """What is compared: x, norm, block ↦ y."""

    def batch_norm(x: Tensor, norm: Norm, _: Excitation) -> Tensor:
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, True)

    def named(name: str) -> Callable[[Tensor, Norm, Excitation], Tensor]:
        return lambda x, norm, block: norm_excite(x, norm, block, name)

    compared = {
        BASE: batch_norm,
        "batch norm again": batch_norm,
        "senet": named("aten"),
        "two operations": named("reference"),
    }
    if device != "cpu":
        compared["senet, compiled"] = torch.compile(named("traced"))
    return compared


def step(
    operation: Callable[[Tensor, Norm, Excitation], Tensor],
    operands: tuple[Tensor, Norm, Excitation],
    gradient: Tensor,
    leaves: list[Tensor],
) -> None:
    """Forward and backward."""
    for leaf in leaves:
        leaf.grad = None
    operation(*operands).backward(gradient)


def found(run: Callable[[], None], leaves: list[Tensor]) -> list[Tensor]:
    """The gradients of all leaves after a step."""
    run()
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


def check(gradients: dict[str, list[Tensor]]) -> None:
    """Nothing is timed where they do not agree."""
    truth = gradients["two operations"]
    for name, own in gradients.items():
        for one, other in zip(own, truth, strict=True):
            if (one - other).abs().max() > 1e-3 * other.abs().max():
                raise SystemExit(f"{name} and two operations have other gradients; not timed")


def measured(
    device: str, layout: str, rounds: int, shapes: tuple[tuple[int, int, int], ...]
) -> Iterator[dict[str, object]]:
    """A row for each contender and shape, and the sums over all sites."""
    sums: dict[str, list[float]] = {}
    for channels, size, sites in shapes:
        rng = torch.Generator().manual_seed(0)
        shape = (BATCH, channels, size, size)
        x, gradient = (
            torch.randn(shape, generator=rng).to(device).contiguous(memory_format=LAYOUTS[layout])
            for _ in range(2)
        )
        hidden = channels // 16
        weights = [
            torch.randn(s, generator=rng).mul_(0.1).to(device).requires_grad_()
            for s in ((hidden, channels), (hidden,), (channels, hidden), (channels,))
        ]
        affine = [torch.ones(channels, device=device, requires_grad=True) for _ in range(2)]
        running = torch.zeros(channels, device=device), torch.ones(channels, device=device)
        norm, block = Norm(*affine, *running), Excitation(*weights[:4])
        x.requires_grad_()
        leaves = [x, *affine, *weights]

        runs = {
            name: partial(step, operation, (x, norm, block), gradient, leaves)
            for name, operation in operations(device).items()
        }
        check({name: found(run, leaves) for name, run in runs.items() if "norm" not in name})
        times = time_in_turn(runs, rounds=rounds, device=device)
        for name, own in times.items():
            all_sites = [sites * t for t in own]
            before = sums.get(name, [0.0] * rounds)
            sums[name] = [a + b for a, b in zip(before, all_sites, strict=True)]
            yield row(device, layout, f"{channels}×{size}²", name, own, times[BASE])
    total = sum(sites for _, _, sites in shapes)
    for name, own in sums.items():
        yield row(device, layout, f"{total} sites", name, own, sums[BASE])


def row(
    device: str, layout: str, shape: str, name: str, own: list[float], base: list[float]
) -> dict[str, object]:
    return {
        **describe(device),
        "layout": layout,
        "shape": shape,
        "row": name,
        "ms": round(statistics.median(own), 3),
        **ratio_columns("ratio", own, base),
        "rounds": len(own),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3, help="times that all is done")
    parser.add_argument("--rounds", type=int, default=11, help="rounds a shape")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--small", action="store_true", help="maps of few values instead")
    given = parser.parse_args()
    shapes = SMALL_SHAPES if given.small else SHAPES
    torch.set_num_threads(given.threads)
    rows = [
        {"run": number, **entry}
        for number in range(1, given.runs + 1)
        for layout in LAYOUTS
        for entry in measured(given.device, layout, given.rounds, shapes)
    ]
    bars = "" if given.small else f"; bars {BARS}"
    table = Table(title=f"SE(BN(x)) over BN(x){bars}", title_justify="left")
    columns = ("run", "layout", "shape", "row", "ms", "ratio", "ratio_quartiles")
    for column in columns:
        table.add_column(column)
    for entry in rows:
        table.add_row(*(str(entry[column]) for column in columns))
    Console(width=120).print(table)
    parts = ["tail", *["small"] * given.small, *[given.device] * (given.device != "cpu")]
    out = RESULTS / f"{'-'.join(parts)}.csv"
    atomic_write(out, lambda file: file.write(as_csv(rows).encode()))
    print(f"written: {out}")


if __name__ == "__main__":
    main()
