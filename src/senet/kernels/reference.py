"""The truth: `F.batch_norm`, then equations 2 to 4 as `senet.functional` has them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .. import functional
from .operands import Excitation, Norm

__all__ = ["batch_norm", "norm_excite"]


def batch_norm(x: Tensor, norm: Norm) -> Tensor:
    """BN(x), in one process. x: (N, C, …)."""
    return F.batch_norm(
        x,
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        norm.batch_statistics,
        norm.momentum,
        norm.eps,
    )


def norm_excite(x: Tensor, norm: Norm, excitation: Excitation) -> Tensor:
    """SE(BN(x)) as the two are defined, one after the other. x: (N, C, S₁, …, S_d)."""
    u = batch_norm(x, norm)
    w1, b1, w2, b2, gate, activation, gate_scale, squeeze, observer = excitation
    # A norm and a block may be kept in float32 between layers in half precision.
    z = functional.squeeze(u, squeeze).to(w2.dtype)
    s = functional.excite(z, w1, w2, b1, b2, gate=gate, activation=activation)
    if observer is not None:
        observer(s)
    s = s.to(u.dtype)
    return functional.scale(u, s if gate_scale == 1.0 else s * gate_scale)
