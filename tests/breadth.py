"""Which cases of a broad test every run of the suite has, and which `make test-slow` adds."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest

__all__ = ["others_slow"]


def others_slow(cases: Iterable[Any], typical: Collection[Any]) -> list[Any]:
    """All cases as parameters of a test; those that are not ``typical`` are slow ones.

    A case of several values is a tuple; it is typical by its first.
    """
    marked, found = [], set()
    for case in cases:
        first = case[0] if isinstance(case, tuple) else case
        if first in typical:
            found.add(first)
            marked.append(case)
        else:
            values = case if isinstance(case, tuple) else (case,)
            marked.append(pytest.param(*values, marks=pytest.mark.slow))
    assert found == set(typical), "a typical case that there is not"
    return marked
