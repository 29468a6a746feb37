"""What a trained network is and how it wants its images: the model card, ``model.json``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .errors import UserError

__all__ = ["CARD", "ModelCard"]

CARD = "model.json"
_FORMAT = 1


@dataclass(frozen=True)
class ModelCard:
    """What a network is and how it wants its images: ``model.json``.

    Args:
        name: As ``create_model`` takes it.
        num_classes: Outputs.
        plan: The document of the ``Plan`` that was attached; None for a plain network.
        classes: Names by label.
        mean: Subtracted from the red, green and blue channel (of 1).
        std: Divided by.
        image_size: Height and width in pixels.
        versions: Package → version that trained it.
        data: The data set or folder it was trained on.
        seed: Of the run.
        top1: Accuracy on the held-out images, of 1; None if not known.
        val_fraction: Share that was held out, where the data had no part for it.
    """

    name: str
    num_classes: int
    plan: dict[str, Any] | None
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    versions: dict[str, str]
    data: str
    seed: int
    top1: float | None = None
    val_fraction: float = 0.2

    def to_json(self) -> str:
        """The card as a JSON document that ``from_json`` takes."""
        return json.dumps({"format": _FORMAT} | asdict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, source: str | Path = CARD) -> ModelCard:
        """Read a card; ``UserError`` names ``source`` and the key that is not as it should be.

        Keys it does not know are passed over, so that later versions may add some.
        """
        try:
            document = json.loads(text)
        except ValueError as error:  # RecursionError and the like are no card either
            raise UserError(f"{source}: not JSON: {error}") from error
        except RecursionError as error:
            raise UserError(f"{source}: not a model card: nested too deeply") from error
        if not isinstance(document, dict):
            raise UserError(f"{source}: not a model card: a JSON object was expected")
        if document.get("format") != _FORMAT:
            raise UserError(
                f"{source}: format is {_shown(document.get('format'))}; "
                f"this version of senet reads format {_FORMAT}"
            )
        for field in fields(cls):
            if field.name not in document:
                raise UserError(f"{source}: key {field.name!r} is missing")
            fits, wanted = _CHECKS[field.name]
            if not fits(document[field.name]):
                raise UserError(
                    f"{source}: {field.name!r} is {_shown(document[field.name])}; it must be "
                    f"{wanted}"
                )
        card = cls(**{field.name: _frozen(document[field.name]) for field in fields(cls)})
        if len(card.classes) != card.num_classes:
            raise UserError(
                f"{source}: 'classes' has {len(card.classes)} names, "
                f"but 'num_classes' is {card.num_classes}"
            )
        return card


def _shown(value: Any) -> str:
    """A value of a document, short enough for one line."""
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _is_int(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)


_Check = tuple[Callable[[Any], bool], str]
_NAME: _Check = (lambda v: isinstance(v, str) and bool(v), "a name")
_COUNT: _Check = (lambda v: _is_int(v, 1), "a whole number, at least 1")

_CHECKS: dict[str, _Check] = {
    "name": _NAME,
    "num_classes": _COUNT,
    "plan": (lambda v: v is None or isinstance(v, dict), "an object, or null"),
    "classes": (_are_names, "a list of names"),
    "mean": (_are_numbers, "a list of three numbers"),
    "std": (lambda v: _are_numbers(v) and min(v) > 0, "a list of three numbers above 0"),
    "image_size": _COUNT,
    "versions": (
        lambda v: isinstance(v, dict) and all(isinstance(each, str) for each in v.values()),
        "an object of strings",
    ),
    "data": _NAME,
    "seed": (lambda v: isinstance(v, int) and not isinstance(v, bool), "a whole number"),
    "val_fraction": (lambda v: _is_number(v) and 0 < v < 1, "above 0 and below 1"),
    "top1": (lambda v: v is None or (_is_number(v) and 0 <= v <= 1), "in [0, 1], or null"),
}
