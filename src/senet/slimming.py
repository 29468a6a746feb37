"""Which SE blocks a network can do without: measured, chosen under a budget, and folded.

A block whose gate hardly changes from image to image can be replaced by its mean gate, which
costs nothing (`senet.constant_gates`). How much accuracy that takes is measured, not guessed: on
calibration images for the choice, on others for the check (``docs/slim.md``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from .adoption import adoptable
from .block import SqueezeExcite
from .constant_gates import Folding, fold_gates, foldings, held_constant
from .cost import count_macs, count_parameters
from .deployment import deploy
from .errors import UserError, nearest
from .excitations import record
from .given import check_network, copied
from .hoisting import refuse_deployed
from .labelled import check_labels, pair
from .norm import Recalibrated
from .outputs import relative_difference, tolerance
from .slim_report import Candidate, Point, Score, SlimReport, lost, lost_top5
from .timing import quartiles, time_in_turn

__all__ = ["BY", "Slimmed", "check_budget", "slim"]

BY = ("block", "stage")
"""What is left out at a time."""
Loader = Iterable[tuple[Tensor, Tensor]]
Progress = Callable[[int, int, str], None]
"""Is told how many steps are done, how many there are, and what comes next."""
_TIMED_MS = 50  # that a timing lasts, at least
_SLACK = 1e-9  # points: what rounding does to a difference of shares


@dataclass(frozen=True)
class Slimmed:
    """A slimmer copy of a network, in evaluation mode, and how it came about."""

    model: Any
    report: SlimReport


def slim(
    model: nn.Module,
    calibration: Loader,
    held_out: Loader,
    *,
    max_drop: float = 0.1,
    by: str = "block",
    rounds: int = 15,
    progress: Progress = lambda done, total, what: None,
) -> Slimmed:
    """The smallest network that loses no more than ``max_drop`` points of top-1.

    Each block's gate is replaced by its mean over the calibration images and multiplied into the
    layers beside it; what that costs is measured for each candidate alone, which ranks them, and
    then with one more left out at a time. Of these networks the smallest within the budget is
    checked on the held-out images; while it loses more there, the next larger one takes its place.

    Args:
        model: a classifier with SE, attached or adopted; it is not touched.
        calibration, held_out: batches of images (N, C, …) and labels (N,), on which different
            images are; each is gone through many times, as a DataLoader or a list can be.
        max_drop: the budget, in points of top-1 (0.1 is one image in a thousand).
        by: "block", or "stage" for all blocks of a stage at once, as in the paper.
        rounds: how often each network of the curve is timed; 0 leaves latency out.
        progress: is told how far it is.

    Returns:
        The slim copy, and the report. Where no block is left, it is a plain network.

    Raises:
        UserError: no blocks, none that can be folded, gates or outputs that are not finite, labels
            that are missing or no class, no images, or a budget that cannot be met.

    >>> from senet import create_model
    >>> network = create_model("se_resnet20", num_classes=2, warm_start=True)
    >>> halves = [[(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))] for _ in range(2)]
    >>> slimmed = slim(network, *halves, by="stage", rounds=0)  # a warm start's gates are constant
    >>> slimmed.report.points[0].blocks, slimmed.report.point.blocks, slimmed.report.held_out_drop
    (9, 0, 0.0)
    """
    check_budget(max_drop, by)
    if not isinstance(rounds, int) or rounds < 0:
        raise UserError(f"rounds={rounds!r} is not a whole number of 0 or more")
    check_network(model)
    refuse_deployed(model)
    _check_blocks(model)
    for name, loader in (("calibration", calibration), ("held_out", held_out)):
        if isinstance(loader, Iterator):
            raise UserError(f"{name}= can be gone through once only; give a DataLoader or a list")
    search = _Search(copied(model).eval(), calibration, by, progress)
    candidates = search.ranked()
    paths, points = search.curve(candidates, rounds)
    chosen, before, after, stepped = search.choice(paths, points, held_out, max_drop)
    report = SlimReport(
        by,
        float(max_drop),
        candidates,
        search.kept,
        points,
        chosen,
        before,
        after,
        stepped,
    )
    return Slimmed(search.without(paths[chosen]), report)


def check_budget(max_drop: float, by: str) -> None:
    """Refuse what is no budget in points, or no way to leave blocks out.

    Raises:
        UserError: it is not.
    """
    if not (isinstance(max_drop, int | float) and 0 <= max_drop <= 100):  # nor NaN
        raise UserError(f"max_drop is {max_drop}; it must be points of top-1, 0 to 100")
    if by not in BY:
        raise UserError(f"by={by!r} is unknown; {nearest(str(by), BY)}")


def _check_blocks(model: nn.Module) -> None:
    if any(isinstance(module, SqueezeExcite) for module in model.modules()):
        return
    name = type(model).__name__
    if foreign := adoptable(model):
        raise UserError(
            f"the SE blocks of this {name} are not ours ({next(iter(foreign))}); "
            "senet.adopt the model first"
        )
    raise UserError(f"this {name} has no SE blocks, so there is nothing to slim")


class _Search:
    """One network, its gates, and what it achieves with some of them constant."""

    def __init__(self, model: Any, calibration: Loader, by: str, progress: Progress) -> None:
        self.model, self.calibration, self.by = model, calibration, by
        for module in model.modules():
            if isinstance(module, Recalibrated):  # a trace and a hook show two modules
                module.implementation = None
        tensors = (*model.parameters(), *model.buffers())
        self.device = tensors[0].device
        self.images, self.classes = self._first_batch()
        blocks = sum(isinstance(module, SqueezeExcite) for module in model.modules())
        self.progress, self.done, self.total = progress, 0, 2 * blocks + 5
        self._tell("the network as it is")
        self.whole = self.score(model, calibration)
        self._tell("the mean of every gate")
        self.gates, self.deviation = self._recorded()
        found = foldings(model, example_inputs=self.images[:1])
        self.found = {each.path: self._checked(each) for each in found}
        self.kept = {each.name: each.why for each in self.found.values() if each.why}
        if len(self.kept) == len(self.found):
            name, why = next(iter(self.kept.items()))
            raise UserError(f"no gate of this network can be folded; {name}: {why}")

    def ranked(self) -> tuple[Candidate, ...]:
        """What can be left out, worth least first: by top-1 that is lost, then by loss."""
        groups: dict[str, list[Folding]] = {}
        for each in self.found.values():
            if not each.why:
                key = each.name if self.by == "block" else f"stage {each.stage}"
                groups.setdefault(key, []).append(each)
        self.paths = {name: tuple(f.path for f in group) for name, group in groups.items()}
        self.total = 2 * len(groups) + 5
        candidates = []
        for name, group in groups.items():
            self._tell(f"without {name}")
            score = self.score(self.without(self.paths[name]), self.calibration)
            candidates.append(
                Candidate(
                    name,
                    tuple(each.name for each in group),
                    group[0].stage,
                    lost(self.whole, score),
                    lost_top5(self.whole, score),
                    score.loss - self.whole.loss,
                    sum(count_parameters(self.model.get_submodule(f.path)) for f in group),
                    float(torch.cat([self.deviation[f.path] for f in group]).mean()),
                )
            )
        return tuple(sorted(candidates, key=lambda each: (round(each.drop, 9), each.loss)))

    def curve(
        self, candidates: Sequence[Candidate], rounds: int
    ) -> tuple[list[tuple[str, ...]], tuple[Point, ...]]:
        """The paths left out and the points, each with one candidate less than the one before."""
        dropped: list[tuple[str, ...]] = [()]
        for each in candidates:
            dropped.append((*dropped[-1], *self.paths[each.name]))
        points = []
        for count, paths in enumerate(dropped):
            if count:
                self._tell(f"without {count} of {len(candidates)}")
            model = self.without(paths)
            score = self.score(model, self.calibration) if count else self.whole
            se = [module for module in model.modules() if isinstance(module, SqueezeExcite)]
            points.append(
                Point(
                    tuple(each.name for each in candidates[:count]),
                    len(se),
                    count_parameters(model),
                    sum(map(count_parameters, se)),
                    count_macs(model, tuple(self.images.shape[1:])),
                    None,
                    score,
                    lost(self.whole, score),
                )
            )
        self._tell("latency")
        times = self._latencies(dropped, rounds) if rounds else [None] * len(points)
        timed = zip(points, times, strict=True)
        return dropped, tuple(replace(point, latency_ms=ms) for point, ms in timed)

    def choice(
        self,
        paths: Sequence[tuple[str, ...]],
        points: Sequence[Point],
        held_out: Loader,
        max_drop: float,
    ) -> tuple[int, Score, Score, tuple[tuple[int, float], ...]]:
        """The chosen point, the whole and the chosen network held out, and what was too slim."""
        self._tell("held-out images")
        before = self.score(self.model, held_out)
        fitting = [n for n, p in enumerate(points) if n and p.drop <= max_drop + _SLACK]
        stepped: list[tuple[int, float]] = []
        for number in reversed(fitting):
            self._tell(f"held-out images, {points[number].blocks} blocks left")
            after = self.score(self.without(paths[number]), held_out)
            drop = lost(before, after)
            if drop <= max_drop + _SLACK:
                return number, before, after, tuple(stepped)
            stepped.append((number, drop))
        # The nearest budget that can be met is the least that a network loses on its worse half.
        needed, number = min(((drop, n) for n, drop in stepped), default=(math.inf, 0))
        beyond = set(range(1, len(points))) - set(fitting)
        for n in sorted(beyond, key=lambda n: points[n].drop):
            if points[n].drop >= needed:
                break
            drop = lost(before, self.score(self.without(paths[n]), held_out))
            needed, number = min((needed, number), (max(points[n].drop, drop), n))
        raise UserError(self._unmet(points[number], needed, max_drop))

    def _unmet(self, nearest: Point, needed: float, max_drop: float) -> str:
        """Why no block can be left out, and the nearest budget with which one can."""
        names = nearest.left_out
        where = "calibration" if needed <= nearest.drop else "held-out"
        what = names[0] if len(names) == 1 else f"{len(names)} {self.by}s at once"
        return (
            f"a max_drop of {max_drop:g} points cannot be met: without {what} "
            f"{needed:.2f} points of top-1 are lost on the {where} images; the nearest that can is "
            f"{math.ceil(100 * needed - 1e-6) / 100:g}"
        )

    def without(self, paths: Sequence[str]) -> Any:
        """A copy with the gates of these blocks folded."""
        model = copied(self.model)
        fold_gates(model, self.found, {path: self.gates[path] for path in paths})
        return model.eval()

    def score(self, model: nn.Module, loader: Loader) -> Score:
        """What a network achieves."""
        from .evaluation import evaluate  # brings torchmetrics

        found = evaluate(model, self._pairs(loader), classes=self.classes, device=self.device)
        return Score(found.top1, found.top5, found.loss, found.images)

    def _pairs(self, loader: Loader) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in loader:
            images, labels = pair(batch)
            if labels is None:
                raise UserError("images come without labels, which accuracy takes")
            if len(images):
                check_labels(labels, len(images), len(self.classes))
                yield images, labels

    def _first_batch(self) -> tuple[Tensor, tuple[str, ...]]:
        """Two images on the network's device, and a name for each of its classes."""
        batch = next(iter(self.calibration), None)
        if batch is None:
            raise UserError("no images to calibrate on")
        images = pair(batch)[0]
        if not len(images):
            raise UserError("no images to calibrate on; the first batch is empty")
        images = images[:2].to(self.device)
        with torch.inference_mode():
            try:
                logits = self.model(images)
            except Exception as error:
                raise UserError(
                    f"the forward of {type(self.model).__name__} fails on images of shape "
                    f"{tuple(images.shape)} ({images.dtype}): {_first_line(error)}"
                ) from error
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            raise UserError(
                f"{type(self.model).__name__} does not return logits (N, classes); only "
                "classifiers are slimmed, by their accuracy"
            )
        return images, tuple(map(str, range(logits.shape[1])))

    def _recorded(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The mean gate (C,) of each block, a warm start's constant included, and its deviation."""
        images = (images for images, _ in self._pairs(self.calibration))
        blocks = record(self.model, images, permutations=0, examples=0).blocks
        scale = {
            path: block.options.gate_scale
            for path, block in self.model.named_modules()
            if isinstance(block, SqueezeExcite)
        }
        return (
            {each.path: scale[each.path] * each.total_mean for each in blocks},
            {each.path: scale[each.path] * each.deviation for each in blocks},
        )

    def _checked(self, found: Folding) -> Folding:
        """The folding, or why it is none: folded, the network must compute what it should."""
        path = found.path
        if path not in self.gates:
            return replace(found, why="it never runs")
        gate = self.gates[path]
        if why := found.against(gate):
            return replace(found, why=why)
        slim = copied(self.model)
        fold_gates(slim, {path: found}, {path: gate})
        with torch.no_grad():
            with held_constant(self.model, {path: gate}):
                wanted = [self.model(self.images.clone())]
            try:  # on clones, for a forward may work on its images in place
                apart = relative_difference([slim(self.images.clone())], wanted)
            except Exception as error:
                why = f"the forward asks how its modules are made: {_first_line(error)}"
                return replace(found, why=why)
        if apart <= tolerance(wanted):
            return found
        return replace(found, why=f"the outputs would differ by {apart:.1e}")

    def _latencies(self, dropped: Sequence[tuple[str, ...]], rounds: int) -> list[float | None]:
        """Milliseconds of one image, each network deployed and timed in turn with the whole one.

        What a network takes is its median ratio to the whole one, times what that took: so a
        machine that changes its speed meanwhile meets all of them alike. Of a small network
        several forwards are timed together, for a single one is shorter than a machine's whims.
        """
        image = self.images[:1]
        whole = deploy(self.model, example_inputs=image)
        ratios, times = [1.0], []
        with torch.inference_mode():
            once = time_in_turn({"whole": partial(whole, image)}, rounds=3, device=self.device)
            repeats = math.ceil(_TIMED_MS / max(median(once["whole"]), 1e-3))
            for paths in dropped[1:]:
                other = deploy(self.without(paths), example_inputs=image)
                runs = {
                    "whole": partial(_repeated, whole, image, repeats),
                    "slim": partial(_repeated, other, image, repeats),
                }
                found = time_in_turn(runs, rounds=rounds, warmup=1, device=self.device)
                ratios.append(quartiles(found["slim"], found["whole"])[1])
                times += found["whole"]
        return [ratio * median(times) / repeats for ratio in ratios]

    def _tell(self, what: str) -> None:
        self.progress(min(self.done, self.total), self.total, what)
        self.done += 1


def _repeated(model: Callable[[Tensor], object], image: Tensor, count: int) -> None:
    for _ in range(count):
        model(image)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
