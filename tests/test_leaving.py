"""Ctrl-C while libraries are imported, and help that does not wait for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

INTERRUPTED = """
import runpy, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "torch.nn":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv[0] = "senet"
runpy.run_module("senet", run_name="__main__", alter_sys=True)
"""
"""`python -m senet` that is interrupted by Ctrl-C while it imports torch."""


def test_ctrl_c_while_torch_is_imported_is_one_line(tmp_path: Path) -> None:
    words = ["train", "--data=digits", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-c", INTERRUPTED, *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "senet: interrupted\n")
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
    """And bring no more than they need: a network of ours neither timm nor torchvision."""
    program = (
        "import sys, senet\nassert 'torch' not in sys.modules\n"
        "senet.create_model('se_resnet20', num_classes=10)\n"
        "import senet.cost\n"
        "assert not {'timm', 'torchvision', 'lightning'} & set(sys.modules)\n"
        "assert senet.block.SqueezeExcite is senet.SqueezeExcite\n"
        "assert vars(senet)['SqueezeExcite'] is senet.SqueezeExcite\n"
        "try: senet.sqeeze\nexcept AttributeError as error: print(error)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.stdout == "module 'senet' has no attribute 'sqeeze'\n", ended.stderr
