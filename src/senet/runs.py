"""The run directory: files written whole or not at all, and networks read back from them.

``model.safetensors`` holds the weights and ``model.json``, a ``ModelCard``, what it takes to
rebuild the network and to prepare images for it. Nothing here is ever unpickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import secrets
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from .cards import CARD, ModelCard
from .errors import UserError

__all__ = [
    "CARD",
    "WEIGHTS",
    "ModelCard",
    "atomic_write",
    "differences",
    "expanded",
    "is_temporary",
    "load",
    "make_directory",
    "package_versions",
    "plan_of",
    "read_card",
    "read_weights",
    "save_model",
    "write_together",
]

WEIGHTS = "model.safetensors"
_CHECKSUM = "sha256"
_LEFTOVER = ".senet-{}.tmp"


def atomic_write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Have ``write`` fill a file, and put it in the place of ``path`` when it is on the disk.

    Whatever happens, ``path`` is the old file or the new one. Raises ``UserError`` for an
    ``OSError``, such as a full disk; whatever else ``write`` raises passes through. A killed
    process leaves a file behind that ``is_temporary`` knows.
    """
    write_together({Path(path): write})


def write_together(files: Mapping[Path, Callable[[BinaryIO], object]]) -> None:
    """The same for files that belong together: the old ones stay until all new ones are written.

    The last is the one that names the others. It is gone while they are exchanged, so that it
    never stands beside those of another.
    """
    places = {path: _beside(path) for path in files}
    try:
        try:
            for path, write in files.items():
                # Not tempfile, whose files only their owner can read, also after the move.
                with places[path].open("xb") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
            for path in files:
                if path.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if len(places) > 1:
                path.unlink(missing_ok=True)
            for path, beside in places.items():
                os.replace(beside, path)
        except BaseException:
            for beside in places.values():
                beside.unlink(missing_ok=True)
            raise
        for folder in {path.parent for path in places}:
            _sync_folder(folder)
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def _beside(path: Path) -> Path:
    return path.parent / _LEFTOVER.format(f"{os.getpid()}-{secrets.token_hex(4)}")


def expanded(path: str | Path) -> Path:
    """The path, ``~`` and ``~name`` being homes; as it is where nobody has that name."""
    return Path(os.path.expanduser(path))


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
    """Write ``model.safetensors`` and ``model.json`` into ``directory``, each whole.

    The weights carry their own checksum, which `load` looks at: a moment after one of the two
    files was written the other may still be an earlier epoch's.
    """
    from safetensors.torch import save

    directory = Path(directory)
    make_directory(directory)
    # Clones, since safetensors refuses tensors that share memory, as tied weights do.
    weights = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    data = _noted(save(weights, metadata={"format": "pt"}), _checksum(weights))
    text = card.to_json().encode()
    atomic_write(directory / WEIGHTS, lambda file: file.writelines(data))
    atomic_write(directory / CARD, lambda file: file.write(text))


def _noted(data: bytes, checksum: str) -> tuple[bytes, ...]:
    """A safetensors file with a checksum among its metadata, in parts.

    Not by save(metadata=), which puts several entries in another order each time.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"][_CHECKSUM] = checksum
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little"), text, data[end:]


def _checksum(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes, whatever order they are stored in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def make_directory(directory: Path) -> None:
    """Make a directory and those it is in; `UserError` where that cannot be."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {str(directory)!r}: {error.strerror}") from error


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
    weights = read_weights(_file_of_run(run, WEIGHTS))
    model = _rebuild(card, run / CARD).to(dtype)
    if wrong := differences(model.state_dict(), weights):
        raise UserError(f"{str(run / WEIGHTS)!r} does not fit {card.name!r}: it {wrong}")
    model.load_state_dict(weights, strict=True)
    return model.to(device).eval()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; `UserError` where it is damaged, or a pickle."""
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(b"PK\x03\x04") or start[:1] == b"\x80":
        raise UserError(
            f"{str(path)!r} is a pickle, as torch.save writes them, and not safetensors; it was "
            "not opened, since a pickle can run any program"
        )
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            noted = (file.metadata() or {}).get(_CHECKSUM)
    except (SafetensorError, OSError, KeyError) as error:
        raise UserError(
            f"{str(path)!r} is damaged or not a safetensors file: {_first_line(error)}"
        ) from error
    if noted is not None and noted != _checksum(weights):  # others' files have none
        raise UserError(f"{str(path)!r} is damaged: its checksum is not that of its weights")
    return weights


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

    Floating-point types stand for one another, for networks are trained in one and used in
    another; 8 bits do not, which are no weights without a scale.

    >>> differences({"a": torch.zeros(1), "b": torch.zeros(1)}, {"a": torch.zeros(2)})
    "lacks 'b', has another shape for 'a'"
    >>> differences({"a": torch.zeros(1)}, {"a": torch.zeros(1, dtype=torch.int8)})
    "has numbers of another kind for 'a'"
    """
    pairs = {key: (expected[key], found[key]) for key in expected.keys() & found.keys()}
    phrases = [
        *_listed("lacks", expected.keys() - found.keys()),
        *_listed("has", found.keys() - expected.keys(), "too many"),
        *_listed(
            "has another shape for", (key for key, (a, b) in pairs.items() if a.shape != b.shape)
        ),
        *_listed(
            "has numbers of another kind for",
            (key for key, (a, b) in pairs.items() if _kind(a) != _kind(b)),
        ),
    ]
    return ", ".join(phrases)


def _kind(tensor: Tensor) -> object:
    wide = tensor.is_floating_point() and tensor.element_size() > 1
    return "floating point" if wide else tensor.dtype


def _listed(verb: str, keys: Iterable[str], end: str = "") -> list[str]:
    """One phrase for the sorted keys, of which two are named; none for none."""
    names = sorted(keys)
    if not names:
        return []
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return [f"{verb} {', '.join(map(repr, names[:2]))}{more} {end}".rstrip()]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
