"""Which networks SE can be put into: every family of timm and every classifier of torchvision.

For each, in turn: plan, attach, one forward and backward, and `senet.verify`; where a network has
SE in every block, `senet.adopt` and `senet.verify`. The result is the table docs/coverage.md.

    python tools/coverage.py                        # all of it, about half an hour on two cores
    python tools/coverage.py --only resnet dla      # some families, table on the screen
    python tools/coverage.py --refresh              # find the smallest models of timm again
"""

from __future__ import annotations

import gc
import json
import math
import platform
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import timm
import torch
import torchvision
from coverage_families import FAMILIES, TOO_FEW_CONVOLUTIONS, WHY
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

import senet
from senet.block import SqueezeExcite
from senet.errors import nearest
from senet.placement import default_input_size
from senet.runs import atomic_write

TORCHVISION = "torchvision"
CONVOLUTIONS = 10  # fewer make a patch embedding, not a network of convolutions
PAGE = Path(__file__).resolve().parents[1] / "docs" / "coverage.md"


@dataclass(frozen=True)
class Row:
    """What came of one network.

    Args:
        family: timm's model module, or "torchvision".
        model: name of the network.
        input_size: (C, H, W).
        sites: SE blocks attached, or adopted.
        kinds: "12 residual, 1 dense", say.
        plan_seconds: of `senet.plan`.
        forward_seconds: of one eager CPU forward of the plain network, a single image; NaN where
            only shapes were computed.
        result: "attached", "adopted", "left" (nowhere to attach), or "failed".
        reason: of "left" and "failed".
    """

    family: str
    model: str
    input_size: tuple[int, ...]
    sites: int
    kinds: str
    plan_seconds: float
    forward_seconds: float
    result: str
    reason: str = ""

    @property
    def in_time(self) -> bool:
        """Planning takes at most three forwards or two seconds, whichever is more."""
        return self.plan_seconds <= 2.0 or self.plan_seconds <= 3 * self.forward_seconds


# ---------------------------------------------------------------------------- one network


def examine(family: str, name: str) -> Row:
    """Put SE into one network and see that it works there."""
    if family == TORCHVISION:
        return _examine_shapes(name)
    with _foreign_warnings():
        torch.manual_seed(0)
        model = timm.create_model(name).eval()
        size = default_input_size(model)
        image = torch.randn(1, *size)
        forward_seconds = _seconds(lambda: _outputs(model, image))
        try:
            planned = senet.plan(model, input_size=size)
            plan_seconds = _seconds(lambda: senet.plan(model, input_size=size))
            if planned:
                sites, result, reason = _attached(model, planned), "attached", ""
            elif _has_se_everywhere(planned):
                sites, result, reason = _adopted(model, size), "adopted", ""
            else:
                sites, result, reason = 0, "left", _why_left(planned)
        except Exception as error:
            # Whatever goes wrong with a foreign network is the finding that the table reports.
            planned, plan_seconds, sites, result = senet.Plan(()), float("nan"), 0, "failed"
            reason = f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"
    count = Counter(site.kind for site in planned)
    kinds = ", ".join(f"{number} {kind}" for kind, number in count.most_common())
    return Row(family, name, size, sites, kinds, plan_seconds, forward_seconds, result, reason)


@contextmanager
def _foreign_warnings() -> Iterator[None]:
    """timm and torchvision warn of their own deprecations, which are not what is looked at."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _examine_shapes(name: str) -> Row:
    """Put SE into one of torchvision's on the meta device: all of them, the largest too.

    Forward and backward then compute shapes only, and `senet.verify`, which wants numbers, is
    left to the families of timm.
    """
    # These two draw their initial weights from a truncated normal, for minutes.
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    size = (3, 299, 299) if name == "inception_v3" else (3, 224, 224)
    with _foreign_warnings(), _LayersOnMeta():
        model = torchvision.models.get_model(name, weights=None, **options)
    with _foreign_warnings(), torch.device("meta"):
        planned = senet.plan(model, input_size=size)
        plan_seconds = _seconds(lambda: senet.plan(model, input_size=size))
        sites, result, reason = len(planned), "attached", ""
        if planned:
            senet.attach(model, planned).train()
            outputs = tree_leaves(model(torch.zeros(2, *size)))
            torch.stack([t.sum() for t in outputs if isinstance(t, Tensor)]).sum().backward()
        elif _has_se_everywhere(planned):
            senet.adopt(model)
            sites = sum(isinstance(module, SqueezeExcite) for module in model.modules())
            result = "adopted"
        else:
            result, reason = "left", _why_left(planned)
    count = Counter(site.kind for site in planned)
    kinds = ", ".join(f"{number} {kind}" for kind, number in count.most_common())
    nan = float("nan")
    return Row(TORCHVISION, name, size, sites, kinds, plan_seconds, nan, result, reason)


class _LayersOnMeta(TorchFunctionMode):
    """Layers are made without memory; the numbers a network computes its widths with are real."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> object:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones):
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _seconds(call: Callable[[], object]) -> float:
    """The shorter of two runs: the machine may be shared, and the first run warms up."""
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


def _outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(model(images)) if isinstance(leaf, Tensor)]


def _attached(model: nn.Module, planned: senet.Plan) -> int:
    """Attach, train one step's gradients, verify; the number of blocks."""
    senet.attach(model, planned).train()
    images = torch.randn(2, *planned.input_size)
    outputs = [leaf for leaf in tree_leaves(model(images)) if isinstance(leaf, Tensor)]
    torch.stack([leaf.float().square().mean() for leaf in outputs]).sum().backward()
    for path, parameter in model.named_parameters():
        if ".se." in path and (parameter.grad is None or not parameter.grad.isfinite().all()):
            raise RuntimeError(f"no finite gradient arrives at {path}")
    model.zero_grad(set_to_none=True)
    return len(senet.verify(model, images))


def _adopted(model: nn.Module, size: tuple[int, ...]) -> int:
    """Adopt, see that nothing changed, verify; the number of blocks."""
    images = torch.randn(2, *size)
    before = _outputs(model, images)
    senet.adopt(model)
    for ours, theirs in zip(_outputs(model, images), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    blocks = sum(isinstance(module, SqueezeExcite) for module in model.modules())
    checks = senet.verify(model, images)
    if len(checks) != blocks:
        raise RuntimeError(f"{len(checks)} of {blocks} adopted blocks were verified")
    return blocks


def _has_se_everywhere(planned: senet.Plan) -> bool:
    return not planned and any("existing SE" in entry.reason for entry in planned.skipped)


def _why_left(planned: senet.Plan) -> str:
    reasons = Counter(entry.reason for entry in planned.skipped)
    return "; ".join(f"{reason} ({n} ×)" for reason, n in reasons.most_common(3)) or "no candidate"


# ---------------------------------------------------------------------------- which networks


def jobs(only: Iterable[str] = ()) -> list[tuple[str, str]]:
    """(family, model) of all networks, or of the families named.

    Raises:
        senet.UserError: there is no such family.
    """
    known = [*FAMILIES, TORCHVISION]
    wanted = list(only) or known
    for family in wanted:
        if family in TOO_FEW_CONVOLUTIONS:
            raise senet.UserError(f"{family} has no model with {CONVOLUTIONS} convolutions")
        if family not in known:
            raise senet.UserError(f"no family {family!r}; {nearest(family, known)}")
    found = []
    for family in wanted:
        if family == TORCHVISION:
            found += [(family, name) for name in _torchvision_classifiers()]
        else:
            found.append((family, FAMILIES[family][-1]))
    return found


def _torchvision_classifiers() -> list[str]:
    names = torchvision.models.list_models(module=torchvision.models)
    return [name for name in names if not name.startswith(("vit_", "swin_"))]


def smallest_models(progress: Progress) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each module of timm with its smallest model of ten or more convolutions.

    Where that one has SE in every block, the smallest that has not comes second, if there is any.
    A module without such a model comes with none.
    """
    modules = timm.list_modules()
    task = progress.add_task("", total=len(modules))
    for module in sorted(modules):
        progress.update(task, description=module)
        yield module, _smallest(module)
        progress.advance(task)


def _smallest(module: str) -> tuple[str, ...]:
    sizes = {}
    for name in timm.list_models(module=module, include_tags=False):
        model = _structure(name)
        convolutions = sum(
            isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d) for m in model.modules()
        )
        if convolutions >= CONVOLUTIONS:
            sizes[name] = sum(p.numel() for p in model.parameters())
    names = sorted(sizes, key=sizes.__getitem__)
    for name in names:
        try:
            planned = senet.plan(_structure(name))
        except senet.UserError:
            return tuple(names[:1])  # the run tells how it fails
        if not _has_se_everywhere(planned):
            return tuple(dict.fromkeys((names[0], name)))
    return tuple(names[:1])


def _structure(name: str) -> nn.Module:
    with _foreign_warnings():
        try:
            with torch.device("meta"):
                return timm.create_model(name)
        except (NotImplementedError, RuntimeError):  # it computes its layout with tensors
            return timm.create_model(name)


# ---------------------------------------------------------------------------- the page


def page(rows: list[Row]) -> str:
    """docs/coverage.md: counts, tables and exceptions."""
    ours = [row for row in rows if row.family != TORCHVISION]
    theirs = [row for row in rows if row.family == TORCHVISION]
    late = [row for row in rows if not row.in_time and row.result != "failed"]
    versions = ", ".join(
        f"{package.__name__} {package.__version__}" for package in (senet, torch, torchvision, timm)
    )
    families = len(FAMILIES) + len(TOO_FEW_CONVOLUTIONS)
    return "\n".join(
        (
            "# Which networks SE goes into",
            "",
            f"Written by `python tools/coverage.py` on {date.today().isoformat()} with {versions}, "
            f"Python {platform.python_version()}, {torch.get_num_threads()} threads of "
            f"{platform.machine()}.",
            "",
            "Each network was planned, attached, run forward and backward in training mode, and "
            "passed `senet.verify`; where it has SE in every block already, `senet.adopt` took "
            "the blocks over with the same outputs, and `senet.verify` passed. torchvision's, all "
            "of them up to the largest, were planned, attached and run forward and backward on the "
            "meta device, which computes shapes only, and not verified.",
            "",
            f"- **timm**: {families} model modules, of which {len(FAMILIES)} have a model with "
            f"{CONVOLUTIONS} or more convolutions. {_counts(ours)}.",
            f"- **torchvision**: {len(theirs)} convolutional classifiers. {_counts(theirs)}.",
            f"- **Planning** took at most three forwards or two seconds for "
            f"{len(rows) - len(late)} of {len(rows)}"
            + (f"; longer: {', '.join(row.model for row in late)}." if late else "."),
            "",
            "## timm",
            "",
            "The smallest model of each module by parameters, of those with ten or more "
            "convolutions; where that one has SE in every block, the smallest that has not, if "
            "there is one.",
            "",
            *_table(ours),
            "",
            "## torchvision",
            "",
            *_table(theirs),
            "",
            "## Exceptions",
            "",
            *_exceptions(rows),
            "",
            f"Modules of timm without a model of {CONVOLUTIONS} convolutions, mostly transformers: "
            f"{', '.join(TOO_FEW_CONVOLUTIONS)}.",
            "",
        )
    )


def _counts(rows: list[Row]) -> str:
    count = Counter(row.result for row in rows)
    told = {"attached": "attached", "adopted": "adopted", "left": "left out", "failed": "failed"}
    return ", ".join(f"{count[result]} {text}" for result, text in told.items() if count[result])


def _table(rows: list[Row]) -> list[str]:
    lines = [
        "| family | model | input | sites | kinds | plan, s | forward, s | result |",
        "|---|---|---|---:|---|---:|---:|---|",
    ]
    for row in rows:
        plan_seconds = f"{row.plan_seconds:.2f}" + ("" if row.in_time else " (!)")
        size = "×".join(map(str, row.input_size))
        forward = "–" if math.isnan(row.forward_seconds) else f"{row.forward_seconds:.2f}"
        lines.append(
            f"| {row.family} | {row.model} | {size} | {row.sites} | {row.kinds or '–'} "
            f"| {plan_seconds} | {forward} | {row.result} |"
        )
    return lines


def _exceptions(rows: list[Row]) -> list[str]:
    lines = []
    for row in rows:
        smallest = FAMILIES.get(row.family, (row.model,))[0]
        if row.result in ("left", "failed"):
            told = WHY.get(row.family, "")
            lines.append(f"- **{row.family}** ({row.model}), {row.result}: {told} [{row.reason}]")
        elif smallest != row.model:
            lines.append(f"- **{row.family}**: {smallest} has SE in every block, {row.model} not.")
        elif row.result == "adopted" and row.family != TORCHVISION:
            lines.append(f"- **{row.family}**: every model has SE in every block: adopted.")
    return lines or ["None."]


# ---------------------------------------------------------------------------- the command


def main(argv: list[str] | None = None) -> int:
    """Run the tool; 1 where a network failed, 2 for a mistake in the arguments."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="FAMILY", help="only these, and no page"
    )
    parser.add_argument("--out", type=Path, default=PAGE, help="where the page goes")
    parser.add_argument("--json", action="store_true", help="the rows as JSON, and no page")
    parser.add_argument(
        "--refresh", action="store_true", help="find the smallest models again and print them"
    )
    options = parser.parse_args(argv)
    console = Console(stderr=True)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as progress:
        if options.refresh:
            for module, names in smallest_models(progress):
                print(f"    {json.dumps(module)}: {json.dumps(names)},", flush=True)
            return 0
        try:
            chosen = jobs(options.only)
        except senet.UserError as error:
            console.print(f"coverage: error: {error}", markup=False)
            return 2
        rows = _examined(chosen, progress)
    if options.json:
        print(json.dumps([asdict(row) | {"in_time": row.in_time} for row in rows], indent=2))
    elif options.only:
        print("\n".join((*_table(rows), "", *_exceptions(rows))))
    else:
        atomic_write(options.out, lambda file: file.write(page(rows).encode()))
        console.print(f"wrote {options.out}")
    return int(any(row.result == "failed" for row in rows))


def _examined(chosen: list[tuple[str, str]], progress: Progress) -> list[Row]:
    task = progress.add_task("", total=len(chosen))
    rows = []
    for family, name in chosen:
        progress.update(task, description=f"{family} {name}")
        rows.append(examine(family, name))
        if not progress.console.is_terminal:  # the bar is seen on a terminal only
            progress.console.print(f"{family} {name}: {rows[-1].result}", markup=False)
        progress.advance(task)
        gc.collect()
    return rows


if __name__ == "__main__":
    sys.exit(main())
