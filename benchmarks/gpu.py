"""What SE costs a network on a GPU: training and inference, in under eight minutes.

    python benchmarks/gpu.py [--network resnet50]

bfloat16 autocast, channels-last, compiled, as one would train it; and the tail SE(BN(x)) alone
(benchmarks/tail.py --device cuda). Prints a short table and writes results/gpu.csv with device
and versions. The bars are 1.03, training and inference.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from senet.benchmarking import Measured, Setting, as_csv, measure, records
from senet.commands.bench import show
from senet.contenders import contenders
from senet.runs import atomic_write

RESULTS = Path(__file__).parent / "results" / "gpu.csv"
ROWS = ("plain", "plain again", "senet", "timm", "torchvision's block")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", default="cuda", help="another one to try the script itself")
    parser.add_argument("--size", type=int, default=224)
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU here: torch.cuda.is_available() is false")
    rows = {row: make for row, make in contenders(given.network).items() if row in ROWS}
    found: list[Measured] = []
    for column in ("bytes", "train", "train-compiled", "infer", "infer-compiled"):
        setting = Setting(
            column, given.batch, given.size, "channels_last", given.device, "bfloat16"
        )
        found += measure(rows, setting, rounds=given.rounds, progress=print)
        torch.compiler.reset()
    show(found, f"{given.network}, {given.device}, bfloat16, channels-last")
    text = as_csv(records(given.network, found))
    out = RESULTS if given.device == "cuda" else RESULTS.with_stem(f"gpu-{given.device}")
    atomic_write(out, lambda file: file.write(text.encode()))
    print(f"written: {out}")


if __name__ == "__main__":
    main()
