"""Squeeze-and-Excitation for any PyTorch network."""

__version__ = "0.1.0"
__all__ = ["__version__"]
