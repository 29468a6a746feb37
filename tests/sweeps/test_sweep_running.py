"""senet sweep: runs kept, resumed and failed; one table whatever happened in between."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
from pathlib import Path

import pytest
from processes import finish, start, wait_until, when_placed

from senet.checkpoints import LAST
from senet.cli import main
from senet.errors import UserError
from senet.options import options_yaml, read_options
from senet.runs import WEIGHTS
from senet.sweeps import RESULTS, SWEEP, TABLE, one_run, read_recipe, resolve, run_sweep, running
from senet.training import CONFIG, train

pytestmark = pytest.mark.usefixtures("undrawn")

TINY = (
    "base: {model: resnet20, data: digits, image_size: 8, batch_size: 16, epochs: 2,"
    " limit_batches: 2, threads: 1, accelerator: cpu}\n"
)
PAIR = TINY + "seeds: [0, 1]\nvariants: {plain: {se: false}, se: {se: true}}\n"
FAILING = TINY + "seeds: [0]\nvariants: {plain: {se: false}, wild: {lr: 1e+38}, se: {se: true}}\n"
TIMES = ("seconds", "date")


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def results(out: Path) -> list[dict[str, str]]:
    with (out / RESULTS).open(newline="") as file:
        return list(csv.DictReader(file))


def without_times(out: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in results(out)]


def weights(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.glob(f"*/*/{WEIGHTS}"))}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("recipe"), PAIR)


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    """A sweep that nothing happened to."""
    out = recipe.parent / "whole"
    assert main(["sweep", str(recipe), "--out", str(out)]) == 0
    return out


def test_what_a_sweep_leaves(whole: Path) -> None:
    assert {entry.name for entry in whole.iterdir()} == {
        *(str(SWEEP), str(RESULTS), str(TABLE), "plain", "se"),
    }
    rows = results(whole)
    assert [(r["variant"], r["seed"], r["status"]) for r in rows] == [
        *(("plain", "0", "finished"), ("plain", "1", "finished")),
        *(("se", "0", "finished"), ("se", "1", "finished")),
    ]
    for row in rows:
        run = whole / row["variant"] / f"seed-{row['seed']}"
        with (run / "metrics.csv").open(newline="") as file:
            epochs = list(csv.DictReader(file))
        assert len(epochs) == int(row["epochs"]) == 2
        assert float(row["top1"]) == float(epochs[-1]["val_top1"])
        assert float(row["best_top1"]) == max(float(e["val_top1"]) for e in epochs)
        assert epochs[int(row["best_epoch"]) - 1]["val_top1"] == row["best_top1"]
        assert float(row["seconds"]) == pytest.approx(sum(float(e["seconds"]) for e in epochs))
        assert row["network"] == read_options(run / CONFIG).model
        assert all(row[key] for key in ("parameters", "macs", "device", "date", "versions"))
    assert int(rows[2]["parameters"]) > int(rows[0]["parameters"]) == 269_722
    assert "| se | 2 |" in (whole / TABLE).read_text()


def test_each_run_is_an_ordinary_run(whole: Path, tmp_path: Path) -> None:
    """To the bit, also the last one in a process that had trained others before."""
    options = read_options(whole / "se" / "seed-1" / CONFIG)
    train(options, tmp_path / "run", say=lambda line: None)
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == weights(whole)[f"se/seed-1/{WEIGHTS}"]
    assert options_yaml(options) == options_yaml(read_options(tmp_path / "run" / CONFIG))


def test_a_finished_sweep_is_kept(
    recipe: Path, whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_run, "train", None)  # nothing is trained
    monkeypatch.setattr(running, "load_data", None)
    before = (whole / RESULTS).read_bytes(), (whole / TABLE).read_bytes()
    assert main(["sweep", str(recipe), "--out", str(whole), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    made = json.loads(out)
    assert [v["variant"] for v in made["variants"]] == ["plain", "se"]
    assert made["variants"][1]["difference"]["count"] == 2
    assert len(made["runs"]) == 4
    assert ((whole / RESULTS).read_bytes(), (whole / TABLE).read_bytes()) == before
    assert main(["sweep", str(whole / SWEEP), "--out", str(whole)]) == 0
    assert "\nse " in capsys.readouterr().out


def test_lost_results_are_written_anew_from_the_runs(recipe: Path, whole: Path) -> None:
    before, trained = without_times(whole), weights(whole)
    (whole / RESULTS).unlink()
    assert main(["sweep", str(recipe), "--out", str(whole)]) == 0
    assert without_times(whole) == before
    assert weights(whole) == trained


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--epochs=3"], r"\(epochs of variant plain: 2 there, 3 here\)"),
        (["--seeds=0"], r"\(seeds: \[0, 1\] there, \[0\] here\)"),
        (["--model=resnet56"], r"\(model of variant plain: resnet20 there, resnet56 here\)"),
    ],
)
def test_another_sweep_names_what_differs(
    recipe: Path, whole: Path, words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (whole / RESULTS).read_bytes()
    assert main(["sweep", str(recipe), "--out", str(whole), *words]) == 2
    err = capsys.readouterr().err
    assert re.search(line, err), err
    assert f"go on with it: senet sweep {whole / SWEEP} --out {whole}" in err
    assert err.count("\n") == 1
    assert (whole / RESULTS).read_bytes() == before


def test_a_directory_of_something_else(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for out, words in (
        (tmp_path, "is not empty and holds no sweep; name another directory"),
        (tmp_path / "notes.txt", "is a file; name a directory for the sweep"),
    ):
        assert main(["sweep", str(recipe), "--out", str(out)]) == 2
        assert words in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("variant", "line"),
    [
        ("{se: true, warm_start: true, gate: tanh}", "a warm start needs a gate"),
        ("{se: true, sites: 9}", "no site is in stage 9"),
        ("{data: nowhere/at/all}", "nowhere/at/all"),
        ("{model: timm/test_vit}", "'timm/test_vit' does not take images of 8×8 ("),
        ("{accelerator: gpx}", "cannot train with accelerator=gpx"),
        ("{init: nowhere}", "nowhere"),
    ],
)
def test_what_cannot_be_trained_is_told_before_anything_is(
    variant: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = written(tmp_path, TINY + f"variants: {{plain: {{se: false}}, odd: {variant}}}\n")
    assert main(["sweep", str(recipe), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("senet: error: variant odd: ")
    assert line in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_optional_variant_is_left_out_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "seeds: [0]\noptional: [odd]\nvariants: {plain: {}, odd: {se: true, sites: 9}}\n"
    recipe = written(tmp_path, TINY + text)
    words = ["sweep", str(recipe), "--out", str(tmp_path / "out"), "--epochs=1", "--json"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert "variant odd is left out: no site is in stage 9; stages: 0, 1, 2" in err
    assert [v["variant"] for v in json.loads(out)["variants"]] == ["plain"]


def test_a_run_that_fails_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = written(tmp_path, FAILING), tmp_path / "out"
    words = ["sweep", str(recipe), "--out", str(out), "--epochs=1"]
    assert main(words) == 1
    said = capsys.readouterr().out
    assert "[2/3] wild, seed 0: failed: " in said
    rows = {row["variant"]: row for row in results(out)}
    assert [row["status"] for row in rows.values()] == ["finished", "failed", "finished"]
    assert "not finite" in rows["wild"]["reason"]
    assert (rows["wild"]["top1"], rows["wild"]["epochs"]) == ("", "0")
    assert "| wild | 0 of 1, 1 failed |" in (out / TABLE).read_text()
    assert "- wild, seed 0, failed: " in (out / TABLE).read_text()

    assert main(words) == 1  # kept, shown, and not trained again
    said = capsys.readouterr().out
    assert "epoch" not in said.partition("variant")[0]
    assert "wild, seed 0, failed: " in said
    assert main([*words, "--variants=plain,se"]) == 0  # it is not among those asked for
    capsys.readouterr()
    assert main([*words, "--retry"]) == 1
    said = capsys.readouterr().out
    assert "[1/1] wild, seed 0: failed: " in said


def test_a_fault_of_the_program_is_a_failure_with_its_traceback(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a run that is tried again, and succeeds, is an ordinary one."""
    real = one_run.train

    def broken(options, out, **given):
        if options.model == "se_resnet20":
            raise RuntimeError("out of\nluck")
        return real(options, out, **given)

    sweep, out = resolve(read_recipe(recipe), {"epochs": 1}), tmp_path / "out"
    monkeypatch.setattr(one_run, "train", broken)
    rows = run_sweep(sweep, out, say=lambda line: None)
    assert [row.reason for row in rows if row.variant == "plain"] == ["", ""]
    reasons = [row.reason for row in rows if row.variant == "se"]
    where = "se/seed-1.traceback.txt"
    assert reasons[1] == f"RuntimeError: out of luck (see {where})"
    assert 'raise RuntimeError("out of\\nluck")' in (out / where).read_text()
    monkeypatch.setattr(one_run, "train", real)
    again = run_sweep(sweep, out, retry=True, say=lambda line: None)
    assert [row.status for row in again] == ["finished"] * 4
    assert not (out / where).exists()


def test_ctrl_c_says_how_to_go_on(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out put"
    words = ["sweep", recipe, "--out", out, "--variants=se,plain", "--retry"]
    interrupted = when_placed(f"se/seed-0/{LAST}", signal.SIGINT)
    ended = start(words, tmp_path / "log", prepare=interrupted).wait()
    assert ended.status == 130
    last = ended.err.splitlines()[-1]
    assert last.startswith("senet: interrupted; finished runs and epochs are saved, to go on: ")
    assert last.endswith(f"senet sweep '{out / SWEEP}' --out '{out}' --variants se,plain --retry")
    assert "Traceback" not in ended.err
    assert not (out / "se" / "seed-1").exists()


def test_killed_and_started_again_it_has_the_same_table(
    recipe: Path, whole: Path, tmp_path: Path
) -> None:
    """In the first run, between runs, and in the last."""
    out = tmp_path / "out"
    arguments = ["sweep", recipe, "--out", out]
    for moment in (f"plain/seed-0/{LAST}", f"se/seed-0/{CONFIG}", f"se/seed-1/{LAST}"):
        killed = when_placed(moment, signal.SIGKILL)
        ended = start(arguments, tmp_path / "log", prepare=killed).wait()
        assert ended.status == -signal.SIGKILL, moment
    ended = finish(arguments, tmp_path / "log")
    assert ended.status == 0, ended.err
    assert "[1/1] se, seed 1: " in ended.out
    assert without_times(out) == without_times(whole)
    assert weights(out) == weights(whole)
    table, other = ((o / TABLE).read_text() for o in (out, whole))
    assert table == other


@pytest.mark.slow
def test_several_at_a_time(recipe: Path, whole: Path, tmp_path: Path) -> None:
    """The same results; killed, no process is left; one that dies is a failure."""
    out = tmp_path / "out"
    words = ["sweep", str(recipe), "--out", str(out), "--jobs=2"]
    running = start(words, tmp_path / "log")
    assert wait_until((out / "se/seed-0" / LAST).exists, running, seconds=120, pause=0.01)
    children = _children(running.pid)
    assert len(children) >= 2
    os.kill(running.pid, signal.SIGKILL)
    running.process.join()
    assert wait_until(lambda: not any(map(_alive, children)), _Never(), seconds=20, pause=0.05)
    ended = finish(words, tmp_path / "log")
    assert ended.status == 0, ended.err
    assert without_times(out) == without_times(whole)
    assert weights(out) == weights(whole)


@pytest.mark.slow
def test_a_process_that_dies_is_a_failure(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["sweep", str(recipe), "--out", str(out), "--jobs=2", "--epochs=200"]
    running = start([*words, "--limit_batches=8"], tmp_path / "log")
    assert wait_until((out / "se/seed-0" / LAST).exists, running, seconds=120, pause=0.01)
    for child in _children(running.pid):
        os.kill(child, signal.SIGKILL)
    assert wait_until((out / RESULTS).exists, running, seconds=60, pause=0.05)
    assert wait_until(lambda: len(results(out)) >= 2, running, seconds=60, pause=0.05)
    os.kill(running.pid, signal.SIGINT)
    assert running.wait().status == 130
    assert not any(map(_alive, _children(running.pid)))
    (first, *_) = results(out)
    assert first["status"] == "failed"
    assert "ended by SIGKILL, as by a machine that is out of memory" in first["reason"]


class _Never:
    """Stands for a process that is gone, where one is only waited for others."""

    err = Path(os.devnull)

    def alive(self) -> bool:
        return True


def _children(pid: int) -> list[int]:
    """The processes that ``pid`` started and that train, not those that keep watch."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == pid and b"spawn_main" in words:
            found.append(int(entry.name))
    return found


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_helper_starts_no_sweep(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match="a sweep is started once"):
        run_sweep(resolve(read_recipe(recipe), {}), tmp_path / "out")
