"""One operation, a norm that ends in SE, and its implementations behind one `select`.

    y = SE(BN(x)),    x and y of shape (N, C, S₁, …, S_d)

Composed, that reads and writes the feature map five times and keeps BN's output for backward. The
algebra (``docs/algebra.md``) needs what BatchNorm alone needs: the per-sample moments are one
pass, the gate is known from them, and normalising and gating are one affine write.

``reference`` is the two composed, the truth; ``aten`` the algebra with a hand-written backward
from existing operators; ``traced`` the algebra for a compiler to differentiate and to fuse.
"""

from .operands import Excitation, Norm
from .reference import batch_norm
from .selection import IMPLEMENTATIONS, Choice, norm_excite, select
from .sync_norm import sync_norm

__all__ = [
    "IMPLEMENTATIONS",
    "Choice",
    "Excitation",
    "Norm",
    "batch_norm",
    "norm_excite",
    "select",
    "sync_norm",
]
