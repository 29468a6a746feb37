"""``senet plan``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from jsonargparse import ArgumentParser

from .. import models
from ..errors import UserError
from ..placement import plan
from .parsing import command_parser, parse

__all__ = ["main", "parser"]


def parser() -> ArgumentParser:
    """The options of the command."""
    made = command_parser("plan", "Where SE would go in a network, why, and what it would add.")
    made.add_argument("name", type=str, metavar="NAME", help="network, or timm/NAME")
    made.add_argument(
        "--placement",
        type=Literal["standard", "pre", "post", "identity", "inner"],
        default="standard",
        help="which tensor of a residual block is gated",
    )
    made.add_argument("--reduction", type=float, default=16, help="SE's reduction ratio r")
    made.add_argument(
        "--min_hidden",
        type=int | None,
        default=None,
        help="least width of SE's hidden layer; null is the network's own",
    )
    made.add_argument(
        "--image_size",
        type=int | None,
        default=None,
        help="height and width in pixels; null is what the network was designed for",
    )
    made.add_argument(
        "--json", action="store_true", help="one JSON document on standard output, nothing else"
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    given = parse(parser(), argv)
    name, _ = models.plain_name(given.name)
    size = models.native_input_size(name)
    if given.image_size is not None:
        if given.image_size < 1:
            raise UserError(f"image_size is {given.image_size}, but must be at least 1")
        size = (size[0], given.image_size, given.image_size)
    least = given.min_hidden
    made = plan(
        models.build_plain(name),
        input_size=size,
        placement=given.placement,
        reduction=given.reduction,
        min_hidden=models.default_min_hidden(name) if least is None else least,
    )
    print(made.to_json() if given.json else made)
    return 0
