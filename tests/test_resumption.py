"""What is found in a run directory before a run begins or goes on there, and what is refused."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from generated import make_image_folder
from tars import samples, write_tar

import senet
from senet import classifier
from senet.checkpoints import BEST, LAST, METRICS, read_record
from senet.cli import main
from senet.errors import UserError
from senet.options import TrainOptions, read_options
from senet.runs import CARD, WEIGHTS, read_card
from senet.training import CONFIG, train

pytestmark = pytest.mark.usefixtures("undrawn")

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, as it is before a test, and the runs that tests begin with."""
    made = tmp_path_factory.mktemp("place")
    make_image_folder(made / "whole set", CLASSES, per_class=4, size=(16, 16))
    return made


@pytest.fixture
def folder(place: Path) -> Path:
    """The images anew, in the same place for every test: the runs there were trained on them."""
    shutil.rmtree(place / "set", ignore_errors=True)
    return Path(shutil.copytree(place / "whole set", place / "set"))


Make = Callable[[TrainOptions, Path], None]


@pytest.fixture
def begin(place: Path) -> Make:
    """Train into a directory for an epoch of two, or copy the run that did so before."""
    return lambda options, run: _as_before(stop_after_an_epoch, options, run, place)


@pytest.fixture
def finish(place: Path) -> Make:
    """The same to the end."""
    return lambda options, run: _as_before(_train, options, run, place)


def _as_before(make: Make, options: TrainOptions, run: Path, place: Path) -> None:
    key = hashlib.sha256(f"{make.__name__}{options}".encode()).hexdigest()
    if not (place / key).exists():
        make(options, place / key)
    shutil.copytree(place / key, run)


def _train(options: TrainOptions, run: Path) -> None:
    train(options, run, say=lambda line: None)


def options_for(folder: Path, **changes: object) -> TrainOptions:
    """A run of the plain network, soon built and trained, or of a pair."""
    options = TrainOptions(
        model="se_resnet20" if changes.get("twin") else "resnet20",
        data=str(folder),
        image_size=16,
        batch_size=4,
        epochs=2,
        limit_batches=1,
        threads=1,
        lr=0.01,
    )
    return replace(options, **changes)


def until(words: str) -> Callable[[str], None]:
    """What a run says, up to the line with these words: there it is interrupted."""

    def say(line: str) -> None:
        if words in line:
            raise KeyboardInterrupt

    return say


def stop_after_an_epoch(options: TrainOptions, run: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(options, run, say=until("epoch 1/2"))
    assert len(read_record(run / LAST).rows) == 1


def files_of(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def refusal(options: TrainOptions, run: Path, *, resume: bool = True) -> str:
    """The one line with which a run is refused; not a byte of it changes."""
    before = files_of(run)
    with pytest.raises(UserError) as caught:
        train(options, run, resume=resume, say=until(""))
    assert "\n" not in str(caught.value)
    assert files_of(run) == before
    return str(caught.value)


# ── the data ────────────────────────────────────────────────────────────────────────────────


def renamed(folder: Path) -> None:
    for part in ("train", "val"):
        (folder / part / "bee").rename(folder / part / "wasp")


def removed(folder: Path) -> None:
    for part in ("train", "val"):
        shutil.rmtree(folder / part / "bee")


def swapped(folder: Path) -> None:
    """As many files in every class, of the same sizes altogether."""
    (folder / "train" / "ant" / "0.png").rename(folder / "train" / "ant" / "other.png")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a class renamed": (renamed, "its classes were others: 1 gone ('bee'), 1 new ('wasp')"),
    "a class removed": (removed, "its classes were others: 1 gone ('bee')"),
    "an image removed": (
        lambda folder: (folder / "train" / "bee" / "0.png").unlink(),
        "it had 12 training images, now 11;",
    ),
    "an image added": (
        lambda folder: shutil.copy(
            folder / "val" / "ant" / "0.png", folder / "val" / "ant" / "more.png"
        ),
        "it had 6 held-out images, now 7;",
    ),
    "an image renamed": (swapped, "as many images, but files were renamed, replaced or moved"),
    "an image of another size": (
        lambda folder: (folder / "val" / "cat" / "0.png").write_bytes(
            (folder / "val" / "cat" / "0.png").read_bytes() + b"\0"
        ),
        "as many images, but files were",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_data_are_refused(folder: Path, tmp_path: Path, begin: Make, change: str) -> None:
    run, options = tmp_path / "run", options_for(folder)
    begin(options, run)
    make, words = CHANGES[change]
    make(folder)
    line = refusal(options, run)
    assert f"the data has changed since the run in {run} began" in line
    assert words in line


def test_the_same_data_in_their_old_place_are_taken(
    folder: Path, tmp_path: Path, begin: Make
) -> None:
    run, options = tmp_path / "run", options_for(folder)
    begin(options, run)
    shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(folder)
    (tmp_path / "copy").rename(folder)
    assert len(train(options, run, resume=True, say=lambda line: None).rows) == 2


def test_the_same_data_in_another_place_are_taken(
    folder: Path, tmp_path: Path, begin: Make
) -> None:
    """Both were copied to another machine: the run goes on where it is told the data lies."""
    run, options = tmp_path / "run", options_for(folder)
    begin(options, run)
    run = run.rename(tmp_path / "moved run")
    elsewhere = folder.rename(tmp_path / "moved set")
    assert "if it was moved, add --data NEW_PLACE" in refusal(options, run)
    moved = replace(options, data=str(elsewhere))
    assert len(train(moved, run, resume=True, say=lambda line: None).rows) == 2
    assert read_options(run / CONFIG).data == str(elsewhere)
    renamed(elsewhere)
    other = make_image_folder(tmp_path / "other", CLASSES, per_class=4, size=(16, 16))
    stop_after_an_epoch(options_for(other), tmp_path / "another run")
    shutil.rmtree(other)
    assert "classes were others" in refusal(moved, tmp_path / "another run")


def test_shards_to_validate_on_may_have_moved(tmp_path: Path) -> None:
    for number in range(2):
        write_tar(tmp_path / f"s{number}" / "s.tar", samples([0, 1] * 4, start=8 * number))
    places = {"data": f"{tmp_path}/s0/s.tar", "val_data": f"{tmp_path}/s1/s.tar"}
    run, options = tmp_path / "run", options_for(Path("digits"), **places)
    stop_after_an_epoch(options, run)
    elsewhere = (tmp_path / "s1").rename(tmp_path / "s2")
    assert "if it was moved, add --val_data NEW_PLACE" in refusal(options, run)
    moved = replace(options, val_data=f"{elsewhere}/s.tar")
    assert len(train(moved, run, resume=True, say=lambda line: None).rows) == 2


def test_another_number_of_steps_an_epoch_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As --devices auto comes to on a machine with more or fewer of them."""
    run, options = tmp_path / "run", options_for(folder, limit_batches=3)
    stop_after_an_epoch(options, run)
    make = classifier.make_schedule
    monkeypatch.setattr(classifier, "make_schedule", lambda o, opt, steps: make(o, opt, 2 * steps))
    before = (run / LAST).read_bytes()
    with pytest.raises(UserError, match="trained with another number of steps an epoch"):
        train(options, run, resume=True, say=lambda line: None)
    assert (run / LAST).read_bytes() == before


def test_another_number_of_steps_is_refused_by_its_milestones_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    options = options_for(folder, limit_batches=3, schedule="step", milestones=(1,))
    stop_after_an_epoch(options, run)
    steps = property(lambda self: 2 * 3 * options.epochs)
    monkeypatch.setattr("lightning.pytorch.Trainer.estimated_stepping_batches", steps)
    with pytest.raises(UserError, match="trained with another number of steps an epoch"):
        train(options, run, resume=True, say=lambda line: None)


def test_a_folder_that_finder_has_opened_is_empty(folder: Path, tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").touch()
    options = options_for(folder, epochs=1, limit_batches=1)
    assert len(train(options, tmp_path, say=lambda line: None).rows) == 1


def test_an_evaluation_says_that_others_are_held_out_now(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With an image more in a class, all that is held out of it is drawn anew."""
    folder = make_image_folder(tmp_path / "set", per_class=8, size=(16, 16), split=False)
    run = tmp_path / "run"
    train(options_for(folder, epochs=1), run, say=lambda line: None)
    assert main(["evaluate", str(run), "--json"]) == 0
    assert capfd.readouterr().err == ""
    shutil.copy(folder / "cat" / "0.png", folder / "cat" / "more.png")
    assert main(["evaluate", str(run), "--json"]) == 0
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"senet: warning: the data has changed since {run} was trained")
    (run / LAST).write_bytes(b"damaged")
    assert main(["evaluate", str(run), "--json"]) == 0
    assert capfd.readouterr().err == ""


def test_a_twin_is_not_trained_on_other_data(folder: Path, tmp_path: Path) -> None:
    """Interrupted between the two: the second is new, and its data are not those of the first."""
    run, options = tmp_path / "run", options_for(folder, twin=True)
    with pytest.raises(KeyboardInterrupt):
        train(options, run, say=until("resnet20: 269"))
    assert len(read_record(run / LAST).rows) == 2
    shutil.rmtree(run / "twin")
    removed(folder)
    with pytest.raises(UserError, match="its classes were others: 1 gone"):
        train(options, run, resume=True, say=lambda line: None)
    assert not (run / "twin").exists()


def test_a_named_data_set_is_known_again(tmp_path: Path) -> None:
    options = options_for(Path("digits"), image_size=8, twin=True)
    stop_after_an_epoch(options, tmp_path / "run")
    record = read_record(tmp_path / "run" / LAST).data
    assert record is not None
    assert (len(record.classes), record.train, record.val) == (10, 1438, 359)
    train(options, tmp_path / "run", resume=True, say=lambda line: None)


def test_paths_mean_the_same_from_elsewhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder.rename(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    plain = options_for(Path("set"), model="resnet20", epochs=1)
    train(plain, "plain", say=lambda line: None)
    options = options_for(Path("./set"), init="plain", data_root="sets")
    stop_after_an_epoch(options, Path("run"))
    noted = read_options(tmp_path / "run" / CONFIG)
    assert (noted.data, noted.init) == (str(folder), str(tmp_path / "plain"))
    assert noted.data_root == str(tmp_path / "sets")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["train", "--resume", "--out", "../run"]) == 0
    monkeypatch.chdir(tmp_path)
    assert not train(options, "run", resume=True, say=lambda line: None).trained
    assert read_card(tmp_path / "run").data == str(folder)


# ── nothing finished, nothing there ─────────────────────────────────────────────────────────


def test_a_failed_start_does_not_block_the_directory(folder: Path, tmp_path: Path) -> None:
    run, options = tmp_path / "run", options_for(folder)
    corrupt = folder / "train" / "ant" / "0.png"
    whole = corrupt.read_bytes()
    corrupt.write_bytes(whole[:50])
    with pytest.raises(UserError, match="cannot read image"):
        train(replace(options, limit_batches=None), run, say=lambda line: None)
    assert [path.name for path in run.iterdir()] == [str(CONFIG)]
    corrupt.write_bytes(whole)
    with pytest.raises(UserError, match="not finite"):
        train(replace(options, lr=1e38, warmup_epochs=0), run, say=lambda line: None)
    line = refusal(options, run)
    assert "lr is 0.01 but the run in" in line
    assert "leave --resume out to begin anew" in line
    assert len(train(options, run, say=lambda line: None).rows) == 2
    assert read_options(run / CONFIG).lr == 0.01


def test_what_a_finished_epoch_left_is_never_begun_over(
    folder: Path, tmp_path: Path, finish: Make
) -> None:
    run, options = tmp_path / "run", options_for(folder)
    finish(options, run)
    for name in (LAST, METRICS, BEST, WEIGHTS):
        assert "holds another run; add --resume" in refusal(options, run, resume=False)
        (run / name).unlink()
    assert "holds another run; add --resume" in refusal(options, run, resume=False)


def test_a_twin_in_the_way_is_seen_before_anything_is_trained(folder: Path, tmp_path: Path) -> None:
    options = options_for(folder, twin=True)
    train(options.without_se(), tmp_path / "run" / "twin", say=lambda line: None)
    (tmp_path / "run" / CONFIG).write_bytes((tmp_path / "run" / "twin" / CONFIG).read_bytes())
    assert "twin holds another run" in refusal(options, tmp_path / "run", resume=False)


@pytest.mark.parametrize("there", ["missing", pytest.param("empty", marks=pytest.mark.slow)])
def test_nothing_to_resume(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], there: str
) -> None:
    """A mistyped directory; the same with what to train said begins there, as scripts do it."""
    run = tmp_path / "rum"
    if there == "empty":
        run.mkdir()
    assert main(["train", "--resume", "--out", str(run), "--epochs=1"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert f"no run in {run} to resume" in line
    assert not run.exists() or not list(run.iterdir())
    words = ["--image_size=16", "--epochs=1", "--limit_batches=1", "--threads=1"]
    assert main(["train", "--resume", "--out", str(run), f"--data={folder}", *words]) == 0
    assert read_options(run / CONFIG).data == str(folder)


# ── files that are gone ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("gone", [(), (METRICS,), (BEST,), (METRICS, BEST)], ids=len)
def test_a_finished_run_without_its_last_checkpoint(
    folder: Path, tmp_path: Path, finish: Make, gone: tuple[Path, ...]
) -> None:
    run, options = tmp_path / "run", options_for(folder)
    finish(options, run)
    shutil.copy(run / LAST, run / BEST)  # the second epoch, whichever was the better here
    for name in (LAST, *gone):
        (run / name).unlink()
    line = refusal(options, run)
    assert f"{run} has finished epochs but no {LAST} to go on from" in line


@pytest.mark.parametrize(
    ("epochs", "gone", "precision"),
    [
        (1, WEIGHTS, "32-true"),
        (2, CARD, "32-true"),
        (2, WEIGHTS, "64-true"),
        pytest.param(2, WEIGHTS, "32-true", marks=pytest.mark.slow),
        pytest.param(1, CARD, "32-true", marks=pytest.mark.slow),
        pytest.param(1, WEIGHTS, "64-true", marks=pytest.mark.slow),
        pytest.param(1, CARD, "64-true", marks=pytest.mark.slow),
        pytest.param(2, CARD, "64-true", marks=pytest.mark.slow),
    ],
)
def test_exported_weights_are_made_anew(
    folder: Path, tmp_path: Path, finish: Make, begin: Make, epochs: int, gone: str, precision: str
) -> None:
    run, options = tmp_path / "run", options_for(folder, precision=precision)
    (begin if epochs == 1 else finish)(options, run)
    exported = [(run / name).read_bytes() for name in (WEIGHTS, CARD)]
    (run / gone).unlink()
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if "written anew" in line and epochs == 1:
            raise KeyboardInterrupt

    if epochs == 1:
        with pytest.raises(KeyboardInterrupt):
            train(options, run, resume=True, say=say)
    else:
        assert not train(options, run, resume=True, say=say).trained
    assert "was missing, written anew from the best checkpoint" in lines[0]
    assert [(run / name).read_bytes() for name in (WEIGHTS, CARD)] == exported


def test_neither_weights_nor_best_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the last epoch, which there is, is not the best."""
    measure = classifier.Classifier.epoch_metrics

    def worse_and_worse(self: classifier.Classifier) -> classifier.EpochMetrics:
        return replace(measure(self), val_top1=0.5 - 0.1 * self.current_epoch)

    monkeypatch.setattr(classifier.Classifier, "epoch_metrics", worse_and_worse)
    run, options = tmp_path / "run", options_for(folder)
    train(options, run, say=lambda line: None)
    (run / WEIGHTS).unlink()
    (run / BEST).unlink()
    assert f"has neither {WEIGHTS}" in refusal(options, run)


def test_the_best_checkpoint_of_another_network(folder: Path, tmp_path: Path, finish: Make) -> None:
    run, options = tmp_path / "run", options_for(folder, model="se_resnet20")
    finish(options, run)
    finish(options.without_se(), tmp_path / "plain")
    (run / WEIGHTS).unlink()
    (run / BEST).write_bytes((tmp_path / "plain" / BEST).read_bytes())
    assert "does not fit se_resnet20: it lacks" in refusal(options, run)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (WEIGHTS, "garbage"),
        (WEIGHTS, "flipped"),
        (CARD, "another's"),
        pytest.param(WEIGHTS, "another's", marks=pytest.mark.slow),
        pytest.param(CARD, "garbage", marks=pytest.mark.slow),
        pytest.param(CARD, "flipped", marks=pytest.mark.slow),
    ],
)
def test_damaged_exports_of_a_finished_run_are_made_anew(
    folder: Path, tmp_path: Path, finish: Make, name: str, damage: str
) -> None:
    model = "se_resnet20" if damage == "another's" else "resnet20"
    run, options = tmp_path / "run", options_for(folder, model=model)
    finish(options, run)
    sound = (run / name).read_bytes()
    if damage == "garbage":
        (run / name).write_bytes(b"garbage")
    elif damage == "flipped":
        (run / name).write_bytes(sound[:-30] + bytes([sound[-30] ^ 128]) + sound[-29:])
    else:
        finish(options.without_se(), tmp_path / "plain")
        shutil.copy(tmp_path / "plain" / name, run / name)
    lines: list[str] = []
    assert not train(options, run, resume=True, say=lines.append).trained
    assert "was damaged, written anew from the best checkpoint" in lines[0]
    assert (run / name).read_bytes() == sound


# ── the options ─────────────────────────────────────────────────────────────────────────────


def test_an_edited_configuration_is_refused(
    folder: Path, tmp_path: Path, begin: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    run, options = tmp_path / "run", options_for(folder)
    begin(options, run)
    text = (run / CONFIG).read_text()
    assert "\nlr: 0.01\n" in text
    for changed, words in {
        text.replace("lr: 0.01", "lr: 0.02"): f"lr is 0.02 in {run / CONFIG}, but 0.01 in {LAST}",
        text.replace("lr: 0.01\n", ""): "cut short or edited, lr is missing",
        text[: text.index("momentum")]: "momentum, nesterov, weight_decay, … are missing",
        "": "model, data, data_root, … are missing",
    }.items():
        (run / CONFIG).write_text(changed)
        before = files_of(run)
        assert main(["train", "--resume", "--out", str(run)]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert words in line
        assert files_of(run) == before
    (run / CONFIG).write_text(text.replace("workers: 0", "workers: 1"))
    assert main(["train", "--resume", "--out", str(run)]) == 0


def test_what_was_left_half_written_is_cleared_away(
    folder: Path, tmp_path: Path, finish: Make
) -> None:
    """Also where that member of a pair has nothing left to train."""
    run, options = tmp_path / "run", options_for(folder, twin=True, epochs=1)
    finish(options, run)
    members = (run, run / "twin")
    leftovers = [m / part / ".senet-1-ab.tmp" for m in members for part in (".", "checkpoints")]
    for path in leftovers:
        path.write_bytes(b"half")
    assert not train(options, run, resume=True, say=lambda line: None).trained
    assert not [path for path in leftovers if path.exists()]


# ── double precision ────────────────────────────────────────────────────────────────────────


def test_double_precision_is_resumed_and_loaded_in_full(
    folder: Path, tmp_path: Path, finish: Make, begin: Make
) -> None:
    options = options_for(folder, precision="64-true")
    finish(options, tmp_path / "whole")
    begin(options, tmp_path / "run")
    train(options, tmp_path / "run", resume=True, say=lambda line: None)
    ours, theirs = (
        torch.load(tmp_path / run / LAST, weights_only=True)["state_dict"]
        for run in ("run", "whole")
    )
    assert {v.dtype for v in ours.values() if v.is_floating_point()} == {torch.float64}
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    whole = senet.load(tmp_path / "run", dtype=torch.float64).state_dict()
    best = torch.load(tmp_path / "run" / BEST, weights_only=True)["state_dict"]
    assert all(torch.equal(best[f"model.{key}"], value) for key, value in whole.items())
    single = senet.load(tmp_path / "run")
    assert single(torch.randn(1, 3, 16, 16)).dtype == torch.float32
