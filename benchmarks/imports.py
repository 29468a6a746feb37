"""`import senet` over `import torch`, whole processes in turn; the bar is 1.15.

    python benchmarks/imports.py [--rounds 15]

Each round starts three processes: senet, torch, and torch again as a control (A/A), and gives one
ratio of wall-clock seconds. Writes results/imports.csv with medians and quartiles.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results" / "imports.csv"
BAR = 1.15


def seconds(module: str) -> float:
    """How long a fresh interpreter takes to import a module."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="rounds of three processes")
    rounds = parser.parse_args().rounds
    names = ["senet", "torch", "torch"]
    for name in names:  # once each, so that the files are in memory
        seconds(name)
    found: list[list[float]] = [[], [], []]
    for number in range(rounds):
        for turn in range(3):
            which = (number + turn) % 3
            found[which].append(seconds(names[which]))
    ours, plain, again = found
    ratio = statistics.quantiles([a / b for a, b in zip(ours, plain, strict=True)], n=4)
    control = statistics.quantiles([a / b for a, b in zip(again, plain, strict=True)], n=4)
    row = {
        "date": datetime.date.today().isoformat(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "rounds": rounds,
        "torch_seconds": round(statistics.median(plain), 3),
        "senet_seconds": round(statistics.median(ours), 3),
        "ratio": round(ratio[1], 3),
        "ratio_quartiles": f"{ratio[0]:.3f}-{ratio[2]:.3f}",
        "control": round(control[1], 3),
        "control_quartiles": f"{control[0]:.3f}-{control[2]:.3f}",
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerow(row)
    print("\n".join(f"{key:>16}  {value}" for key, value in row.items()))
    print(f"{'bar':>16}  {BAR}: {'met' if ratio[1] <= BAR else 'missed'}")


if __name__ == "__main__":
    main()
