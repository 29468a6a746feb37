"""Which values the options of a training run may have."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .sites import MOST_HIDDEN

__all__ = ["RANGES"]


def _within(least: float, most: float) -> tuple[Callable[[Any], bool], str]:
    return lambda v: least <= v <= most, f"at least {least:,} and at most {most:,}"


_INT64 = 2**63 - 1  # what PyTorch counts with
RANGES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (
        ("model", "data", "val_data", "data_root", "init"),
        lambda v: bool(v.strip()),
        "a name or a folder",
    ),
    (("epochs", "batch_size", "limit_batches", "accumulate"), *_within(1, 10**9)),
    (("repeats",), *_within(1, 1024)),
    (("rand_augment",), *_within(0, 30)),
    # Below, what is drawn from their distribution is 0 or 1 to the last digit of a float32.
    (("mixup", "cutmix"), lambda v: v == 0 or 1e-3 <= v <= 1000, "0, or 0.001 to 1,000"),
    (("erase", "mix_prob"), *_within(0, 1)),
    (("ema_decay",), lambda v: 0 < v < 1, "above 0 and below 1"),
    (("layer_decay",), lambda v: 0 < v <= 1, "above 0 and at most 1"),
    (("image_size",), *_within(1, 16_384)),
    (("threads",), *_within(1, 1024)),
    (("seed",), *_within(0, _INT64)),
    (("workers",), lambda v: v >= 0, "0 or more"),
    (("load_timeout",), lambda v: 0 < v <= 1e6, "above 0, at most 1,000,000 seconds"),
    (("weight_decay", "warmup_epochs"), *_within(0, 10**9)),
    (("lr", "se_lr", "gamma", "clip_norm"), lambda v: 0 < v <= 1e38, "above 0, at most 1e38"),
    (
        ("reduction",),
        lambda v: (
            all(1e-3 <= r < math.inf for r in v.values()) and bool(v)
            if isinstance(v, dict)
            else 1e-3 <= v < math.inf
        ),
        "above 0 (0.001 or more), for each stage or glob where there are several",
    ),
    (("hidden", "min_hidden", "divisor"), *_within(1, MOST_HIDDEN)),
    (("sites",), lambda v: all(map(str.strip, v.split(","))), "globs or stages, a comma between"),
    (("momentum", "label_smoothing", "drop_path"), lambda v: 0 <= v < 1, "in [0, 1)"),
    (("val_fraction",), lambda v: 0 < v < 1, "above 0, to have images to validate on, and below 1"),
    (("warmup_factor",), lambda v: 0 < v <= 1, "above 0 and at most 1"),
    (("milestones",), lambda v: all(m >= 1 for m in v) and list(v) == sorted(set(v)), "rising"),
    (
        ("devices",),
        lambda v: v == "auto" or 1 <= v <= 10**6,
        "auto, or at least 1 and at most 1,000,000",
    ),
    (("nodes",), *_within(1, 10**6)),
    (("peer_timeout",), *_within(1, 10**6)),
)
"""Names of options, whether a value fits them, and which would, in words; null always fits."""
