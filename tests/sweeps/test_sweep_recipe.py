"""senet.sweeps.recipe: recipes read, mixed with the command line, and refused in one line."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from breadth import others_slow

from senet.cli import main
from senet.commands.sweep import parser
from senet.errors import UserError
from senet.insertion import attached_plan
from senet.run_network import build
from senet.sweeps import SHARED, pick, read_recipe, resolve, with_seeds
from senet.sweeps.recipe import sweep_yaml

ROOT = Path(__file__).resolve().parents[2]
ABLATIONS = sorted((ROOT / "recipes" / "ablations").glob("*.yaml"))
SHIPPED = [ROOT / "recipes" / "pair.yaml", *ABLATIONS]
PAIR = "variants: {plain: {se: false}, se: {se: true}}\n"


@pytest.fixture
def written(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def test_the_ablations_of_the_paper_are_there_and_in_the_docs() -> None:
    names = [path.stem for path in ABLATIONS]
    assert names == ["gate", "no_squeeze", "placement", "reduction", "squeeze", "stage"]
    page = (ROOT / "docs" / "sweeps.md").read_text()
    assert all(f"`recipes/ablations/{name}.yaml`" in page for name in names)
    assert "`recipes/pair.yaml`" in page


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_header_has_commands_that_are_taken(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line.removeprefix("#").strip() for line in path.read_text().splitlines()]
    commands = re.findall(r"^senet (sweep (?:.*\\\n)*.*)$", "\n".join(lines), re.MULTILINE)
    assert commands
    monkeypatch.chdir(ROOT)
    for command in commands:
        given = parser().parse_args(shlex.split(command.replace("\\\n", " "))[1:])
        assert (ROOT / given.recipe) == path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_variant_builds_a_network_of_its_own(path: Path) -> None:
    """With blocks without biases in the ablations, as in the paper's."""
    sweep = resolve(read_recipe(path), {})
    assert sweep.baseline == "plain"
    assert len(sweep.seeds) == 3
    seen = {}
    for name, options in sweep.options.items():
        if name in ("stage3", "stage4", "stage5", "stages2to4"):  # ResNet-20 has none
            with pytest.raises(UserError, match=r"no site is in stage \d; stages: 0, 1, 2"):
                build(options, num_classes=10)
            assert name in sweep.recipe.optional
            continue
        plan = attached_plan(build(options, num_classes=10))
        assert (plan is None) == (name == "plain")
        seen[name] = None if plan is None else plan.sites
        if plan is not None and path in ABLATIONS:
            assert not any(site.block.bias for site in plan)
    alike = [n for n in seen if sum(seen[n] == other for other in seen.values()) > 1]
    assert alike in ([], ["standard", "inner"])  # the same in a block without a bottleneck


@pytest.mark.parametrize(
    "path", others_slow(SHIPPED, [SHIPPED[0], SHIPPED[-1]]), ids=lambda path: path.stem
)
def test_another_network_by_one_option(path: Path) -> None:
    sweep = resolve(read_recipe(path), {"model": "resnet56", "epochs": 9})
    models = {name: options.model for name, options in sweep.options.items()}
    assert models.pop("plain") == "resnet56"
    assert set(models.values()) == {"se_resnet56"}
    assert {options.epochs for options in sweep.options.values()} == {9}
    by_its_twin = resolve(read_recipe(path), {"model": "se_resnet56", "epochs": 9})
    assert sweep.options == by_its_twin.options


def test_what_the_ablations_vary() -> None:
    def of(name: str, option: str) -> list[object]:
        options = resolve(read_recipe(ROOT / "recipes" / "ablations" / f"{name}.yaml"), {}).options
        return [getattr(o, option) for n, o in options.items() if n != "plain"]

    assert of("reduction", "reduction") == [2, 4, 8, 16, 32]
    assert of("squeeze", "squeeze") == ["avg", "max"]
    assert of("gate", "gate") == ["relu", "tanh", "sigmoid"]
    assert of("placement", "placement") == ["standard", "pre", "post", "identity", "inner"]
    assert of("no_squeeze", "squeeze") == ["none", "avg"]
    assert of("stage", "sites") == ["0", "1", "2", "3", "4", "5", "0,1", "2,3,4", None]


def test_a_variant_without_se_has_none_of_the_bases_options(written) -> None:
    recipe = read_recipe(
        written(
            "base: {model: resnet20, se: true, reduction: 4, bias: false, se_lr: 0.2}\n"
            "seeds: [3]\nvariants: {plain: {se: false}, se: {}, wide: {reduction: {0: 2, 1: 8}}}"
        )
    )
    options = resolve(recipe, {}).options
    assert options["plain"] == options["se"].without_se()
    assert (options["se"].model, options["se"].reduction) == ("se_resnet20", 4)
    assert options["wide"].reduction == {"0": 2.0, "1": 8.0}
    assert {o.seed for o in options.values()} == {3}


def test_variants_may_name_networks(written) -> None:
    text = "variants: {a: {model: resnet20}, b: {model: se_resnet56, reduction: 2}}"
    recipe = read_recipe(written(text))
    assert (recipe.baseline, recipe.seeds) == (None, (0, 1, 2))
    options = resolve(recipe, {"model": "resnet18"}).options
    assert [o.model for o in options.values()] == ["resnet20", "se_resnet56"]


def test_the_resolved_recipe_is_a_recipe(
    written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a name looks like in YAML, and wherever it is read from."""
    monkeypatch.chdir(tmp_path)
    for folder in ("some/images", "other"):
        (tmp_path / folder).mkdir(parents=True)
    text = (
        "seeds: [4, 2]\nbaseline: 'no'\noptional: ['3']\n"
        "base: {data: some/images, lr: 1e-3, milestones: [2, 5], init: runs/x, data_root: sets}\n"
        "variants: {'no': {se: false}, 3: {se: true, sites: 3}, 1e3: {data: other, epochs: 2}}\n"
    )
    first = resolve(read_recipe(written(text)), {"batch_size": 8})
    assert set(first.recipe.base) >= set(SHARED)
    assert list(first.options) == ["no", "3", "1e3"]
    for path in (first.options["no"].data, first.options["no"].init, first.options["1e3"].data):
        assert path is not None
        assert Path(path).is_absolute()
    again = resolve(read_recipe(written(sweep_yaml(first))), {})
    assert again.difference(first) is None
    assert again.options == first.options
    assert again.recipe.optional == ("3",)
    assert sweep_yaml(again) == sweep_yaml(first)


def test_what_differs_is_named(written) -> None:
    recipe = read_recipe(written(PAIR))
    sweep = resolve(recipe, {})
    assert sweep.difference(resolve(recipe, {"workers": 2, "data_root": "/x"})) is None
    assert (
        sweep.difference(resolve(recipe, {"lr": 0.5}))
        == "lr of variant plain: null there, 0.5 here"
    )
    fewer = resolve(with_seeds(recipe, "0, 2"), {})
    assert sweep.difference(fewer) == "seeds: [0, 1, 2] there, [0, 2] here"


def test_some_variants_can_be_picked(written) -> None:
    sweep = resolve(read_recipe(written(PAIR)), {})
    assert pick(sweep, None) == ("plain", "se")
    assert pick(sweep, " se ,plain") == ("plain", "se")
    with pytest.raises(UserError, match=r"unknown variant 'plian' in .*; nearest: 'plain'"):
        pick(sweep, "se,plian")
    with pytest.raises(UserError, match="known: 'plain', 'se'"):
        pick(sweep, ",")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "is empty; a sweep needs seeds: .* and variants:"),
        ("# nothing\n", "is empty"),
        ("- plain\n- se\n", "is no mapping; a sweep has the keys base, seeds"),
        ("just words", "is no mapping"),
        ("a: {b: [", "cannot read .*recipe.yaml: "),
        ("seeds: [0]\n", "there are no variants; write variants:"),
        ("variants: {}\n", "there are no variants"),
        ("variants: [a, b]\n", r"variants is \[a, b\], but must be a mapping"),
        ("variants: {a: 3}\n", "variant a is 3, but must be options"),
        ("model: resnet20\n" + PAIR, "model is an option of training; put it under base:"),
        ("varaints: {a: {}}\n", "unknown key 'varaints'; nearest: 'variants'"),
        ("3: {a: {}}\n", "unknown key 3; "),
        ("seeds: [a]\n" + PAIR, "seed a is no whole number of 0 or more"),
        ("seeds: [1.5]\n" + PAIR, "seed 1.5 is no whole number"),
        ("seeds: [true]\n" + PAIR, "seed true is no whole number"),
        ("seeds: [-1]\n" + PAIR, "seed -1 is no whole number"),
        ("seeds: [0, 1, 0]\n" + PAIR, "seed 0 is there twice"),
        ("seeds: []\n" + PAIR, r"seeds is \[\], but must be a list"),
        ("seeds: 3\n" + PAIR, r"seeds is 3, but must be a list, such as \[0, 1, 2\]"),
        ("variants: {a: {reductoin: 4}}\n", "variant a has an unknown option .*'reduction'"),
        ("variants: {a: {3: 4}}\n", "variant a has an unknown option 3"),
        ("variants: {a: {lr: fast}}\n", "variant a: option lr is fast, but must be a number"),
        ("variants: {a: {lr: -1}}\n", "variant a: lr is -1.0, but must be above 0"),
        ("variants: {a: {model: resnet5O}}\n", "variant a: unknown model .*'resnet50'"),
        ("variants: {a: {seed: 4}}\n", r"variant a has seed; a sweep has a list of them"),
        ("base: {twin: true}\n" + PAIR, "base has twin; a sweep has variants for that"),
        ("base: {devices: 2}\n" + PAIR, "base has devices; each run of a sweep has one device"),
        ("base: [3]\n" + PAIR, r"base is \[3\], but must be options"),
        ("variants: {a: {se: maybe}}\n", "variant a: se is maybe, but must be true or false"),
        ("variants: {p: {se: false, gate: tanh}}\n", "resnet20 has no SE blocks that gate"),
        (
            "base: {model: resnet20}\nvariants: {p: {reduction: 4}}\n",
            "variant p: resnet20 has no SE blocks that reduction could be for; add se: true",
        ),
        ("variants: {a/b: {}}\n", "a variant is named a/b; its folder needs a name of letters"),
        ("variants: {no: {}}\n", "a variant is named false; .* in quotes where YAML"),
        ("variants: {..: {}}\n", "a variant is named"),
        ("variants: {a: {}, A: {}}\n", "variants a and A would have the same folder"),
        ("variants:\n  a: {}\n  a: {se: true}\n", "a is there twice, in line 3"),
        ("baseline: plan\n" + PAIR, "baseline is 'plan', which is no variant; nearest: 'plain'"),
        ("optional: [sa]\n" + PAIR, "optional names 'sa', no variant; nearest: 'se'"),
        ("optional: se\n" + PAIR, "optional is se, but must be a list"),
        ("!!python/object/apply:os.getcwd []", "cannot read .*could not determine a constructor"),
    ],
)
def test_a_wrong_recipe_is_told_in_a_line(
    written, text: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(written(text)), "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(line, err), err
    assert err.startswith("senet: error: ")
    assert err.count("\n") == 1
    assert "recipe.yaml" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--variants=plian"], "unknown variant 'plian' in .*; nearest: 'plain'"),
        (["--seeds=0,x"], "seed x is no whole number of 0 or more"),
        (["--seeds=1,1"], "seed 1 is there twice"),
        (["--jobs=0"], "jobs is 0, but must be at least 1"),
        (["--modle=resnet20"], "unknown option --modle; nearest: --model"),
        (["--epochs=few"], "option epochs is few, but must be a whole number"),
        (["--seed=1"], "unknown option --seed; nearest: --seeds"),
        (["--json", "--progress=bar"], "--progress bar writes to standard output"),
        (["--model=se_resnet2"], "unknown model 'se_resnet2'"),
    ],
)
def test_a_wrong_word_is_told_in_a_line(
    written, words: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(written(PAIR)), "--out", str(tmp_path / "out"), *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(line, err), err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_no_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        assert main(["sweep", str(path), "--out", str(tmp_path / "out")]) == 2
        assert f"cannot read {path}: " in capsys.readouterr().err
