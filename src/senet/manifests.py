"""The manifest of packed shards, ``manifest.json``: what lies beside it, and its checksums."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import UserError
from .shards import MOST_CLASSES

__all__ = ["MANIFEST", "PARTS", "Manifest", "ShardEntry", "read_manifest"]

MANIFEST = "manifest.json"
PARTS = ("train", "val")
_KIND = "senet shards"
_FORMAT = 1
_MOST_BYTES = 2**28
_LEAST_SAMPLE = 4 * 512  # an image and its label, a header and a block each


@dataclass(frozen=True)
class ShardEntry:
    """A shard as it was packed.

    Args:
        file: Its name, in the manifest's folder.
        count: Images in it.
        bytes: Its size.
        sha256: Of its bytes, in hexadecimal.
    """

    file: str
    count: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What was packed: the class names by label, and the shards of train and val in order."""

    classes: tuple[str, ...]
    train: tuple[ShardEntry, ...]
    val: tuple[ShardEntry, ...]

    def to_json(self) -> str:
        """The document that `read_manifest` takes."""
        document = {
            "kind": _KIND,
            "format": _FORMAT,
            "classes": list(self.classes),
            "parts": {part: [asdict(entry) for entry in getattr(self, part)] for part in PARTS},
        }
        return json.dumps(document, indent=1) + "\n"


def read_manifest(path: Path) -> Manifest | None:
    """The manifest in a file; None where the file is JSON of another kind.

    Keys it does not know are passed over, so that later versions may add some.

    Raises:
        UserError: the file cannot be read, is damaged, of a newer format, names files outside
            of its folder, or counts what cannot be.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path}: too large for a manifest")
        document = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path}: cut short or damaged, not JSON ({reason}); pack the folder again"
        ) from error
    if not isinstance(document, dict) or document.get("kind") != _KIND:
        return None
    if (fault := _fault(document)) is not None:
        raise UserError(f"{path}: {fault}")
    entries = {
        part: tuple(ShardEntry(**{name: row[name] for name in _CHECKS}) for row in rows)
        for part, rows in document["parts"].items()
        if part in PARTS
    }
    return Manifest(tuple(document["classes"]), **entries)


def _fault(document: Mapping[str, Any]) -> str | None:
    """What is wrong with a manifest, or None."""
    version, classes, parts = (document.get(key) for key in ("format", "classes", "parts"))
    if not _is_count(version):
        return f"'format' is {_shown(version)}; a whole number was expected"
    if version != _FORMAT:
        return f"format {_shown(version)} is of another version of senet; this reads {_FORMAT}"
    names = classes if isinstance(classes, list) else []
    if not (2 <= len(names) <= MOST_CLASSES and all(isinstance(n, str) and n for n in names)):
        return f"'classes' is {_shown(classes)}; a list of two names or more was expected"
    if len(set(names)) < len(names):
        return "'classes' has a name twice"
    if not isinstance(parts, dict) or not all(
        isinstance(parts.get(part), list) and parts[part] for part in PARTS
    ):
        return f"'parts' is {_shown(parts)}; lists of shards for {' and '.join(PARTS)} are needed"
    rows = [row for part in PARTS for row in parts[part]]
    for row in rows:
        if (reason := _row_fault(row)) is not None:
            return reason
    files = [row["file"] for row in rows]
    if len(set(files)) < len(files):
        return "a shard is there twice"
    return None


def _row_fault(row: Any) -> str | None:
    if not isinstance(row, dict):
        return f"{_shown(row)} is no shard; an object was expected"
    for name, (fits, wanted) in _CHECKS.items():
        if not fits(row.get(name)):
            return f"'{name}' of a shard is {_shown(row.get(name))}; it must be {wanted}"
    if row["count"] * _LEAST_SAMPLE > row["bytes"]:
        return f"{_shown(row['count'])} images cannot be in {_shown(row['bytes'])} bytes"
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**63


def _is_file_name(value: Any) -> bool:
    return (
        isinstance(value, str)
        and value not in ("", ".", "..")
        and not re.search(r"[/\\\0]", value)
        and value.isprintable()
    )


_CHECKS = {
    "file": (_is_file_name, "the name of a file beside the manifest"),
    "count": (_is_count, "a whole number, at least 1"),
    "bytes": (_is_count, "a whole number, at least 1"),
    "sha256": (
        lambda v: isinstance(v, str) and re.fullmatch(r"[0-9a-f]{64}", v) is not None,
        "64 hexadecimal digits",
    ),
}


def _shown(value: Any) -> str:
    """A value of a document, short enough for one line."""
    try:
        text = json.dumps(value)
    except ValueError:  # a number of more digits than Python writes out
        return "a huge number"
    return text if len(text) <= 40 else text[:37] + "..."
