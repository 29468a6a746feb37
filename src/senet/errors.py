"""What a person can mend, told in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["UserError", "nearest"]


class UserError(ValueError):
    """A mistake that the user can mend: what was wrong, with the value, and what would work.

    The command line prints it in one line and exits with status 2; every other exception is
    a fault of ours and keeps its traceback.
    """


def nearest(name: str, known: Iterable[str], *, count: int = 3) -> str:
    """The known names closest to ``name``, as the end of an error message.

    >>> nearest("resnet5O", ["resnet50", "vgg16"])
    "nearest: 'resnet50'"
    >>> nearest("zzz", ["resnet50", "vgg16"])
    "known: 'resnet50', 'vgg16'"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    if close:
        return "nearest: " + ", ".join(map(repr, close))
    # "and 1 more" would take the place of the name itself
    few = names if len(names) <= 13 else names[:12]
    more = f" and {len(names) - len(few)} more" if len(few) < len(names) else ""
    return f"known: {', '.join(map(repr, few))}{more}"
