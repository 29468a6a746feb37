"""What SE costs a network on the CPU: every column of docs/benchmarks.md.

    python benchmarks/run.py [--networks resnet50 …] [--columns train infer …] [--runs 1]

Ratios to the plain network treated alike, timed in turn within one run (see
`senet.benchmarking`), batch 16 at 128² for training and the bytes kept for backward, batch 1 and
8 at the network's own size for inference. All of it is done ``--runs`` times, each time with
networks built anew. Writes results/NETWORK.csv; columns that are not run again keep their lines.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

import torch
from rich.console import Console

from senet.benchmarking import COLUMNS, RUNTIMES, Measured, Setting, as_csv, measure, records
from senet.commands.bench import show
from senet.contenders import contenders
from senet.models import native_input_size
from senet.runs import atomic_write

RESULTS = Path(__file__).parent / "results"
NETWORKS = (
    "resnet50",
    "timm/resnet50",
    "timm/resnext50_32x4d",
    "resnet20",
    "bn_inception",
    "timm/efficientnet_b0",
    "timm/mobilenetv3_large_100",
)
TRAINING = ("bytes", "train", "train-compiled")
KEYS = ("column", "batch", "layout", "row")


def settings(name: str, columns: list[str]) -> list[Setting]:
    size = native_input_size(name)[1]
    found = []
    for column in columns:
        for layout in ["nchw"] if column in RUNTIMES else ["nchw", "channels_last"]:
            if column in TRAINING:
                found.append(Setting(column, 16, min(size, 128), layout))
            else:
                found += [Setting(column, batch, size, layout) for batch in (1, 8)]
    return found


def merged(path: Path, text: str) -> str:
    """The new lines, and the old ones of what was not measured now."""
    new = list(csv.DictReader(io.StringIO(text)))
    measured_now = {tuple(line[name] for name in KEYS) for line in new}
    kept = []
    if path.exists():
        with path.open(newline="") as file:
            old = list(csv.DictReader(file))
        kept = [line for line in old if tuple(line[name] for name in KEYS) not in measured_now]
    return as_csv([{name: line.get(name, "") for name in new[0]} for line in (*kept, *new)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--columns", nargs="+", default=["bytes", *COLUMNS], metavar="COLUMN")
    parser.add_argument("--rows", nargs="+", default=None, help="only these contenders, and plain")
    parser.add_argument("--runs", type=int, default=1, help="times that all is done")
    parser.add_argument("--rounds", type=int, default=15, help="rounds a run")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    if min(given.runs, given.rounds) < 1:
        parser.error("--runs and --rounds must be at least 1")
    if unknown := set(given.columns) - {"bytes", *COLUMNS}:
        parser.error(f"no such column: {', '.join(sorted(unknown))}")
    torch.set_num_threads(given.threads)
    console = Console(stderr=True)
    for name in given.networks:
        rows = contenders(name)
        if given.rows is not None:
            rows = {
                row: make for row, make in rows.items() if row in (*given.rows, *list(rows)[:2])
            }
        lines: list[dict[str, object]] = []
        for number in range(1, given.runs + 1):
            found: list[Measured] = []
            with console.status("") as status:
                for setting in settings(name, given.columns):
                    title = f"{name} {setting.column} {setting.layout} ×{setting.batch}: "
                    found += measure(
                        rows,
                        setting,
                        rounds=given.rounds,
                        progress=lambda what, title=title: status.update(title + what),
                    )
                    torch.compiler.reset()
            for layout in dict.fromkeys(one.setting.layout for one in found):
                show([one for one in found if one.setting.layout == layout], f"{name}, {layout}")
            lines += [{"run": number, **line} for line in records(name, found)]
            path = RESULTS / f"{name.replace('/', '-')}.csv"
            text = merged(path, as_csv(lines))
            atomic_write(path, lambda file, text=text: file.write(text.encode()))
            print(f"written: {path}")


if __name__ == "__main__":
    main()
