"""``senet plan``."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from .. import models
from ..errors import UserError
from ..insertion import attach
from ..options import TrainOptions
from ..placement import plan
from .parsing import add_dataclass_options, command_parser, parse

__all__ = ["main", "parser"]

_SHARED = (
    *("placement", "sites", "reduction", "hidden", "min_hidden", "divisor", "bias"),
    *("gate", "activation", "squeeze"),
)
"""The options that `senet train` takes too, as `senet.plan` names them."""

_EPILOG = """
The options of the SE blocks are those of senet train and of senet.plan in Python. Exit status:
0 there are sites, 2 there are none, or a mistake that is named.
"""


def parser() -> ArgumentParser:
    """The options of the command."""
    made = command_parser(
        "plan", "Where SE would go in a network, why, and what it would add.", epilog=_EPILOG
    )
    made.add_argument(
        "name", type=str, metavar="NAME", help="network: resnet50, resnet20, …, or timm/NAME"
    )
    made.add_argument(
        "--image_size",
        type=int | None,
        default=None,
        help="height and width in pixels; null is what the network was designed for",
    )
    made.add_argument(
        "--scope",
        type=str | None,
        default=None,
        help="only modules below this path; null is the backbone alone where the network has a "
        "module of that name, else everything",
    )
    made.add_argument(
        "--json", action="store_true", help="one JSON document on standard output, nothing else"
    )
    add_dataclass_options(made, TrainOptions, {"placement": "the SE blocks"}, only=_SHARED)
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
    options = TrainOptions(**{option: given[option] for option in _SHARED})
    least = options.min_hidden
    model = models.build_plain(name)
    made = plan(
        model,
        input_size=size,
        placement=options.placement,
        reduction=options.reductions,
        sites=options.site_filters,
        scope=given.scope,
        hidden=options.hidden,
        min_hidden=models.default_min_hidden(name) if least is None else least,
        divisor=options.divisor,
        bias=options.bias,
        gate=options.gate,
        activation=options.activation,
        squeeze=options.squeeze,
    )
    if not made:
        attach(model, made)  # refuses it, and says why
    print(made.to_json() if given.json else made)
    return 0
