"""The run directory: files written whole or not at all, and networks read back from them.

``model.safetensors`` holds the weights and ``model.json``, a ``ModelCard``, what it takes to
rebuild the network and to prepare images for it. Nothing here is ever unpickled.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from .errors import UserError

__all__ = [
    "CARD",
    "WEIGHTS",
    "ModelCard",
    "atomic_write",
    "differences",
    "is_temporary",
    "load",
    "package_versions",
    "plan_of",
    "read_card",
    "save_model",
]

CARD = "model.json"
WEIGHTS = "model.safetensors"
_FORMAT = 1
_LEFTOVER = ".senet-{}.tmp"


def atomic_write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Have ``write`` fill a file, and put it in the place of ``path`` when it is on the disk.

    Whatever happens, ``path`` is the old file or the new one. Raises ``UserError`` for an
    ``OSError``, such as a full disk; whatever else ``write`` raises passes through. A killed
    process leaves a file behind that ``is_temporary`` knows.
    """
    path = Path(path)
    beside = path.parent / _LEFTOVER.format(f"{os.getpid()}-{secrets.token_hex(4)}")
    try:
        try:
            # Not tempfile, whose files only their owner can read, also after the move.
            with beside.open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    """Make a renaming outlast a power cut; Windows cannot open folders for it."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_temporary(path: Path) -> bool:
    """Whether a file is one that ``atomic_write`` had not finished.

    Once no process is writing to its directory it can be removed.
    """
    return fnmatch(Path(path).name, _LEFTOVER.format("*"))


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
    "top1": (lambda v: v is None or (_is_number(v) and 0 <= v <= 1), "in [0, 1], or null"),
}


def package_versions() -> dict[str, str]:
    """Versions of Python, senet and the packages that decide what a run computes."""
    versions = {"python": platform.python_version()}
    for name in ("senet", "torch", "torchvision", "timm", "lightning"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def plan_of(model: nn.Module) -> dict[str, Any] | None:
    """The document of the plan that was attached to ``model``, for its card; None if none was."""
    from .insertion import attached_plan

    plan = attached_plan(model)
    return None if plan is None else json.loads(plan.to_json())


def save_model(directory: Path, model: nn.Module, card: ModelCard) -> None:
    """Write ``model.safetensors`` and ``model.json`` into ``directory``, each whole."""
    from safetensors.torch import save

    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {str(directory)!r}: {error.strerror}") from error
    # Clones, since safetensors refuses tensors that share memory, as tied weights do.
    weights = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    data = save(weights, metadata={"format": "pt"})
    text = card.to_json().encode()
    atomic_write(directory / WEIGHTS, lambda file: file.write(data))
    atomic_write(directory / CARD, lambda file: file.write(text))


def read_card(run: Path) -> ModelCard:
    """The card of a run directory; ``UserError`` where there is none or it is not valid."""
    path = _file_of_run(run, CARD)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {str(path)!r}: {error}") from error
    return ModelCard.from_json(text, source=path)


def _file_of_run(run: Path, name: str) -> Path:
    run = Path(run)
    if not run.is_dir():
        what = "is a file, not a run directory" if run.exists() else "does not exist"
        raise UserError(f"run directory {str(run)!r} {what}")
    path = run / name
    if not path.is_file():
        raise UserError(
            f"{str(run)!r} has no {name}; a run directory, as `senet train --out` makes it, gets "
            "one with its first finished epoch"
        )
    return path


def load(
    run: Path | str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """The network of a run directory, in evaluation mode, with the best epoch's weights.

    Args:
        run: the directory.
        device: where the network is to be.
        dtype: of its weights and of the images it takes: float32 also where it was trained with
            precision 64-true, whose weights are on the disk in full; float64 for those.

    Raises ``UserError``, naming the file, where ``run`` is not a run directory or one of its
    files is missing, damaged, not what its name says, or does not belong to the others.
    """
    run = Path(run)
    card = read_card(run)
    weights = _read_weights(_file_of_run(run, WEIGHTS))
    model = _rebuild(card, run / CARD).to(dtype)
    if wrong := differences(model.state_dict(), weights):
        raise UserError(f"{str(run / WEIGHTS)!r} does not fit {card.name!r}: it {wrong}")
    model.load_state_dict(weights, strict=True)
    return model.to(device).eval()


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(b"PK\x03\x04") or start[:1] == b"\x80":
        raise UserError(
            f"{str(path)!r} is a pickle, as torch.save writes them, and not safetensors; it was "
            "not opened, since a pickle can run any program"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError, KeyError) as error:
        raise UserError(
            f"{str(path)!r} is damaged or not a safetensors file: {_first_line(error)}"
        ) from error


def _rebuild(card: ModelCard, source: Path) -> nn.Module:
    """The network that a card describes, with initial weights."""
    from .insertion import attach
    from .models import build_plain, plain_name
    from .placement import Plan

    try:
        name, wants_se = plain_name(card.name)
        model = build_plain(name, card.num_classes)
    except UserError as error:
        raise UserError(f"{source}: 'name' is {card.name!r}: {error}") from error
    if card.plan is None:
        if wants_se:
            raise UserError(f"{source}: 'plan' is null, but {card.name!r} has SE attached")
        return model
    try:
        return attach(model, Plan.from_json(json.dumps(card.plan)))
    except ValueError as error:
        raise UserError(
            f"{source}: 'plan' does not fit {card.name!r}: {_first_line(error)}"
        ) from error


def differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What keeps one state dict from the place of another, in a phrase; "" where nothing does.

    >>> differences({"a": torch.zeros(1), "b": torch.zeros(1)}, {"a": torch.zeros(2)})
    "lacks 'b', has another shape for 'a'"
    """
    phrases = [
        *_listed("lacks", expected.keys() - found.keys()),
        *_listed("has", found.keys() - expected.keys(), "too many"),
        *_listed(
            "has another shape for",
            (
                key
                for key in expected.keys() & found.keys()
                if expected[key].shape != found[key].shape
            ),
        ),
    ]
    return ", ".join(phrases)


def _listed(verb: str, keys: Iterable[str], end: str = "") -> list[str]:
    """One phrase for the sorted keys, of which two are named; none for none."""
    names = sorted(keys)
    if not names:
        return []
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return [f"{verb} {', '.join(map(repr, names[:2]))}{more} {end}".rstrip()]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
