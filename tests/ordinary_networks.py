"""What the tests of ordinary models share: two networks, and how running blocks are counted."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
from networks import randomise
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from senet import Recalibrated, SqueezeExcite, attach

__all__ = [
    "BLOCKS",
    "NETWORKS",
    "SIZE",
    "attached",
    "images",
    "plain",
    "run_and_note",
    "working_gates",
]

SIZE = (3, 64, 64)
BLOCKS = 4
"""Both networks have four stages of one residual block."""

NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "torchvision": lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5),
    "timm": lambda: timm.create_model("test_resnet", num_classes=5),
}


def plain(name: str, seed: int = 0) -> nn.Module:
    """A network with random weights, affines and running statistics, in evaluation mode."""
    return copy.deepcopy(_prototype(name, seed))


@functools.cache
def _prototype(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return randomise(NETWORKS[name](), seed).eval()


def attached(name: str, seed: int = 0, *, warm_start: bool = False) -> nn.Module:
    """`plain` with SE, in evaluation mode."""
    model = plain(name, seed)
    torch.manual_seed(seed)
    return attach(model, input_size=SIZE, warm_start=warm_start)


def images(seed: int = 0, count: int = 2) -> Tensor:
    """A batch of ``count`` images, (count, 3, 64, 64)."""
    return torch.randn(count, *SIZE, generator=torch.Generator().manual_seed(seed))


def run_and_note(
    model: nn.Module, x: Any, *, call: Callable[[Any], Any] | None = None
) -> tuple[Any, list[list[str]]]:
    """What a forward returns (``call`` in place of the model's), and what each block ran as.

    For each block a list with an entry a call: the implementation that its wrapper chose, or
    "block" where it was called by itself. A hook on a wrapper leaves it that choice; one on the
    block would have the two modules called one after the other.
    """
    wrappers = [module for module in model.modules() if isinstance(module, Recalibrated)]
    wrapped = [wrapper.se for wrapper in wrappers]
    alone = [m for m in model.modules() if isinstance(m, SqueezeExcite) and m not in wrapped]
    noted: list[list[str]] = [[] for _ in (*wrappers, *alone)]

    def note(ran: list[str]) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            fused = isinstance(module, Recalibrated)
            ran.append(module.choice(inputs[0]).implementation if fused else "block")

        return hook

    pairs = zip((*wrappers, *alone), noted, strict=True)
    handles = [module.register_forward_pre_hook(note(ran)) for module, ran in pairs]
    output = (call or model)(x)
    for handle in handles:
        handle.remove()
    return output, noted


@torch.no_grad()
def working_gates(
    model: nn.Module, x: Tensor, *, call: Callable[[Tensor], Tensor] | None = None
) -> int:
    """How many blocks change the output when the bias of their gate is changed.

    Nothing is hung on them, so that this counts the blocks in what really runs: also in a graph
    (an exported or traced model), where no module of ours is called.
    """
    run = call or model
    before = run(x)
    working = 0
    for name, bias in model.named_parameters():
        if name.endswith("se.fc2.bias"):
            kept = bias.clone()
            bias.add_(2.0)
            working += not torch.allclose(run(x), before, rtol=1e-3, atol=1e-5)
            bias.copy_(kept)
    return working
