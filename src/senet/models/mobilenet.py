"""MobileNet v1 (Howard et al., 2017, table 1), without any attention.

A 3×3/2 stem and thirteen pairs of a depthwise and a pointwise convolution, each convolution with
norm and ReLU. timm's ``mobilenetv1_100`` differs in its ReLU6. The paper's table gives the last
depthwise convolution a stride of 2 from 7×7 to 7×7; it is 1 here, as everywhere.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from .resnet import conv_norm, initialise_he

__all__ = ["MobileNet", "Separable", "mobilenet"]

# output channels and stride of each pair
_PAIRS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)),
    *((512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)),
)


class Separable(nn.Module):
    """A depthwise 3×3 and a pointwise convolution, each with norm and ReLU.

    (N, in, H, W) → (N, out, ⌈H/stride⌉, ⌈W/stride⌉); the stride is in the depthwise one.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.depthwise = conv_norm(in_channels, in_channels, 3, stride, in_channels)
        self.depthwise_relu = nn.ReLU(inplace=True)
        self.pointwise = conv_norm(in_channels, out_channels, 1)
        self.pointwise_relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Filter each channel, then mix them."""
        return self.pointwise_relu(self.pointwise(self.depthwise_relu(self.depthwise(x))))


class MobileNet(nn.Module):
    """A stem, thirteen pairs, mean and classifier.

    Initialisation is :func:`senet.models.resnet.initialise_he`, from the global seed; a depthwise
    convolution's fan-out is counted, as PyTorch does, as if it were not grouped.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.stem = conv_norm(3, 32, 3, stride=2)
        self.stem_relu = nn.ReLU(inplace=True)
        pairs: OrderedDict[str, nn.Module] = OrderedDict()
        in_channels = 32
        for number, (width, stride) in enumerate(_PAIRS, 1):
            pairs[f"pair{number}"] = Separable(in_channels, width, stride)
            in_channels = width
        self.body = nn.Sequential(pairs)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(in_channels, num_classes)
        initialise_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) → logits (N, num_classes)."""
        x = self.body(self.stem_relu(self.stem(x)))
        return self.classifier(self.flatten(self.global_pool(x)))


def mobilenet(num_classes: int = 1000) -> MobileNet:
    """MobileNet 1.0-224: 4.23M parameters and 569 MMACs at 224×224 with 1000 classes."""
    return MobileNet(num_classes)
