"""tools/demo.py, which `make demo` runs: the table it prints and the files it leaves."""

from __future__ import annotations

import importlib.util
import json
import shutil
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

from senet.runs import load, read_card

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, in a folder of its own that has the recipe."""
    (tmp_path / "recipes").mkdir()
    shutil.copy(ROOT / "recipes" / "digits.yaml", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    place = importlib.util.spec_from_file_location("demo", ROOT / "tools" / "demo.py")
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


def check(out: Path, text: str) -> None:
    lines = text.splitlines()
    commands = [line.removeprefix("$ senet ").split()[0] for line in lines if line[:1] == "$"]
    assert commands == ["train", "evaluate", "evaluate", "predict"]
    for words in ("top-1", "parameters", "MACs", "ms a step", "backward", "SE / plain"):
        assert words in text
    for member, name in ((out, "se_resnet20"), (out / "twin", "resnet20")):
        card = read_card(member)
        assert card.name == name
        assert any(
            line.startswith(f"top-1 {card.top1:.2%}")
            for title, line in pairwise(lines)
            if title.startswith(f"{name} ({member}) on val of digits")
        )
        load(member)
    images = sorted((out / "images").glob("held-out-*-shows-a-*.png"))
    assert len(images) == 3
    assert all(any(line.startswith(str(image)) for line in lines) for image in images)
    assert str(out / "comparison.md") in text
    noted = json.loads((out / "demo.json").read_text())
    assert str(out / "demo.json") in text
    assert noted["comparison"] == json.loads((out / "comparison.json").read_text())
    assert noted["threads"] == 1
    assert noted["seconds"] > 0
    assert {"date", "device", "python", "torch"} <= noted.keys()


def test_the_demonstration_in_short(
    demo: ModuleType, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("senet.cost.step_seconds", lambda *_, **__: 0.02)
    short = ["--epochs=1", "--limit_batches=2", "--batch_size=180", "--image_size=8"]
    demo.main(short)
    check(Path("runs/demo"), capfd.readouterr().out)
    with pytest.raises(SystemExit) as stop:  # two steps are not enough
        demo.check_bar([Path("runs/demo")])
    assert "below 97%" in str(stop.value)
    assert demo.fresh(Path("runs/demo")) == Path("runs/demo-2")


@pytest.mark.slow
def test_the_whole_demonstration(demo: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    demo.main()
    check(Path("runs/demo"), capfd.readouterr().out)
    assert all((read_card(Path("runs/demo") / part).top1 or 0) >= 0.97 for part in (".", "twin"))
