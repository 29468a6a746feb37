"""OpenVINO's files: an .xml and beside it a .bin with the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .job import KEY, Job, Runner, exported_program

__all__ = ["compiled", "read", "write"]


def write(job: Job, path: Path) -> None:
    """Write ``path`` and its .bin, in float32; the batch is open, images and logits named so.

    Raises:
        UserError: the network cannot be exported, or has an operator that OpenVINO has not.
    """
    import openvino
    from openvino.frontend import OpConversionFailure

    # Matrix products and broadcast gates fuse here: the deployed form stays as it is.
    try:
        model = openvino.convert_model(exported_program(job))
    except OpConversionFailure as error:
        name = type(job.model).__name__
        raise UserError(f"{name} has no OpenVINO form: {_line(error)}") from error
    model.reshape([-1, *job.example.shape[1:]])
    for port, name in ((model.input(0), "images"), (model.output(0), "logits")):
        port.get_tensor().set_names({name})
    model.set_rt_info(job.document, [KEY])
    openvino.save_model(model, path, compress_to_fp16=False)


def read(path: Path) -> tuple[str | None, Runner]:
    """The model card of a file, if it has one, and the network, run by OpenVINO on the CPU.

    Raises:
        UserError: it is no model of OpenVINO's, or lacks its .bin.
    """
    import openvino

    try:
        model = openvino.Core().read_model(path)
        request = compiled(model).create_infer_request()
    except RuntimeError as error:
        raise UserError(
            f"{str(path)!r} and {path.with_suffix('.bin').name!r} are no model of OpenVINO's: "
            + _line(error)
        ) from error

    def run(images: Tensor) -> Tensor:
        try:
            outputs = request.infer([images.numpy()])
        except RuntimeError as error:
            raise UserError(f"{str(path)!r} does not run: {_line(error)}") from error
        return torch.from_numpy(outputs[0].copy())

    document = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None
    return document, run


def compiled(model: Any, options: Mapping[str, object] = MappingProxyType({})) -> Any:
    """A model of OpenVINO's, or a file of one, for the CPU: float32, as many threads as torch."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    precision = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(model, "CPU", {**settings, **precision, **options})


def _line(error: Exception) -> str:
    """The line of a message that says what is wrong; the others say where in OpenVINO."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    rules = [line for line in told if "No conversion rule" in line]  # the last of a conversion's
    return (rules or told or ["no reason given"])[0].removeprefix("-- ")
