"""The commands as their users meet them: what they print, where, and how they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from generated import make_image_folder
from processes import start

import senet
from senet.cli import COMMANDS, main
from senet.errors import nearest
from senet.models import create_model
from senet.runs import CARD, WEIGHTS, read_card

CLASSES = ("cat", "dog", "eel")
PLAIN = ["--model=resnet20"]
"""Where it does not matter what is trained: built and checked in a third of its twin's time."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images") / "set"
    return make_image_folder(root, CLASSES, per_class=16, size=(20, 18))


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run, and of its plain twin."""
    out = tmp_path_factory.mktemp("runs") / "pair"
    options = ["--image-size=16", "--batch_size=8", "--epochs=2", "--lr=0.02", "--threads=1"]
    assert main(["train", "--data", str(folder), "--out", str(out), "--twin", *options]) == 0
    return out


def told(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Status, standard output and standard error of a command, whoever wrote to them."""
    capfd.readouterr()
    status = main([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return status, out, err


def document(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    status, out, err = told(capfd, *arguments, "--json")
    assert err == ""
    assert status == 0
    return json.loads(out)


def complaint(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that a mistake gets."""
    status, out, err = told(capfd, *arguments)
    assert status == 2, out
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("senet: error: ")
    return line


def test_senet_lists_its_commands(capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        status, out, err = told(capfd, *arguments)
        assert (status, err) == (0, "")
        assert all(f"  {name} " in out for name in COMMANDS)


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert told(capfd, "--version") == (0, f"senet {senet.__version__}\n", "")


def test_an_unknown_command_gets_the_nearest(capfd: pytest.CaptureFixture[str]) -> None:
    assert "unknown command 'trian'; nearest: 'train'" in complaint(capfd, "trian")


def test_python_m_senet_is_senet_and_help_is_light() -> None:
    program = (
        "import runpy, sys; sys.argv = ['senet', '--help']\n"
        "try: runpy.run_module('senet', run_name='__main__')\n"
        "except SystemExit as stop: assert stop.code == 0, stop.code\n"
        "heavy = {'lightning', 'torchvision', 'timm', 'torchmetrics', 'jsonargparse', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("usage: senet COMMAND")


def test_training_tells_what_it_does(
    capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    arguments = [
        "--data",
        folder,
        "--out",
        tmp_path / "run",
        "--image_size=16",
        "--epochs=2",
        "--threads=1",
    ]
    status, out, err = told(capfd, "train", *arguments, "--limit_batches=1", "--model=se_resnet20")
    assert (status, err) == (0, "")
    first, *epochs, last = out.splitlines()
    assert "272,327 parameters, 9 SE blocks, all wired" in first
    assert "48 images to train on and 24 held out, 3 classes" in first
    assert [line.partition("  ")[0] for line in epochs] == ["epoch 1/2", "epoch 2/2"]
    assert all(len(line) <= 80 for line in epochs)
    assert f"senet evaluate {tmp_path / 'run'}" in last


def test_a_bar_is_drawn_when_asked_for(
    capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    arguments = [
        "--data",
        folder,
        "--out",
        tmp_path / "run",
        "--image_size=16",
        "--epochs=1",
        "--threads=1",
    ]
    status, out, _ = told(capfd, "train", *arguments, "--limit_batches=1", "--progress=bar", *PLAIN)
    assert status == 0
    assert "epoch 1/1 ━" in out
    assert "v_num" not in out


def test_the_pair_is_printed(
    capfd: pytest.CaptureFixture[str], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = told(capfd, "train", "--resume", "--out", run)
    assert status == 0
    assert out.count("is finished: 2 epochs") == 2
    for text in ("top-1", "parameters", "MACs", "ms a step", "backward", "SE / plain"):
        assert text in out


def test_evaluate_as_a_document(capfd: pytest.CaptureFixture[str], run: Path, folder: Path) -> None:
    result = document(capfd, "evaluate", run, "--device=cpu")
    assert result["top1"] == pytest.approx(read_card(run).top1)
    assert result["images"] == 24
    assert set(result["per_class"]) == set(CLASSES)
    assert [sum(row) for row in result["confusion"]] == [8, 8, 8]
    assert result["images_per_second"] > 0
    assert result["loss"] > 0
    assert result["top5"] is None
    assert document(capfd, "evaluate", run, "--data", folder)["top1"] == result["top1"]
    everything = document(capfd, "evaluate", run, "--part=all", "--workers=1")
    assert everything["images"] == 24 + document(capfd, "evaluate", run, "--part=train")["images"]


def test_evaluate_says_how_to_name_data_that_moved(
    capfd: pytest.CaptureFixture[str], run: Path, folder: Path, tmp_path: Path
) -> None:
    for name in (WEIGHTS, CARD):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    card = replace(read_card(run), data=str(tmp_path / "gone"))
    (tmp_path / CARD).write_text(card.to_json())
    line = complaint(capfd, "evaluate", tmp_path)
    assert "no such folder, of images or of shards" in line
    assert "; if it was moved, add --data NEW_PLACE" in line
    assert document(capfd, "evaluate", tmp_path, "--data", folder)["images"] == 24


def test_evaluate_as_tables(capfd: pytest.CaptureFixture[str], run: Path) -> None:
    status, out, err = told(capfd, "evaluate", run)
    assert (status, err) == (0, "")
    top1 = read_card(run).top1
    assert f"top-1 {top1:.2%}" in out
    assert "top-5" not in out  # of three classes, all are
    assert "24 images" in out
    assert all(name in out for name in ("accuracy", *CLASSES))


def test_evaluate_normalises_as_the_run_did(
    capfd: pytest.CaptureFixture[str], run: Path, tmp_path: Path
) -> None:
    """A card with another mean must move the result: the data set's own is not used."""
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / WEIGHTS).write_bytes((run / WEIGHTS).read_bytes())
    card = json.loads((run / CARD).read_text())
    card["mean"] = [0.9, 0.1, 0.9]
    (moved / CARD).write_text(json.dumps(card))
    losses = [document(capfd, "evaluate", each)["loss"] for each in (run, moved)]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_other_classes_are_refused(
    capfd: pytest.CaptureFixture[str], run: Path, tmp_path: Path
) -> None:
    line = complaint(capfd, "evaluate", run, "--data=digits")
    assert "other classes" in line
    assert "10 of them, not 3" in line
    other = make_image_folder(tmp_path / "set", ("cat", "cow", "eel"), per_class=2)
    assert "class 1 is 'cow' there and 'dog' in the run" in complaint(
        capfd, "evaluate", run, "--data", other
    )


def test_many_classes_are_summed_up(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    names = [f"kind{number:02}" for number in range(21)]
    folder = make_image_folder(tmp_path / "set", names, per_class=2, size=(16, 16))
    out = tmp_path / "run"
    options = ["--image_size=16", "--epochs=1", "--limit_batches=1", "--threads=1", *PLAIN]
    assert told(capfd, "train", "--data", folder, "--out", out, *options)[0] == 0
    status, text, _ = told(capfd, "evaluate", out)
    assert status == 0
    assert "20 classes of lowest accuracy" in text
    assert "most often taken for" in text


@pytest.fixture(scope="module")
def pictures(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images, one that is cut short and one that is none."""
    mixed = tmp_path_factory.mktemp("pictures")
    for name in CLASSES[:2]:
        whole = (folder / "val" / name / "0.png").read_bytes()
        (mixed / f"{name}.png").write_bytes(whole)
    (mixed / "bad.png").write_bytes(whole[: len(whole) // 2])
    (mixed / "text.jpg").write_text("not an image")
    return mixed


def test_predict_as_a_document(capfd: pytest.CaptureFixture[str], run: Path, folder: Path) -> None:
    files = sorted((folder / "val").rglob("*.png"))
    result = document(capfd, "predict", run, *files, "--top=2")
    assert [entry["file"] for entry in result] == [str(file) for file in files]
    right = sum(entry["top"][0]["class"] == Path(entry["file"]).parent.name for entry in result)
    assert right / len(files) == pytest.approx(read_card(run).top1)
    for entry in result:
        chances = [guess["probability"] for guess in entry["top"]]
        assert len(chances) == 2
        assert 1 >= chances[0] >= chances[1] >= 0


def test_predict_reports_what_it_cannot_read_and_goes_on(
    capfd: pytest.CaptureFixture[str], run: Path, pictures: Path
) -> None:
    missing = pictures / "nowhere.png"
    status, out, err = told(capfd, "predict", run, pictures, missing, "--json")
    assert (status, err) == (1, "")
    entries = {Path(entry["file"]).name: entry for entry in json.loads(out)}
    assert list(entries) == ["bad.png", "cat.png", "dog.png", "text.jpg", "nowhere.png"]
    assert [name for name, entry in entries.items() if "top" in entry] == ["cat.png", "dog.png"]
    for name in ("bad.png", "text.jpg", "nowhere.png"):
        assert set(entries[name]) == {"file", "error"}
        assert name in entries[name]["error"]
    assert len(entries["cat.png"]["top"]) == 3


def test_predict_in_lines(capfd: pytest.CaptureFixture[str], run: Path, pictures: Path) -> None:
    status, out, err = told(capfd, "predict", run, pictures)
    assert status == 1
    assert [line.split()[0] for line in out.splitlines()] == [
        str(pictures / "cat.png"),
        str(pictures / "dog.png"),
    ]
    assert all("%" in line for line in out.splitlines())
    assert all(name in line for name, line in zip(("bad", "text"), err.splitlines(), strict=True))
    assert told(capfd, "predict", run, pictures / "cat.png")[::2] == (0, "")


def test_plan_as_a_table_and_as_a_document(capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = told(capfd, "plan", "se_resnet18")
    assert (status, err) == (0, "")
    assert "stage5.unit2" in out
    assert "8 sites" in out
    found = document(capfd, "plan", "resnet18", "--placement=pre", "--reduction=8")
    assert len(found["sites"]) == 8
    assert {site["placement"] for site in found["sites"]} == {"pre"}
    small = document(capfd, "plan", "resnet20", "--image_size=16", "--min_hidden=2")
    assert small["input_size"] == [3, 16, 16]
    assert [site["hidden"] for site in small["sites"]][::3] == [2, 2, 4]


def test_plan_takes_the_options_of_blocks(capfd: pytest.CaptureFixture[str]) -> None:
    """As `senet.plan` takes them, all in one."""
    options = [
        *("--sites=0,stage2.*", "--scope=stage2", "--reduction={2: 8}", "--min-hidden=2"),
        *("--divisor=3", "--no_bias", "--gate=tanh", "--activation=silu", "--squeeze=max"),
    ]
    assert "no site is in stage 0" in complaint(capfd, "plan", "resnet20", *options)
    found = document(capfd, "plan", "resnet20", *options[1:])
    block = {"divisor": 3, "bias": False, "gate": "tanh", "activation": "silu", "squeeze": "max"}
    assert [site["path"].split(".")[0] for site in found["sites"]] == ["stage2"] * 3
    for site in found["sites"]:
        assert block.items() <= site["block"].items()
        assert site["block"]["reduction"] == 8
        assert site["hidden"] == 9
    assert found == json.loads(
        senet.plan(
            create_model("resnet20"),
            input_size=(3, 32, 32),
            scope="stage2",
            reduction={2: 8},
            min_hidden=2,
            **block,
        ).to_json()
    )
    chosen = document(capfd, "plan", "resnet20", "--sites=0,stage2.*", "--hidden=7")
    assert [site["stage"] for site in chosen["sites"]] == [0] * 3 + [2] * 3
    assert {site["hidden"] for site in chosen["sites"]} == {7}
    each = document(capfd, "plan", "resnet20", "--reduction={1: 4, stage2.*: 2}")
    assert [site["hidden"] for site in each["sites"]] == [4] * 3 + [8] * 3 + [32] * 3


def test_odd_names_are_shown_as_they_are(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Class folders that look like rich's markup, and a file whose name is no text."""
    names = ("[red]", ":cat:", "eel")
    folder = make_image_folder(tmp_path / "set", names, per_class=2, size=(16, 16))
    out = tmp_path / "run"
    options = ["--image_size=16", "--epochs=1", "--limit_batches=1", "--threads=1", *PLAIN]
    assert told(capfd, "train", "--data", folder, "--out", out, *options)[0] == 0
    status, text, _ = told(capfd, "evaluate", out)
    assert status == 0
    assert all(text.count(name) == 2 for name in names), text
    picture = os.fsdecode(bytes(tmp_path) + b"/\xff.png")
    Path(picture).write_bytes((folder / "val" / "eel" / "0.png").read_bytes())
    command, ascii_alone = ["predict", out, picture], {"PYTHONIOENCODING": "ascii"}
    ended = start(command, tmp_path / "log", ascii_alone).wait()
    assert (ended.status, ended.err) == (0, "")
    assert "eel" in ended.out


def test_a_matrix_too_wide_for_the_terminal_is_summed_up(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    for columns, matrix in (("80", True), ("30", False)):
        monkeypatch.setenv("COLUMNS", columns)
        status, text, _ = told(capfd, "evaluate", run)
        assert status == 0
        assert ("rows: the true class" in text) == matrix
        assert ("classes of lowest" in text) != matrix


MISTAKES = {
    "train": "missing: --out",
    "train --out=OUT --epoks=3": "unknown option --epoks; nearest: --epochs",
    "train --out=OUT --epochs=few": "option epochs is few, but must be a whole number",
    "train --out=OUT --epochs=0": "epochs is 0, but must be at least 1",
    "train --out=OUT --optimizer=adam": "option optimizer is adam, but must be sgd or adamw",
    "train --out=OUT --model=se_resnet5O": "unknown model 'se_resnet5O'; nearest: ",
    "train --out=OUT --model=timm/resnet5O": "nearest: 'timm/resnet",
    "train --out=OUT --data=digitz": "unknown data set 'digitz'",
    "train --out=OUT --data=./nowhere": "no such folder, of images or of shards: 'nowhere'",
    "train --out=OUT --config=nowhere.yaml": "nowhere.yaml",
    "train --out=OUT --config=BINARY": "the configuration cannot be read",
    "train --out=OUT --config=UNKNOWN": "unknown option epoks; nearest: epochs",
    "train --out=OUT --model=resnet20 --twin": "use se_resnet20",
    "train --out=OUT --model=resnet20 --reduction=4": "its SE twin is 'se_resnet20'",
    "train --out=OUT --placement=prae": "unknown placement 'prae'; nearest: 'pre'",
    "train --out=OUT --accelerator=abacus": "abacus",
    "train --out=OUT --data=cifar10 --no_download --data_root=OUT": "cifar10",
    "train --out=BINARY": "is a file",
    "train --out=": "out is empty",
    "train --out=OUT --data=": "data is empty",
    "train --out=OUT --model=resnet20 --init=": "init is empty",
    "evaluate RUN --data=": "data is empty",
    "train --out=OUT --hidden=1000000000000": "hidden is 1000000000000, but must be at least 1",
    "train --out=OUT --threads=10000000000": "threads is 10000000000, but must be",
    "train --out=OUT --precision=16-mixed --accelerator=cpu": "on cpu; use bf16-mixed",
    "train --out=BINARY/run --image_size=16": "cannot make '",
    "train --out=OUT --model=resnet20 --pretrained": "timm has some for timm/resnet18, timm/",
    "train --out=OUT --model=resnet50 --pretrained": "try 'timm/resnet50'",
    "train --out=OUT digits": "unexpected argument 'digits'; senet train takes options only",
    "train --out=OUT --lr": "option --lr needs a value",
    "evaluate OUT": "does not exist",
    "evaluate BINARY": "is a file, not a run directory",
    "evaluate RUN --device=abacus": "device 'abacus' cannot be used",
    "evaluate RUN --data=cifar11": "nearest: 'cifar10'",
    "evaluate RUN --device=meta": "device 'meta' cannot be used",
    "evaluate RUN --batch_size=0": "batch_size is 0; it must be at least 1",
    "evaluate RUN --workers=-1": "workers is -1; it must be at least 0",
    "evaluate RUN RUN": "senet evaluate takes RUN, and options",
    "evaluate RUN --json=yes": "option --json takes no value, but was given 'yes'",
    "predict RUN": "missing: IMAGES",
    "predict OUT x.png": "does not exist",
    "predict RUN EMPTY": "no images in",
    "predict RUN x.png --top=0": "top is 0",
    "plan resnet5O": "unknown model 'resnet5O'; nearest: ",
    "plan resnet50 --placement=prae": "unknown placement 'prae'; nearest: 'pre'",
    "plan resnet50 --gate=sigmoyd": "unknown gate 'sigmoyd'; nearest: 'sigmoid'",
    "plan resnet50 --scope=layer9": "no module 'layer9' for scope",
    "plan resnet50 --sites=9": "no site is in stage 9; stages: 2, 3, 4, 5",
    "plan resnet50 --sites=,": "globs or stages, a comma between",
    "plan resnet50 --reduction=few": "option reduction is few, but must be a number or a mapping",
    "plan resnet50 --hidden=0": "hidden is 0, but must be at least 1",
    "plan resnet50 resnet18": "unexpected argument 'resnet18'; senet plan takes NAME, and options",
    "plan timm/vit_tiny_patch16_224": "nothing to attach to in VisionTransformer",
    "plan timm/vit_tiny_patch16_224 --json": "a sum without a convolution in its terms",
    "plan resnet50 --image_size=0": "image_size is 0",
}


@pytest.mark.parametrize(("command", "words"), MISTAKES.items())
def test_a_mistake_gets_one_line(
    capfd: pytest.CaptureFixture[str], run: Path, tmp_path: Path, command: str, words: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary").write_bytes(b"\x89PNG\xff")
    (tmp_path / "unknown.yaml").write_text("epoks: 3\n")
    for word, path in {
        "OUT": tmp_path / "out",
        "RUN": run,
        "EMPTY": tmp_path / "empty",
        "BINARY": tmp_path / "binary",
        "UNKNOWN": tmp_path / "unknown.yaml",
    }.items():
        command = command.replace(word, str(path))
    assert words in complaint(capfd, *command.split())
    assert not (tmp_path / "out").exists()


def only_weights(run: Path, elsewhere: Path) -> Path:
    elsewhere.mkdir()
    for name in (CARD, WEIGHTS):
        (elsewhere / name).write_bytes((run / name).read_bytes())
    return elsewhere


def test_what_was_held_out_stays_so_without_the_configuration(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The share that was held out is in the card; half a configuration is none."""
    folder = make_image_folder(tmp_path / "set", CLASSES, per_class=10, size=(16, 16)) / "train"
    options = ["--image_size=16", "--epochs=1", "--limit_batches=1", "--threads=1", *PLAIN]
    run, words = tmp_path / "run", ["--data", folder, "--val_fraction=0.5", *options]
    assert told(capfd, "train", "--out", run, *words)[0] == 0
    whole = document(capfd, "evaluate", run)
    assert whole["images"] == 15
    alone = document(capfd, "evaluate", only_weights(run, tmp_path / "alone"))
    for result in (whole, alone):
        del result["images_per_second"]
    assert alone == whole
    config = run / "config.yaml"
    text = config.read_text()
    for part in (
        "",
        text[: len(text) // 2],
        text.replace("warmup_factor: 0.1", "warmup_factor: null"),
    ):
        config.write_text(part)
        line = complaint(capfd, "evaluate", run)
        assert str(config) in line


def test_known_names_are_those_of_senet_and_all_of_them(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert "shtab" not in complaint(capfd, "plan", "resnet20", "--zzz")
    names = [f"name{number:02}" for number in range(14)]
    assert nearest("zzz", names[:13]).endswith(", 'name12'")
    assert nearest("zzz", names).endswith(", 'name11' and 2 more")


def test_faults_of_ours_keep_their_traceback(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr("senet.runs.read_card", broken)
    with pytest.raises(ZeroDivisionError, match="a fault"):
        main(["evaluate", str(run)])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        pytest.param(["plan", "resnet18"], marks=pytest.mark.slow),
        pytest.param(["--version"], marks=pytest.mark.slow),
    ],
)
def test_a_reader_that_leaves_early_is_no_fault(arguments: list[str]) -> None:
    """As in ``senet plan resnet18 | head -1``, with a reader that takes nothing at all."""
    command = [sys.executable, "-m", "senet", *arguments]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")
