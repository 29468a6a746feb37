"""senet.meeting: several processes that check shards, wait for each other, or do not come."""

from __future__ import annotations

import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from generated import make_image_folder
from processes import call_group, start_group
from test_devices import DIGITS, NODES, end, trained

from senet.data import DataOptions, load_data, train_loader, val_loader
from senet.errors import UserError
from senet.fitting import fit, make_trainer
from senet.meeting import SameRun
from senet.options import TrainOptions
from senet.packing import pack
from senet.run_network import build
from senet.runs import WEIGHTS

SMALL = (
    *("--model=resnet20", "--image_size=16", "--batch_size=4", "--epochs=2", "--threads=1"),
    "--devices=2",
)
PATIENCE = 6.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images") / "set"
    return make_image_folder(root, ("cat", "dog"), per_class=8, size=(20, 18))


@pytest.fixture
def packed(folder: Path, tmp_path: Path) -> Path:
    return pack(folder, tmp_path / "packed", shard_bytes=8_000).directory


def test_two_processes_train_from_shards_as_from_the_folder(
    folder: Path, packed: Path, tmp_path: Path
) -> None:
    for name, data in (("folder", folder), ("shards", packed)):
        words = ["train", "--data", data, *SMALL, "--out", tmp_path / name]
        first, _ = trained(words, tmp_path / f"{name}-log", 2)
        assert "16 images to train on and 8 held out" in first.out
    weights = [(tmp_path / name / WEIGHTS).read_bytes() for name in ("folder", "shards")]
    assert weights[0] == weights[1]


def test_an_altered_shard_ends_all(packed: Path, tmp_path: Path) -> None:
    """Whichever of the two reads it, each says so in a line, and nothing is trained."""
    shard = packed / "train-0000.tar"
    data = bytearray(shard.read_bytes())
    with tarfile.open(shard) as file:
        data[next(m for m in file if m.name.endswith(".png")).offset_data + 100] ^= 1
    shard.write_bytes(data)
    run = tmp_path / "run"
    words = ["train", "--data", packed, *SMALL, "--accelerator=cpu", "--out", run]
    ends = end(start_group(words, tmp_path / "log", 2))
    for ended in ends:
        assert ended.status == 2, ended.err
        (line,) = ended.err.splitlines()
        assert f"shard {str(shard)!r} is altered: its SHA-256" in line
    assert sum("of 2 of this run found: " in ended.err for ended in ends) == 1
    assert not (run / WEIGHTS).exists()


def checked(rank: int, world: int, out: str, fault: str) -> list[str]:
    """Train after a check that takes the second process longer than any patience with peers."""

    def check(part: int, parts: int, bar: bool) -> None:
        assert (part, parts, bar) == (rank, world, False)
        if part:
            time.sleep(1.3 * PATIENCE)
        if part and fault:
            raise UserError(fault)

    options = TrainOptions(model="resnet20", image_size=8, epochs=1, limit_batches=1, threads=1)
    options = replace(options, accelerator="cpu", devices=world, peer_timeout=PATIENCE)
    data = load_data(DataOptions(image_size=8))
    loaders = train_loader(data, DataOptions()), val_loader(data, DataOptions())
    trainer = make_trainer(
        options, Path(out), export=lambda row: None, report=lambda row: None, check=check
    )
    network = build(options, num_classes=10)
    try:
        rows = fit(trainer, network, *loaders, options, Path(out), classes=10)
    except UserError as error:
        return [str(error)]
    return [str(row.step) for row in rows]


@pytest.mark.parametrize(
    "fault", ["", pytest.param("a shard is not what it was: ü", marks=pytest.mark.slow)]
)
def test_a_check_may_take_longer_than_peer_timeout(tmp_path: Path, fault: str) -> None:
    first, second = call_group(checked, 2, tmp_path, str(tmp_path / "run"), fault)
    if not fault:
        assert first == second == ["1"]
    else:
        assert second == [fault]
        assert first == [f"process 1 of 2 of this run found: {fault}"]


def test_where_files_lie_may_differ_between_machines(tmp_path: Path) -> None:
    """What they hold is compared by itself."""

    def facts(**changes: str | int) -> dict[str, object]:
        options = replace(TrainOptions(accelerator="cpu"), **changes)
        trainer = make_trainer(options, tmp_path, export=lambda row: None, report=lambda row: None)
        (same,) = (c for c in trainer.callbacks if isinstance(c, SameRun))
        return dict(same.facts)

    assert facts(data="/a/0.tar", val_data="/a/1.tar") == facts(
        data="/b/0.tar", val_data="/b/1.tar"
    )
    assert facts(seed=8) != facts()


def test_others_that_do_not_come_are_told_in_a_line(tmp_path: Path) -> None:
    """The second machine was started, the first was not; PyTorch's forty lines are held back."""
    words = [*DIGITS, "--accelerator=cpu", "--nodes=2", "--peer_timeout=1"]
    alone = NODES | {"NODE_RANK": "1"}
    (ended,) = end(start_group([*words, "--out", tmp_path / "run"], tmp_path / "log", 1, alone))
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert line.startswith("senet: error: process 1 of 2 of this run did not find the others")
    assert "within 1 s" in line
