"""For all tests."""

import signal

import pytest
import torch
from hypothesis import settings

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


@pytest.fixture
def one_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norm and block run as one operation on the small maps of tests, too."""
    monkeypatch.setattr(selection, "SMALL", 0)
