"""VGG-16 with BatchNorm (Simonyan, Zisserman; ICLR 2015, configuration D), without any attention.

The SE paper's baseline: each convolution is followed by a norm and ReLU, and has no bias, which
the norm would take out again. torchvision's ``vgg16_bn`` differs in those 4,224 biases and in its
initialisation; its names are others.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from .resnet import conv_norm, initialise_he

__all__ = ["VGG", "vgg16"]


def _stage(depth: int, in_channels: int, out_channels: int) -> nn.Sequential:
    """``unit1`` … ``unit{depth}``, each a 3×3 convolution, its norm and ReLU; then a max-pool."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number in range(1, depth + 1):
        unit = conv_norm(in_channels if number == 1 else out_channels, out_channels, 3)
        unit.add_module("relu", nn.ReLU(inplace=True))
        layers[f"unit{number}"] = unit
    layers["pool"] = nn.MaxPool2d(2, stride=2)
    return nn.Sequential(layers)


class VGG(nn.Module):
    """Five stages of 3×3 convolutions, each with a 2×2/2 max-pool, and three linear layers.

    A stage's number is log₂ of its convolutions' stride to the image. At 224×224 the first linear
    layer sees 7×7 positions; other sizes are averaged or spread to as many. Dropout of ½ follows
    it and the second one. Initialisation is :func:`senet.models.resnet.initialise_he`, from the
    global seed.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.stage0 = _stage(2, 3, 64)
        self.stage1 = _stage(2, 64, 128)
        self.stage2 = _stage(3, 128, 256)
        self.stage3 = _stage(3, 256, 512)
        self.stage4 = _stage(3, 512, 512)
        self.window = nn.AdaptiveAvgPool2d(7)
        self.flatten = nn.Flatten()
        self.hidden1 = nn.Linear(512 * 7 * 7, 4096)
        self.hidden1_relu = nn.ReLU(inplace=True)
        self.dropout1 = nn.Dropout(0.5)
        self.hidden2 = nn.Linear(4096, 4096)
        self.hidden2_relu = nn.ReLU(inplace=True)
        self.dropout2 = nn.Dropout(0.5)
        self.classifier = nn.Linear(4096, num_classes)
        initialise_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W), with H and W at least 32, → logits (N, num_classes)."""
        x = self.stage2(self.stage1(self.stage0(x)))
        x = self.flatten(self.window(self.stage4(self.stage3(x))))
        x = self.dropout1(self.hidden1_relu(self.hidden1(x)))
        x = self.dropout2(self.hidden2_relu(self.hidden2(x)))
        return self.classifier(x)


def vgg16(num_classes: int = 1000) -> VGG:
    """VGG-16 with BatchNorm: 138.36M parameters and 15.47 GMACs at 224×224 with 1000 classes."""
    return VGG(num_classes)
