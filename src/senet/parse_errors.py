"""What jsonargparse finds wrong with options, in words for whoever typed them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .errors import nearest

__all__ = ["in_one_line"]


def in_one_line(error: Exception, known: Iterable[str]) -> str:
    """What jsonargparse found wrong, in one line of plain words, with the nearest known option."""
    text = " ".join(str(error).split())
    unknown = re.search(
        r"[Uu]nrecognized arguments: (\S+)|Option '([^']+)' is not accepted|Key '([^']+)'", text
    )
    if unknown:
        name = next(group for group in unknown.groups() if group).split("=")[0]
        dashes = "--" if name.startswith("--") else ""
        names = [dashes + option.removeprefix("--") for option in known]
        return f"unknown option {name}; {nearest(name, names, count=1)}".replace("'", "")
    if missing := re.search(r"arguments are required: (.*)$", text):
        given = {option.removeprefix("--") for option in known if option.startswith("--")}
        names = missing[1].split(", ")
        return f"missing: {', '.join(f'--{n}' if n in given else n.upper() for n in names)}"
    key = re.search(r'Parser key "([^"]+)": (.*)$', text)
    if key is None:
        return text
    wanted = re.search(r"Subtypes: \[(.+?)\] Errors: .* Given value: (.*)$", key[2]) or re.search(
        r"Expected an? (.+?)\. Got value: (.*)$", key[2]
    )
    if wanted is None:
        return f"option {key[1]}: {key[2]}"
    return f"option {key[1]} is {wanted[2]}, but must be {_in_words(wanted[1])}"


_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "NoneType": "null",
    "tuple": "a list, such as [30, 60]",
    "dict": "a mapping, such as {4: 8, 5: 4}",
}


def _in_words(type_text: str) -> str:
    """``<class 'int'>, NoneType`` → a whole number or null; ``Literal['a', 'b']`` → a or b."""
    text = re.sub(r"<class '([\w.]+)'>", r"\1", type_text).replace("typing.", "")
    text = text.replace("dict[str, float]", "dict")
    parts = re.sub(r"Literal\[(.+?)\]", r"\1", text).replace("'", "").split(", ")
    *most, last = (_WORDS.get(part, part) for part in parts)
    return f"{', '.join(most)} or {last}" if most else last
