"""Every recipe is read, and trains two steps on generated images."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from breadth import others_slow
from generated import make_image_folder

import senet
from senet.commands.train import parser
from senet.insertion import attached_plan
from senet.options import TrainOptions, read_options
from senet.training import train

ROOT = Path(__file__).resolve().parents[1]
SWEEP = "pair"  # of which there are more in recipes/ablations; see tests/sweeps
RECIPES = sorted(p for p in (ROOT / "recipes").glob("*.yaml") if p.stem != SWEEP)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_folder(tmp_path_factory.mktemp("images") / "set", per_class=4, size=(32, 32))


def header(recipe: Path) -> str:
    lines = []
    for line in recipe.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return "\n".join(lines)


def test_the_recipes_are_there_and_in_the_docs() -> None:
    names = [recipe.stem for recipe in RECIPES]
    assert names == ["cifar10_resnet110", "digits", "imagenet_modern", "imagenet_se_resnet50"]
    page = (ROOT / "docs" / "recipes.md").read_text()
    assert all(f"`recipes/{name}.yaml`" in page for name in names)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_header_has_the_command_and_what_to_expect(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command is one that `senet train` reads, to the options of the recipe."""
    text = header(recipe)
    assert re.search(r"^(Expected|Measured)", text, re.MULTILINE)
    assert re.search(r"[Tt]ime\b", text)
    command = re.search(r"^senet (train (?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert command is not None
    monkeypatch.chdir(ROOT)
    given = parser().parse_args(shlex.split(command[1].replace("\\\n", " "))[1:])
    assert Path(given.out).parent == Path("runs")
    for name, value in vars(read_options(recipe)).items():
        assert name == "data" or given[name] == value, name


@pytest.mark.parametrize(
    "recipe",
    others_slow(RECIPES, [p for p in RECIPES if p.stem == "digits"]),
    ids=lambda path: path.stem,
)
def test_two_steps(recipe: Path, folder: Path, tmp_path: Path) -> None:
    """The learning rate shrinks with the batch (Goyal et al. 2017), or it would explode."""
    options = read_options(recipe)
    small = replace(
        options,
        data=str(folder),
        image_size=32,
        batch_size=4,
        lr=options.peak_lr * 4 / options.batch_size,
        workers=0,
        epochs=1,
        limit_batches=2,
        twin=False,
        precision="32-true",  # 16 bits take a CPU three times as long
        threads=1,
    )
    result = train(small, tmp_path / "run", say=lambda line: None)
    assert [row.step for row in result.rows] == [-(-2 // options.accumulate)]
    plan = attached_plan(senet.load(tmp_path / "run"))
    assert plan is not None
    assert {site.block.reduction for site in plan} == {options.reduction}


def test_imagenet_is_as_in_the_paper() -> None:
    options = read_options(ROOT / "recipes" / "imagenet_se_resnet50.yaml")
    assert (options.model, options.image_size) == ("se_resnet50", 224)
    assert (options.batch_size, options.lr, options.epochs) == (1024, 0.6, 100)
    assert (options.schedule, options.milestones, options.gamma) == ("step", (30, 60, 90), 0.1)
    assert (options.optimizer, options.momentum, options.weight_decay) == ("sgd", 0.9, 1e-4)
    assert (options.nesterov, options.reduction, options.label_smoothing) == (False, 16, 0)


def test_the_modern_recipe_uses_what_is_modern() -> None:
    options = read_options(ROOT / "recipes" / "imagenet_modern.yaml")
    assert (options.optimizer, options.schedule, options.precision) == (
        *("adamw", "cosine", "bf16-mixed"),
    )
    assert options.batch_size * options.accumulate == 4096
    for name in ("mixup", "cutmix", "rand_augment", "erase", "drop_path", "ema_decay"):
        assert getattr(options, name), name
    assert options.without_se().model == "timm/resnet50"


def test_the_demo_is_the_default_network() -> None:
    options = read_options(ROOT / "recipes" / "digits.yaml")
    assert (options.model, options.data) == (TrainOptions().model, TrainOptions().data)
    assert options.twin
