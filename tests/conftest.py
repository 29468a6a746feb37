"""For all tests."""

import random
import signal
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import settings
from processes import kill_what_is_left

from senet.kernels import selection

# The networks here are small, and the suite runs in two processes: more threads only wait.
torch.set_num_threads(1)

# The same examples each time: what the suite says is of the code alone. `make test-slow` looks for
# others, as Hypothesis does by itself.
settings.register_profile("suite", derandomize=True)
settings.load_profile("suite")

# Where the suite is started in the background of a script, Ctrl-C is ignored, and by processes that
# tests start and interrupt as well.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def fixtures_drawn_alike() -> None:
    """What a file's fixtures draw does not depend on the files that ran before it."""
    _seed()


@pytest.fixture(autouse=True)
def drawn_alike() -> None:
    """What a test draws does not depend on those that ran before it in the same process."""
    _seed()


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """One that a test has left, because it failed, would take a processor from all the others."""
    yield
    kill_what_is_left()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training draws no learning curves, a quarter of the time of a run of two batches."""
    monkeypatch.setattr("senet.training.draw", lambda *_: None)


@pytest.fixture
def one_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norm and block run as one operation on the small maps of tests, too."""
    monkeypatch.setattr(selection, "SMALL", 0)
