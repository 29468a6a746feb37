"""Values of options as YAML, in a line each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]

__all__ = ["NULLS", "in_yaml", "values_yaml"]

NULLS = ("null", "Null", "NULL", "~")
"""Words for nothing."""


def values_yaml(values: Mapping[str, Any]) -> str:
    """Names and values as YAML, a line each."""
    return "".join(f"{name}: {_in_a_line(value, _Quoted)}\n" for name, value in values.items())


def in_yaml(value: Any) -> str:
    """The value of an option as it is written in YAML, in one line: null, true, [30, 60].

    >>> in_yaml(None), in_yaml((30, 60)), in_yaml({"4": 8.0, "*": 4.0})
    ('null', '[30, 60]', "{'4': 8.0, '*': 4.0}")
    """
    return _in_a_line(value, yaml.SafeDumper)


class _Quoted(yaml.SafeDumper):  # type: ignore[misc,unused-ignore]
    """Texts always in quotes: YAML's versions take 1e3, or on, for different things without."""


_Quoted.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'")
)


def _in_a_line(value: Any, dumper: type[yaml.SafeDumper]) -> str:
    flow: str = yaml.dump(
        value, Dumper=dumper, default_flow_style=True, sort_keys=False, width=10**6
    )
    return flow.removesuffix("\n").removesuffix("\n...")
