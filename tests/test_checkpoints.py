"""senet.checkpoints: a checkpoint that was damaged, or is another network's, gets one line."""

from __future__ import annotations

import copy
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from breadth import others_slow
from generated import make_image_folder
from processes import start

from senet.checkpoints import (
    LAST,
    EpochRow,
    WholeFiles,
    mismatch,
    read_record,
)
from senet.errors import UserError
from senet.options import TrainOptions
from senet.recorder import RunRecorder
from senet.training import train

pytestmark = pytest.mark.usefixtures("undrawn")

ROW = EpochRow(1, 1, 2.0, 2.0, 0.5, 1.0, 0.1, 1.0, 100.0)


def stopped(options: TrainOptions, run: Path) -> Path:
    """A run with one finished epoch of two."""

    def say(line: str) -> None:
        if "epoch 1/2" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(options, run, say=say)
    return run


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> TrainOptions:
    folder = make_image_folder(tmp_path_factory.mktemp("data") / "set", per_class=2, size=(16, 16))
    return TrainOptions(
        model="resnet20",  # soon built, and its checkpoint has the parts that one with SE has
        data=str(folder),
        image_size=16,
        batch_size=4,
        epochs=2,
        warmup_epochs=1,
        decay_norms=False,  # for a second group of the optimizer, as SE's rate would make
        threads=1,
    )


@pytest.fixture(scope="module")
def half(options: TrainOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stopped(options, tmp_path_factory.mktemp("half") / "run")


@pytest.fixture(scope="module")
def sound(half: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(half / LAST, weights_only=True)
    return checkpoint


@pytest.fixture
def run(half: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(half, tmp_path / "run"))


def failure(options: TrainOptions, run: Path) -> str:
    """The line with which a run is not gone on with; its checkpoint stays as it is."""
    before = (run / LAST).read_bytes()
    with pytest.raises(UserError) as caught:
        train(options, run, resume=True, say=lambda line: None)
    assert (run / LAST).read_bytes() == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refusal(options: TrainOptions, run: Path) -> str:
    line = failure(options, run)
    assert line.startswith(f"cannot go on from {run / LAST}: it")
    assert "restore it from a copy, or train again into another directory" in line
    return line


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set the entry at a path such as callbacks/RunRecorder/rows/0."""

    def change(checkpoint: Any) -> None:
        *most, last = (int(word) if word.isdecimal() else word for word in path.split("/"))
        for word in most:
            checkpoint = checkpoint[word]
        checkpoint[last] = value

    return change


def drop(path: str) -> Callable[[dict[str, Any]], None]:
    def change(checkpoint: Any) -> None:
        *most, last = (int(word) if word.isdecimal() else word for word in path.split("/"))
        for word in most:
            checkpoint = checkpoint[word]
        del checkpoint[last]

    return change


RECORD = "callbacks/RunRecorder"
GROUP = "optimizer_states/0/param_groups/0"
MOMENT = "optimizer_states/0/state/0"
LOOP = "loops/fit_loop/epoch_loop.automatic_optimization.optim_progress"
DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "callbacks of a list": (put("callbacks", [1]), "not a checkpoint of senet"),
    "another's callbacks": (put("callbacks", {"Other": {}}), "not a checkpoint of senet"),
    "no record": (put(RECORD, [1]), "its rows of metrics.csv are damaged"),
    "no rows": (put(f"{RECORD}/rows", []), "its rows of metrics.csv are damaged"),
    "rows of numbers": (put(f"{RECORD}/rows", [1]), "its rows of metrics.csv are damaged"),
    "half a row": (put(f"{RECORD}/rows", [{"epoch": 1}]), "its rows of metrics.csv are damaged"),
    "a word in a row": (put(f"{RECORD}/rows/0/lr", "high"), "its rows of metrics.csv are damaged"),
    "another epoch's row": (put(f"{RECORD}/rows/0/epoch", 2), "are not those of 1 epochs"),
    "another run's rows": (put(f"{RECORD}/rows", [asdict(replace(ROW, step=7))]), "1 steps"),
    "no data": (put(f"{RECORD}/data", "digits"), "damaged"),
    "data without classes": (drop(f"{RECORD}/data/classes"), "damaged"),
    "data in words": (put(f"{RECORD}/data/train", "many"), "damaged"),
    "an old version": (put("pytorch-lightning_version", "0.7.0"), "version' is 0.7.0, and senet"),
    "options of a list": (put(f"{RECORD}/options", [1]), "damaged"),
    "other options": (put(f"{RECORD}/options/epochs", 0), "damaged"),
    "weights on meta": (
        put("state_dict/model.classifier.weight", torch.empty(2, 64, device="meta")),
        "its 'state_dict' is damaged",
    ),
    "sparse weights": (
        put("state_dict/model.classifier.weight", torch.zeros(2, 64).to_sparse()),
        "damaged",
    ),
    "weights of another type": (
        put("state_dict/model.classifier.weight", torch.zeros(2, 64, dtype=torch.float16)),
        "its 'state_dict/model.classifier.weight' is",
    ),
    "no momenta": (put("optimizer_states/0/state", {}), "its 'optimizer_states/0/state' is"),
    "a word for momentum": (
        put(f"{MOMENT}/momentum_buffer", "x"),
        f"'{MOMENT}/momentum_buffer' is",
    ),
    "a number for momentum": (
        put(f"{MOMENT}/momentum_buffer", torch.tensor(1.0)),
        f"'{MOMENT}/momentum_buffer' is",
    ),
    "momentum on meta": (
        put(f"{MOMENT}/momentum_buffer", torch.empty(16, 3, 3, 3, device="meta")),
        f"'{MOMENT}/momentum_buffer' is",
    ),
    "no momentum": (put(MOMENT, {}), f"its '{MOMENT}' is"),
    "a rate that is none": (put(f"{GROUP}/lr", float("nan")), f"its '{GROUP}/lr' is"),
    "no version": (put("pytorch-lightning_version", "new"), "version' is damaged"),
    "weights in words": (put("state_dict/model.head.weight", "w"), "its 'state_dict' is damaged"),
    "no loops": (put("loops", {}), "its 'loops/fit_loop' is missing or damaged"),
    "loops of a list": (put("loops/fit_loop", [1]), "its 'loops/fit_loop' is"),
    "half a loop": (drop(f"{LOOP}/optimizer/step/total"), f"its '{LOOP}/optimizer/step/total' is"),
    "a loop of other epochs": (
        put("loops/fit_loop/epoch_progress/current/started", -1),
        "its loops count other epochs",
    ),
    "a loop without a flag": (
        drop("loops/fit_loop/epoch_loop.batch_progress/is_last_batch"),
        "/is_last_batch' is missing",
    ),
    "no optimizer": (put("optimizer_states", []), "its 'optimizer_states' is"),
    "an empty optimizer": (put("optimizer_states", [{}]), "its 'optimizer_states/0/state' is"),
    "fewer groups": (drop("optimizer_states/0/param_groups/1"), "0/param_groups' is"),
    "fewer parameters": (drop(f"{GROUP}/params/0"), f"its '{GROUP}/params' is"),
    "no learning rate": (drop(f"{GROUP}/lr"), f"its '{GROUP}/lr' is"),
    "a word for a rate": (put(f"{GROUP}/lr", "high"), f"its '{GROUP}/lr' is"),
    "momentum of another shape": (
        put("optimizer_states/0/state/3/momentum_buffer", torch.zeros(7, 7)),
        "its 'optimizer_states/0/state/3/momentum_buffer' is",
    ),
    "momentum of a list": (put("optimizer_states/0/state/3", [1]), "0/state/3' is"),
    "no schedule": (put("lr_schedulers", []), "its 'lr_schedulers' is"),
    "an empty schedule": (put("lr_schedulers", [{}]), "its 'lr_schedulers/0/"),
    "half a schedule": (drop("lr_schedulers/0/_schedulers/1"), "lr_schedulers/0/_schedulers' is"),
} | {
    f"{name} missing": (drop(name), f"{name!r} is missing")
    for name in ("state_dict", "optimizer_states", "lr_schedulers", "loops", "epoch", "global_step")
}


SECOND_OF_A_KIND = {
    *("callbacks of a list", "no rows", "rows of numbers", "half a row", "another's callbacks"),
    *("data without classes", "data in words", "other options", "sparse weights"),
    *("a word for momentum", "a number for momentum", "momentum on meta", "no momentum"),
    *("loops of a list", "an empty optimizer", "fewer parameters", "a word for a rate"),
    *("momentum of a list", "an empty schedule", "epoch missing", "lr_schedulers missing"),
    *("global_step missing", "optimizer_states missing"),
}


@pytest.mark.parametrize("damage", others_slow(DAMAGES, DAMAGES.keys() - SECOND_OF_A_KIND))
def test_damage_is_told_in_a_line(
    options: TrainOptions, run: Path, sound: dict[str, Any], damage: str
) -> None:
    change, words = DAMAGES[damage]
    broken = copy.deepcopy(sound)
    change(broken)
    torch.save(broken, run / LAST)
    assert words in refusal(options, run)


def test_the_checkpoint_of_another_network(
    options: TrainOptions, run: Path, tmp_path: Path
) -> None:
    for model in ("se_resnet20", "resnet56"):
        other = stopped(replace(options, model=model), tmp_path / model)
        shutil.copy(other / LAST, run / LAST)
        line = failure(options, run)
        assert f"model is resnet20 in {run / 'config.yaml'}, but {model} in" in line
        checkpoint = torch.load(run / LAST, weights_only=True)
        put(f"{RECORD}/options", None)(checkpoint)  # one that does not say
        torch.save(checkpoint, run / LAST)
        line = refusal(options, run)
        assert "it does not fit resnet20: it " in line
        assert "more" in line
        assert len(line) < 500


def test_flags_of_later_versions_may_be_missing(
    options: TrainOptions, run: Path, sound: dict[str, Any]
) -> None:
    older = copy.deepcopy(sound)
    for change in (drop(f"{GROUP}/fused"), drop(f"{GROUP}/maximize"), drop(f"{RECORD}/data")):
        change(older)
    torch.save(older, run / LAST)
    assert read_record(run / LAST).data is None
    assert len(train(options, run, resume=True, say=lambda line: None).rows) == 2


def places(value: Any, path: str = "") -> Iterator[str]:
    if path:
        yield path
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in pairs:
            yield from places(child, f"{path}/{key}".lstrip("/"))


def test_no_part_can_be_anything(sound: dict[str, Any]) -> None:
    """Every container and number of the checkpoint is looked at, for a value and for another."""
    found = {key: sound[key] for key in ("optimizer_states", "lr_schedulers", "loops")}
    assert mismatch(found, found) is None
    for path in places(found):
        broken = copy.deepcopy(found)
        put(path, "something else")(broken)
        assert mismatch(found, broken) is not None, path


def test_record_of_a_checkpoint(half: Path, tmp_path: Path) -> None:
    record = read_record(half / LAST)
    assert [row.epoch for row in record.rows] == [1]
    assert record.data is not None
    assert (record.data.classes, record.data.train, record.data.val) == (("cat", "dog"), 4, 2)
    assert len(record.data.files) == 16
    assert read_record(tmp_path / LAST).rows == ()
    with pytest.raises(UserError, match="no such checkpoint"):
        WholeFiles().load_checkpoint(tmp_path / LAST)
    assert RunRecorder.__qualname__ in RECORD


def test_a_flipped_byte_is_seen(half: Path, tmp_path: Path) -> None:
    """In the midst of a tensor, where the file is as readable as before."""
    path, chance = tmp_path / "last.ckpt", random.Random(0)
    data = (half / LAST).read_bytes()
    with zipfile.ZipFile(half / LAST) as archive:
        largest = sorted(archive.infolist(), key=lambda entry: entry.file_size)[-5:]
    for entry in largest:
        place = entry.header_offset + 200 + chance.randrange(entry.file_size - 200)
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(UserError, match="it is cut short or damaged"):
            read_record(path)


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("sgd", marks=pytest.mark.slow)])
def test_momenta_of_every_optimizer(optimizer: Any, options: TrainOptions, tmp_path: Path) -> None:
    """Those of AdamW, and none at all where momentum is 0, are taken up; half of Adam's are not."""
    given = replace(options, optimizer=optimizer, momentum=0.0, nesterov=False)
    run = stopped(given, tmp_path / "run")
    sound = torch.load(run / LAST, weights_only=True)
    for name in ("step", "exp_avg", "exp_avg_sq") if optimizer == "adamw" else ():
        broken = copy.deepcopy(sound)
        drop(f"optimizer_states/0/state/2/{name}")(broken)
        torch.save(broken, run / LAST)
        assert "its 'optimizer_states/0/state/2' is missing" in refusal(given, run)
    torch.save(sound, run / LAST)
    assert len(train(given, run, resume=True, say=lambda line: None).rows) == 2


def test_a_full_disk_gets_a_line(tmp_path: Path) -> None:
    words = ["--data=digits", "--image_size=8", "--epochs=1", "--limit_batches=1", "--threads=1"]
    command = ["train", "--out", tmp_path / "run", *words]
    ended = start(command, tmp_path / "log", file_size=1_000_000).wait()
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert line == (
        f"senet: error: cannot write '{tmp_path / 'run' / LAST}': File too large; make room, and "
        f"go on from the last finished epoch: senet train --out {tmp_path / 'run'} --resume"
    )
    assert [path.name for path in (tmp_path / "run").rglob("*") if path.is_file()] == [
        "config.yaml"
    ]
