"""What a measurement was made on."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

__all__ = ["describe", "processor"]

_PACKAGES = ("senet", "torchvision", "timm", "onnxruntime", "openvino")


def describe(device: str = "cpu") -> dict[str, object]:
    """Date, device, threads and versions, as columns of a table of results."""
    kind = torch.device(device).type
    gpu = torch.cuda.get_device_name(device) if kind == "cuda" else f"{processor()}, {kind}"
    return {
        "date": datetime.date.today().isoformat(),
        "device": processor() if kind == "cpu" else gpu,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{package: _version(package) for package in _PACKAGES},
    }


def processor() -> str:
    """The name of the CPU, where the system tells, and its cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({os.cpu_count()} cores)" if names else platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
