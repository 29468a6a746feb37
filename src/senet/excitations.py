"""Recording: a network runs over images, and its SE blocks' gates are told by class and depth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UserError
from .gate_files import GateFiles
from .gate_statistics import HIGH, LOW, TABLES, BlockExcitations, Excitations
from .gate_streams import GateStream
from .given import check_network, evaluation_mode
from .hoisting import refuse_deployed
from .labelled import check_labels, class_names, expected_counts, numbered_classes, pair
from .observing import Observation, observed
from .progress import tracked

__all__ = ["HIGH", "LOW", "TABLES", "BlockExcitations", "Excitations", "record"]

_RANGES = {"sigmoid": (0.0, 1.0), "hard_sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}
_AT_ONCE = 128
"""Images whose gates are waited for before they are looked at together."""


def record(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    classes: Sequence[str] | None = None,
    gates_dir: Path | str | None = None,
    permutations: int | None = None,
    examples: int = 9,
    device: torch.device | str | None = None,
    progress: bool = False,
    seed: int = 7,
) -> Excitations:
    """Run ``model`` over the images of ``loader`` and tell what its SE blocks' gates did.

    A gate is what σ gives, s = σ(W₂ δ(W₁ z + b₁) + b₂), before the constant 2 that a warm start
    puts on it; for a block that squeezes nothing, the mean over an image's positions. The model
    runs in evaluation mode, as the operations that it runs as otherwise, without gradients, and
    is in the end as it came, also where an exception ends it.

    Statistics are streamed: what is kept is K × C arrays, K classes by C channels of all blocks,
    two of them in float64 and ``permutations`` in float64 where they fit, else in float32, however
    many images come.

    Args:
        model: with blocks that were attached or adopted, of a released network, or its own.
        loader: batches of images (N, 3, H, W) and labels int64 (N,); or of images alone, which
            are one class.
        classes: names by label, each once. None takes the numbers of the network's outputs.
        gates_dir: where to write the gates of single images, see `senet.gate_files`.
        permutations: P, random assignments of labels beside which a block's specificity is seen;
            None is 20, or fewer where their sums would take more than 1.3 GB.
        examples: T, images kept for each channel of those that excite it most and least.
        device: where to run; None is where the model is, to which it returns in any case.
        progress: show a bar on standard error.
        seed: of the random assignments.

    Raises:
        UserError: there is no block, or none ran; the model is deployed, compiled or on the meta
            device, or fails on the images; a block ran twice in a forward, or not in each; a gate
            is not finite; no images, a label that is no class, or labels missing; gates cannot be
            written.
    """
    check_network(model)
    refuse_deployed(model)
    names = None if classes is None else class_names(classes)
    counts = {"permutations": permutations or 0, "examples": examples, "seed": seed}
    for option, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise UserError(f"{option}={value!r} is not a whole number of 0 or more")
    with ExitStack() as until:
        place = until.enter_context(_at(model, device))
        observation = until.enter_context(observed(model))
        until.enter_context(evaluation_mode(model))
        until.enter_context(torch.no_grad())
        files = None if gates_dir is None else GateFiles(Path(gates_dir))
        recorder = _Recorder(observation, names, files, permutations, examples, seed, loader)
        try:
            for batch in tracked(loader, "recording gates" if progress else ""):
                images, labels = pair(batch)
                if len(images):
                    outputs, gates = observation.forward(model, images.to(place))
                    recorder.add(gates, labels, len(images), outputs)
            return recorder.result()
        except BaseException:
            if files is not None:
                files.discard()
            raise


class _Recorder:
    """From the gates of one forward after the other to `Excitations`."""

    def __init__(
        self,
        observation: Observation,
        classes: tuple[str, ...] | None,
        files: GateFiles | None,
        permutations: int | None,
        examples: int,
        seed: int,
        loader: Iterable[Any],
    ) -> None:
        self.observation = observation
        self.classes = classes
        self.files = files
        self.options: dict[str, Any] = {
            "permutations": permutations, "examples": examples, "seed": seed
        }  # fmt: skip
        self.loader = loader
        self.labelled = True
        self.widths: dict[str, int] = {}
        self.stream: GateStream | None = None
        self.images = 0
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def add(
        self, gates: dict[str, Tensor], labels: Tensor | None, count: int, outputs: Any
    ) -> None:
        """Take the gates of a batch of ``count`` images in, with their labels (count,)."""
        if self.stream is None:
            self._begin(gates, labels is not None, outputs)
        assert self.stream is not None
        assert self.classes is not None
        if gates.keys() != self.widths.keys():
            path = min(gates.keys() ^ self.widths.keys())
            when = f"did not run for image {self.images}, but for" if path in self.widths else (
                f"ran for image {self.images}, but not for"
            )  # fmt: skip
            raise UserError(f"{path!r} {when} those before; images must take the same way")
        if (labels is not None) != self.labelled:
            raise UserError(f"labels come for some images, but not for all ({self.images})")
        if labels is None:
            labels = torch.zeros(count, dtype=torch.int64)
        check_labels(labels, count, len(self.classes))
        x = torch.cat([gates[path] for path in self.widths], dim=1)
        place = self.stream.low.device
        self._waiting.append((x.to(place), labels.to(place)))
        self.images += count
        if sum(len(labels) for _, labels in self._waiting) >= _AT_ONCE:
            self._take()

    def result(self) -> Excitations:
        """What was recorded."""
        if self.stream is None or self.classes is None:
            raise UserError("no images to record: the loader is empty")
        self._take()
        if self.files is not None:
            self.files.finish(self.classes)
        ran = set(self.widths)
        return Excitations(
            tuple(self._blocks(self.stream)),
            self.classes,
            self.images,
            tuple(path for path in self.observation.blocks if path not in ran),
            self.stream.assignments.are_permutations(self.stream.moments.counts.cpu()),
        )

    def _begin(self, gates: dict[str, Tensor], labelled: bool, outputs: Any) -> None:
        if not gates:
            first = next(iter(self.observation.blocks))
            raise UserError(
                f"no block ran (the first is {first!r}); the forward goes round them, "
                "senet.verify says where"
            )
        self.labelled = labelled
        self.classes = self.classes or numbered_classes(labelled, outputs)
        if not labelled and len(self.classes) > 1:
            raise UserError(
                f"{len(self.classes)} classes are named, but the loader gives images alone; "
                "let it give (images, labels)"
            )
        self.widths = {path: s.shape[1] for path, s in gates.items()}
        parts = list(gates.values())
        dtype = torch.float64 if any(s.dtype == torch.float64 for s in parts) else torch.float32
        # Not every accelerator has float64.
        device = parts[0].device if parts[0].device.type in ("cpu", "cuda") else torch.device("cpu")
        bounds = torch.tensor([self._bounds(path) for path in self.widths], dtype=dtype)
        widths = torch.tensor(list(self.widths.values()))
        low, high = (b.repeat_interleave(widths).to(device) for b in bounds.unbind(1))
        expected = expected_counts(self.loader, len(self.classes)) if labelled else None
        try:
            self.stream = GateStream(
                len(self.classes), len(low), low=low, high=high, expected=expected, **self.options
            )
        except (RuntimeError, MemoryError) as error:
            raise UserError(
                f"the statistics of {len(low):,} gates by {len(self.classes):,} classes do not fit "
                "into the memory; ask for fewer permutations or examples"
            ) from error

    def _bounds(self, path: str) -> tuple[float, float]:
        gate = self.observation.blocks[path].options.gate
        if gate == "relu":
            return torch.finfo(torch.float32).tiny, math.inf
        start, end = _RANGES[gate]
        return start + LOW * (end - start), start + HIGH * (end - start)

    def _take(self) -> None:
        """Look at the gates that wait."""
        assert self.stream is not None
        if not self._waiting:
            return
        x, labels = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting.clear()
        self._check_finite(x, self.stream.images)
        if self.files is not None:
            self.files.add(x, labels, self.widths)
        for part, of_part in zip(x.split(_AT_ONCE), labels.split(_AT_ONCE), strict=True):
            self.stream.add(part.to(self.stream.bounds[0].dtype), of_part)

    def _check_finite(self, x: Tensor, first: int) -> None:
        if bool(torch.isfinite(x).all()):
            return
        image, channel = (~torch.isfinite(x)).nonzero()[0].tolist()
        for path, width in self.widths.items():
            if channel < width:
                raise UserError(
                    f"the gates of {path!r} are not finite for image {first + image}; the weights "
                    "have diverged, the image is not finite, or values need a wider precision"
                )
            channel -= width

    def _blocks(self, stream: GateStream) -> Iterator[BlockExcitations]:
        null = stream.null().cpu()
        counts = stream.moments.counts.cpu()
        mean, variance = stream.moments.mean.cpu(), stream.moments.squares.cpu()
        variance /= counts[:, None]  # 0 / 0 is NaN, for a class without images
        mean[counts == 0] = math.nan
        low, high = (count.cpu().double() / self.images for count in (stream.low, stream.high))
        extremes = [
            tensor.cpu()
            for kept in (stream.most, stream.least)
            for values, numbers in [kept.results(self.images)]
            for tensor in (values.double(), numbers)
        ]
        first = 0
        for depth, (path, width) in enumerate(self.widths.items()):
            own = slice(first, first + width)
            first += width
            block = BlockExcitations(
                path,
                self.observation.stages.get(path),
                depth,
                counts,
                mean[:, own],
                variance[:, own],
                low[own],
                high[own],
                null[:, own],
                *(tensor[own] for tensor in extremes),
            )
            yield replace(block, null=torch.where(block.constant, 0.0, block.null))


@contextmanager
def _at(model: nn.Module, device: torch.device | str | None) -> Iterator[torch.device]:
    """The model at a device for a while."""
    homes = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if any(home.type == "meta" for home in homes):
        raise UserError(
            "the model is on the meta device, which holds no values; load its weights first"
        )
    home = next(model.parameters()).device if homes else torch.device("cpu")
    try:
        target = home if device is None else torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # the latter where torch has no CUDA in it
        reason = str(error).partition("\n")[0]
        raise UserError(f"device {str(device)!r} cannot be used: {reason}") from error
    if homes <= {target} or device is None:
        yield target
        return
    if len(homes) > 1:
        raise UserError(
            f"the model is on {len(homes)} devices, to which it could not return; leave device= out"
        )
    try:
        model.to(target)
        yield target
    finally:
        model.to(home)
