"""The table of reads and writes in docs/algebra.md, counted at the dispatcher."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from senet.kernels import Excitation, Norm, norm_excite, rows

DOCUMENT = Path(__file__).parents[1] / "docs" / "algebra.md"


class _Traffic(TorchDispatchMode):
    """Elements of whole feature maps read and written by operators, in units of one map."""

    # Operators that go over their input more than once, statistics first: x, x → y and g, x, g, x.
    NOTHING = ("aten.empty_like.default", "aten._unsafe_view.default")
    AGAIN = ("native_batch_norm.default", "native_batch_norm_backward.default")

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.numel = like.numel()
        self.read = self.written = 0.0

    def _maps(self, tree: Any) -> float:
        tensors = [t for t in tree_leaves(tree) if isinstance(t, Tensor)]
        # A part of a map, a view, counts with its part; a temporary of a chunk is in the caches.
        whole = [t for t in tensors if t.untyped_storage().nbytes() >= self.numel * 4]
        expanded = [t for t in whole if 0 in t.stride() and t.numel() > 1]
        return sum(t.numel() for t in whole if not any(t is e for e in expanded)) / self.numel

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        if not view and str(func) not in self.NOTHING:
            self.written += self._maps(result)
            reads = self._maps(args)
            name = str(func).removeprefix("aten.")
            training = any(value is True for value in args)
            if name == self.AGAIN[0] and training:
                reads += 1  # the statistics are a pass of their own
            elif name == self.AGAIN[1] and isinstance(args[-1], list) and args[-1][0]:
                reads += 2  # two sums before ∂x
            self.read += reads
        return result


@contextmanager
def traffic(x: Tensor) -> Iterator[_Traffic]:
    with _Traffic(x) as counted:
        yield counted


def table() -> dict[str, tuple[int, ...]]:
    """The page's table: what it calls a row → (reads, writes) forward and backward."""
    found = {}
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if len(cells) == 5 and all(cell.isdigit() for cell in cells[1:]):
            found[cells[0]] = tuple(map(int, cells[1:]))
    return found


def _norm_alone(x: Tensor, norm: Norm, block: Excitation) -> Tensor:
    return F.batch_norm(x, None, None, norm.weight, norm.bias, True)


def _composed(x: Tensor, norm: Norm, block: Excitation) -> Tensor:
    return norm_excite(x, norm, block, "reference")


def _ours(x: Tensor, norm: Norm, block: Excitation) -> Tensor:
    return norm_excite(x, norm, block, "aten")


@pytest.mark.parametrize(
    ("row", "function", "layout"),
    [
        ("BN", _norm_alone, torch.contiguous_format),
        ("BN", _norm_alone, torch.channels_last),
        ("SE(BN), two modules", _composed, torch.contiguous_format),
        ("SE(BN), two modules", _composed, torch.channels_last),
        ("SE(BN), `aten` in float32", _ours, torch.contiguous_format),
        ("the same, channels-last", _ours, torch.channels_last),
    ],
)
def test_passes_over_the_feature_map(
    row: str, function: Any, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table, counted at the dispatcher."""
    monkeypatch.setattr(rows, "CHUNK", 64)
    torch.manual_seed(0)
    x = torch.randn(8, 16, 4, 4).contiguous(memory_format=layout).requires_grad_()
    norm = Norm(torch.ones(16).requires_grad_(), torch.zeros(16).requires_grad_(), None, None)
    block = Excitation(*(torch.randn(s).requires_grad_() for s in ((2, 16), (2,), (16, 2), (16,))))
    with traffic(x) as forward:
        y = function(x, norm, block)
    g = torch.randn_like(y)
    with traffic(x) as backward:
        torch.autograd.grad(y, (x, norm.weight, norm.bias), g)
    counted = (forward.read, forward.written, backward.read, backward.written)
    assert tuple(map(round, counted)) == table()[row]
    assert all(math.isclose(value, round(value)) for value in counted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_it_keeps_x_and_vectors(dtype: torch.dtype) -> None:
    """What the compiler's partitioner saves for backward, with its own choice what to recompute."""
    torch.manual_seed(0)
    x = torch.randn(4, 16, 9, 9).to(dtype).requires_grad_()
    weight, bias = (torch.randn(16, requires_grad=True) for _ in range(2))
    norm = Norm(weight, bias, torch.zeros(16), torch.ones(16))
    block = Excitation(torch.randn(2, 16, requires_grad=True), None, torch.randn(16, 2), None)

    def tail(x: Tensor) -> Tensor:
        return norm_excite(x, norm, block, "traced")

    compiled = torch.compile(tail, backend="aot_eager_decomp_partition")
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: (saved.append(tensor), tensor)[1], lambda tensor: tensor
    ):
        compiled(x)
    torch._dynamo.reset()
    maps = [tensor for tensor in saved if tensor.numel() >= x.numel()]
    assert len(maps) == 1
    assert maps[0].untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
