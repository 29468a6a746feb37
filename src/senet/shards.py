"""One tar shard in the WebDataset convention: where each image lies in it, and its label.

Nothing is extracted. A member's name tells its sample and its field and is never used as a path,
so that ``../`` or a leading ``/`` in it lead nowhere; links and devices are refused.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from .errors import UserError
from .images import EXTENSIONS

__all__ = ["MOST_BYTES", "MOST_CLASSES", "Shard", "read_shard"]

MOST_BYTES = 2**30
"""Larger members are not taken for images: more than any of `images.MAX_PIXELS` needs."""

MOST_CLASSES = 1_000_000

_BLOCK = tarfile.BLOCKSIZE
_FIELDS = frozenset(extension.removeprefix(".") for extension in EXTENSIONS)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_SPECIAL = {
    tarfile.LNKTYPE: "a link",
    tarfile.SYMTYPE: "a link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
_META = re.compile(r"__[^/]*__($|/)")  # members that webdataset passes over too
_MOST_NAME = 2**20
_MOST_LABEL = {"cls": 64, "json": 2**20}
_MOST_TAIL = 2**20  # what tar may pad an archive with: its largest usual block
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


@dataclass
class Shard:
    """The images of a tar file, in their order.

    Args:
        path: The file.
        names: Of the members that are images.
        offsets: Where the bytes of each begin in the file.
        sizes: How many there are.
        labels: Of each image.
        bytes: Size of the file.
    """

    path: Path
    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    bytes: int = 0


@dataclass(frozen=True)
class _Member:
    name: str
    offset: int
    size: int


def read_shard(path: Path) -> Shard:
    """Read the headers and labels of a tar file, and leave the images where they are.

    A sample is a run of members of one key, the name up to its first dot: an image, and a
    label in ``KEY.cls`` or in ``KEY.json``, a number or an object with ``label`` or ``cls``.
    Other fields are passed over.

    Raises:
        UserError: there is no such file, it is compressed, cut short, damaged or holds something
            other than plain files; a sample lacks its image or label, or has one twice.
    """
    path = Path(path)
    if not path.is_file():
        what = "not a file" if path.exists() else "no such file"
        raise UserError(f"cannot read shard {str(path)!r}: {what}")
    try:
        with path.open("rb") as file:
            return _indexed(_Tar(path, file.fileno()))
    except OSError as error:
        raise UserError(f"cannot read shard {str(path)!r}: {error.strerror or error}") from error


def _indexed(tar: _Tar) -> Shard:
    from webdataset.tariterators import base_plus_ext

    shard = Shard(tar.path, bytes=tar.end)
    key, fields = None, dict[str, _Member]()
    for member in tar.members():
        if _META.match(member.name):
            continue
        prefix, suffix = base_plus_ext(member.name)
        if prefix is None:
            continue
        if prefix != key:
            if fields:
                _add(shard, tar, fields)
            key, fields = prefix, {}
        suffix = suffix.lower()
        if suffix not in _FIELDS and suffix not in _MOST_LABEL:
            continue
        if suffix in _FIELDS and (twice := fields.keys() & _FIELDS):
            tar.refuse(f"sample {key!r} has two images, .{twice.pop()} and .{suffix}")
        if suffix in fields:
            tar.refuse(f"{member.name!r} is there twice")
        fields[suffix] = member
    if fields:
        _add(shard, tar, fields)
    if not shard.names:
        tar.refuse("it holds no images; samples are KEY.jpg (or .png, …) with KEY.cls or KEY.json")
    return shard


def _add(shard: Shard, tar: _Tar, fields: dict[str, _Member]) -> None:
    """Note the sample that a run of members of one key makes."""
    image = next((fields[name] for name in fields if name in _FIELDS), None)
    label = next((name for name in _MOST_LABEL if name in fields), None)
    if image is None:
        tar.refuse(f"{next(iter(fields.values())).name!r} has no image beside it")
    if label is None:
        tar.refuse(f"{image.name!r} has no label: a .cls or .json beside it")
    if image.size > MOST_BYTES:
        tar.refuse(f"{image.name!r} has {image.size:,} bytes; at most {MOST_BYTES:,} are accepted")
    shard.names.append(image.name)
    shard.offsets.append(image.offset)
    shard.sizes.append(image.size)
    shard.labels.append(_label(tar, fields[label], label))


def _label(tar: _Tar, member: _Member, kind: str) -> int:
    if member.size > _MOST_LABEL[kind]:
        tar.refuse(f"{member.name!r} has {member.size:,} bytes, too many for a label")
    text = tar.read(member.offset, member.size)
    try:
        value = int(text.decode("ascii")) if kind == "cls" else json.loads(text)
        if isinstance(value, dict):
            value = value.get("label", value.get("cls"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MOST_CLASSES:
        also = "" if kind == "cls" else ", or an object with one as its 'label'"
        tar.refuse(
            f"{member.name!r} holds no label: expected a whole number, at least 0 and below "
            f"{MOST_CLASSES:,}{also}"
        )
    return value


class _Tar:
    """The members of a tar file, read with bounds on all that its headers claim.

    Not by tarfile.open, which takes a header's word for how much memory a long name needs.
    """

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self.end = os.fstat(handle).st_size
        self._handle = handle

    def refuse(self, reason: str) -> NoReturn:
        raise UserError(f"cannot read shard {str(self.path)!r}: {reason}")

    def read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._handle, size, offset)
        if len(data) < size:
            self._cut_short(f"at byte {offset + len(data):,}")
        return data

    def members(self) -> Iterator[_Member]:
        """The plain files, in order; folders are passed over."""
        place, name, size = 0, None, None
        while (header := self._header(place)) is not None:
            place += _BLOCK
            if header.type == tarfile.DIRTYPE:
                name = size = None
                continue
            claimed = header.size if size is None else size
            if claimed < 0 or place + claimed > self.end:
                self._cut_short(f"in {name or header.name!r}")
            if header.type in _FILES:
                yield _Member(header.name if name is None else name, place, claimed)
                name = size = None
            elif header.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
                if claimed > _MOST_NAME:
                    self.refuse(f"a name of {claimed:,} bytes")
                text = self.read(place, claimed)
                if header.type == tarfile.XHDTYPE:
                    name, size = self._extended(text, name)
                else:
                    name = text.partition(b"\0")[0].decode("utf-8", "surrogateescape")
            elif header.type not in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
                kind = _SPECIAL.get(header.type, f"of type {header.type!r}")
                self.refuse(f"{name or header.name!r} is {kind}; a shard holds plain files only")
            place += -(-claimed // _BLOCK) * _BLOCK

    def _header(self, place: int) -> tarfile.TarInfo | None:
        """The header at ``place``; None at the end of the archive."""
        block = os.pread(self._handle, _BLOCK, place)
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            self._check_tail(place)
            return None
        except tarfile.HeaderError as error:
            packed = next((kind for start, kind in _COMPRESSED.items() if block[:2] == start), None)
            if place == 0 and packed is not None:
                self.refuse(
                    f"it is compressed ({packed}), so that no image in it can be found without "
                    "reading all before; unpack it to a plain .tar"
                )
            if len(block) < _BLOCK:
                self._cut_short("without an end mark" if place else f"{self.end} bytes")
            what = f"a damaged header at byte {place:,}" if place else "not a tar file"
            raise UserError(f"cannot read shard {str(self.path)!r}: {what}") from error

    def _check_tail(self, place: int) -> None:
        """Refuse what lies behind the end mark: images there would be missed without a word."""
        rest = self.end - place
        if rest > _MOST_TAIL or any(os.pread(self._handle, rest, place)):
            self.refuse(f"{rest:,} bytes lie behind its end; two tar files cannot be one shard")

    def _extended(self, text: bytes, name: str | None) -> tuple[str | None, int | None]:
        """Name and size out of the records ``LENGTH KEY=VALUE\\n`` of an extended header."""
        size, start = None, 0
        while start < len(text) and text[start]:
            blank = text.find(b" ", start, start + 20)
            digits = text[start:blank] if blank > 0 else b""
            stop = start + int(digits) if digits.isdigit() else 0
            key, equals, value = text[blank + 1 : stop - 1].partition(b"=")
            if not (blank < stop <= len(text)) or not equals or text[stop - 1 : stop] != b"\n":
                self.refuse("a damaged extended header")
            if key == b"path":
                name = value.decode("utf-8", "surrogateescape")
            elif key == b"size":
                if not value.isdigit() or len(value) > 19:
                    self.refuse("a damaged size in an extended header")
                size = int(value)
            elif key.startswith(b"GNU.sparse"):
                self.refuse(f"{name or 'a member'!r} is a sparse file; a shard holds plain files")
            start = stop
        return name, size

    def _cut_short(self, where: str) -> NoReturn:
        self.refuse(f"it is cut short or damaged ({where}); make or copy it anew")
