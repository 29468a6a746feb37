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


def _listed() -> list[str]:
    """The paths in the table of files; in a row they lie in the folder of its first."""
    table = PAGES[0].read_text().partition("## The files")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+`) \|", table, flags=re.M)
    paths: list[str] = []
    for row in rows:
        first, *others = re.findall(r"`([^`]+)`", row)
        folder = first.rstrip("/").rpartition("/")[0]
        paths += [first, *(f"{folder}/{name}" for name in others)]
    return paths


def test_the_readme_lists_the_files_there_are():
    package = ROOT / "src" / "senet"
    files = {f"src/senet/{path.name}" for path in package.glob("*.py") if path.name[0] != "_"}
    folders = {f"{path.parent.relative_to(ROOT)}/" for path in package.glob("*/__init__.py")}
    listed = _listed()
    assert len(listed) == len(set(listed))
    assert {path for path in listed if path.startswith("src/")} == files | folders
    for path in listed:
        assert (ROOT / path).exists(), path


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\((docs/[^)#]+)\)", PAGES[0].read_text())
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
