"""What slimming found: candidates by worth, the curve, the chosen network; as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

__all__ = ["Candidate", "Point", "Score", "SlimReport", "lost", "lost_top5"]


@dataclass(frozen=True)
class Score:
    """What a network achieves on some images; accuracies are of 1, the loss is in nats.

    Args:
        top1: see `senet.evaluation.Evaluation`, as are the others.
    """

    top1: float
    top5: float | None
    loss: float
    images: int


@dataclass(frozen=True)
class Candidate:
    """What can be left out at once, and what that alone does on the calibration images.

    Args:
        name: the block's, or "stage 4".
        blocks: names of the blocks.
        stage: log₂ of the stride to the input.
        drop: top-1 that is lost, in points (of 100); negative where some is won.
        top5_drop: top-5 likewise; None of five classes or fewer.
        loss: by how much the mean cross-entropy rises, in nats.
        parameters: that the blocks have.
        deviation: standard deviation of a gate over images, the mean over channels.
    """

    name: str
    blocks: tuple[str, ...]
    stage: int
    drop: float
    top5_drop: float | None
    loss: float
    parameters: int
    deviation: float


@dataclass(frozen=True)
class Point:
    """A network of the curve: what is left out, what is left, what it costs and achieves.

    Args:
        left_out: names of the candidates, in the order of their worth.
        blocks: how many SE blocks are left.
        parameters: of the whole network.
        se_parameters: of its SE blocks.
        macs: multiply-adds for one image.
        latency_ms: of one image, deployed; None where it was not timed.
        calibration: what it achieves there.
        drop: top-1 lost on the calibration images, in points.
    """

    left_out: tuple[str, ...]
    blocks: int
    parameters: int
    se_parameters: int
    macs: int
    latency_ms: float | None
    calibration: Score
    drop: float


@dataclass(frozen=True)
class SlimReport:
    """What was measured and what was chosen.

    Args:
        by: "block" or "stage".
        max_drop: the budget, in points of top-1.
        candidates: ranked, the one that is worth least first.
        kept: name of a block → why its gate cannot be folded.
        points: the curve, from the whole network on, one candidate less each.
        chosen: which of them.
        before, after: the whole and the chosen network on the held-out images.
        stepped_back: (point, held-out drop) of those that were within the budget on the
            calibration images and beyond it on the held-out ones.
    """

    by: str
    max_drop: float
    candidates: tuple[Candidate, ...]
    kept: dict[str, str]
    points: tuple[Point, ...]
    chosen: int
    before: Score
    after: Score
    stepped_back: tuple[tuple[int, float], ...]

    @property
    def point(self) -> Point:
        """The chosen one."""
        return self.points[self.chosen]

    @property
    def held_out_drop(self) -> float:
        """Top-1 lost on the held-out images, in points."""
        return lost(self.before, self.after)

    def to_json(self) -> str:
        """One JSON document."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    def worth_csv(self) -> str:
        """The candidates as comma-separated values, ranked; then the blocks that have to stay."""
        header = ("rank", "name", "stage", "blocks", "drop_points", "top5_drop_points")
        rows: list[Sequence[object]] = [
            (
                *(rank, each.name, each.stage, " ".join(each.blocks)),
                *(round(each.drop, 4), "" if each.top5_drop is None else round(each.top5_drop, 4)),
                *(round(each.loss, 6), each.parameters, round(each.deviation, 6), ""),
            )
            for rank, each in enumerate(self.candidates, 1)
        ]
        rows += [("", name, "", name, *[""] * 5, why) for name, why in self.kept.items()]
        more = ("loss_increase", "parameters", "gate_deviation", "kept_because")
        return _csv((*header, *more), rows)

    def curve_csv(self) -> str:
        """The points as comma-separated values, the chosen one marked."""
        header = ("left_out", "blocks", "parameters", "se_parameters", "macs", "latency_ms")
        rows = [
            (
                *(" ".join(each.left_out[-1:]), each.blocks, each.parameters),
                *(each.se_parameters, each.macs),
                "" if each.latency_ms is None else round(each.latency_ms, 4),
                each.calibration.top1,
                "" if each.calibration.top5 is None else each.calibration.top5,
                round(each.calibration.loss, 6),
                round(each.drop, 4),
                int(number == self.chosen),
            )
            for number, each in enumerate(self.points)
        ]
        return _csv((*header, "top1", "top5", "loss", "drop_points", "chosen"), rows)


def lost(before: Score, after: Score) -> float:
    """Top-1 that is lost, in points (of 100)."""
    return 100 * (before.top1 - after.top1)


def lost_top5(before: Score, after: Score) -> float | None:
    """Top-5 that is lost, in points; None where it was not counted."""
    if before.top5 is None or after.top5 is None:
        return None
    return 100 * (before.top5 - after.top5)


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
