"""senet.gate_files: shards of bounded size, and an index when all are there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from senet import UserError, gate_files
from senet.gate_files import GateFiles


def test_files_are_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_files, "SHARD_BYTES", 4 * 5 * 7)  # seven images of five gates
    x, labels = torch.rand(40, 5), torch.arange(40) % 3
    widths = {"../../etc/a": 2, "b <c>": 3}
    files = GateFiles(tmp_path / "gates")
    for part, own in zip(x.split(9), labels.split(9), strict=True):
        files.add(part, own, widths)
    assert not (tmp_path / "gates" / "gates.json").exists()
    files.finish(["x", "y", "z"])
    index = json.loads((tmp_path / "gates" / "gates.json").read_text())
    assert index["images"] == 40
    assert index["classes"] == ["x", "y", "z"]
    assert index["blocks"] == [{"path": p, "channels": n} for p, n in widths.items()]
    assert index["files"] == [f"gates-{n:05}.safetensors" for n in range(6)]
    assert [p.name for p in tmp_path.iterdir()] == ["gates"]
    assert len(list((tmp_path / "gates").iterdir())) == 7
    parts = [load_file(tmp_path / "gates" / name) for name in index["files"]]
    assert [len(part["labels"]) for part in parts] == [7, 7, 7, 7, 7, 5]
    found = [torch.cat([part[f"gates/{path}"] for part in parts]) for path in widths]
    assert torch.equal(torch.cat(found, dim=1), x)
    assert torch.equal(torch.cat([part["labels"] for part in parts]), labels)
    assert torch.equal(torch.cat([part["images"] for part in parts]), torch.arange(40))


def test_a_directory_holds_one_recording(tmp_path: Path) -> None:
    files = GateFiles(tmp_path)
    files.add(torch.rand(2, 3), torch.tensor([0, 1]), {"a": 3})
    files.finish(["x", "y"])
    with pytest.raises(UserError, match=r"has recorded gates already \(gates.json\)"):
        GateFiles(tmp_path)


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot make"):
        GateFiles(tmp_path / "file" / "gates")


def test_what_was_written_can_be_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_files, "SHARD_BYTES", 4)
    (tmp_path / "another").touch()
    files = GateFiles(tmp_path)
    files.add(torch.rand(3, 1), torch.zeros(3, dtype=torch.int64), {"a": 1})
    assert len(list(tmp_path.iterdir())) == 4
    files.discard()
    assert [p.name for p in tmp_path.iterdir()] == ["another"]
