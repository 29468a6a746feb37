"""``senet train``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ..errors import UserError
from ..options import TrainOptions, read_options
from ..training import CONFIG, TrainResult, is_helper, train
from ..verification import VerificationError
from .parsing import add_dataclass_options, command_parser, parse

__all__ = ["main", "parser"]

_GROUPS = {
    "model": "the network",
    "data": "the images",
    "epochs": "the training",
    "precision": "the machine and the records",
}

_EPILOG = """
--resume takes the options from the run; those given beside it must agree with them, except
data_root, download, workers, accelerator, twin and tensorboard, on which the result does not
depend. A run that has finished says so. To train for longer, start a new run: its schedule is
another. Exit status: 0 trained, 2 a mistake that is named, 130 interrupted (Ctrl-C).
"""


def parser() -> ArgumentParser:
    """The options of the command."""
    made = command_parser(
        "train", "Train a network, and with --twin also its plain twin.", epilog=_EPILOG
    )
    made.add_argument("--config", action="config", help="YAML file with options, under their names")
    made.add_argument("--out", type=str, required=True, help="run directory to be made")
    made.add_argument("--resume", action="store_true", help="go on with the run in OUT")
    made.add_argument(
        "--progress",
        choices=("auto", "bar", "lines"),
        default="auto",
        help="a bar, or a line an epoch; auto draws a bar on a terminal",
    )
    add_dataclass_options(made, TrainOptions, _GROUPS)
    return made


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    given = _parse(argv)
    options = TrainOptions(**{f.name: given[f.name] for f in fields(TrainOptions)})
    bar = given.progress == "bar" or (given.progress == "auto" and sys.stdout.isatty())
    try:
        result = train(options, given.out, resume=given.resume, bar=bar)
    except VerificationError as error:
        raise UserError(f"{options.model}: {error}") from error
    except KeyboardInterrupt:
        if not (Path(given.out) / CONFIG).exists():
            print("senet: interrupted before the run began; nothing was written", file=sys.stderr)
            return 130
        command = f"senet train --out {shlex.quote(given.out)} --resume"
        print(
            f"senet: interrupted; finished epochs are saved, to go on: {command}", file=sys.stderr
        )
        return 130
    if not is_helper():
        _tell(result)
    return 0


def _parse(argv: Sequence[str]) -> Namespace:
    """The command line; resuming, what it does not mention is what the run was started with."""
    made = parser()
    given = parse(made, argv)
    config = Path(given.out) / CONFIG
    if not (given.resume and config.exists()):
        return given
    made.set_defaults(asdict(read_options(config)))
    return parse(made, argv)


def _tell(result: TrainResult) -> None:
    if result.comparison is not None:
        from rich.console import Console

        Console().print(result.comparison.to_table())
    where = shlex.quote(str(result.directory))
    print(
        f"best: epoch {result.best.epoch}, top-1 {result.best.val_top1:.2%}; "
        f"next: senet evaluate {where}"
    )
