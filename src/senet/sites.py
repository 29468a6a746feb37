"""What a plan is: the sites where SE goes in one network, and what was left out and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any, get_origin, get_type_hints, overload

from .block import BlockOptions
from .errors import UserError, nearest

__all__ = ["MOST_HIDDEN", "PLACEMENTS", "Plan", "Site", "SiteFilter", "Skipped"]

MOST_HIDDEN = 65_536
"""The widest hidden layer that an option or a document may ask for; a slip is far wider."""

PLACEMENTS = ("standard", "pre", "post", "identity", "inner")
"""Which tensor of a residual block is gated (the journal's ablation)."""


@dataclass(frozen=True)
class Site:
    """A place for one SE block.

    Args:
        path: dotted path of the module that is wrapped.
        kind: "residual", "parallel", "inception", "dense" or "chain".
        channels: C, the channels gated.
        hidden: width of the block's bottleneck.
        stage: log₂ of the stride to the network's input: ResNet's conv2_x … conv5_x are 2 … 5.
        placement: one of `PLACEMENTS`.
        params: parameters that the block adds.
        macs: multiply-adds a sample that its two layers add.
        positions: spatial size of the gated tensor.
        block: the block's options, its hidden width resolved.
        before: the input of the wrapped module is gated, not its output.
        channels_last: the gated tensor is (N, …, C).
        note: what a reader should know about this site, or "".
    """

    path: str
    kind: str
    channels: int
    hidden: int
    stage: int
    placement: str
    params: int
    macs: int
    positions: tuple[int, ...] = ()
    block: BlockOptions = field(default_factory=BlockOptions)
    before: bool = False
    channels_last: bool = False
    note: str = ""


@dataclass(frozen=True)
class Skipped:
    """A candidate that got no block, and the reason."""

    path: str
    reason: str


SiteFilter = str | int | Callable[[Site], bool]
"""A glob over paths, a stage number, or a predicate."""


@dataclass(frozen=True)
class Plan(Sequence[Site]):
    """The sites of one network in order of execution; slicing gives a plan.

    Args:
        sites: where blocks go.
        skipped: candidates left out, with the reason.
        input_size: (C, …) of the sample that the network was traced with.
    """

    sites: tuple[Site, ...]
    skipped: tuple[Skipped, ...] = ()
    input_size: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.sites)

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    @overload
    def __getitem__(self, index: int) -> Site: ...
    @overload
    def __getitem__(self, index: slice) -> Plan: ...
    def __getitem__(self, index: int | slice) -> Site | Plan:
        chosen = self.sites[index]
        return replace(self, sites=chosen) if isinstance(chosen, tuple) else chosen

    @property
    def params(self) -> int:
        """Parameters that all blocks add."""
        return sum(site.params for site in self.sites)

    @property
    def macs(self) -> int:
        """Multiply-adds a sample that all blocks add."""
        return sum(site.macs for site in self.sites)

    def select(self, sites: SiteFilter | Iterable[SiteFilter]) -> Plan:
        """The plan with only the matching sites.

        Args:
            sites: a glob over paths ("layer4.*"), a stage number, a predicate over `Site`, or
                several of them, of which one has to match.

        Raises:
            UserError: a filter matches nothing or is none of these, or there is none.
        """
        single = isinstance(sites, str | int) or callable(sites)
        filters: list[Any] = list(sites) if not single and isinstance(sites, Iterable) else [sites]
        if not filters:
            raise UserError(f"sites={sites!r} selects nothing; leave it out for all of them")
        for one in filters:
            if not (isinstance(one, str | int) or callable(one)):
                raise UserError(f"sites={one!r} is no path pattern, stage number or predicate")
            if not any(_matches(site, one) for site in self.sites):
                raise UserError(self._no_match(one))
        kept = tuple(s for s in self.sites if any(_matches(s, one) for one in filters))
        return replace(self, sites=kept)

    def _no_match(self, one: SiteFilter) -> str:
        if isinstance(one, str):
            known = nearest(one, [site.path for site in self.sites])
            return f"the pattern {one!r} matches no site; {known}"
        if isinstance(one, int):
            stages = sorted({site.stage for site in self.sites})
            return f"no site is in stage {one}; stages: {', '.join(map(str, stages))}"
        return f"the predicate accepts none of the {len(self.sites)} sites"

    def to_json(self) -> str:
        """The plan as one JSON document, enough to attach it to the same network elsewhere."""
        document = {
            "version": 1,
            "input_size": self.input_size,
            "params": self.params,
            "macs": self.macs,
            "sites": [asdict(site) for site in self.sites],
            "skipped": [asdict(entry) for entry in self.skipped],
        }
        return json.dumps(document, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            UserError: the text is not such a document.
        """
        try:
            document = json.loads(text)
            if document["version"] != 1:
                raise UserError(f"plan has version {document['version']!r}; this senet reads 1")
            return cls(
                sites=tuple(_site(entry) for entry in document["sites"]),
                skipped=tuple(Skipped(**_typed(Skipped, e)) for e in document["skipped"]),
                input_size=_sizes(document["input_size"]),
            )
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise UserError(f"not a plan written by Plan.to_json: {error!r}") from error

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("path", "kind", "stage", "channels", "hidden", "size", "params", "MACs")
        ]
        rows += [
            (
                site.path,
                site.kind + ("" if site.placement == "standard" else f"/{site.placement}"),
                str(site.stage),
                str(site.channels),
                str(site.hidden),
                "×".join(map(str, site.positions)),
                f"{site.params:,}",
                f"{site.macs:,}",
            )
            for site in self.sites
        ]
        rows.append(
            (f"{len(self)} sites", "", "", "", "", "", f"{self.params:,}", f"{self.macs:,}")
        )
        lines = _aligned(rows)
        lines.insert(len(lines) - 1, "─" * len(lines[0]))
        lines.insert(1, "─" * len(lines[0]))
        lines += [f"note: {note}" for note in dict.fromkeys(s.note for s in self.sites) if note]
        lines += ["left out:"] * bool(self.skipped)
        lines += [f"  {entry.path}: {entry.reason}" for entry in self.skipped]
        return "\n".join(lines)


def _matches(site: Site, one: SiteFilter) -> bool:
    if isinstance(one, str):
        return fnmatchcase(site.path, one)
    return site.stage == one if isinstance(one, int) else bool(one(site))


def _site(entry: dict[str, Any]) -> Site:
    known = {f.name for f in fields(Site)}
    if unknown := set(entry) - known:
        raise UserError(f"plan has an unknown key {min(unknown)!r}; {nearest(min(unknown), known)}")
    block = BlockOptions(**_typed(BlockOptions, entry["block"]))
    values = entry | {"block": block, "positions": _sizes(entry["positions"])}
    site = Site(**_typed(Site, values))
    if not (1 <= site.hidden <= MOST_HIDDEN and block.width(site.channels) == site.hidden):
        raise UserError(f"plan has hidden {site.hidden} at {site.path!r}, which it cannot be")
    return site


def _sizes(values: Any) -> tuple[int, ...]:
    if not (isinstance(values, list) and all(_is_a(size, int) for size in values)):
        raise UserError(f"plan has a shape {_short(values)}, which is no list of whole numbers")
    return tuple(values)


def _typed(kind: type, entry: dict[str, Any]) -> dict[str, Any]:
    """The entries of a document, each a value of its field's type and of a size that can be."""
    for name, hint in get_type_hints(kind).items():
        wanted = get_origin(hint) if get_origin(hint) is tuple else hint
        if name in entry and not _is_a(entry[name], wanted):
            raise UserError(f"plan has {name} {_short(entry[name])}, which it cannot be")
    return entry


def _is_a(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):  # which is an int to Python
        return kind is bool
    if kind is float:
        kind = int | float
    right = isinstance(value, kind)
    return right and (not isinstance(value, int | float) or abs(value) < 2**63)


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 2**63 else "of many digits"
    return text if len(text) <= 40 else text[:37] + "..."


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    text_columns = 2  # path and kind read from the left, figures from the right
    return [
        "  ".join(
            cell.ljust(width) if column < text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
