"""What `make demo` does: train a pair on real digits, compare, evaluate, classify three images.

Each step is a command of senet, shown as one would type it. Arguments are further options of
`senet train`, to try the demonstration itself out; without any it fails where a network stays
below its bar.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sklearn.datasets import load_digits
from torchvision.utils import save_image

from senet.cli import main as senet
from senet.data import DataOptions, load_data
from senet.machine import describe
from senet.options import read_options
from senet.resumption import CONFIG
from senet.runs import atomic_write, read_card

BAR = 0.97  # top-1 on the held-out images, of both networks
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


def note(out: Path, seconds: float) -> Path:
    """Write demo.json: what was measured, on what, and how long it took."""
    threads = read_options(out / CONFIG).threads
    machine = describe() | ({} if threads is None else {"threads": threads})
    comparison = json.loads((out / "comparison.json").read_text())
    document = {**machine, "seconds": round(seconds, 1), "comparison": comparison}
    text = json.dumps(document, indent=2) + "\n"
    atomic_write(out / "demo.json", lambda file: file.write(text.encode()))
    return out / "demo.json"


def check_bar(runs: Sequence[Path]) -> None:
    """Fail where a network is not as good as digits let it be."""
    for card in map(read_card, runs):
        if card.top1 is None or card.top1 < BAR:
            sys.exit(f"{card.name} has top-1 {card.top1}, below {BAR:.0%}: something is wrong")


def main(options: Sequence[str] = ()) -> None:
    """Run the whole demonstration; about two minutes on two processor cores."""
    began = time.monotonic()
    digits = len(load_digits().target)
    print(f"Two networks, one with SE and one without, learn {digits:,} handwritten digits.")
    out = fresh(Path("runs/demo"))
    pair = out, out / "twin"
    run("train", "--config", "recipes/digits.yaml", "--twin", "--out", str(out), *options)
    for member in pair:
        run("evaluate", str(member))
    images = write_held_out_images(out / "images")
    run("predict", str(out), "--top", "3", *map(str, images))
    print(
        f"\nThe run with SE is in {pair[0]}, its plain twin in {pair[1]}, the table above in "
        f"{out / 'comparison.md'},\nand on what it was measured in "
        f"{note(out, time.monotonic() - began)}."
        "\nNext: senet plan timm/resnet50, or senet train --help"
    )
    if not options:
        check_bar(pair)


if __name__ == "__main__":
    main(sys.argv[1:])
