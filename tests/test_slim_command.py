"""`senet slim` as its users meet it: what it writes is a run directory, and mistakes are a line."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import Namespace
from networks import randomise
from safetensors.torch import load_file
from torchvision.utils import save_image

from senet import SqueezeExcite, deploy, runs
from senet.catalogue import IMAGENET_MEAN
from senet.cli import main
from senet.commands.run_data import name_of_data
from senet.commands.slim import _as_precise
from senet.data import DataOptions, load_data
from senet.locking import DirectoryLock
from senet.models import create_model
from senet.options import TrainOptions, options_yaml, read_options
from senet.resumption import CONFIG, begin_directory
from senet.sampling import stratified_split

OPTIONS = TrainOptions(
    image_size=8, batch_size=32, lr=0.05, threads=1, limit_batches=2, epochs=1, accelerator="cpu"
)
FILES = {
    *("config.yaml", "model.safetensors", "model.json"),
    *("worth.csv", "slimming.csv", "slimming.png", "slimming.json"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose last three blocks have gates that are the same for all images.

    Its data is the digits in folders of what the network says of them, so that it is always right.
    """
    place, folder = tmp_path_factory.mktemp("runs") / "digits", tmp_path_factory.mktemp("said")
    data = load_data(DataOptions(data="digits", image_size=8))
    torch.manual_seed(0)
    model: Any = randomise(create_model("se_resnet20", num_classes=10)).eval()
    for number, block in enumerate(m for m in model.modules() if isinstance(m, SqueezeExcite)):
        block.fc2.weight.data.mul_(8 if number < 6 else 0)
    with torch.no_grad():  # every class as likely as the others
        images = torch.stack([data.val[index][0] for index in range(160)])
        logits = model(images)
        model.classifier.weight.div_(logits.std(0)[:, None])
        model.classifier.bias.sub_(logits.mean(0)).div_(logits.std(0))
        labels = model(images).argmax(1).tolist()
    for label in range(10):
        for part in ("train", "val"):
            (folder / part / str(label)).mkdir(parents=True)
        save_image(torch.rand(3, 8, 8), folder / "train" / str(label) / "any.png")
    for index, label in enumerate(labels):
        pixels = data.val.source(index)[0].float() / 255
        save_image(pixels, folder / "val" / str(label) / f"{index}.png")
    card = runs.ModelCard(
        name="se_resnet20",
        num_classes=10,
        plan=runs.plan_of(model),
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        image_size=8,
        versions={},
        data=str(folder),
        seed=7,
    )
    lock = DirectoryLock(place)
    begin_directory(place, replace(OPTIONS, data=str(folder)), lock)
    lock.release()
    runs.save_model(place, model, card)
    return place


def told(capfd: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    capfd.readouterr()
    status = main([str(word) for word in words])
    out, err = capfd.readouterr()
    return status, out, err


def test_a_slim_run_is_a_run(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    slim = tmp_path / "deep" / "slim"
    words = ("slim", run, "--out", slim, "--max-drop", "0", "--by", "stage", "--rounds", "2")
    status, out, _ = told(capfd, *words)
    assert status == 0, out
    assert {path.name for path in slim.iterdir()} == FILES
    assert [path.name for path in slim.parent.iterdir()] == ["slim"]
    assert "stages by worth, least first" in out
    assert "held-out images: top-1" in out
    assert f"senet evaluate {slim}" in out
    report = json.loads((slim / "slimming.json").read_text())
    assert report["points"][report["chosen"]]["left_out"] == ["stage 2"]
    assert (slim / "slimming.png").read_bytes().startswith(b"\x89PNG")
    with (slim / "worth.csv").open(newline="") as file:
        worth = list(csv.DictReader(file))
    of_five = [candidate["top5_drop"] for candidate in report["candidates"]]
    assert [float(row["top5_drop_points"]) for row in worth] == pytest.approx(of_five, abs=1e-4)
    assert len(of_five) == 3
    assert of_five[0] == 0 < max(of_five)
    # What was measured on the two halves is what all held-out images say.
    card = runs.read_card(slim)
    status, out, _ = told(capfd, "evaluate", slim, "--json", "--device", "cpu")
    assert status == 0
    assert json.loads(out)["top1"] == pytest.approx(card.top1, abs=1e-6)
    halves = report["before"]["images"] + report["points"][0]["calibration"]["images"]
    assert json.loads(out)["images"] == halves
    # And it goes where runs go.
    model = runs.load(slim)
    left = [m for m in model.modules() if isinstance(m, SqueezeExcite)]
    assert len(left) == report["points"][report["chosen"]]["blocks"] == 6
    deploy(model, input_size=(3, 8, 8))
    picture = tmp_path / "picture.png"
    save_image(torch.rand(3, 8, 8), picture)
    assert told(capfd, "predict", slim, picture)[0] == 0
    exported = tmp_path / "slim.pt2"
    assert told(capfd, "export", slim, "--format", "torch", "--out", exported)[0] == 0
    assert exported.exists()


def test_without_any_block_a_plain_network_is_left(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    slim = tmp_path / "slim"
    words = ("--data=digits", "--max-drop=100", "--by=stage", "--rounds=0", "--json")
    status, out, err = told(capfd, "slim", run, "--out", slim, *words)
    assert status == 0
    document = json.loads(out)
    assert document["points"][document["chosen"]]["blocks"] == 0
    assert "→" in err
    card = runs.read_card(slim)
    assert (card.name, card.plan) == ("resnet20", None)
    assert card.top1 is None  # on the run's own data, of which nothing is known here
    assert load_file(slim / runs.WEIGHTS).keys() == create_model("resnet20").state_dict().keys()
    options = read_options(slim / CONFIG, whole=True)
    assert (options.model, options.sites) == ("resnet20", None)
    status, _, err = told(capfd, "slim", slim, "--out", tmp_path / "again")
    assert status == 2
    assert "holds resnet20, a plain network without SE; nothing to slim" in err


def test_fine_tuning_goes_on_from_the_slim_network(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Here and on one device, though the run was on two, and its data are elsewhere now."""
    options = read_options(run / CONFIG, whole=True)
    assert options.data is not None
    moved = shutil.copytree(options.data, tmp_path / "moved")
    on_two = shutil.copytree(run, tmp_path / "on two")
    options = replace(options, data="/gone", devices=2, strategy="ddp", sync_batchnorm=True)
    (on_two / CONFIG).write_text(options_yaml(options))
    slim = tmp_path / "slim"
    words = ("--max-drop=50", "--by=stage", "--rounds=0", "--finetune=1", "--json", "--device=cpu")
    status, out, err = told(capfd, "slim", on_two, "--out", slim, *words, f"--data={moved}")
    assert status == 0, err
    assert f"starting from {runs.read_card(slim).name} in" in err
    document = json.loads(out)
    tuned = slim / "finetuned"
    assert (tuned / "checkpoints" / "last.ckpt").exists()
    assert runs.read_card(tuned).plan == runs.read_card(slim).plan
    assert document["finetuned"]["images"] == document["after"]["images"]
    options = read_options(tuned / CONFIG, whole=True)
    assert options.lr == pytest.approx(0.005)
    assert (options.devices, options.strategy, options.accelerator) == (1, "auto", "cpu")
    # Images are normalised as those that the network was trained with, which is not as a folder's.
    card = runs.read_card(tuned)
    assert card.mean == runs.read_card(run).mean != IMAGENET_MEAN
    data = load_data(DataOptions(data=str(moved), image_size=8, mean=card.mean, std=card.std))
    labels = torch.tensor([data.val.source(index)[1] for index in range(len(data.val))])
    half = stratified_split(labels, 0.5, runs.read_card(run).seed)[1].tolist()
    images = torch.stack([data.val[index][0] for index in half])
    with torch.no_grad():
        right = runs.load(tuned)(images).argmax(1) == labels[half]
    assert document["finetuned"]["top1"] == pytest.approx(right.double().mean().item())


@pytest.mark.slow
def test_a_slim_run_can_be_slimmed_again_until_the_budget_says_no(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = (tmp_path / name for name in ("first", "second"))
    words = ("--rounds=0", "--by=stage", "--json")
    status, out, _ = told(capfd, "slim", run, "--out", first, "--max-drop=0", *words)
    assert status == 0
    report = json.loads(out)
    assert report["before"]["top1"] == report["after"]["top1"] == 1
    assert report["points"][report["chosen"]]["left_out"] == ["stage 2"]
    assert len((runs.read_card(first).plan or {"sites": ()})["sites"]) == 6
    assert runs.read_card(first).top1 == 1
    status, out, err = told(capfd, "slim", first, "--out", second, "--max-drop=0", *words)
    assert (status, out) == (2, "")
    assert "a max_drop of 0 points cannot be met" in err
    assert len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    needed = err.strip().rpartition(" ")[2]
    options = ("--max-drop", needed)
    assert told(capfd, "slim", first, "--out", second, *options, *words)[0] == 0
    assert len((runs.read_card(second).plan or {"sites": ()})["sites"]) < 6


# Mistakes


def _folder(place: Path, counts: Mapping[str, tuple[int, int]]) -> Path:
    """An image folder with so many images of each class to train on, and to validate on."""
    for name, (train, val) in counts.items():
        for part, count in (("train", train), ("val", val)):
            (place / part / name).mkdir(parents=True)
            for number in range(count):
                save_image(torch.rand(3, 8, 8), place / part / name / f"{number}.png")
    return place


def _other_classes(place: Path) -> tuple[str, ...]:
    return ("--data", str(_folder(place / "data", {"cat": (1, 2), "dog": (1, 2)})))


def _one_image(place: Path) -> tuple[str, ...]:
    counts = {str(n): (1, 1 if n == 3 else 2) for n in range(10)}
    return ("--data", str(_folder(place / "data", counts)))


def _empty_class(place: Path) -> tuple[str, ...]:
    counts = {str(n): (1, 0 if n == 3 else 2) for n in range(10)}
    return ("--data", str(_folder(place / "data", counts)))


def _full(place: Path) -> tuple[str, ...]:
    (place / "full").mkdir()
    (place / "full" / "mine.txt").write_text("mine")
    return ("--out", str(place / "full"))


def _file(place: Path) -> tuple[str, ...]:
    (place / "file").write_text("mine")
    return ("--out", str(place / "file"))


def _below_a_file(place: Path) -> tuple[str, ...]:
    (place / "file").write_text("mine")
    return ("--out", str(place / "file" / "slim"))


MISTAKES: Mapping[str, tuple[Callable[[Path], tuple[str, ...]], str]] = {
    "negative": (lambda _: ("--max-drop=-1",), "max_drop is -1.0; it must be points of top-1"),
    "nan": (lambda _: ("--max-drop=nan",), "max_drop is nan, but must be a number"),
    "words": (lambda _: ("--max-drop=little",), "max_drop is little, but must be a number"),
    "by": (lambda _: ("--by=channel",), "'channel' (choose from 'block', 'stage')"),
    "rounds": (lambda _: ("--rounds=-1",), "rounds is -1; it must be at least 0"),
    "epochs": (lambda _: ("--finetune=-1",), "finetune is -1; it must be at least 0"),
    "data": (lambda _: ("--data=nothing",), "unknown data set 'nothing'"),
    "other classes": (_other_classes, "has other classes than"),
    "one image": (_one_image, "class '3' has 1 held-out image in"),
    "empty class": (_empty_class, "has no images"),
    "full": (_full, "is not empty; name a directory to be made"),
    "file": (_file, "is a file; name a directory to be made"),
    "below a file": (_below_a_file, "cannot make"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_a_line(
    run: Path, name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make, message = MISTAKES[name]
    given = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    status, out, err = told(capfd, "slim", run, "--out", tmp_path / "slim", *given)
    assert status == 2
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_blocks_of_another_library_are_told(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = "timm/mobilenetv3_small_050"
    card = replace(runs.read_card(run), name=name, plan=None)
    runs.save_model(tmp_path / "run", create_model(name, num_classes=10), card)
    status, _, err = told(capfd, "slim", tmp_path / "run", "--out", tmp_path / "slim")
    assert status == 2
    assert f"the SE blocks of {name} in" in err
    assert "senet.adopt" in err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_fine_tuning_takes_the_options_of_the_run(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / CONFIG).unlink()
    words = ("--rounds=0", "--by=stage", "--max-drop=0")
    slim = tmp_path / "slim"
    status, _, err = told(capfd, "slim", tmp_path / "run", "--out", slim, "--finetune=1", *words)
    assert status == 2
    assert "has no config.yaml to go on training by; leave --finetune out" in err
    assert told(capfd, "slim", tmp_path / "run", "--out", slim, *words)[0] == 0
    assert {path.name for path in slim.iterdir()} == FILES - {"config.yaml"}


@pytest.mark.parametrize(
    ("wanted", "device", "taken"),
    [
        ("16-mixed", "cpu", "bf16-mixed"),
        ("64-true", "mps", "32-true"),
        ("64-true", "cpu", "64-true"),
        ("16-mixed", "cuda", "16-mixed"),
    ],
)
def test_fine_tuning_has_the_precision_of_its_device(wanted: str, device: str, taken: str) -> None:
    options = replace(OPTIONS, precision=wanted)
    assert _as_precise(options, torch.device(device)) == replace(options, precision=taken)


def _replaced(run: Path, place: Path, change: Callable[[Any], None]) -> Path:
    shutil.copytree(run, place)
    model = runs.load(place)
    change(model)
    runs.save_model(place, model, runs.read_card(place))
    return place


def test_gates_that_are_no_numbers(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def spoil(model: Any) -> None:
        block = next(m for m in model.modules() if isinstance(m, SqueezeExcite))
        block.fc2.bias.data[0] = math.nan

    spoilt = _replaced(run, tmp_path / "spoilt", spoil)
    status, _, err = told(capfd, "slim", spoilt, "--out", tmp_path / "slim")
    assert status == 2
    assert "not finite; its weights have diverged" in err
    assert len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["spoilt"]


@pytest.mark.parametrize(
    ("data", "name"), [("digits", "digits"), ("/a/b/pets", "pets"), ("", "cats"), (None, "cats")]
)
def test_pictures_name_the_data_and_not_where_it_lies(
    run: Path, data: str | None, name: str
) -> None:
    card = replace(runs.read_card(run), data="/home/someone/cats")
    assert name_of_data(card, Namespace(data=data)) == name
