"""Inception-ResNet-v2 (Szegedy, Ioffe, Vanhoucke, Alemi; AAAI 2017), without any attention.

The network that is known by this name is the one that its authors released in TF-slim, and timm
has it layer by layer; this is timm's, with TF-slim's dropout and our initialisation. It follows
the paper in the three kinds of residual Inception modules, the reductions and the scaling of the
branches (0.17, 0.1, 0.2). It differs from the paper's figures in the stem, which is Inception-v3's
with one Inception module (the figures have Inception-v4's), and in the numbers of modules: 10, 20
and 10 (the figures have 5, 10 and 5).
"""

from __future__ import annotations

from torch import nn

from .resnet import initialise_he

__all__ = ["inception_resnet_v2"]


def inception_resnet_v2(num_classes: int = 1000) -> nn.Module:
    """Inception-ResNet-v2: 55.84M parameters and 13.16 GMACs at 299×299 with 1000 classes.

    Images (N, 3, H, W), with H and W at least 75, → logits (N, num_classes). Initialisation is
    :func:`senet.models.resnet.initialise_he`, from the global seed. The SE paper prints 11.75
    GFLOPs, which is 11 % less; docs/reproduce.md says what was tried to explain it.
    """
    import timm

    model: nn.Module = timm.create_model(
        "inception_resnet_v2", num_classes=num_classes, drop_rate=0.2
    )
    initialise_he(model)
    return model
