"""What a network achieves: accuracy and speed over a set, and the classes of single images."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from .errors import UserError
from .given import evaluation_mode
from .progress import tracked

__all__ = ["Evaluation", "evaluate", "predict"]

_PREDICT_BATCH = 32


@dataclass(frozen=True)
class Evaluation:
    """The result of ``evaluate``; accuracies are of 1.

    Args:
        top1: Share of images whose class has the highest logit.
        top5: Share of images whose class is among the five highest; None with five classes or
            fewer, of which all are.
        loss: Mean cross-entropy, in nats.
        images: How many were looked at.
        images_per_second: Of the network, moving batches to its device included and reading
            them left out; the first batch does not count where there are more.
        per_class: Class → share of its images that were recognised; None if it has none.
        confusion: ``confusion[true][predicted]`` images.
    """

    top1: float
    top5: float | None
    loss: float
    images: int
    images_per_second: float
    per_class: dict[str, float | None]
    confusion: list[list[int]]

    def to_json(self) -> str:
        """``{"top1": 0.981, "top5": …}``, keys as above."""
        return json.dumps(asdict(self), allow_nan=False)


def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    classes: Sequence[str],
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Evaluation:
    """Measure a classifier over all batches of ``loader``.

    Args:
        model: (N, 3, H, W) → (N, classes); moved to ``device``, its training mode is put back.
        loader: Batches of images float (N, 3, H, W) and labels int64 (N,).
        classes: Names by label, each once.
        device: Where the network runs.
        progress: Show a bar on standard error meanwhile.

    Raises:
        UserError: No images; another number of outputs than classes; a label that is no class;
            logits that are not finite.
    """
    device = torch.device(device)
    names = list(classes)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"class {twice!r} is there twice; classes need a name each")
    meters = _meters(len(names)).to(device)
    model.to(device)
    loss, images, seconds, timed = 0.0, 0, 0.0, 0
    first = 0.0
    with evaluation_mode(model), torch.inference_mode():
        for number, (pixels, labels) in enumerate(
            tracked(loader, "evaluating" if progress else "")
        ):
            _check_labels(labels, len(names))
            logits, took = _timed_forward(model, pixels, device)
            _check_logits(logits, len(names), f"batch {number}")
            labels = labels.to(device)
            logits = logits.float()
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            meters.update(logits, labels)
            images += len(labels)
            if number:
                seconds, timed = seconds + took, timed + len(labels)
            else:
                first = took
    if not images:
        raise UserError("no images to evaluate on")
    speed = timed / seconds if timed else images / first
    counts = meters.compute()
    confusion = counts["confusion"].cpu()
    return Evaluation(
        top1=_share(counts["top1"], images),
        top5=_share(counts["top5"], images) if "top5" in counts else None,
        loss=loss / images,
        images=images,
        images_per_second=speed,
        per_class=_recalls(names, confusion),
        confusion=confusion.tolist(),
    )


def _meters(classes: int) -> MetricCollection:
    # Checked by ourselves, once and in a line; torchmetrics would synchronise for it.
    meters: dict[str, Metric | MetricCollection] = {
        "top1": MulticlassAccuracy(classes, average="micro", validate_args=False),
        "confusion": MulticlassConfusionMatrix(classes, validate_args=False),
    }
    if classes > 5:
        meters["top5"] = MulticlassAccuracy(classes, top_k=5, average="micro", validate_args=False)
    return MetricCollection(meters, compute_groups=False)


def _share(of_one: Tensor, images: int) -> float:
    """A share in float32 as the quotient that it is: budgets are compared with its differences."""
    return round(float(of_one) * images) / images


def _recalls(names: list[str], confusion: Tensor) -> dict[str, float | None]:
    right, total = confusion.diagonal().tolist(), confusion.sum(dim=1).tolist()
    return {
        name: hits / count if count else None
        for name, hits, count in zip(names, right, total, strict=True)
    }


def _check_labels(labels: Tensor, classes: int) -> None:
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise UserError(f"label {int(wrong)} in the data, but the network has {classes} classes")


def _check_logits(logits: Tensor, classes: int, where: str) -> None:
    if logits.dim() != 2 or logits.shape[1] != classes:
        raise UserError(
            f"the network's output is {tuple(logits.shape)}; (images, {classes}) was expected, "
            f"for {classes} classes"
        )
    if not torch.isfinite(logits).all():
        raise UserError(
            f"the network's output for {where} is not finite; its weights have diverged, or it "
            "needs a wider precision than it runs in"
        )


def _timed_forward(model: nn.Module, pixels: Tensor, device: torch.device) -> tuple[Tensor, float]:
    """Logits, and the seconds they took to the end of the device's work."""
    _synchronize(device)
    start = time.perf_counter()
    logits = model(pixels.to(device, non_blocking=True))
    _synchronize(device)
    return logits, time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def predict(
    model: nn.Module,
    images: Iterable[Tensor],
    *,
    classes: Sequence[str],
    top: int = 5,
    device: torch.device | str = "cpu",
) -> list[list[tuple[str, float]]]:
    """The likeliest classes of each image, likeliest first, with their probabilities.

    Args:
        model: (N, 3, H, W) → (N, classes); moved to ``device``, its training mode is put back.
        images: Each float (3, H, W), prepared as for training; 32 at a time are taken.
        classes: Names by label.
        top: Classes to give for an image, at most; all if there are fewer.
        device: Where the network runs.

    Raises:
        UserError: ``top`` below 1; another number of outputs than classes; logits that are not
            finite.
    """
    if top < 1:
        raise UserError(f"top is {top}; it must be at least 1")
    device = torch.device(device)
    model.to(device)
    results: list[list[tuple[str, float]]] = []
    with evaluation_mode(model), torch.inference_mode():
        for batch in _batches(images):
            logits = model(batch.to(device))
            _check_logits(logits, len(classes), f"image {len(results)} or one of the next")
            best = logits.float().softmax(dim=1).topk(min(top, len(classes)), dim=1)
            for chances, labels in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                results.append(
                    [
                        (classes[label], chance)
                        for label, chance in zip(labels, chances, strict=True)
                    ]
                )
    return results


def _batches(images: Iterable[Tensor]) -> Iterator[Tensor]:
    """Images of one shape that follow each other, stacked: (N, 3, H, W), N up to 32."""
    waiting: list[Tensor] = []
    for image in images:
        if waiting and (image.shape != waiting[0].shape or len(waiting) == _PREDICT_BATCH):
            yield torch.stack(waiting)
            waiting = []
        waiting.append(image)
    if waiting:
        yield torch.stack(waiting)
