"""tools/kills.py: five trials of the hundred in docs/training.md, and that it can fail."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from senet.checkpoints import BEST, LAST
from senet.runs import WEIGHTS

TOOLS = Path(__file__).resolve().parents[1] / "tools"


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, where the processes that it forks find it too; what it trains is shorter."""
    monkeypatch.syspath_prepend(str(TOOLS))
    sys.modules.pop("kills", None)
    import kills

    monkeypatch.setattr(kills, "TRAIN", (*kills.TRAIN, "--limit_batches=2", "--epochs=2"))
    monkeypatch.setattr(kills, "MOST_KILLS", 2)
    return kills


def test_killed_runs_end_with_the_same_bits(
    kills: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four with SGD, one with AdamW, averaged weights, mixup and two workers."""
    assert kills.main(["--trials=5", "--seed=1", "--recipe=both"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "5 of 5 runs ended with the bits of the undisturbed one" in line
    assert int(line.partition(" kills,")[0].split()[-1]) >= 5


def test_a_run_that_is_another_is_seen(kills: ModuleType, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    kills.finish(run)
    kills.finish(other)
    assert kills.difference(run, other) == ""
    checkpoint = torch.load(other / LAST, weights_only=True)
    moment = checkpoint["optimizer_states"][0]["state"][0]["momentum_buffer"]
    moment.view(-1)[0] = torch.nextafter(moment.view(-1)[0], torch.tensor(1.0))
    torch.save(checkpoint, other / LAST)
    assert kills.difference(run, other) == f"{LAST}: optimizer_states"
    shutil.copy(run / LAST, other / LAST)
    shutil.copy(other / LAST, other / BEST)
    best = torch.load(other / BEST, weights_only=True)
    best["lr_schedulers"][0]["last_epoch"] += 1
    torch.save(best, other / BEST)
    assert kills.difference(run, other).startswith(f"{BEST}: ")
    data = bytearray((other / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (other / WEIGHTS).write_bytes(data)
    assert kills.difference(run, other) == WEIGHTS


def test_a_run_that_goes_wrong_is_no_success(
    kills: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RuntimeError, match=r"ended with status 2: senet: error: .* is a file"):
        kills.finish(tmp_path / "run")
    monkeypatch.setattr(kills, "trials", lambda *_: [kills.Trial(1, 0, "x"), kills.Trial(1, 0, "")])
    assert kills.main(["--trials=2"]) == 1
