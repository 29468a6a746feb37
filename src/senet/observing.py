"""The gates of a network's blocks, seen as it runs."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .adoption import adoptable
from .block import SqueezeExcite
from .errors import UserError
from .norm import recalibrated_modules

__all__ = ["Observation", "observed"]


class Observation:
    """What the blocks of a network show while it runs.

    Args:
        blocks: the blocks by their paths.
        stages: the stage of each block that a plan put there.
    """

    def __init__(self, blocks: dict[str, SqueezeExcite], stages: dict[SqueezeExcite, int]) -> None:
        self.blocks = blocks
        self.stages = {path: stages[b] for path, b in blocks.items() if b in stages}
        self._seen: list[tuple[str, Tensor]] = []
        self._sizes: dict[str, torch.Size] = {}
        self._hooks: list[Any] = []

    def forward(
        self, network: Callable[[Tensor], Any], images: Tensor
    ) -> tuple[Any, dict[str, Tensor]]:
        """Run the network: what it returns, and the gates (N, C) by path in order of execution.

        Raises:
            UserError: the network fails; a block ran twice, or for another number of images.
        """
        self._seen.clear()
        try:
            outputs = network(images)
        except UserError:
            raise
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"the forward of {type(network).__name__} failed on images of shape "
                f"{tuple(images.shape)} ({images.dtype}): {reason}"
            ) from error
        self._settle(images)
        paths = [path for path, _ in self._seen]
        gates = dict(self._seen)
        for path, s in gates.items():
            if (times := paths.count(path)) > 1:
                raise UserError(
                    f"{path!r} ran {times} times in one forward (the module is shared, or the "
                    "images come in parts), and its gates are of no one place; give each place a "
                    "block of its own"
                )
            if len(s) != len(images):
                raise UserError(
                    f"{path!r} made gates for {len(s)} samples where the batch has {len(images)} "
                    "images; only gates of whole images can be told by class"
                )
        self._seen.clear()
        return outputs, gates

    def _settle(self, images: Tensor) -> None:
        """After the first forward: what came in says the stage, log₂ of the stride, of a block."""
        for path, shape in self._sizes.items():
            block = self.blocks[path]
            positions = shape[1:-1] if block.channels_last else shape[2:]
            size = images.shape[2:]
            if positions and len(positions) == len(size) and 0 < max(positions) <= max(size):
                self.stages[path] = round(math.log2(max(size) / max(positions)))
        self._sizes = {}
        self.unhook()

    def unhook(self) -> None:
        """Take the hooks of the first forward away."""
        while self._hooks:
            self._hooks.pop().remove()

    def _note(self, path: str, s: Tensor) -> None:
        self._seen.append((path, _by_image(s)))  # now, for gates of all positions are large

    def _note_size(self, path: str, block: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            self._sizes[path] = args[0].shape

    def _watch(self, path: str) -> Callable[[], None]:
        """Have a block show its gates; returns what ends that."""
        block = self.blocks[path]
        block.observer = partial(self._note, path)
        if path not in self.stages:
            # A hook makes a norm and its block run as two modules, but only once.
            self._hooks.append(block.register_forward_pre_hook(partial(self._note_size, path)))
        return partial(delattr, block, "observer")


@contextmanager
def observed(model: nn.Module) -> Iterator[Observation]:
    """Have the blocks of ``model`` show their gates for a while; then all is as it was.

    Raises:
        UserError: there is no block; one computes its gates in its own way, or is observed already.
    """
    blocks = {path: m for path, m in model.named_modules() if isinstance(m, SqueezeExcite)}
    if not blocks:
        own = len(adoptable(model))
        hint = f"senet.adopt makes its {own} SE blocks ours" if own else "senet.attach puts one in"
        raise UserError(f"{type(model).__name__} has no SE block whose gates could be seen; {hint}")
    for path, block in blocks.items():
        if type(block).gates is not SqueezeExcite.gates or "gates" in vars(block):
            raise UserError(f"{path!r} has its own gates(), which cannot be observed")
        if block.observer is not None:
            raise UserError(f"{path!r} is being observed already; let that end first")
    stages = {w.se: w.site.stage for _, w in recalibrated_modules(model) if w.site.path}
    observation = Observation(blocks, stages)
    with ExitStack() as until:
        until.callback(observation.unhook)
        if "torch._dynamo" in sys.modules:  # a compiled part shows nothing
            until.enter_context(torch.compiler.set_stance("force_eager"))
        for path in blocks:
            until.callback(observation._watch(path))
        yield observation


def _by_image(s: Tensor) -> Tensor:
    """Gates (N, C); where nothing is squeezed each position has one, and an image their mean."""
    wide = s.dtype if s.dtype == torch.float64 else torch.float32
    return s.to(wide) if s.dim() == 2 else s.flatten(2).mean(2, dtype=wide)
