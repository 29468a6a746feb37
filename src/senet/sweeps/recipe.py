"""The recipe of a sweep: variants of one training run, and the seeds that each is trained with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]

from ..errors import UserError, nearest
from ..models import plain_name, twin_name
from ..options import (
    SE_OPTIONS,
    TrainOptions,
    changed_option,
    options_of,
    typed_values,
)
from ..resumption import with_absolute_paths
from ..yaml_values import in_yaml, values_yaml

__all__ = [
    "SHARED",
    "Recipe",
    "Sweep",
    "pick",
    "read_recipe",
    "resolve",
    "sweep_yaml",
    "with_seeds",
]

_KEYS = ("base", "seeds", "variants", "baseline", "optional")
_NOT_HERE = {
    "seed": "a sweep has a list of them, seeds: [0, 1, 2]",
    "twin": "a sweep has variants for that, plain: {se: false} and se: {se: true}",
    **dict.fromkeys(
        ("devices", "nodes", "strategy", "sync_batchnorm", "peer_timeout"),
        "each run of a sweep has one device; `senet train` takes several",
    ),
}
SHARED = tuple(field.name for field in fields(TrainOptions) if field.name not in _NOT_HERE)
"""The options of `senet train` that a base, a variant and the command line may give."""

_PATHS = ("data", "val_data", "data_root", "init")
_PLAIN = "plain"
_SE = "se"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")
_MOST_RUNS = 10_000


@dataclass(frozen=True)
class Recipe:
    """What a recipe's file says.

    Args:
        source: the file.
        base: options of `senet train` that all variants have, and ``se``.
        seeds: each variant is trained once with each.
        variants: name → what it has instead of the base's.
        baseline: the variant that the others are compared with; None for none.
        optional: variants that are left out where a network or its data has no place for them.
    """

    source: Path
    base: Mapping[str, Any]
    seeds: tuple[int, ...]
    variants: Mapping[str, Mapping[str, Any]]
    baseline: str | None
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """A recipe together with the options of the command line.

    Args:
        recipe: of which the base now has every option.
        options: variant → its options; the seed in them is the first.
    """

    recipe: Recipe
    options: Mapping[str, TrainOptions]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, in the order of the recipe."""
        return self.recipe.seeds

    @property
    def baseline(self) -> str | None:
        """The variant that the others are compared with."""
        return self.recipe.baseline

    def run_options(self, variant: str, seed: int) -> TrainOptions:
        """The options of one run."""
        return replace(self.options[variant], seed=seed)

    def difference(self, other: Sweep) -> str | None:
        """What ``other`` has that leads to other results, in a phrase; None where nothing does."""
        for name, mine, theirs in (
            ("seeds", in_yaml(list(self.seeds)), in_yaml(list(other.seeds))),
            ("variants", ", ".join(self.options), ", ".join(other.options)),
            ("baseline", in_yaml(self.baseline), in_yaml(other.baseline)),
        ):
            if mine != theirs:
                return f"{name}: {mine} there, {theirs} here"
        for variant, options in self.options.items():
            pair = (options, other.options[variant])
            if changed := changed_option(*pair):
                mine, theirs = (in_yaml(getattr(one, changed)) for one in pair)
                return f"{changed} of variant {variant}: {mine} there, {theirs} here"
        return None


def read_recipe(path: Path) -> Recipe:
    """Read a recipe's file.

    Raises:
        UserError: it cannot be read, is empty or no mapping, names something unknown, has no
            variants or no seeds, or an option's value has the wrong type.
    """
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_Strict)
    except (OSError, ValueError, RecursionError, OverflowError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    try:
        return _recipe_of(document, path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


class _Strict(yaml.SafeLoader):  # type: ignore[misc,unused-ignore]
    """YAML in which a mapping names nothing twice: the first of two variants would be lost."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key for key, _ in node.value]
        names = [key.value for key in keys]
        for index, key in enumerate(keys):
            if key.value in names[:index]:
                raise UserError(f"{key.value} is there twice, in line {key.start_mark.line + 1}")
        made: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return made


def _recipe_of(document: Any, source: Path) -> Recipe:
    if document is None:
        raise UserError("is empty; a sweep needs seeds: [0, 1, 2] and variants: {NAME: {…}, …}")
    if not isinstance(document, dict):
        raise UserError("is no mapping; a sweep has the keys base, seeds, variants and baseline")
    for key in document:
        if key in SHARED:
            raise UserError(f"{key} is an option of training; put it under base: or a variant")
        if key not in _KEYS:
            raise UserError(f"unknown key {key!r}; {nearest(str(key), _KEYS)}")
    base = _options(document.get("base"), "base")
    seeds = _seeds(document.get("seeds", [0, 1, 2]))
    variants = _variants(document.get("variants"))
    if len(seeds) * len(variants) > _MOST_RUNS:
        raise UserError(f"{len(variants)} variants × {len(seeds)} seeds are too many runs")
    baseline = document.get("baseline", _PLAIN if _PLAIN in variants else None)
    if baseline is not None and str(baseline) not in variants:
        raise UserError(
            f"baseline is {baseline!r}, which is no variant; {nearest(str(baseline), variants)}"
        )
    return Recipe(
        source,
        base,
        seeds,
        variants,
        None if baseline is None else str(baseline),
        _names(document.get("optional", []), variants),
    )


def _names(given: Any, variants: Iterable[str]) -> tuple[str, ...]:
    if not isinstance(given, list):
        raise UserError(f"optional is {in_yaml(given)}, but must be a list of variants")
    for name in map(str, given):
        if name not in variants:
            raise UserError(f"optional names {name!r}, no variant; {nearest(name, variants)}")
    return tuple(map(str, given))


def _seeds(given: Any) -> tuple[int, ...]:
    if not isinstance(given, list) or not given:
        raise UserError(f"seeds is {in_yaml(given)}, but must be a list, such as [0, 1, 2]")
    for seed in given:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise UserError(f"seed {in_yaml(seed)} is no whole number of 0 or more")
        if given.count(seed) > 1:
            raise UserError(f"seed {seed} is there twice; each run is trained once")
    return tuple(given)


def _variants(given: Any) -> dict[str, dict[str, Any]]:
    example = "variants: {plain: {se: false}, se: {se: true}}"
    if not given:
        raise UserError(f"there are no variants; write {example}")
    if not isinstance(given, dict):
        raise UserError(f"variants is {in_yaml(given)}, but must be a mapping, such as {example}")
    found: dict[str, dict[str, Any]] = {}
    for key, options in given.items():
        name = str(key)
        if isinstance(key, bool) or key is None or not _NAME.fullmatch(name):
            raise UserError(
                f"a variant is named {in_yaml(key)}; its folder needs a name of letters, digits, "
                "., _, + and -, in quotes where YAML takes it for something else"
            )
        if twice := next((old for old in found if old.lower() == name.lower()), None):
            raise UserError(f"variants {twice} and {name} would have the same folder")
        found[name] = _options(options, f"variant {name}")
    return found


def _options(given: Any, where: str) -> dict[str, Any]:
    """The options under a key, with the types that they have in `TrainOptions`."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise UserError(f"{where} is {in_yaml(given)}, but must be options, such as {{epochs: 8}}")
    for name in given:
        if name in _NOT_HERE:
            raise UserError(f"{where} has {name}; {_NOT_HERE[name]}")
        if name not in SHARED and name != _SE:
            raise UserError(
                f"{where} has an unknown option {name!r}; {nearest(str(name), (*SHARED, _SE))}"
            )
    if not isinstance(given.get(_SE, True), bool):
        raise UserError(f"{where}: se is {in_yaml(given[_SE])}, but must be true or false")
    try:
        typed = typed_values({name: value for name, value in given.items() if name != _SE})
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return _absolute({name: typed.get(name, given[name]) for name in given})


def _absolute(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with folders that mean the same wherever the sweep is taken up again."""
    paths = {name: values[name] for name in _PATHS if name in values}
    absolute = with_absolute_paths(TrainOptions(**paths))
    return {**values, **{name: getattr(absolute, name) for name in paths}}


def resolve(recipe: Recipe, given: Mapping[str, Any]) -> Sweep:
    """The sweep of a recipe with ``given`` options instead of the base's.

    Raises:
        UserError: an unknown network, or options that make no sense for a variant.
    """
    base = {**typed_values({}), **recipe.base, **given}
    base = _absolute({name: base[name] for name in (*SHARED, _SE) if name in base})
    options: dict[str, TrainOptions] = {}
    for name, own in recipe.variants.items():
        try:
            options[name] = _options_of(base, own, seed=recipe.seeds[0])
        except UserError as error:
            raise UserError(f"{recipe.source}: variant {name}: {error}") from None
    return Sweep(replace(recipe, base=base), options)


def _options_of(base: Mapping[str, Any], own: Mapping[str, Any], *, seed: int) -> TrainOptions:
    values = {**base, **own, "seed": seed}
    wants_se = values.pop(_SE, None)
    plain, is_se = plain_name(values["model"])
    if wants_se is False:
        values["model"] = plain
        # The base may say what all blocks have in common; a variant without any has none.
        values = {k: v for k, v in values.items() if k not in SE_OPTIONS or k in own}
    elif wants_se and not is_se:
        values["model"] = twin_name(plain)
    if not plain_name(values["model"])[1] and (useless := [k for k in own if k in SE_OPTIONS]):
        raise UserError(
            f"{values['model']} has no SE blocks that {useless[0]} could be for; add se: true"
        )
    return options_of(values)


def with_seeds(recipe: Recipe, seeds: str) -> Recipe:
    """The recipe with the seeds in ``seeds``, which has commas between them.

    Raises:
        UserError: one is no whole number of 0 or more, or is there twice.
    """
    words = [word.strip() for word in seeds.split(",") if word.strip()]
    return replace(
        recipe, seeds=_seeds([int(word) if word.isdecimal() else word for word in words])
    )


def pick(sweep: Sweep, names: str | None) -> tuple[str, ...]:
    """The variants that ``names`` lists with commas between them; all for None.

    Raises:
        UserError: one is not in the recipe.
    """
    if names is None:
        return tuple(sweep.options)
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in sweep.options:
            raise UserError(
                f"unknown variant {name!r} in {sweep.recipe.source}; {nearest(name, sweep.options)}"
            )
    if not wanted:
        raise UserError(f"variants is {names!r}; {nearest('', sweep.options)}")
    return tuple(name for name in sweep.options if name in wanted)


def sweep_yaml(sweep: Sweep) -> str:
    """The sweep as a recipe that says everything, which `read_recipe` takes."""
    recipe = sweep.recipe
    head = {
        "seeds": list(recipe.seeds),
        "baseline": recipe.baseline,
        "optional": list(recipe.optional),
    }
    return "".join(
        (
            "# senet sweep sweep.yaml --out DIR\n",
            values_yaml(head),
            "base:\n",
            *_indented(values_yaml(recipe.base).splitlines()),
            "variants:\n",
            *_indented(
                values_yaml(
                    {in_yaml(n): dict(own) for n, own in recipe.variants.items()}
                ).splitlines()
            ),
        )
    )


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"  {line}\n" for line in lines]
