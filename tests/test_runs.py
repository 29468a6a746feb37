"""senet.runs: files that survive kill -9, cards key by key, and what passes itself off as a run."""

from __future__ import annotations

import json
import os
import pickle
import random
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from senet.errors import UserError
from senet.insertion import attach
from senet.models import build_plain, create_model
from senet.runs import (
    CARD,
    WEIGHTS,
    ModelCard,
    atomic_write,
    is_temporary,
    load,
    package_versions,
    plan_of,
    read_card,
    save_model,
    write_together,
)

CLASSES = ("cat", 'd"o\\g', "狐\n\t/..")


def card_for(model: nn.Module, name: str, **changes: Any) -> ModelCard:
    card = ModelCard(
        name=name,
        num_classes=3,
        plan=plan_of(model),
        classes=CLASSES,
        mean=(0.5, 0.4, 0.3),
        std=(0.1, 0.2, 0.3),
        image_size=16,
        versions=package_versions(),
        data="digits",
        seed=7,
        top1=0.5,
    )
    return replace(card, **changes)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        call()
    text = str(error.value)
    assert text
    assert "\n" not in text
    return text


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "se"
    torch.manual_seed(0)
    model = create_model("se_resnet20", num_classes=3)
    save_model(directory, model, card_for(model, "se_resnet20"))
    return directory


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    directory.mkdir()
    for name in (CARD, WEIGHTS):
        (directory / name).write_bytes((saved / name).read_bytes())
    return directory


# ── atomic_write ────────────────────────────────────────────────────────────────────────────


def test_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    atomic_write(path, lambda file: file.write(b"old and longer"))

    def write(file: BinaryIO) -> None:
        file.write(b"new")
        beside = [each for each in tmp_path.iterdir() if each != path]
        assert [is_temporary(each) for each in beside] == [True]
        assert path.read_bytes() == b"old and longer"

    atomic_write(path, write)
    assert path.read_bytes() == b"new"
    assert [each.name for each in tmp_path.iterdir()] == ["a.bin"]


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    atomic_write(tmp_path / "a", lambda file: file.write(b""))
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "a")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half of the")
        raise error

    with pytest.raises(type(error)):
        atomic_write(path, fail)
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.bin"]


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "absent" / "a", tmp_path / "folder"):
        assert str(path) in refusal(partial(atomic_write, path, lambda file: None))
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]
    (tmp_path / "file").touch()
    model = nn.Linear(1, 1)
    assert "file" in refusal(lambda: save_model(tmp_path / "file", model, card_for(model, "x")))


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fill(file: BinaryIO) -> None:
        with open("/dev/full", "wb") as full:
            full.write(b"x")

    assert "No space left" in refusal(lambda: atomic_write(path, fill))
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("broken", ["first", "last"])
def test_files_that_belong_together_are_exchanged_together(tmp_path: Path, broken: str) -> None:
    first, last = tmp_path / "weights", tmp_path / "index"
    old = {path: path.name.encode() for path in (first, last)}
    for path, data in old.items():
        path.write_bytes(data)

    def fail(file: BinaryIO) -> None:
        raise OSError(28, "No space left on device")

    def write(file: BinaryIO) -> None:
        file.write(b"new")

    files = {first: fail, last: write} if broken == "first" else {first: write, last: fail}
    assert "No space left" in refusal(lambda: write_together(files))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == old
    write_together({first: write, last: write})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == dict.fromkeys(old, b"new")


def test_no_file_is_lost_where_a_folder_is_in_the_way(tmp_path: Path) -> None:
    first, last = tmp_path / "weights", tmp_path / "index"
    first.mkdir()
    last.write_bytes(b"old")
    files = dict.fromkeys((first, last), lambda file: file.write(b"new"))
    assert f"cannot write {str(first)!r}" in refusal(lambda: write_together(files))
    assert last.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "weights"]


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from senet.runs import atomic_write

path = Path(sys.argv[1])
sizes = {b"a": 3_000_000, b"b": 1_000_000}
leftovers = 0

def write(file, letter):
    for _ in range(sizes[letter] // 1000):
        file.write(letter * 1000)

def half_written():
    for each in path.parent.glob(".*.tmp"):
        try:
            if each.stat().st_size:
                return each
        except FileNotFoundError:
            pass  # it has just been moved into place
    return None

atomic_write(path, lambda file: write(file, b"a"))
chance = random.Random(0)
parent = os.getpid()
for kill in range(12):
    for each in path.parent.glob(".*.tmp"):
        leftovers += 1
        each.unlink()
    start, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(go, b"!")
        while os.getppid() == parent:
            for letter in sizes:
                atomic_write(path, lambda file: write(file, letter))
        os._exit(1)
    os.read(start, 1)
    if kill % 2:  # in the midst of a file
        while not half_written():
            pass
    else:
        time.sleep(chance.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    data = path.read_bytes()
    letter = data[:1]
    assert len(data) == sizes[letter] and data == letter * len(data), (kill, len(data))
print(leftovers)
"""


def test_kill_9_in_the_midst_of_writing(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0  # some kills did come in the midst
    leftovers = [each for each in tmp_path.iterdir() if each != path]
    assert all(map(is_temporary, leftovers))
    assert not is_temporary(path)


# ── the card ────────────────────────────────────────────────────────────────────────────────

numbers = st.floats(-1e6, 1e6)
cards = st.builds(
    ModelCard,
    name=st.text(min_size=1),
    num_classes=st.just(3),
    plan=st.none() | st.dictionaries(st.text(), st.integers() | st.text()),
    classes=st.tuples(*[st.text()] * 3),
    mean=st.tuples(numbers, numbers, numbers),
    std=st.tuples(*[st.floats(1e-6, 1e6)] * 3),
    image_size=st.integers(1, 10_000),
    versions=st.dictionaries(st.text(), st.text()),
    data=st.text(min_size=1),
    seed=st.integers(),
    top1=st.none() | st.floats(0, 1),
)


@given(cards)
@settings(max_examples=50, deadline=None)
def test_cards_come_back(card: ModelCard) -> None:
    assert ModelCard.from_json(card.to_json()) == card


def test_class_names_that_are_no_text(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    name = os.fsdecode(b"caf\xe9")  # a folder of a file system in Latin-1
    save_model(tmp_path, model, card_for(model, "resnet20", classes=("a", "b", name)))
    assert read_card(tmp_path).classes[2] == name


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", ""),
        ("name", None),
        ("num_classes", 0),
        ("num_classes", True),
        ("num_classes", 3.0),
        ("plan", []),
        ("classes", "abc"),
        ("classes", ["a", "b"]),
        ("classes", ["a", "b", 3]),
        ("mean", [0.5]),
        ("mean", [0.5, 0.5, float("nan")]),
        ("mean", [0.5, 0.5, 10**400]),
        ("mean", ["0.5", 0.5, 0.5]),
        ("std", [1, 1, 0]),
        ("std", None),
        ("image_size", -1),
        ("image_size", "16"),
        ("versions", {"torch": 2}),
        ("versions", None),
        ("data", 1),
        ("seed", 1.5),
        ("seed", False),
        ("top1", 1.5),
        ("top1", "high"),
        ("format", 2),
        ("format", None),
    ],
)
def test_every_key_of_a_card_is_checked(run: Path, key: str, value: object) -> None:
    document = json.loads((run / CARD).read_text())
    (run / CARD).write_text(json.dumps(document | {key: value}))
    text = refusal(lambda: read_card(run))
    assert str(run / CARD) in text
    assert key in text
    assert text == refusal(lambda: load(run))


@pytest.mark.parametrize("key", [field.name for field in fields(ModelCard)] + ["format"])
def test_every_key_of_a_card_is_needed(run: Path, key: str) -> None:
    document = json.loads((run / CARD).read_text())
    del document[key]
    (run / CARD).write_text(json.dumps(document))
    assert key in refusal(lambda: read_card(run))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": 1e999}']
)
def test_what_is_no_card(run: Path, data: bytes) -> None:
    (run / CARD).write_bytes(data)
    assert CARD in refusal(lambda: read_card(run))


# ── load ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["resnet20", "se_resnet20", "timm/resnet18", "se_timm/resnet18"])
def test_networks_come_back_with_the_same_outputs(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=3)
    images = torch.randn(2, 3, 32, 32)
    model(images)  # moves BatchNorm's statistics
    save_model(tmp_path, model, card_for(model, name))
    loaded = load(tmp_path)
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(images), model.eval()(images))
    assert plan_of(loaded) == plan_of(model)
    assert (plan_of(model) is None) is not name.startswith("se_")
    assert read_card(tmp_path).plan == plan_of(model)


def test_warm_started_and_partly_attached_networks_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = attach(build_plain("resnet20", 3), sites=2, reduction=4, warm_start=True)
    save_model(tmp_path, model, card_for(model, "resnet20"))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load(tmp_path)(images), model.eval()(images))


def test_tied_and_strided_weights_are_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    model[0].bias = nn.Parameter(torch.arange(8.0)[::2])
    save_model(tmp_path, model, card_for(model, "x"))
    weights = load_file(tmp_path / WEIGHTS)
    assert torch.equal(weights["0.weight"], weights["1.weight"])
    assert weights["0.bias"].tolist() == [0, 2, 4, 6]


def test_loading_draws_nothing_that_shows(run: Path) -> None:
    first, second = load(run), load(str(run))
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_where_there_is_no_run(tmp_path: Path, run: Path) -> None:
    assert "does not exist" in refusal(lambda: load(tmp_path / "absent"))
    (tmp_path / "file").touch()
    assert "is a file" in refusal(lambda: load(tmp_path / "file"))
    (run / WEIGHTS).unlink()
    assert f"no {WEIGHTS}" in refusal(lambda: load(run))
    (run / CARD).unlink()
    assert f"no {CARD}" in refusal(lambda: load(run))


@pytest.mark.parametrize("part", [0.0, 0.0001, 0.01, 0.5, 0.999])
def test_truncated_weights(run: Path, part: float) -> None:
    data = (run / WEIGHTS).read_bytes()
    (run / WEIGHTS).write_bytes(data[: int(part * len(data))])
    assert str(run / WEIGHTS) in refusal(lambda: load(run))


def test_text_for_weights(run: Path) -> None:
    (run / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n" * 5)
    assert "not a safetensors file" in refusal(lambda: load(run))


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("protocol", [0, 2, 5, "torch", "torch, legacy"])
def test_a_pickle_for_weights_does_not_run(run: Path, tmp_path: Path, protocol: int | str) -> None:
    trace = tmp_path / "it ran"
    if isinstance(protocol, int):
        (run / WEIGHTS).write_bytes(pickle.dumps(Payload(trace), protocol))
    else:
        torch.save(
            {"a": Payload(trace)},
            run / WEIGHTS,
            _use_new_zipfile_serialization=protocol == "torch",
        )
    text = refusal(lambda: load(run))
    assert not trace.exists()
    assert ("is a pickle" in text) is (protocol != 0)
    if isinstance(protocol, int):  # it would have
        pickle.loads((run / WEIGHTS).read_bytes())
    else:
        with (run / WEIGHTS).open("rb") as file:  # by its name torch would not unpickle it either
            torch.load(file, weights_only=False)
    assert trace.exists()


def change_weights(run: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(run / WEIGHTS)
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    change(weights)
    save_file(weights, run / WEIGHTS)


def test_missing_and_surplus_weights(run: Path) -> None:
    change_weights(run, lambda weights: [weights.pop(name) for name in sorted(weights)[:3]])
    text = refusal(lambda: load(run))
    assert "lacks" in text
    assert "and 1 more" in text
    change_weights(run, lambda weights: weights.update(extra=torch.zeros(1)))
    assert "'extra' too many" in refusal(lambda: load(run))


def test_weights_of_another_shape(run: Path) -> None:
    name = max(name for name, tensor in load_file(run / WEIGHTS).items() if tensor.dim() == 2)
    change_weights(run, lambda weights: weights.update({name: torch.zeros(4, 64)}))
    assert f"another shape for {name!r}" in refusal(lambda: load(run))


def test_weights_of_another_network(run: Path) -> None:
    other = build_plain("resnet56", 3)
    save_file(other.state_dict(), run / WEIGHTS)
    text = refusal(lambda: load(run))
    assert "does not fit 'se_resnet20'" in text
    assert str(run / WEIGHTS) in text


def test_a_card_of_another_network(run: Path) -> None:
    card = read_card(run)

    def with_card(**changes: Any) -> str:
        (run / CARD).write_text(replace(card, **changes).to_json())
        return refusal(lambda: load(run))

    assert "nearest: 'resnet20'" in with_card(name="resnet2O")
    assert "'plan'" in with_card(name="resnet18")
    assert "'plan' is null" in with_card(plan=None)
    assert "'plan'" in with_card(plan={"version": 1})
    assert "'plan'" in with_card(plan={"version": 99})
    assert "does not fit" in with_card(num_classes=2, classes=("a", "b"))


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.int64]
)
def test_weights_of_another_kind(run: Path, dtype: torch.dtype) -> None:
    name = max(name for name, tensor in load_file(run / WEIGHTS).items() if tensor.dim() == 2)
    change_weights(run, lambda weights: weights.update({name: weights[name].to(dtype)}))
    assert f"has numbers of another kind for {name!r}" in refusal(lambda: load(run))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_another_precision(run: Path, dtype: torch.dtype) -> None:
    name = max(name for name, tensor in load_file(run / WEIGHTS).items() if tensor.dim() == 2)
    change_weights(run, lambda weights: weights.update({name: weights[name].to(dtype)}))
    assert load(run).state_dict()[name].dtype == torch.float32


def test_a_flipped_bit_in_the_weights_is_seen(run: Path) -> None:
    data, chance = (run / WEIGHTS).read_bytes(), random.Random(0)
    header = int.from_bytes(data[:8], "little") + 8
    for place in [chance.randrange(8, header) for _ in range(20)] + [header, len(data) - 1]:
        if data[place : place + 1].isspace():  # of the padding, which means nothing
            continue
        (run / WEIGHTS).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert str(run / WEIGHTS) in refusal(lambda: load(run)), data[place - 9 : place + 9]


def test_weights_are_written_to_the_same_bytes(run: Path, tmp_path: Path) -> None:
    for name in ("once", "again"):
        save_model(tmp_path / name, load(run), read_card(run))
    assert (tmp_path / "once" / WEIGHTS).read_bytes() == (tmp_path / "again" / WEIGHTS).read_bytes()
    with safe_open(tmp_path / "once" / WEIGHTS, framework="pt") as file:
        assert file.metadata()["format"] == "pt"


@pytest.mark.parametrize("value", [True, 1e308, [], {}, None, "", 1.5, 10**30, -1, float("nan")])
@pytest.mark.parametrize(
    "key", ["path", "hidden", "channels", "channels_last", "positions", "block", "before", "kind"]
)
def test_a_damaged_plan_gets_a_line(run: Path, key: str, value: object) -> None:
    """Or makes the network that it was, where the value is a possible one that counts nowhere."""
    document = json.loads((run / CARD).read_text())
    document["plan"]["sites"][0][key] = value
    (run / CARD).write_text(json.dumps(document))
    if (key, value) in (("kind", ""), ("positions", []), ("before", True)):
        load(run)(torch.zeros(1, 3, 16, 16))
    else:
        assert "'plan' does not fit" in refusal(lambda: load(run))


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden", 1.5), ("hidden", 10**30), ("bias", 1), ("reduction", []), ("gate", 3)],
)
def test_a_damaged_block_gets_a_line(run: Path, key: str, value: object) -> None:
    document = json.loads((run / CARD).read_text())
    document["plan"]["sites"][0]["block"][key] = value
    (run / CARD).write_text(json.dumps(document))
    assert "'plan' does not fit" in refusal(lambda: load(run))
