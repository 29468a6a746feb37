"""Convolutions of all kinds, drawn by hypothesis."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

__all__ = ["convolutions"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
MODES = ("zeros", "reflect", "replicate", "circular")


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Any, Tensor]:
    """A convolution and an input that it takes, in float64.

    Of one to three dimensions, unlike in each; grouped, depthwise, strided, dilated, padded by
    number or by name in any mode, with or without a bias.
    """
    dims = draw(st.integers(1, 3))
    padding_mode = draw(st.sampled_from(MODES))
    by_name = draw(st.sampled_from([None, None, "same", "valid"]))
    kernel, stride, dilation, padding, sizes = [], [], [], [], []
    for _ in range(dims):
        taps, step = draw(st.integers(1, 4)), draw(st.integers(1, 2))
        extent = step * (taps - 1) + 1
        pad = {"same": extent // 2, "valid": 0, None: 0}[by_name]
        if by_name is None:
            pad = draw(st.integers(0, 3))
        # Reflected and circular padding take no more than there is.
        least = {"zeros": 1, "replicate": 1, "reflect": pad + 1, "circular": max(pad, 1)}
        padded = extent - 1 if by_name == "same" else 2 * pad
        least_size = max(least[padding_mode], extent - padded)
        sizes.append(least_size + draw(st.integers(0, 4)))
        kernel.append(taps)
        dilation.append(step)
        padding.append(pad)
        stride.append(1 if by_name == "same" else draw(st.integers(1, 3)))
    groups = draw(st.integers(1, 3))
    inputs, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    torch.manual_seed(draw(st.integers(0, 1000)))
    conv = _CONVOLUTIONS[dims - 1](
        inputs,
        outputs,
        tuple(kernel),
        tuple(stride),
        by_name or tuple(padding),
        tuple(dilation),
        groups,
        draw(st.booleans()),
        padding_mode,
    )
    h = torch.randn(draw(st.integers(1, 2)), inputs, *sizes, dtype=torch.float64)
    return conv.double(), h
