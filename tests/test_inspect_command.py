"""`senet inspect` as its users meet it."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from generated import make_image_folder
from networks import randomise

import senet
from senet.block import SqueezeExcite
from senet.cli import main
from senet.commands import inspect
from senet.data import DataOptions, load_data
from senet.errors import UserError
from senet.inspection import Picture, write_inspection
from senet.models import create_model
from senet.runs import ModelCard, plan_of, read_card, save_model

FILES = {
    *("index.html", "inspection.json"),
    *(f"{name}.csv" for name in ("blocks", "channels", "means", "variances", "null", "images")),
    *(
        f"{name}.{end}"
        for name in ("activations", "specificity", "saturation")
        for end in ("png", "svg")
    ),
}
CLASSES = ("<script>alert(1)</script>".replace("/", "\N{DIVISION SLASH}"), "a, b", "x\"'")


def save(folder: Path, name: str, classes: tuple[str, ...], data: str, size: int = 16) -> Path:
    torch.manual_seed(0)
    model = randomise(create_model(name, num_classes=len(classes)))
    half = (0.5, 0.5, 0.5)
    card = ModelCard(
        name=name,
        num_classes=len(classes),
        plan=plan_of(model),
        classes=classes,
        mean=half,
        std=half,
        image_size=size,
        versions={},
        data=data,
        seed=7,
    )
    save_model(folder, model, card)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes with names that mean something to HTML, CSV and paths; 12 images held out."""
    root = tmp_path_factory.mktemp("images") / "set"
    return make_image_folder(root, CLASSES, per_class=8, size=(20, 18))


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    classes = load_data(DataOptions(data=str(images))).classes
    return save(tmp_path_factory.mktemp("runs") / "se", "se_resnet20", classes, str(images))


def told(capfd: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    capfd.readouterr()
    status = main([str(word) for word in words])
    out, err = capfd.readouterr()
    return status, out, err


def complaint(capfd: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The one line that a mistake gets."""
    status, out, err = told(capfd, "inspect", *words)
    assert status == 2, out
    assert out == ""
    (line,) = err.splitlines()
    return line.removeprefix("senet: error: ")


def data_of(page: Path) -> dict[str, Any]:
    text = page.read_text().partition('id="data">')[2].partition("</script>")[0]
    read: dict[str, Any] = json.loads(text)
    return read


def test_a_run_is_looked_into(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    status, words, err = told(capfd, "inspect", run, "--out", out)
    assert (status, err) == (0, "")
    assert {path.name for path in out.iterdir()} == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    lines = words.splitlines()
    assert "12 held-out images, 3 classes" in lines[0]
    assert sum(line.startswith("stage") for line in lines) == 9
    assert str(out / "index.html") in lines[-1]

    shown = data_of(out / "index.html")
    assert set(shown["names"]) == set(CLASSES)
    assert shown["chosenBlocks"] == [2, 5, 6, 7, 8]
    assert shown["pictures"]["complete"] == shown["pictures"]["of"] == 336
    labels = {label for label, _, _ in shown["pictures"]["images"].values()}
    assert labels <= {0, 1, 2}
    whole = "".join(path.read_text() for path in out.iterdir() if path.suffix != ".png")
    assert str(tmp_path) not in whole
    assert str(read_card(run).data) not in whole, "where the images lie is nobody's business"


def test_what_is_printed_is_what_was_recorded(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """JSON, tables and senet.record on the same images agree; the kept images are those."""
    out = tmp_path / "out"
    status, words, err = told(capfd, "inspect", run, "--out", out, "--json", "--examples=2")
    assert (status, err) == (0, "")
    document = json.loads(words)
    card = read_card(run)
    options = DataOptions(data=card.data, image_size=16, augment=False)
    val = load_data(options).val
    val.framing = type(val.framing)(16, card.mean, card.std)
    excitations = senet.record(senet.load(run), [torch.utils.data.default_collate(list(val))])
    assert document["images"] == 12
    for row, block in zip(document["blocks"], excitations.blocks, strict=True):
        assert row["block"] == block.path
        assert row["specificity"] == pytest.approx(block.specificity, rel=1e-4)
        assert row["mean"] == pytest.approx(float(block.total_mean.mean()), rel=1e-4)
    with (out / "images.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["block"] == excitations.blocks[8].path]
    first = [row for row in rows if row["end"] == "most" and row["rank"] == "0"]
    gates = [float(row["gate"]) for row in first]
    assert gates == pytest.approx(excitations.blocks[8].most[:, 0].tolist(), rel=1e-4)


def test_classes_and_blocks_are_chosen(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--classes", '"a, b"', "--blocks", "stage1*,*unit3*", "--permutations=0", "--gates"]
    assert told(capfd, "inspect", run, "--out", out, *words)[0] == 0
    shown = data_of(out / "index.html")
    assert [shown["names"][label] for label in shown["chosenClasses"]] == ["a, b"]
    assert shown["chosenBlocks"] == [2, 3, 4, 5, 8]
    assert shown["blocks"][0]["nullRange"] is None
    assert list((out / "gates").iterdir())
    # The name alone, comma and all; and what was there before is replaced, gates too.
    assert told(capfd, "inspect", run, "--out", out, "--classes", "a, b")[0] == 0
    assert not (out / "gates").exists()


def test_other_data_with_an_image_a_class(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """No variance within classes: all of it lies between them, as it does with labels shuffled."""
    few = make_image_folder(tmp_path / "few", CLASSES, per_class=1, size=(30, 30), seed=5)
    words = ("--data", few, "--out", tmp_path / "out", "--json")
    status, text, _ = told(capfd, "inspect", run, *words)
    assert status == 0
    assert json.loads(text)["images"] == 3
    for row in json.loads(text)["blocks"]:
        assert row["specificity"] == pytest.approx(1)
        assert row["p"] == 1


def test_a_run_without_blocks(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = save(tmp_path / "plain", "resnet20", tuple(sorted(CLASSES)), str(images))
    line = complaint(capfd, plain, "--out", tmp_path / "out")
    assert "has no SE block to look into" in line
    assert "'resnet20'" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--blocks", "stage9.unit1"), ("'stage9.unit1'", "nearest: ", "'stage0.unit1'")),
        (("--classes", "a; b"), ("'a; b'", "nearest: 'a, b'")),
        (("--classes", "zzz"), ("'zzz'", "known: ")),
        (("--channels", "1"), ("channels is 1", "at least 2")),
        (("--examples", "0"), ("examples is 0", "at least 1")),
        (("--permutations", "-1"), ("permutations is -1", "at least 0")),
        (("--batch_size", "0"), ("batch_size is 0",)),
        (("--data", "digits"), ("digits has other classes", "10 of them, not 3")),
        (("--data", "nowhere"), ("unknown data set 'nowhere'",)),
    ],
)
def test_mistakes_are_told_in_a_line(
    run: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    said: tuple[str, ...],
) -> None:
    line = complaint(capfd, run, "--out", tmp_path / "out", *words)
    for part in said:
        assert part in line
    assert list(tmp_path.iterdir()) == []


def test_a_class_without_images(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = make_image_folder(tmp_path / "data", CLASSES, per_class=4, size=(20, 18))
    for path in (data / "val" / "a, b").iterdir():
        path.unlink()
    line = complaint(capfd, run, "--data", data, "--out", tmp_path / "out")
    assert "/val/a, b' has no images; fill or remove what is empty" in line
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_class_without_held_out_images(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = make_image_folder(tmp_path / "data", CLASSES, per_class=6, size=(20, 18), split=False)
    for number in range(1, 6):
        (data / "a, b" / f"{number}.png").unlink()
    line = complaint(capfd, run, "--data", data, "--out", tmp_path / "out")
    assert "class 'a, b' in" in line
    assert "has one image only, so none can be held out" in line
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    # Of shards and named sets it comes out here.
    with pytest.raises(UserError, match="set has no held-out image of 'a, b'; what gates do"):
        inspect._refuse_empty(torch.tensor([3, 0, 2]), CLASSES, "set")
    inspect._refuse_empty(torch.tensor([3, 1, 2]), CLASSES, "set")


def test_gates_that_are_not_finite(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = senet.load(run)
    block = [module for module in model.modules() if isinstance(module, SqueezeExcite)][3]
    with torch.no_grad():
        next(block.parameters()).fill_(torch.nan)
    save_model(tmp_path / "nan", model, read_card(run))
    line = complaint(capfd, tmp_path / "nan", "--out", tmp_path / "out")
    assert "stage1.unit1" in line
    assert "not finite" in line
    assert [path.name for path in tmp_path.iterdir()] == ["nan"]


def test_a_place_that_is_taken(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is a file" in complaint(capfd, run, "--out", tmp_path / "file")
    assert "holds something else ('file')" in complaint(capfd, run, "--out", tmp_path)
    assert "cannot make" in complaint(capfd, run, "--out", tmp_path / "file" / "below")
    assert "holds something else" in complaint(capfd, run, "--out", run)
    assert (tmp_path / "file").read_text() == "mine"
    assert read_card(run).name == "se_resnet20"


def test_an_adopted_model_through_python(tmp_path: Path) -> None:
    """timm's own blocks, without a plan and with another gate."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = senet.adopt(timm.create_model("mobilenetv3_small_050", num_classes=3).eval())
    pixels = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(6) % 3
    loader = [(pixels.float() / 255, labels)]
    tricks = ("../../x", str(tmp_path / "y"), "=cmd|' /C calc'!A0")
    excitations = senet.record(model, loader, classes=tricks, permutations=3, examples=2)
    write_inspection(
        excitations,
        tmp_path / "look",
        title="../adopted",
        picture=lambda index: Picture(pixels[index], int(labels[index]), "../../z.png"),
    )
    assert {path.name for path in (tmp_path / "look").iterdir()} == FILES - {"inspection.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["look"]
    with (tmp_path / "look" / "means.csv").open(newline="") as file:
        assert next(csv.reader(file))[4:] == [*tricks[:2], "'=cmd|' /C calc'!A0"]
    shown = data_of(tmp_path / "look" / "index.html")
    assert len(shown["blocks"]) == len(excitations.blocks) > 5
    assert len(shown["pictures"]["images"]) == 6


def test_blocks_of_another_library_are_adopted_for_the_look(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    classes = load_data(DataOptions(data=str(images))).classes
    run = save(tmp_path / "run", "timm/mobilenetv3_small_050", classes, str(images), 32)
    words = ("--out", tmp_path / "out", "--json", "--examples", "1000000000")
    status, text, err = told(capfd, "inspect", run, *words)
    assert (status, err) == (0, "")
    blocks = json.loads(text)["blocks"]
    assert len(blocks) == 9
    assert blocks[0]["block"] == "blocks.0.0.se"
    page = data_of(tmp_path / "out" / "index.html")
    assert page["blocks"][0]["most"]["count"] == 12, "no more images than there are"


@pytest.mark.parametrize("examples", [pytest.param(0, marks=pytest.mark.slow), 9])
def test_a_single_image_of_no_class(examples: int, tmp_path: Path) -> None:
    """There is no variance, and nothing to tell apart; it is drawn all the same."""
    model = randomise(senet.create_model("se_resnet20", num_classes=3)).eval()
    excitations = senet.record(model, [torch.rand(1, 3, 16, 16)], examples=examples)
    write_inspection(excitations, tmp_path, title="one")
    shown = data_of(tmp_path / "index.html")
    assert shown["names"] == ["all"]
    assert shown["images"] == 1
    assert [block["specificity"] for block in shown["blocks"]] == [0.0] * 9


@pytest.mark.slow
def test_a_card_with_names_that_are_no_text(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A class named by bytes that are no UTF-8, as file systems allow."""
    names = ("\udcff\udcfe", "b", "c")
    folder = make_image_folder(tmp_path / "data", names, per_class=2, size=(20, 18))
    run = save(
        tmp_path / "run",
        "se_resnet20",
        load_data(DataOptions(data=str(folder))).classes,
        str(folder),
    )
    assert replace(read_card(run)).classes.count(names[0]) == 1
    assert told(capfd, "inspect", run, "--out", tmp_path / "out")[0] == 0
    assert names[0] in data_of(tmp_path / "out" / "index.html")["names"]
