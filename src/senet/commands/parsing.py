"""Command lines: options out of dataclasses, and mistakes told in one line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_type_hints

from docstring_parser import parse as parse_docstring
from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from ..errors import UserError
from ..parse_errors import in_one_line
from ..yaml_values import NULLS

if TYPE_CHECKING:
    import torch

__all__ = [
    "OPTION_GROUPS",
    "add_dataclass_options",
    "add_device_and_json",
    "command_parser",
    "parse",
    "pick_device",
]

OPTION_GROUPS = {
    "model": "the network",
    "data": "the images",
    "epochs": "the training",
    "precision": "the machine and the records",
}
"""Headings of the options of training in a help, each before the option it is named by."""


def command_parser(name: str, description: str, *, epilog: str | None = None) -> ArgumentParser:
    """A parser for ``senet NAME`` whose mistakes `parse` turns into `UserError`."""
    return ArgumentParser(
        prog=f"senet {name}",
        description=description,
        epilog=epilog,
        exit_on_error=False,
        allow_abbrev=False,
    )


def add_device_and_json(parser: ArgumentParser) -> None:
    """``--device``, for `pick_device`, and ``--json``."""
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, …")
    parser.add_argument(
        "--json", action="store_true", help="one JSON document on standard output, nothing else"
    )


def add_dataclass_options(
    parser: ArgumentParser,
    options: type[Any],
    groups: Mapping[str, str],
    *,
    only: Container[str] | None = None,
) -> None:
    """An option for each field, with its type, default and the text of the docstring.

    Args:
        parser: gets the options.
        options: a dataclass of which every field has a default and a line under ``Args:``.
        groups: first field → title of the group that begins with it.
        only: the fields that become options; None is all.
    """
    params = parse_docstring(options.__doc__ or "").params
    docs = {entry.arg_name: entry.description or "" for entry in params}
    types = get_type_hints(options)
    group: Any = parser
    for field in fields(options):
        if only is not None and field.name not in only:
            continue
        if field.name in groups:
            group = parser.add_argument_group(groups[field.name])
        text = " ".join(docs[field.name].split()).replace("%", "%%")
        kind: dict[str, Any] = {"type": types[field.name]}
        if kind["type"] is bool:
            kind = {"action": ActionYesNo}
        elif kind["type"] == str | None:
            kind["type"] = _TextOrNull()
        group.add_argument(f"--{field.name}", default=field.default, help=text, **kind)


class _TextOrNull:
    """A text, or None for the word null: as ``str | None`` a comment too would be nothing."""

    def __call__(self, value: object) -> str | None:
        if value is None or value in NULLS:
            return None
        if not isinstance(value, str):
            raise ValueError(f"Expected a text or null. Got value: {value!r}")
        return value

    def __repr__(self) -> str:
        return "str | null"


def parse(parser: ArgumentParser, argv: Sequence[str]) -> Namespace:
    """Read a command line; ``--some-option`` is taken for ``--some_option``.

    Raises:
        UserError: an unknown option (with the nearest), a value of the wrong type, something
            missing or too much, a configuration file that cannot be read.
    """
    # Before parsing: jsonargparse then adds options of its own that are nobody's business.
    known = [name for action in parser._actions for name in action.option_strings]
    spelled = [_with_underscores(argument) for argument in argv]
    try:
        given = parser.parse_args(spelled)
    except argparse.ArgumentError as error:
        line = _in_plain_words(error, parser) or in_one_line(
            error, [name for name in known if name.startswith("--")]
        )
        raise UserError(f"{line} ({parser.prog} --help lists the options)") from None
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"the configuration cannot be read: {error}") from None
    if empty := [name for name, value in vars(given).items() if value == ""]:
        raise UserError(f"{empty[0]} is empty; give a value ({parser.prog} --help)")
    return given


def _in_plain_words(error: argparse.ArgumentError, parser: ArgumentParser) -> str | None:
    """What argparse itself, not a type, found wrong with a word of the command line, if it did."""
    text = str(error)
    if extra := re.search(r"nrecognized arguments: ([^-\s]\S*)", text):
        places = [str(a.metavar or a.dest) for a in parser._actions if not a.option_strings]
        return f"unexpected argument {extra[1]!r}; {parser.prog} takes " + (
            f"{' and '.join(places)}, and options" if places else "options only"
        )
    if lacking := re.search(r"argument (--\w+)\S*: expected one argument", text):
        return f"option {lacking[1]} needs a value"
    if given := re.search(r"argument (--\w+)\S*: ignored explicit argument (.+)", text):
        return f"option {given[1]} takes no value, but was given {given[2]}"
    return None


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is the accelerator there is, else the CPU.

    Raises:
        UserError: no such device here.
    """
    import torch  # late, for those who only want to see the help

    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return found or torch.device("cpu")
    try:
        made = torch.empty(0, device=name)
        made.cpu()  # "meta" computes nothing that could be looked at
        return made.device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(" device type at start")[0]
        raise UserError(f"device {name!r} cannot be used: {reason}; try auto or cpu") from None


def _with_underscores(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"
