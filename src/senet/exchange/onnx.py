"""ONNX files: written by torch's exporter, run by ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .forms import in_blocks
from .job import KEY, OPSETS, Job, Runner, exported_program

__all__ = ["read", "session", "write"]


def write(job: Job, path: Path) -> None:
    """Write ``path``, one file; images (batch, 3, H, W) and logits (batch, classes) named so.

    Raises:
        UserError: the network cannot be exported, or not with this opset.
    """
    import onnx

    if job.opset not in OPSETS:
        raise UserError(f"opset {job.opset} cannot be written; use {OPSETS[0]} to {OPSETS[-1]}")
    program = exported_program(replace(job, model=in_blocks(job.model)))
    try:
        made = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=job.opset,
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{type(job.model).__name__} has no ONNX form: {reason}") from error
    assert made is not None
    for node in made.model.graph.all_nodes():
        node.metadata_props.clear()
    made.model.metadata_props[KEY] = job.document
    proto = made.model_proto
    _name_batch(proto.graph)
    onnx.save(proto, path)


def _name_batch(graph: Any) -> None:
    """The open dimension under its name, where torch invents one."""
    invented = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = dim.dim_param.replace(invented, "batch")


def session(
    path: Path,
    *,
    threads: int | None = None,
    optimised: Path | None = None,
    profile: Path | None = None,
) -> Any:
    """ONNX Runtime's session of a file, on the CPU.

    Args:
        path: of the file.
        threads: by default as many as torch uses.
        optimised: where to write the graph that really runs.
        profile: what the name begins with of the file that its ``end_profiling`` writes.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # errors; it warns of an optimised graph bound to this machine
    # Its threads go on spinning after a run, which takes a processor from whatever runs next:
    # from the next contender, where several are timed in turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def read(path: Path) -> tuple[str | None, Runner]:
    """The model card of a file, if it has one, and the network, run by ONNX Runtime.

    Raises:
        UserError: it is no ONNX file, or none that this ONNX Runtime takes.
    """
    failures = _failures()
    try:
        opened = session(path)
    except failures as error:
        raise UserError(
            f"{str(path)!r} is no ONNX file for this machine: {_line(error)}"
        ) from error
    names = [each.name for each in opened.get_inputs()]
    if len(names) != 1:
        raise UserError(f"{str(path)!r} takes {len(names)} inputs, not images")

    def run(images: Tensor) -> Tensor:
        try:
            outputs = opened.run(None, {names[0]: images.numpy()})
        except failures as error:
            raise UserError(f"{str(path)!r} does not run: {_line(error)}") from error
        return torch.from_numpy(outputs[0])

    return opened.get_modelmeta().custom_metadata_map.get(KEY), run


def _failures() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises for a file; its exceptions have no class in common."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        *("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NoModel"),
        *("NotImplemented", "RuntimeException", "EPFail"),
    )
    return tuple(getattr(state, name) for name in names if hasattr(state, name))


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
