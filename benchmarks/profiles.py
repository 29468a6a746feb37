"""Where the time of a column goes: milliseconds by operator, the plain network and ours in turn.

    python benchmarks/profiles.py resnet50 --column infer --batch 1 --layout channels_last

Columns are those of `senet bench`. PyTorch's operators are timed by its profiler (their self time;
of compiled networks the compiler's kernels too, by what they compute), those of ONNX Runtime and
OpenVINO by the runtime's own. Profiling takes time itself, so that only differences say something.
Prints the operators in which the two differ most, medians over the steps, and writes all to
results/profile-NETWORK.csv, where other columns keep their lines.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch._inductor import config as inductor
from torch.profiler import ProfilerActivity, profile

from senet.benchmarking import COLUMNS, LAYOUTS, PLAIN, RUNTIMES, Setting, as_csv, check
from senet.contenders import contenders
from senet.deployment import deploy
from senet.exchange import FORMATS, Job
from senet.exchange.onnx import session
from senet.exchange.openvino import compiled
from senet.machine import describe
from senet.models import native_input_size
from senet.runs import atomic_write

RESULTS = Path(__file__).parent / "results"
OURS = "senet"
WARMUP = 2
SHOWN = 14
Step = Callable[[], None]
Steps = list[dict[str, float]]
"""Of each step: kind of operator → milliseconds."""


def in_torch(model: nn.Module, setting: Setting) -> tuple[Step, Callable[[], Steps]]:
    """PyTorch's operators."""
    run = COLUMNS[setting.column](model, setting)
    found: Steps = []

    def step() -> None:
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
            run()
        kinds: Counter[str] = Counter()
        for event in profiler.key_averages():
            kinds[_kind(event.key)] += event.self_cpu_time_total / 1000
        found.append(dict(kinds))

    return step, lambda: found


def _kind(name: str) -> str:
    """What the compiler makes is numbered or hashed; the rest of its name says what it does."""
    name = re.sub(r"^graph_\d+_(cpp_fused\w+?)(_\d+)?$", r"\1", name.removeprefix("aten::"))
    return re.sub(r"^(?:## )?(Call CompiledFxGraph|Torch-Compiled Region).*$", r"\1", name)


def in_onnxruntime(file: Path, setting: Setting) -> tuple[Step, Callable[[], Steps]]:
    """The nodes of ONNX Runtime's optimised graph, by its own profile."""
    opened = session(file, profile=file.with_suffix(""))
    images = setting.images().numpy()

    def found() -> Steps:
        events = json.loads(Path(opened.end_profiling()).read_text())
        runs = [e for e in events if e["name"] == "model_run"]
        steps: Steps = []
        for run in sorted(runs, key=lambda e: e["ts"]):
            kinds: Counter[str] = Counter()
            for event in events:
                inside = run["ts"] <= event["ts"] <= run["ts"] + run["dur"]
                if event["cat"] == "Node" and event["name"].endswith("_kernel_time") and inside:
                    kinds[event["args"]["op_name"]] += event["dur"] / 1000
            steps.append(dict(kinds))
        return steps

    return lambda: opened.run(None, {"images": images}) and None, found


def in_openvino(file: Path, setting: Setting) -> tuple[Step, Callable[[], Steps]]:
    """What OpenVINO executes, by its own counters."""
    request = compiled(file, {"PERF_COUNT": True}).create_infer_request()
    images = setting.images().numpy()
    steps: Steps = []

    def step() -> None:
        request.infer([images])
        kinds: Counter[str] = Counter()
        for node in request.profiling_info:
            kinds[node.node_type] += node.real_time.total_seconds() * 1000
        steps.append(dict(kinds))

    return step, lambda: steps


def profiled(name: str, setting: Setting, count: int) -> dict[str, Steps]:
    """Row → its steps, the two in turn, those that warm up left out."""
    rows = contenders(name)
    steps: dict[str, tuple[Step, Callable[[], Steps]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for row in (PLAIN, OURS):
            torch.manual_seed(0)
            model = rows[row]()
            if setting.column not in RUNTIMES:
                steps[row] = in_torch(model, setting)
                continue
            x = setting.images()[:1]
            kind = "onnx" if setting.column == "onnxruntime" else setting.column
            file = Path(folder) / f"{row}{FORMATS[kind].suffix}"
            job = Job(deploy(model, example_inputs=x), x.repeat(2, 1, 1, 1), "")
            with torch.no_grad():
                FORMATS[kind].write(job, file)
            made = in_onnxruntime if setting.column == "onnxruntime" else in_openvino
            steps[row] = made(file, setting)
        for _ in range(WARMUP + count):
            for step, _ in steps.values():
                step()
        return {row: found()[-count:] for row, (_, found) in steps.items()}


def medians(found: dict[str, Steps]) -> dict[str, dict[str, float]]:
    """Kind of operator → row → median milliseconds, and "all" of a step's."""
    kinds = dict.fromkeys(kind for steps in found.values() for step in steps for kind in step)
    table = {
        kind: {row: median(s.get(kind, 0.0) for s in steps) for row, steps in found.items()}
        for kind in kinds
    }
    table["all"] = {row: median(sum(s.values()) for s in steps) for row, steps in found.items()}
    return dict(sorted(table.items(), key=lambda item: -abs(difference(item[1]))))


def difference(row: dict[str, float]) -> float:
    return row[OURS] - row[PLAIN]


def show(table: dict[str, dict[str, float]], title: str) -> None:
    shown = Table("ms", PLAIN, OURS, "difference", title=title)
    for kind, row in list(table.items())[:SHOWN]:
        figures = row[PLAIN], row[OURS], difference(row)
        shown.add_row(kind, *(f"{figure:.2f}" for figure in figures))
    Console().print(shown)


def written(
    path: Path, name: str, setting: Setting, table: dict[str, dict[str, float]], steps: int
) -> str:
    """The file with these lines for the column, and all others as they were."""
    own = {key: str(getattr(setting, key)) for key in ("column", "batch", "size", "layout")}
    own["threads"] = str(torch.get_num_threads())
    lines: list[dict[str, object]] = [
        {
            **describe(),
            "model": name,
            **own,
            "operator": kind,
            "plain_ms": round(row[PLAIN], 3),
            "senet_ms": round(row[OURS], 3),
            "steps": steps,
        }
        for kind, row in table.items()
    ]
    kept: list[dict[str, object]] = []
    if path.exists():
        with path.open(newline="") as file:
            kept = [
                {key: line.get(key, "") for key in lines[0]}
                for line in csv.DictReader(file)
                if {key: line[key] for key in own} != own
            ]
    return as_csv(kept + lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("network", help="resnet50, timm/NAME …")
    parser.add_argument("--column", choices=list(COLUMNS), default="infer")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--layout", choices=list(LAYOUTS), default="nchw")
    parser.add_argument("--size", type=int, default=None, help="pixels; the network's own")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=None, help="the CSV file")
    given = parser.parse_args(arguments)
    if given.steps < 1:
        parser.error("--steps must be at least 1")
    torch.set_num_threads(given.threads)
    size = given.size or native_input_size(given.network)[1]
    setting = Setting(given.column, given.batch, size, given.layout)
    check(setting)
    if "compiled" in given.column:
        inductor.cpp.enable_kernel_profile = True
    table = medians(profiled(given.network, setting, given.steps))
    title = f"{given.network}, {given.column} ×{given.batch}, {size}², {given.layout}"
    show(table, title)
    path = given.out or RESULTS / f"profile-{given.network.replace('/', '-')}.csv"
    text = written(path, given.network, setting, table, given.steps)
    atomic_write(path, lambda file: file.write(text.encode()))
    print(f"written: {path}")


if __name__ == "__main__":
    main()
