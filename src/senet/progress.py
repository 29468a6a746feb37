"""A bar on standard error while something long goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

__all__ = ["tracked"]

Item = TypeVar("Item")


def tracked(items: Iterable[Item], doing: str) -> Iterator[Item]:
    """The items, with a bar that goes away at the end.

    Args:
        items: what is gone through, one at a time; a bar knows the end of what is sized.
        doing: said beside the bar; "" shows none.
    """
    if not doing:
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    total = len(items) if isinstance(items, Sized) else None
    yield from track(items, doing, total=total, console=Console(stderr=True), transient=True)
