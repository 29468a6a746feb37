"""What a network costs: parameters, multiply-adds, bytes kept for backward, seconds a step.

With the accuracy, these are the columns in which a plain network and its SE twin are compared.
Parameters and MACs are exact; bytes and seconds are those of the device that the model is on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import UserError
from .given import copied, preserved_generators
from .timing import time_in_turn
from .tracing import meta_copy

__all__ = [
    "Cost",
    "count_macs",
    "count_parameters",
    "inference_seconds",
    "measure_cost",
    "saved_for_backward",
    "step_seconds",
]


@dataclass(frozen=True)
class Cost:
    """The columns of a comparison, without the accuracy.

    Args:
        parameters: see `count_parameters`.
        macs: multiply-adds for one image; see `count_macs`.
        step_ms: milliseconds of a forward and backward pass over the batch; see `step_seconds`.
        saved_bytes: kept for backward over the batch; see `saved_for_backward`.
    """

    parameters: int
    macs: int
    step_ms: float
    saved_bytes: int


def count_parameters(model: nn.Module) -> int:
    """The number of parameters, a shared one once; buffers are not parameters.

    >>> count_parameters(nn.Linear(10, 3))
    33
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, input_size: tuple[int, ...] = (3, 224, 224)) -> int:
    """Multiply-adds of one forward in evaluation mode for one input of shape ``input_size``.

    `torch.utils.flop_counter` counts a structural copy on the meta device, so that nothing is
    computed and ``model`` is not touched, or, where the forward asks for values, a copy that runs;
    its two FLOPs a multiply-add are halved. As in the
    paper's layer tables, convolutions and matrix products count, and their biases, pooling,
    norms, activations and element-wise work (the scaling by the gate among it) do not.

    Raises:
        UserError: the model does not run on an input of this size.

    >>> count_macs(nn.Conv2d(3, 8, 3, padding=1), (3, 10, 10)) == 8 * 10 * 10 * 3 * 3 * 3
    True
    """
    x = torch.empty(1, *input_size, dtype=_dtype(model), device="meta")
    twin = meta_copy(model)
    try:
        return _counted(twin, x)
    except Exception as error:  # whatever a forward raises
        failure = error
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    if device.type != "meta":
        try:
            with preserved_generators(model):
                real = copied(model, hooks=False).eval()
                return _counted(real, torch.rand_like(x, device=device))
        except Exception as error:
            failure = error
    reason = (str(failure) or type(failure).__name__).splitlines()[0]
    raise UserError(
        f"{type(model).__name__} does not run on an input of size {input_size}: {reason}"
    ) from failure


def _counted(network: nn.Module, x: Tensor) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # brings Triton: two seconds

    with torch.inference_mode(), x.device, FlopCounterMode(display=False) as counter:
        network(x)
    return counter.get_total_flops() // 2


def saved_for_backward(model: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps between the forward of ``x`` (N, …) and its backward.

    The formula: the sum of the sizes of all distinct storages that hold a tensor saved for
    backward (`torch.autograd.graph.saved_tensors_hooks`), without the storages of ``x``, the
    parameters and the buffers, which are there anyway. A storage counts once and whole, however
    many operations save it or a view of it. What an autograd function keeps by other means than
    ``save_for_backward`` is not seen.

    The model runs once in the mode that it is in (``model.train()`` for a training step);
    buffers and the state of the random generators are put back afterwards.

    >>> saved_for_backward(nn.Sequential(nn.Linear(4, 8), nn.Sigmoid()), torch.ones(2, 4))
    64
    """
    known = {tensor.untyped_storage() for tensor in (x, *model.parameters(), *model.buffers())}
    # storages are kept alive here, or the address of a freed one could come back as another's
    saved: set[torch.UntypedStorage] = set()

    def pack(tensor: Tensor) -> Tensor:
        saved.add(tensor.untyped_storage())
        return tensor

    with _preserved(model, x), torch.enable_grad():
        with torch.autograd.graph.saved_tensors_hooks(pack, _same):
            output = model(x)
        del output
    return sum(storage.nbytes() for storage in saved - known)


def step_seconds(model: nn.Module, x: Tensor, *, warmup: int = 3, repeats: int = 10) -> float:
    """Median seconds of a training step without its update: forward, loss and backward.

    As the paper times it: one pass forwards and backwards over the batch ``x`` (N, …), with
    cross-entropy against class 0. The model, which maps to logits (N, K), runs in the mode that
    it is in; gradients, buffers and random generators are put back afterwards.

    Args:
        model: on the device of ``x``.
        x: one batch.
        warmup: steps that do not count.
        repeats: steps that do.

    Raises:
        UserError: no step to count, or the output is not (N, K).
    """
    labels = torch.zeros(len(x), dtype=torch.long, device=x.device)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        logits = model(x)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise UserError(
                f"{type(model).__name__} does not return logits (N, K); "
                "only classifiers have their training steps timed"
            )
        F.cross_entropy(logits.float(), labels).backward()

    with _preserved(model, x), torch.enable_grad():
        return _median_seconds(step, x.device, warmup, repeats)


def inference_seconds(model: nn.Module, x: Tensor, *, warmup: int = 3, repeats: int = 10) -> float:
    """Median seconds of a forward over the batch ``x`` (N, …), in evaluation mode.

    Raises:
        UserError: no forward to count.
    """

    def forward() -> None:
        model(x)

    with _preserved(model, x), torch.inference_mode():
        model.eval()
        return _median_seconds(forward, x.device, warmup, repeats)


def measure_cost(model: nn.Module, x: Tensor, *, warmup: int = 3, repeats: int = 10) -> Cost:
    """All the columns for one model and one batch ``x`` (N, C, H, W), as a training step.

    The model is left as it was, its mode included.
    """
    with _preserved(model, x):
        model.train()
        return Cost(
            parameters=count_parameters(model),
            macs=count_macs(model, tuple(x.shape[1:])),
            step_ms=1000 * step_seconds(model, x, warmup=warmup, repeats=repeats),
            saved_bytes=saved_for_backward(model, x),
        )


def _median_seconds(
    run: Callable[[], None], device: torch.device, warmup: int, repeats: int
) -> float:
    if warmup < 0 or repeats < 1:
        raise UserError(f"cannot time {repeats} runs after {warmup}; use at least 1 after 0")
    times = time_in_turn({"run": run}, rounds=repeats, warmup=warmup, device=device)
    return median(times["run"]) / 1000


@contextmanager
def _preserved(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Put back modes, buffers, gradients and random generators on leaving."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    cuda = [x.device] if x.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cuda):
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _dtype(model: nn.Module) -> torch.dtype:
    floating = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(floating, torch.get_default_dtype())


def _same(packed: Any) -> Any:
    return packed
