"""senet.gate_tables: a line a block, and the CSV files."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recorded import make_excitations

from senet.gate_tables import TABLES, depth_rows, write_tables


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_line_a_block() -> None:
    excitations = make_excitations()
    rows = depth_rows(excitations)
    assert [row.block for row in rows] == [block.path for block in excitations.blocks]
    for row, block in zip(rows, excitations.blocks, strict=True):
        assert row.specificity == block.specificity
        assert row.mean == pytest.approx(float(block.mean.mean()))
        assert row.null_max == float(block.null_specificity.max()) >= row.null
        assert row.p == block.p_value
        assert row.document()["channels"] == block.channels


def test_without_shuffles_there_is_no_null() -> None:
    document = depth_rows(make_excitations(permutations=0))[0].document()
    assert document["null"] is None
    assert document["null_max"] is None
    assert document["p"] is None


def test_every_number_is_in_a_table(tmp_path: Path) -> None:
    names = ("a,b", '"quoted"', "=cmd|' /C calc'!A0", "'=1", "@a", "1+1", "\udcff")
    written = (*names[:2], "'=cmd|' /C calc'!A0", "''=1", "'@a", "1+1", "\\udcff")
    excitations = make_excitations(names, examples=2)
    write_tables(excitations, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(TABLES)
    block = excitations.blocks[2]
    channels = sum(b.channels for b in excitations.blocks)
    assert len(read(tmp_path / "channels.csv")) == channels
    assert len(read(tmp_path / "blocks.csv")) == 4
    place = 12 + 5  # channel 5 of the third block
    for file, values in (("means.csv", block.mean), ("variances.csv", block.variance)):
        row = read(tmp_path / file)[place]
        assert (row["block"], row["channel"]) == (block.path, "5")
        told = [float(row[name]) for name in written]
        assert told == pytest.approx(values[:, 5].tolist(), rel=1e-6)
    nulls = [row for row in read(tmp_path / "null.csv") if row["block"] == block.path]
    assert [float(row["specificity"]) for row in nulls] == pytest.approx(
        block.null_specificity.tolist(), rel=1e-6
    )
    images = [
        (int(row["image"]), float(row["gate"]))
        for row in read(tmp_path / "images.csv")
        if (row["block"], row["channel"], row["end"]) == (block.path, "5", "least")
    ]
    assert [image for image, _ in images] == block.least_images[5].tolist()
    assert [gate for _, gate in images] == pytest.approx(block.least[5].tolist(), rel=1e-6)


def test_no_value_is_an_empty_cell(tmp_path: Path) -> None:
    excitations = make_excitations(widths=(3,))
    block = excitations.blocks[0]
    mean, variance = block.mean.clone(), block.variance.clone()
    mean[1] = variance[1] = torch.nan
    block = replace(block, mean=mean, variance=variance, counts=torch.tensor([30, 0, 30]))
    write_tables(replace(excitations, blocks=(block,)), tmp_path)
    for file in ("means.csv", "variances.csv"):
        assert [row["dog"] for row in read(tmp_path / file)] == [""] * 3
