"""A network written for a runtime, run there, compared and timed, and kept if it is the same."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from ..deployment import Report, deploy
from ..errors import UserError
from ..runs import ModelCard, write_together
from ..timing import quartiles, time_in_turn
from .job import OPSET, Job, Runner
from .table import FORMATS

__all__ = ["Shipment", "Timing", "ship"]

_ROUNDS = 11


@dataclass(frozen=True)
class Timing:
    """Milliseconds a batch in the runtime, the two networks timed in turn.

    Args:
        ms: median of the network.
        plain_ms: median of its plain twin; None without one.
        ratio: median over the turns of the network's time by the twin's.
    """

    ms: float
    plain_ms: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Shipment:
    """What came of an export.

    Args:
        files: that were written; none where the difference was too large.
        difference: the largest between logits there and in PyTorch, over all images, by the
            largest logit.
        largest: the largest logit in PyTorch, absolute.
        timing: None where nothing was kept.
        report: what deployment rewrote; None for the network as it was trained.
    """

    files: tuple[Path, ...]
    difference: float
    largest: float
    timing: Timing | None
    report: Report | None


def ship(
    model: nn.Module,
    card: ModelCard,
    out: Path,
    *,
    images: Tensor,
    format: str = "onnx",
    plain: nn.Module | None = None,
    as_trained: bool = False,
    opset: int = OPSET,
    tolerance: float = 1e-4,
    batch: int = 1,
    progress: Callable[[str], object] = lambda _: None,
) -> Shipment:
    """Write ``model`` to ``out`` for a runtime, if it computes the same there.

    The file is made elsewhere first and run on ``images``, all together and the first by itself.
    Only then does it take its place, whole.

    Args:
        model: in evaluation mode, on the CPU.
        card: goes into the file; its image size must be that of the images.
        out: path; the suffix is the format's.
        images: (N, 3, H, W), as the network takes them.
        format: one of `FORMATS`.
        plain: the network to time beside, exported alike.
        as_trained: leave out `senet.deployment.deploy`.
        opset: of ONNX.
        tolerance: of ``Shipment.difference``.
        batch: images in a batch that is timed.
        progress: is told what goes on, a few words at a time; "" while it is timed, when nothing
            else should be at work.

    Raises:
        UserError: the format needs what is not installed, the name another suffix, the network
            cannot be exported, or the file cannot be written.
    """
    row = FORMATS[format]
    row.require(writing=True)
    if out.suffix.lower() != row.suffix:
        raise UserError(f"{str(out)!r} does not end in {row.suffix}, as {row.name} files do")
    if not out.parent.is_dir():
        raise UserError(f"cannot write {str(out)!r}: {str(out.parent)!r} is no folder")
    if out.is_dir():
        raise UserError(f"cannot write {str(out)!r}: it is a folder")
    progress("rewriting for inference")
    form = model if as_trained else deploy(model, example_inputs=images[:1])
    # Two images: with one in it, an example is taken for a batch that is always one.
    # Where the data lay is nobody's business who gets the file.
    document = replace(card, data=Path(card.data).name).to_json()
    job = Job(form, images[:1].repeat(2, 1, 1, 1), document, opset)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        made = Path(folder) / out.name
        progress(f"writing {out.name}")
        row.write(job, made)
        progress("comparing")
        expected = model(images)
        runner = row.run(made)[1]
        runners = [runner] if row.run is row.read else [runner, row.read(made)[1]]
        largest = expected.abs().max().item()
        # By torch: in Python's max() a difference that is no number would get lost.
        found = [_difference(each, images, expected) for each in runners]
        difference = torch.tensor(found, dtype=torch.float64).max().item()
        report = getattr(form, "report", None)
        if not difference <= tolerance:  # also where it is not a number
            return Shipment((), difference, largest, None, report)
        twin = None
        if plain is not None:
            progress("writing the plain twin, to time it beside")
            other = plain if as_trained else deploy(plain, example_inputs=images[:1])
            beside = Path(folder) / "plain" / out.name
            beside.parent.mkdir()
            row.write(Job(other, job.example, job.document, opset), beside)
            twin = row.run(beside)[1]
        repeats = -(-batch // len(images))
        progress("")
        timing = _timed(runner, twin, images.repeat(repeats, 1, 1, 1)[:batch])
        return Shipment(_keep(made, out), difference, largest, timing, report)


def _difference(runner: Runner, images: Tensor, expected: Tensor) -> float:
    found = torch.cat([runner(images), runner(images[:1])])
    wanted = torch.cat([expected, expected[:1]])
    largest = wanted.abs().max().item()
    return (found - wanted).abs().max().item() / (largest or 1.0)


def _timed(runner: Runner, twin: Runner | None, images: Tensor) -> Timing:
    runs: dict[str, Callable[[], object]] = {"own": partial(runner, images)}
    if twin is not None:
        runs["plain"] = partial(twin, images)
    with torch.inference_mode():
        times = time_in_turn(runs, rounds=_ROUNDS)
    if twin is None:
        return Timing(median(times["own"]))
    _, ratio, _ = quartiles(times["own"], times["plain"])
    return Timing(median(times["own"]), median(times["plain"]), ratio)


def _keep(made: Path, out: Path) -> tuple[Path, ...]:
    """Copy what was made to its place, the file that names the others last."""
    others = sorted(path for path in made.parent.iterdir() if path.is_file() and path != made)
    with ExitStack() as opened:
        files = {
            out.with_suffix(path.suffix): partial(
                shutil.copyfileobj, opened.enter_context(path.open("rb"))
            )
            for path in (*others, made)
        }
        write_together(files)
    return tuple(reversed(files))
