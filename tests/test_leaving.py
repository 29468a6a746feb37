"""Ctrl-C while libraries are imported, and help that does not wait for them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_ctrl_c_while_torch_is_imported_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "senet", "train", "--data=digits"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "senet: interrupted\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["trian"], ["pack", "--help"], ["predict", "--help"]],
)
def test_what_needs_no_network_does_not_wait_for_torch(words: list[str]) -> None:
    program = (
        "import sys\nfrom senet.cli import main\n"
        "main(sys.argv[1:])\nassert 'torch' not in sys.modules\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_public_names_come_when_they_are_asked_for() -> None:
    program = (
        "import sys, senet\nassert 'torch' not in sys.modules\n"
        "assert senet.block.SqueezeExcite is senet.SqueezeExcite\n"
        "assert vars(senet)['SqueezeExcite'] is senet.SqueezeExcite\n"
        "try: senet.sqeeze\nexcept AttributeError as error: print(error)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.stdout == "module 'senet' has no attribute 'sqeeze'\n", ended.stderr
