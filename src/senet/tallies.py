"""What a row of a table costs, counted on the meta device once for a network and its options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .cost import count_macs, count_parameters
from .errors import UserError
from .models import create_model, native_input_size
from .tracing import meta_copy

__all__ = ["Tally", "count_element_wise", "count_statistics", "tally", "tally_element_wise"]

# As operators are called in evaluation mode, without their overloads.
_ELEMENT_WISE = frozenset(
    (
        *("batch_norm", "add", "add_", "mul", "mul_", "relu", "relu_", "sigmoid", "tanh"),
        *("mean", "amax", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "softmax"),
    )
)


@dataclass(frozen=True)
class Tally:
    """The counts of a network.

    Args:
        macs: multiply-adds for one image (`senet.cost.count_macs`).
        parameters: see `senet.cost.count_parameters`.
        statistics: see `count_statistics`.
    """

    macs: int
    parameters: int
    statistics: int

    @property
    def file_mebibytes(self) -> float:
        """Size of its weights in MiB: four bytes for each parameter and statistic."""
        return 4 * (self.parameters + self.statistics) / 2**20


def count_statistics(model: nn.Module) -> int:
    """The running means and variances of the norms: stored, but not trained.

    >>> count_statistics(nn.BatchNorm2d(7))
    14
    """
    return sum(buffer.numel() for buffer in model.buffers() if buffer.is_floating_point())


def count_element_wise(model: nn.Module, input_size: tuple[int, ...]) -> int:
    """Operations of one forward in evaluation mode that `senet.cost.count_macs` leaves out.

    One for each element of norms, activations, sums, products and pooling, by the larger of what
    goes in and what comes out: a mean over 7×7 positions is 49 operations, a scaling of a map by
    its gates one for each element of the map.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
    >>> count_element_wise(model, (3, 5, 5)) == 2 * 8 * 5 * 5
    True
    """
    counter = _ElementWise()
    x = torch.empty(1, *input_size, device="meta")
    on_meta = meta_copy(model)
    with torch.inference_mode(), counter:
        on_meta(x)
    return counter.total


class _ElementWise(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in _ELEMENT_WISE:
            leaves = tree_leaves((args, output))
            self.total += max(leaf.numel() for leaf in leaves if isinstance(leaf, Tensor))
        return output


def tally(network: str, num_classes: int, options: Mapping[str, object]) -> Tally:
    """The counts of `senet.models.create_model` of these, at the network's native image size.

    Raises:
        UserError: no such network, or one that does not run on the meta device.
    """
    return _tally(network, num_classes, tuple(sorted(options.items())))


def tally_element_wise(network: str, num_classes: int, options: Mapping[str, object]) -> int:
    """`count_element_wise` of the same."""
    return _element_wise(network, num_classes, tuple(sorted(options.items())))


@cache
def _tally(network: str, num_classes: int, options: tuple[tuple[str, Any], ...]) -> Tally:
    model = _on_meta(network, num_classes, options)
    try:
        macs = count_macs(model, native_input_size(network))
    except UserError as error:
        raise UserError(f"the multiply-adds of {network!r} cannot be counted: {error}") from error
    return Tally(macs, count_parameters(model), count_statistics(model))


@cache
def _element_wise(network: str, num_classes: int, options: tuple[tuple[str, Any], ...]) -> int:
    model = _on_meta(network, num_classes, options)
    return count_element_wise(model, native_input_size(network))


@lru_cache(maxsize=1)  # of a row, first the one is counted, then the other
def _on_meta(network: str, num_classes: int, options: tuple[tuple[str, Any], ...]) -> nn.Module:
    with torch.device("meta"):  # nothing is drawn, nothing is computed
        return create_model(network, num_classes=num_classes, **dict(options))
