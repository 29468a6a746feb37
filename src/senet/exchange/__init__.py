"""Networks for other runtimes: written with their model card, checked, and read back."""

from __future__ import annotations

from .job import OPSETS, Job
from .shipping import Shipment, Timing, ship
from .table import FORMATS, Format, format_of, read_exported

__all__ = [
    "FORMATS",
    "OPSETS",
    "Format",
    "Job",
    "Shipment",
    "Timing",
    "format_of",
    "read_exported",
    "ship",
]
