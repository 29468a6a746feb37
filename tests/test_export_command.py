"""`senet export` and `senet predict` with what it wrote, as their users meet them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from networks import randomise
from torchvision.utils import save_image

from senet.cli import main
from senet.data import DataOptions, load_data
from senet.models import create_model
from senet.runs import CARD, ModelCard, plan_of, read_card, save_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory, on the digits that come with scikit-learn."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    data = load_data(DataOptions(data="digits"))
    torch.manual_seed(0)
    model = randomise(create_model("se_resnet20", num_classes=10))
    card = ModelCard(
        name="se_resnet20",
        num_classes=10,
        plan=plan_of(model),
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        image_size=data.image_size,
        versions={},
        data="digits",
        seed=7,
    )
    save_model(folder, model, card)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    val = load_data(DataOptions(data="digits")).val
    paths = [folder / f"{index}.png" for index in range(3)]
    for index, path in enumerate(paths):
        pixels, _ = val.source(index)
        save_image(pixels.float() / 255, path)
    return paths


def told(capfd: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    capfd.readouterr()
    status = main([str(word) for word in words])
    out, err = capfd.readouterr()
    return status, out, err


def guesses(capfd: pytest.CaptureFixture[str], source: Path, pictures: list[Path]) -> list[dict]:
    status, out, err = told(capfd, "predict", source, *pictures, "--top=10", "--json")
    assert (status, err) == (0, "")
    return [
        {each["class"]: each["probability"] for each in entry["top"]} for entry in json.loads(out)
    ]


@pytest.mark.parametrize(
    ("format", "suffix"), [("onnx", ".onnx"), ("openvino", ".xml"), ("torch", ".pt2")]
)
def test_a_run_is_exported_and_predicts(
    capfd: pytest.CaptureFixture[str],
    run: Path,
    pictures: list[Path],
    tmp_path: Path,
    format: str,
    suffix: str,
) -> None:
    out = tmp_path / f"digits{suffix}"
    status, words, err = told(capfd, "export", run, "--format", format, "--out", out)
    assert (status, err) == (0, "")
    assert "19 folded, 9 gated in place" in words
    told_difference = re.search(r"largest difference (\S+) of the largest logit", words)
    assert told_difference
    assert 0 <= float(told_difference[1]) <= 1e-4
    assert "on 8 held-out images of digits" in words
    assert "resnet20 " in words
    assert "median of the turns' ratios" in words
    assert ("opset 20" in words) == (format == "onnx")
    if format == "onnx":
        assert onnx.load(out).opset_import[0].version == 20
    assert str(out) in words
    names = {f"digits{suffix}"} | ({"digits.bin"} if suffix == ".xml" else set())
    assert {path.name for path in tmp_path.iterdir()} == names
    found, expected = guesses(capfd, out, pictures), guesses(capfd, run, pictures)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_a_name_is_exported_without_a_twin(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "plain.pt2"
    words = ("--format=torch", "--as-trained", "--image_size=24", "--batch=2")
    status, told_, err = told(capfd, "export", "resnet20", *words, "--out", out)
    assert (status, err) == (0, "")
    assert "on generated images" in told_
    assert "batch of 2" in told_
    assert "ratio" not in told_
    assert "folded" not in told_


def test_a_script_reads_what_came_of_it(
    capfd: pytest.CaptureFixture[str], run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "digits.pt2"
    words = ("export", run, "--format=torch", "--out", out, "--json")
    status, text, err = told(capfd, *words)
    document = json.loads(text)
    assert (status, err) == (0, "")
    assert document["files"] == [str(out)]
    assert document["images"] == "8 held-out images of digits"
    assert 0 <= document["difference"] <= document["tolerance"] == 1e-4
    assert (document["plain"], document["batch"], document["opset"]) == ("resnet20", 1, None)
    assert document["ratio"] > 0 < document["ms"]
    assert len([each for each in document["rewritten"] if each["what"] == "folded"]) == 19
    out.unlink()
    status, text, err = told(capfd, *words, "--tolerance=1e-12", "--as_trained")
    document = json.loads(text)
    assert (status, document["files"], document["ms"]) == (1, [], None)
    assert document["rewritten"] is None
    assert "was not written" in err


def test_a_difference_above_the_tolerance(
    capfd: pytest.CaptureFixture[str], run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "digits.onnx"
    status, words, err = told(capfd, "export", run, "--out", out, "--tolerance=1e-12")
    assert (status, words) == (1, "")
    assert f"{out} was not written: largest difference " in err
    assert "(tolerance 1e-12), on 8 held-out" in err
    assert not list(tmp_path.iterdir())


def test_data_that_is_gone_is_told(
    capfd: pytest.CaptureFixture[str], run: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    for file in run.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    card = replace(read_card(run), data=str(tmp_path / "gone"))
    (copy / CARD).write_text(card.to_json())
    words = ("export", copy, "--format=torch", "--out", tmp_path / "o.pt2")
    status, out, err = told(capfd, *words)
    assert status == 0
    (line,) = err.splitlines()
    assert "take its place" in line
    assert "gone" in line
    assert any(line.endswith("on generated images") for line in out.splitlines())


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("RUN", "--out=x.pt2"), "'x.pt2' does not end in .onnx, as onnx files do"),
        (("RUN", "--out=none/x.onnx"), "'none' is no folder"),
        (("RUN", "--out=x.onnx", "--batch=0"), "batch is 0; it must be at least 1"),
        (("RUN", "--out=x.onnx", "--image_size=4"), "image_size is 4; it must be at least 8"),
        (("RUN", "--out=x.onnx", "--tolerance=nan"), "tolerance is nan"),
        (("RUN", "--out=x.onnx", "--tolerance=inf"), "tolerance is inf"),
        (("RUN", "--out=x.onnx", "--opset=7"), "opset 7 cannot be written"),
        (("se_resnet5O", "--out=x.onnx"), "unknown model 'se_resnet5O'; nearest: "),
        (("no/run", "--out=x.onnx"), "run directory 'no/run' does not exist"),
    ],
)
def test_mistakes_are_told_in_a_line(
    capfd: pytest.CaptureFixture[str],
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = told(capfd, "export", *(run if w == "RUN" else w for w in words))
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert complaint in line
    assert not list(tmp_path.iterdir())


def test_predict_refuses_what_it_cannot_do(
    capfd: pytest.CaptureFixture[str], pictures: list[Path], tmp_path: Path
) -> None:
    for path, options, complaint in (
        (tmp_path / "none.onnx", (), "does not exist"),
        (tmp_path / "none.onnx", ("--device=cuda",), "exported files run on the CPU"),
    ):
        status, out, err = told(capfd, "predict", path, pictures[0], *options)
        assert (status, out) == (2, "")
        assert complaint in err
