"""Files of `torch.export`: written by it, and by it run where they are known to be our own.

`torch.export.load` unpickles, evaluates and compiles text that it finds in a file. What comes
from elsewhere is read by `senet.exchange.archive` instead, which does not.
"""

from __future__ import annotations

from pathlib import Path

import torch

from .job import KEY, Job, Runner, exported_program

__all__ = ["CARD_FILE", "run_own", "write"]

CARD_FILE = f"{KEY}.json"


def write(job: Job, path: Path) -> None:
    """Write ``path``, one file; the batch is open.

    Raises:
        UserError: the network cannot be exported.
    """
    torch.export.save(exported_program(job), path, extra_files={CARD_FILE: job.document})


def run_own(path: Path) -> tuple[str | None, Runner]:
    """The model card and the network of a file that this process wrote: nothing is checked."""
    extra = {CARD_FILE: ""}
    network = torch.export.load(path, extra_files=extra).module()
    return extra[CARD_FILE] or None, network
