"""The Python in README and docs runs, and the commands in them are ones that `senet` takes."""

import re
import shlex
from pathlib import Path

import pytest

from senet.cli import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.M | re.S)


@pytest.mark.parametrize("page", [p for p in PAGES if _blocks(p, "python")], ids=lambda p: p.name)
def test_python_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in _blocks(page, "python"):
        exec(compile(block, page.name, "exec"), namespace)


def _commands() -> list[tuple[str, str]]:
    lines = [
        (page.name, line.split(" #")[0].strip())
        for page in PAGES
        for block in _blocks(page, "sh")
        for line in block.splitlines()
    ]
    return [(name, line) for name, line in lines if line.startswith("senet ")]


@pytest.mark.parametrize(("page", "line"), _commands())
def test_commands_parse(page, line):
    from importlib import import_module

    _, command, *arguments = shlex.split(line)
    parser = import_module(COMMANDS[command][0]).parser()
    parser.exit_on_error = False
    given = [str(ROOT / a) if a.startswith("recipes/") else a for a in arguments]
    parser.parse_args(given)


def test_files_named_in_the_readme_exist():
    named = re.findall(r"`((?:src|recipes|benchmarks|tools|docs)/[\w./-]*)`", PAGES[0].read_text())
    assert len(named) > 15
    for name in named:
        assert (ROOT / name).exists(), name
    links = re.findall(r"\]\((docs/[^)#]+)\)", PAGES[0].read_text())
    for link in links:
        assert (ROOT / link).exists(), link
