"""What `make demo` does: train a pair on real digits, compare, evaluate, classify three images.

Each step is a command of senet, shown as one would type it.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from sklearn.datasets import load_digits
from torchvision.utils import save_image

from senet.cli import main as senet
from senet.data import DataOptions, load_data

HELD_OUT = (0, 7, 19)  # which three of the held-out images are classified


def run(*arguments: str) -> None:
    """Show a command as it would be typed, and run it."""
    print(f"\n$ senet {shlex.join(arguments)}", flush=True)
    if status := senet(arguments):
        sys.exit(status)


def fresh(folder: Path) -> Path:
    """``folder``, or folder-2, folder-3, … where it is taken: nobody's run is removed."""
    candidates = [folder, *(folder.with_name(f"{folder.name}-{n}") for n in range(2, 1000))]
    return next(path for path in candidates if not path.exists())


def write_held_out_images(folder: Path) -> list[Path]:
    """Three digits that the networks were not trained on, as PNG files named after them."""
    held_out = load_data(DataOptions(data="digits")).val
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in HELD_OUT:
        pixels, label = held_out.source(index)
        paths.append(folder / f"held-out-{index}-shows-a-{label}.png")
        save_image(pixels.float() / 255, paths[-1])
    return paths


def main() -> None:
    """Run the whole demonstration; about two minutes on two processor cores."""
    digits = len(load_digits().target)
    print(f"Two networks, one with SE and one without, learn {digits:,} handwritten digits.")
    out = fresh(Path("runs/demo"))
    run("train", "--config", "recipes/digits.yaml", "--twin", "--out", str(out))
    run("evaluate", str(out))
    images = write_held_out_images(out / "images")
    run("predict", str(out), "--top", "3", *map(str, images))
    print(
        f"\nThe run with SE is in {out}, its plain twin in {out / 'twin'}, the table above in "
        f"{out / 'comparison.md'}.\nNext: senet plan timm/resnet50, or senet train --help"
    )


if __name__ == "__main__":
    main()
