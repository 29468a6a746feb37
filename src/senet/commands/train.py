"""``senet train``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ..errors import UserError
from ..options import TrainOptions, read_options
from ..ranks import is_helper
from ..training import CONFIG, TrainResult, train
from ..verification import VerificationError
from .parsing import OPTION_GROUPS, add_dataclass_options, command_parser, parse
from .stopping import terminable

__all__ = ["main", "parser"]

_EPILOG = """
--resume takes the options from the run; those given beside it must agree with them, except data
(where the same files lie by now), data_root, download, workers, load_timeout, cache, accelerator,
twin, tensorboard and peer_timeout, on which the result does not depend; a command, pipe:..., is
given again. A run that has finished says so. To train for longer, start a new run: its schedule is
another. Several devices: --devices; several machines: the same command on each, under torchrun or
srun, with --nodes. Exit status: 0 trained, 2 a mistake or a failure that is named, 130 interrupted
(Ctrl-C), 143 terminated (SIGTERM); finished epochs are saved, and the last line says how to go on.
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
    add_dataclass_options(made, TrainOptions, OPTION_GROUPS)
    return made


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    given = _parse(argv)
    options = TrainOptions(**{f.name: given[f.name] for f in fields(TrainOptions)})
    bar = given.progress == "bar" or (given.progress == "auto" and sys.stdout.isatty())
    terminated: list[int] = []
    try:
        with terminable(terminated):
            pipes = _typed(argv, options)
            result = train(options, given.out, resume=given.resume, bar=bar, pipes=pipes)
    except VerificationError as error:
        raise UserError(f"{options.model}: {error}") from error
    except UserError as error:
        if not _disk_is_full(error):
            raise
        raise UserError(
            f"{error}; make room, and go on from the last finished epoch: "
            f"senet train --out {shlex.quote(given.out)} --resume"
        ) from error
    except KeyboardInterrupt:
        word, status = ("terminated", 143) if terminated else ("interrupted", 130)
        if not is_helper():
            print(f"senet: {word}{_how_to_go_on(given.out)}", file=sys.stderr)
        return status
    if not is_helper():
        _tell(result)
    return 0


def _disk_is_full(error: UserError) -> bool:
    """Whether it is the end of space, or of what a user may have of it, that ended a run."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (ENOSPC, EDQUOT, EFBIG)


def _how_to_go_on(out: str) -> str:
    if not (Path(out) / CONFIG).exists():
        return " before the run began; nothing was written"
    return f"; finished epochs are saved, to go on: senet train --out {shlex.quote(out)} --resume"


def _parse(argv: Sequence[str]) -> Namespace:
    """The command line; resuming, what it does not mention is what the run was started with."""
    made = parser()
    given = parse(made, argv)
    config = Path(given.out) / CONFIG
    if given.resume and not config.exists() and not any(map(_says_what_to_train, argv)):
        raise UserError(
            f"no run in {given.out} to resume; correct --out, or name --model and --data (or a "
            "--config) to begin a run there"
        )
    if not (given.resume and config.exists()):
        return given
    made.set_defaults(asdict(read_options(config)))
    return parse(made, argv)


def _typed(argv: Sequence[str], options: TrainOptions) -> bool:
    """Whether commands in data and val_data stand on the command line itself, not in a file."""
    words = {*argv, *(argument.partition("=")[2] for argument in argv)}
    given = (options.data, options.val_data)
    return all(value in words for value in given if value is not None and "pipe:" in value)


def _says_what_to_train(word: str) -> bool:
    return word.partition("=")[0] in ("--model", "--data", "--config")


def _tell(result: TrainResult) -> None:
    if result.comparison is not None:
        from rich.console import Console

        Console(markup=False, emoji=False).print(result.comparison.to_table())
    where = shlex.quote(str(result.directory))
    print(
        f"best: epoch {result.best.epoch}, top-1 {result.best.val_top1:.2%}; "
        f"next: senet evaluate {where}"
    )
