"""All public names of senet over `import torch`, whole processes in turn; the bar is 1.15.

`import senet` alone waits for nothing: a name brings what it needs when it is asked for.

    python benchmarks/imports.py [--rounds 15]

Each round starts three processes: senet, torch, and torch again as a control (A/A), and gives one
ratio of wall-clock seconds. Writes results/imports.csv with medians and quartiles.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from senet.benchmarking import as_csv, ratio_columns
from senet.machine import describe
from senet.runs import atomic_write

RESULTS = Path(__file__).parent / "results" / "imports.csv"
BAR = 1.15


def seconds(statement: str) -> float:
    """How long a fresh interpreter takes for an import statement."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="rounds of three processes")
    rounds = parser.parse_args().rounds
    names = ["from senet import *", "import torch", "import torch"]
    for name in names:  # once each, so that the files are in memory
        seconds(name)
    found: list[list[float]] = [[], [], []]
    for number in range(rounds):
        for turn in range(3):
            which = (number + turn) % 3
            found[which].append(seconds(names[which]))
    ours, plain, again = found
    row = {
        **describe(),
        "rounds": rounds,
        "torch_seconds": round(statistics.median(plain), 3),
        "senet_seconds": round(statistics.median(ours), 3),
        **ratio_columns("ratio", ours, plain),
        **ratio_columns("control", again, plain),
    }
    atomic_write(RESULTS, lambda file: file.write(as_csv([row]).encode()))
    print("\n".join(f"{key:>16}  {value}" for key, value in row.items()))
    print(f"{'bar':>16}  {BAR}: {'met' if row['ratio'] <= BAR else 'missed'}")


if __name__ == "__main__":
    main()
