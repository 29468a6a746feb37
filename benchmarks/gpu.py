"""What SE costs a network on a GPU: training and inference, in under eight minutes.

    python benchmarks/gpu.py [--network resnet50] [--minutes 6.5]

bfloat16 autocast, channels-last; the columns of the bars, compiled, come first. Once the minutes
are over nothing more is begun: at most the compilation of one network comes later, for which a
minute and a half are kept. The rounds that were whole by then count (the CSV says how many); a
column without one is left out and said to be. Prints a short table and writes results/gpu.csv, anew
after each column, with device and versions. The bars are 1.03, training and inference. SE(BN(x))
alone is measured by
`benchmarks/tail.py --device cuda`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from senet.benchmarking import Measured, Setting, as_csv, measure, records
from senet.commands.bench import show
from senet.contenders import contenders
from senet.runs import atomic_write

RESULTS = Path(__file__).parent / "results" / "gpu.csv"
COLUMNS = ("bytes", "train-compiled", "infer-compiled", "train", "infer")
ROWS = ("plain", "plain again", "senet", "timm", "torchvision's block")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--minutes", type=float, default=6.5, help="of time for all columns")
    parser.add_argument("--device", default="cuda", help="another one to try the script itself")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=COLUMNS, metavar="COLUMN")
    parser.add_argument("--out", type=Path, default=None, help="the CSV file")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU here: torch.cuda.is_available() is false")
    rows = {row: make for row, make in contenders(given.network).items() if row in ROWS}
    out = given.out or (
        RESULTS if given.device == "cuda" else RESULTS.with_stem(f"gpu-{given.device}")
    )
    found: list[Measured] = []
    end = time.monotonic() + 60 * given.minutes
    for column in given.columns:
        setting = Setting(
            column, given.batch, given.size, "channels_last", given.device, "bfloat16"
        )
        try:
            found += measure(
                rows,
                setting,
                rounds=given.rounds,
                progress=lambda what, column=setting.column: print(f"{column}: {what}"),
                until=end,
            )
        except TimeoutError:
            print(f"{column}: left out, for want of time (--minutes {given.minutes:g})")
            continue
        finally:
            torch.compiler.reset()
        text = as_csv(records(given.network, found))
        atomic_write(out, lambda file, text=text: file.write(text.encode()))
    if not found:
        raise SystemExit("nothing was measured in this time; give more --minutes")
    show(found, f"{given.network}, {given.device}, bfloat16, channels-last")
    print(f"written: {out}")


if __name__ == "__main__":
    main()
