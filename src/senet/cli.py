"""The `senet` command: a table of commands, each of which imports what it needs."""

from __future__ import annotations

import errno
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from . import __version__
from .errors import UserError, nearest

__all__ = ["COMMANDS", "main"]

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("senet.commands.train", "train a network, and its plain twin to compare with"),
    "sweep": ("senet.commands.sweep", "variants of a network with several seeds each, one table"),
    "evaluate": ("senet.commands.evaluate", "accuracy, confusions and speed of a trained network"),
    "predict": ("senet.commands.predict", "the likeliest classes of images"),
    "inspect": ("senet.commands.inspect", "what the gates of a trained network learned"),
    "pack": ("senet.commands.pack", "a folder of images as tar shards with a manifest"),
    "slim": ("senet.commands.slim", "leave SE blocks out that a network can do without"),
    "export": ("senet.commands.export", "a network as an ONNX, OpenVINO or torch.export file"),
    "plan": ("senet.commands.plan", "where SE would go in a network, and what it would add"),
    "tables": ("senet.commands.tables", "the paper's tables, printed beside counted"),
    "bench": ("senet.commands.bench", "what SE costs a network, beside the plain one"),
}
"""Command → its module, which has ``main(argv) -> int``, and what it does."""
_OF_THE_DISK = (errno.ENAMETOOLONG, errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""What can happen to any file, wherever it is opened: no fault of the program."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `senet`; returns the exit status.

    0: done. 1: done in part (the command's help says how). 2: a mistake of the user's, told in
    one line on standard error. 130, 141, 143: stopped by Ctrl-C, by a reader of standard output
    that left, or by SIGTERM, as shells count these (128 and the signal's number).
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name need not be text, nor a terminal know ×: shown escaped, and no crash.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()  # here, where a reader that has left can be dealt with
        return status
    except UserError as error:
        print(f"senet: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("senet: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has seen enough; Python would complain once more on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"senet: error: {where}{error.strerror}", file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"senet {__version__}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}; {nearest(name, COMMANDS)} (senet --help)")
    with _quick_to_leave():
        module = importlib.import_module(COMMANDS[name][0])
    try:
        status: int = module.main(arguments[1:])
    except SystemExit as stop:  # --help and --print_config leave this way
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return status


@contextmanager
def _quick_to_leave() -> Iterator[None]:
    """Have Ctrl-C end the process at once while libraries are imported, when nothing is at stake.

    Some of them catch the exception that it otherwise is, or make another of it.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        os.write(2, b"senet: interrupted\n")
        os._exit(130)

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not (
        threading.main_thread()
    ):
        yield
        return
    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _help() -> str:
    width = len("--version")
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        (
            "usage: senet COMMAND [OPTIONS]",
            "",
            "Squeeze-and-Excitation for any PyTorch network.",
            "",
            "commands (each has --help):",
            *lines,
            "",
            "options:",
            f"  {'--help':<{width}}  this text",
            f"  {'--version':<{width}}  the version",
            "",
            "for a start: senet train --model se_resnet20 --data digits --out runs/digits --twin",
        )
    )
