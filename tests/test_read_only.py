"""Disks that may only be read: a finished run says so, what is to be written is told in a line."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from generated import make_image_folder
from test_resumption import options_for, stop_after_an_epoch

from senet.checkpoints import LAST, read_record
from senet.cli import main
from senet.training import train


@pytest.fixture
def freeze() -> Iterator[Callable[[Path], None]]:
    """Makes a folder one that nothing can be written to, for root by mounting it so."""
    mounted: list[Path] = []

    def freeze(folder: Path) -> None:
        if os.geteuid():
            for path in [folder, *folder.rglob("*")]:
                path.chmod(0o555 if path.is_dir() else 0o444)
            return
        for words in (["--bind", str(folder)], ["-o", "remount,ro,bind"]):
            if subprocess.run(["mount", *words, str(folder)], capture_output=True).returncode:
                pytest.skip("root may write everywhere, and may mount nothing here")
            mounted.append(folder)

    yield freeze
    for folder in dict.fromkeys(mounted):
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("twin", [False, True])
def test_a_finished_run_is_finished(
    twin: bool,
    tmp_path: Path,
    freeze: Callable[[Path], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "disk" / "run"
    options = options_for(Path("digits"), image_size=8, epochs=1, twin=twin)
    train(options, run, say=lambda line: None)
    freeze(run.parent)
    assert main(["train", "--out", str(run), "--resume"]) == 0
    out, err = capfd.readouterr()
    assert f"{run} is finished: 1 epochs" in out
    assert err == ""


def test_what_is_to_be_written_is_told_in_a_line(
    tmp_path: Path, freeze: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "disk" / "run"
    stop_after_an_epoch(options_for(Path("digits"), image_size=8), run)
    (run.parent / "empty").mkdir()
    folder = make_image_folder(tmp_path / "set", per_class=2, size=(8, 8))
    freeze(run.parent)
    pack = ["pack", str(folder), "--out"]
    for words in (
        ["train", "--out", str(run), "--resume"],
        ["train", "--data=digits", "--image_size=8", "--out", str(run.parent / "new")],
        [*pack, str(run.parent / "new")],
        [*pack, str(run.parent / "empty")],
    ):
        assert main(words) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("senet: error: cannot ")
        assert str(run.parent) in line
    assert len(read_record(run / LAST).rows) == 1
