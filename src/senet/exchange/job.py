"""What an exporter is given, and what a runtime gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UserError

__all__ = ["KEY", "OPSET", "OPSETS", "Job", "Runner", "exported_program"]

KEY = "senet"
"""The name under which the model card stands in a file."""

OPSET = 20
"""The version of ONNX's operators that is written unless told otherwise."""

OPSETS = range(18, 26)
"""Versions of ONNX's operators: torch writes no older ones, ONNX Runtime takes no newer ones."""

Runner = Callable[[Tensor], Tensor]
"""Images float32 (N, 3, H, W) on the CPU → logits (N, classes)."""


@dataclass(frozen=True)
class Job:
    """One network to be written.

    Args:
        model: in evaluation mode, on the CPU, in the form that is wanted.
        example: images (N, 3, H, W); N is left open in the file, H and W are not.
        document: the model card, as JSON.
        opset: of ONNX; the other formats have none.
    """

    model: nn.Module
    example: Tensor
    document: str
    opset: int = OPSET


def exported_program(job: Job) -> torch.export.ExportedProgram:
    """The network as `torch.export` sees it, for any number of images.

    Raises:
        UserError: it cannot be exported.
    """
    batch = torch.export.Dim("batch", min=1)
    try:
        program = torch.export.export(job.model, (job.example,), dynamic_shapes=({0: batch},))
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
        name, reason = type(job.model).__name__, (str(error) or repr(error)).splitlines()[0]
        raise UserError(f"{name} cannot be exported for any number of images: {reason}") from error
    for node in program.graph.nodes:  # where it was made is nobody's business who gets the file
        node.meta.pop("stack_trace", None)
    return program
