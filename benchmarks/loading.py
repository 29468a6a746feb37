"""Images a second that a loader hands over: from files, from shards, and held in memory.

    python benchmarks/loading.py [--size 64] [--images 4000] [--workers 2] [--out results.csv]

Loads a generated folder of JPEG files as training does (random resized crop, flip), an epoch of
each kind in turn, the first of each left out: it starts the workers and fills the cache.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from senet import machine
from senet.data import DataOptions, load_data, train_loader
from senet.loading import ImageLoader
from senet.packing import pack


def make_folder(root: Path, images: int, size: int) -> Path:
    """JPEG files of soft noise, in ten classes, a tenth of them to validate on."""
    rng = np.random.default_rng(0)
    for number in range(images):
        part = "val" if number % 10 == 0 else "train"
        folder = root / part / f"class {number // 10 % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(
            folder / f"{number}.jpg", quality=90
        )
    return root


def epoch_seconds(loader: ImageLoader, epoch: int) -> tuple[float, int]:
    """How long an epoch takes to load, and its images."""
    loader.sampler.set_epoch(epoch)
    begun, count = time.perf_counter(), 0
    for images, _ in loader:
        count += len(images)
    return time.perf_counter() - begun, count


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_folder(Path(scratch, "folder"), given.images, given.size)
        packed = pack(folder, Path(scratch, "packed")).directory
        loaders = {}
        for name, data in (("folder", folder), ("shards", packed)):
            for cache in (False, True):
                options = DataOptions(
                    data=str(data), image_size=given.size, workers=given.workers, cache=cache
                )
                key = f"{name}{', cache' * cache}"
                loaders[key] = train_loader(load_data(options), options)
        speeds: dict[str, list[float]] = {name: [] for name in loaders}
        for epoch in range(given.epochs + 1):
            for name, loader in loaders.items():
                seconds, count = epoch_seconds(loader, epoch)
                if epoch:
                    speeds[name].append(count / seconds)
    rows = [
        {
            "data": name,
            "size": given.size,
            "workers": given.workers,
            "images_per_second": round(median(values)),
            "least": round(min(values)),
            "most": round(max(values)),
            **machine.describe(),
        }
        for name, values in speeds.items()
    ]
    for row in rows:
        print(f"{row['data']:<16} {row['images_per_second']:>7,} images/s "
              f"({row['least']:,} to {row['most']:,})")  # fmt: skip
    if given.out:
        with given.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
