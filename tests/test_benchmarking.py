"""Ratios are formed pair by pair, counts are exact, and every column really runs.

Those of other runtimes are in `tests/test_exchange.py`, those that compile are slow.
"""

from __future__ import annotations

import csv
import json
import runpy
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from senet import UserError, attach
from senet.adoption import AdoptedSqueezeExcite
from senet.benchmarking import CONTROL, PLAIN, Setting, measure
from senet.cli import main
from senet.contenders import contenders
from senet.deployment import deploy
from senet.norm import recalibrated_modules
from senet.timing import quartiles, time_in_turn


def test_ratios_are_of_the_same_round() -> None:
    """A machine that slows down tenfold in the middle changes no ratio."""
    plain, own = [1.0, 2.0, 10.0, 20.0, 30.0], [1.5, 3.0, 15.0, 30.0, 60.0]
    assert quartiles(own, plain) == (1.5, 1.5, 1.5)
    assert quartiles([3.0], [2.0]) == (1.5, 1.5, 1.5)


def test_all_run_in_every_round_and_take_turns_to_begin() -> None:
    order: list[str] = []
    runs: dict[str, Callable[[], object]] = {
        name: (lambda name=name: order.append(name)) for name in "abc"
    }
    times = time_in_turn(runs, rounds=3)
    assert [len(own) for own in times.values()] == [3, 3, 3]
    rounds = ["".join(order[i : i + 3]) for i in range(0, len(order), 3)]
    assert rounds[2:] == ["abc", "bca", "cab"]
    assert len(rounds) == 5  # two warmed up


def test_time_runs_out_between_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second a run: nothing begins after the last, and only whole rounds count."""
    now = 0.0

    def run() -> None:
        nonlocal now
        now += 1

    monkeypatch.setattr("senet.timing.time.monotonic", lambda: now)
    found = time_in_turn({"a": run, "b": run}, rounds=30, until=8.5)
    assert [len(own) for own in found.values()] == [2, 2]
    assert now == 9
    with pytest.raises(TimeoutError, match="no round was whole"):
        time_in_turn({"a": run, "b": run}, rounds=30, until=13.5)
    assert now == 14


def test_bytes_are_counted_not_timed(one_operation: None) -> None:
    """What the allocator still holds after a forward is what is counted, plus the output.

    The most that it holds at a time in a whole step is that and one or two gradients of maps.
    """
    rows = contenders("resnet20")
    found = {one.row: one for one in measure(rows, Setting("bytes", 8, 32))}
    assert found[CONTROL].ratio == 1.0
    assert found["senet"].ratio <= 1.01
    assert found["senet, two modules"].ratio > 1.2
    peaks = {}
    for row in (PLAIN, "senet", "senet, two modules"):
        held, peaks[row] = _held_and_peak(rows[row]())
        assert found[row].value == pytest.approx(held, rel=0.01)
        assert found[row].value < peaks[row] < found[row].value + 2 * (8 * 16 * 32 * 32 * 4)
    assert peaks["senet"] <= 1.01 * peaks[PLAIN]
    assert peaks["senet, two modules"] > 1.15 * peaks[PLAIN]


def _held_and_peak(model: nn.Module) -> tuple[int, int]:
    """Bytes that a forward holds at its end, and the most that it and its backward ever do.

    By the profiler of memory: what was allocated less what was freed, event by event.
    """
    from torch.profiler import ProfilerActivity, profile

    x = torch.randn(8, 3, 32, 32)
    model.train()(x).sum().backward()
    model.zero_grad()
    held = []
    for backward in (False, True):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            output = model(x)
            if backward:
                output.sum().backward()
        del output
        events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        events.sort(key=lambda event: event.start_ns())
        held.append(list(accumulate(event.nbytes() for event in events)))
    return held[0][-1], max(held[1])


def tiny() -> nn.Module:
    plain = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*plain, nn.Flatten(), nn.Linear(4, 3))


TINY: dict[str, Callable[[], nn.Module]] = {
    PLAIN: tiny,
    "senet": lambda: attach(tiny(), input_size=(3, 16, 16)),
}


@pytest.mark.parametrize("column", ["train", "infer"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_columns_run(column: str, layout: str, dtype: str) -> None:
    found = measure(TINY, Setting(column, 2, 16, layout, dtype=dtype), rounds=2)
    assert [one.row for one in found] == list(TINY)
    assert all(one.value > 0 and one.low <= one.ratio <= one.high for one in found)


@pytest.mark.slow
@pytest.mark.parametrize("column", ["train-compiled", "infer-compiled"])
def test_compiled_columns_run(column: str) -> None:
    found = measure(TINY, Setting(column, 2, 16), rounds=1)
    torch.compiler.reset()
    assert [one.row for one in found] == list(TINY)
    assert all(one.value > 0 for one in found)


def test_every_row_of_inference_is_deployed_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    deployed: list[nn.Module] = []

    def noted(model: nn.Module, *, example_inputs: Tensor) -> nn.Module:
        deployed.append(deploy(model, example_inputs=example_inputs))
        return deployed[-1]

    monkeypatch.setattr("senet.benchmarking.deploy", noted)
    rows = contenders("resnet20")
    measure(rows, Setting("infer", 1, 16), rounds=1)
    assert len(deployed) == len(rows)
    for fast in deployed:
        assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
        assert not any(module.training for module in fast.modules())


def test_the_script_for_gpus_keeps_within_its_time(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
    script = runpy.run_path(str(path))
    out = tmp_path / "gpu.csv"
    words = ["--network=resnet20", "--device=cpu", "--size=16", "--batch=2", f"--out={out}"]

    def columns() -> dict[str, set[str]]:
        with out.open(newline="") as file:
            lines = list(csv.DictReader(file))
        found: dict[str, set[str]] = {}
        for line in lines:
            found.setdefault(line["column"], set()).add(line["rounds"])
        return found

    script["main"]([*words, "--rounds=2", "--columns", "bytes", "train", "infer"])
    assert columns() == {"bytes": {"1"}, "train": {"2"}, "infer": {"2"}}
    assert "left out" not in capfd.readouterr().out
    script["main"]([*words, "--minutes=0"])
    assert columns() == {"bytes": {"1"}}
    assert capfd.readouterr().out.count("left out, for want of time (--minutes 0)") == 4


def test_the_script_for_gpus_ends_in_under_eight_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On a GPU where a network takes 5 s to build and 80 to compile, by a clock of its own."""
    now = 0.0

    def takes(seconds: float) -> None:
        nonlocal now
        now += seconds

    def column(model: nn.Module, setting: Setting) -> Callable[[], object]:
        takes(5)
        seconds = iter([80.0])  # the first run compiles
        return lambda: takes(next(seconds, 0.2))

    monkeypatch.setattr("time.monotonic", lambda: now)
    names = ("train-compiled", "infer-compiled", "train", "infer")
    monkeypatch.setattr("senet.benchmarking.COLUMNS", dict.fromkeys(names, column))
    path = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
    words = ["--network=resnet20", "--device=cpu", "--size=16", "--batch=2"]
    runpy.run_path(str(path))["main"](
        [*words, f"--out={tmp_path / 'gpu.csv'}", "--columns", *names]
    )
    assert 6.5 * 60 < now < 8 * 60
    left_out = [line for line in capfd.readouterr().out.splitlines() if "left out" in line]
    assert [line.partition(":")[0] for line in left_out] == list(names[1:])


def test_progress_names_a_contender_once() -> None:
    """The column is in the title that the command puts before it."""
    words: list[str] = []
    rows = {PLAIN: lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())}
    measure(rows, Setting("infer", 1, 8), rounds=1, progress=words.append)
    assert words == [PLAIN, "round 0 of 1", "round 0 of 1", "round 1 of 1"]


def test_contenders_compute_the_same() -> None:
    rows = contenders("resnet20")
    torch.manual_seed(0)
    ours = rows["senet"]()
    torch.manual_seed(0)
    composed = rows["senet, two modules"]()
    assert {m.implementation for _, m in recalibrated_modules(composed)} == {"reference"}
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(ours(x), composed(x), rtol=1e-4, atol=1e-5)
    theirs = rows["torchvision's block"]()
    assert sum(type(m).__name__ == "SqueezeExcitation" for m in theirs.modules()) == 9
    counts = [sum(p.numel() for p in m.parameters()) for m in (ours, theirs)]
    assert counts[0] == counts[1]


def test_a_network_that_has_se_is_compared_with_itself() -> None:
    rows = contenders("timm/mobilenetv3_small_050")
    assert list(rows) == [PLAIN, CONTROL, "senet"]
    assert sum(isinstance(m, AdoptedSqueezeExcite) for m in rows["senet"]().modules()) == 9


@pytest.mark.parametrize(
    ("setting", "rounds", "message"),
    [
        (Setting("speed", 2, 16), 1, "unknown column 'speed'"),
        (Setting("train", 2, 16, "nhwc"), 1, "unknown layout 'nhwc'"),
        (Setting("train", 2, 16), 0, "rounds is 0"),
        (Setting("openvino", 2, 16, dtype="bfloat16"), 1, "float32 on the CPU.* got bfloat16"),
        (Setting("onnxruntime", 2, 16, "channels_last"), 1, "in NCHW; got .*channels_last"),
    ],
)
def test_mistakes(setting: Setting, rounds: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure(contenders("resnet20"), setting, rounds=rounds)
    with pytest.raises(UserError, match="give the plain network's name"):
        contenders("se_resnet20")


def test_the_command_prints_a_table_and_writes_the_figures(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.csv"
    assert main(["bench", "resnet20", "--columns", "bytes", "--batch", "2", f"--csv={out}"]) == 0
    table = capfd.readouterr().out
    assert "bytes ×2" in table
    assert "torchvision's block" in table
    with out.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert {"date", "device", "threads", "torch", "ratio", "row"} <= written[0].keys()
    assert main(["bench", "resnet20", "--columns=bytes", "--batch=2", "--json"]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert [entry["row"] for entry in printed] == [entry["row"] for entry in written]
    assert printed[0]["torch"] == torch.__version__


def test_figures_are_shown_also_where_they_cannot_be_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["resnet20", "--columns=bytes", "--batch=2", f"--csv={tmp_path}"]
    assert main(["bench", *words]) == 2
    out, err = capfd.readouterr()
    assert "bytes ×2" in out
    assert "cannot write" in err


def test_the_command_names_mistakes(capfd: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["resnet20", "--columns", "infer,speed"], "unknown column 'speed'"),
        (["resnet20", "--columns", ", "], "columns is ', ', which names none"),
        (["resnet20", "--columns=train,onnxruntime", "--dtype=bfloat16"], "got bfloat16"),
        (["resnet20", "--infer_batch", "x"], "infer_batch is 'x'"),
        (["resnet20", "--dtype", "int8"], "dtype is 'int8'"),
        (["resnet20", "--batch", "0"], "at least 1"),
        (["resnet21"], "unknown model 'resnet21'"),
    ):
        assert main(["bench", *arguments]) == 2
        assert message in capfd.readouterr().err
