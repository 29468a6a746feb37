"""senet.gate_statistics: what is told of a block, and the tables."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from senet import BlockExcitations, Excitations, UserError

NAN = float("nan")


def block(**changes: Any) -> BlockExcitations:
    """Two channels; classes of 1, 3 and no images; the second channel constant."""
    fields = {
        "path": "layer1.0.bn2.se",
        "stage": 2,
        "depth": 0,
        "counts": torch.tensor([1, 3, 0]),
        "mean": torch.tensor([[0.2, 0.7], [0.6, 0.7], [NAN, NAN]]).double(),
        "variance": torch.tensor([[0.0, 0.0], [0.04, 0.0], [NAN, NAN]]).double(),
        "low": torch.tensor([0.25, 0.0]).double(),
        "high": torch.tensor([0.0, 1.0]).double(),
        "null": torch.tensor([[0.1, 0.0], [0.6, 0.0], [0.2, 0.0]]).double(),
        "most": torch.zeros(2, 1),
        "most_images": torch.zeros(2, 1, dtype=torch.int64),
        "least": torch.zeros(2, 1),
        "least_images": torch.zeros(2, 1, dtype=torch.int64),
    }
    return BlockExcitations(**fields | changes)


def test_variance_by_hand() -> None:
    b = block()
    # ¼·0.2 + ¾·0.6 = 0.5; within ¾·0.04 = 0.03; between ¼·0.09 + ¾·0.01 = 0.03
    assert b.channels == 2
    torch.testing.assert_close(b.total_mean, torch.tensor([0.5, 0.7]).double())
    torch.testing.assert_close(b.total_variance, torch.tensor([0.06, 0.0]).double())
    torch.testing.assert_close(b.deviation, torch.tensor([0.06**0.5, 0.0]).double())
    torch.testing.assert_close(b.eta_squared, torch.tensor([0.5, 0.0]).double())
    assert b.constant.tolist() == [False, True]
    assert b.specificity == pytest.approx(0.5)
    torch.testing.assert_close(b.null_specificity, torch.tensor([0.1, 0.6, 0.2]).double())
    assert b.p_value == 2 / 4


def test_pooling_weighs_channels_by_their_variance() -> None:
    mean = torch.tensor([[0.2, 0.0], [0.6, 0.4], [NAN, NAN]]).double()
    variance = torch.tensor([[0.0, 0.39], [0.04, 0.39], [NAN, NAN]]).double()
    b = block(mean=mean, variance=variance)  # total variances 0.06 and 0.42, between 0.03 each
    assert b.specificity == pytest.approx(0.06 / 0.48)
    null = (torch.tensor([0.1, 0.6, 0.2]) * 0.06 / 0.48).double()
    torch.testing.assert_close(b.null_specificity, null)


def test_equal_counts_as_equal() -> None:
    """Where every image is of its own class all assignments are as specific as the true one."""
    b = block(
        counts=torch.tensor([1, 1]),
        mean=torch.tensor([[0.1], [0.2]]).double(),
        variance=torch.zeros(2, 1).double(),
        null=torch.full((19, 1), 1 - 1e-7).double(),
    )
    assert b.specificity == 1
    assert b.p_value == 1


def test_no_assignments_no_evidence() -> None:
    b = block(null=torch.zeros(0, 2))
    assert b.p_value == 1
    header, row = Excitations((b,), ("a", "b", "c"), 4).table("block")
    values = dict(zip(header, row, strict=True))
    assert math.isnan(values["p_value"])
    assert math.isnan(values["null_specificity"])


def test_rounding_is_no_variance() -> None:
    variance = torch.tensor([[0.0, 1e-16], [0.04, 1e-16], [NAN, NAN]]).double()
    assert block(variance=variance).constant.tolist() == [False, True]
    zero = block(mean=torch.zeros(3, 2).double(), variance=torch.zeros(3, 2).double())
    assert zero.constant.all()
    assert not zero.eta_squared.any()
    assert zero.specificity == 0


def test_a_block_by_its_path() -> None:
    found = Excitations((block(),), ("a", "b", "c"), 4)
    for path in ("layer1.0.bn2.se", "layer1.0.bn2"):
        assert found.block(path) is found.blocks[0]
    with pytest.raises(UserError, match=r"no block 'layer1.0.bn3'.*nearest: 'layer1.0.bn2.se'"):
        found.block("layer1.0.bn3")


CLASSES = ("a", "=1+1", 'c,"\n<b>')


@pytest.mark.parametrize("of", ["block", "channel", "class"])
def test_tables_on_file(of: str, tmp_path: Path) -> None:
    found = Excitations((block(), block(stage=None, depth=1)), CLASSES, 4)
    found.to_csv(tmp_path / "table.csv", of)
    with (tmp_path / "table.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head[:3] == ["block", "stage", "depth"]
    assert len(rows) == (2 if of == "block" else 4)
    assert all(len(row) == len(head) for row in rows)
    assert rows[0][:3] == ["layer1.0.bn2.se", "2", "0"]
    assert rows[-1][:3] == ["layer1.0.bn2.se", "", "1"]
    first = dict(zip(head, rows[0], strict=True))
    if of == "class":
        assert head[4:] == [CLASSES[0], f"'{CLASSES[1]}", CLASSES[2]], "a formula is told as text"
        assert list(first.values())[4:] == ["0.2", "0.6", ""]
    elif of == "channel":
        assert first["eta_squared"] == "0.5"
        assert first["null_eta_squared"] == "0.3"
        assert first["low"] == "0.25"
    else:
        assert float(first["specificity"]) == 0.5
        assert float(first["null_specificity"]) == pytest.approx(0.3)
        assert first["p_value"] == "0.5"


def test_no_such_table(tmp_path: Path) -> None:
    found = Excitations((block(),), CLASSES, 4)
    with pytest.raises(UserError, match=r"'chanel'.*nearest: 'channel'"):
        found.to_csv(tmp_path / "table.csv", "chanel")
    with pytest.raises(UserError, match="cannot write"):
        found.to_csv(tmp_path / "no" / "table.csv")
    assert list(tmp_path.iterdir()) == []
