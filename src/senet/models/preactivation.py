"""Pre-activation residual networks for 32×32 images, without any attention.

ResNet-164 (He, Zhang, Ren, Sun: Identity Mappings in Deep Residual Networks, ECCV 2016) and
WRN-16-8 (Zagoruyko, Komodakis: Wide Residual Networks, BMVC 2016, without dropout). Norm and ReLU
come before each convolution; a unit that changes the shape projects its activated input, as in
the authors' code. A stage's number is log₂ of its stride to the image: 0, 1 and 2.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from .three_stages import ThreeStageNet

__all__ = ["PreActivationNet", "PreActivationUnit", "resnet164", "wrn16_8"]


def _convolution(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(
        in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False
    )


class PreActivationUnit(nn.Module):
    """x + F(x) with F beginning in norm and ReLU, or P(a) + F(x), where a is what they make of x.

    (N, in, H, W) → (N, out, ⌈H/stride⌉, ⌈W/stride⌉).

    Args:
        in_channels, out_channels: channels.
        stride: of the branch's first convolution and of P, a 1×1 convolution, which is there
            where the shape changes.
        kernels: of the branch's convolutions, each after norm and ReLU.
        narrowing: ``out_channels`` over the channels between the convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        kernels: Sequence[int],
        narrowing: int = 1,
    ) -> None:
        super().__init__()
        self.projects = stride != 1 or in_channels != out_channels
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.shortcut = (
            _convolution(in_channels, out_channels, 1, stride) if self.projects else nn.Identity()
        )
        width = out_channels // narrowing
        widths = (in_channels, *[width] * (len(kernels) - 1), out_channels)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (kernel, channels) in enumerate(zip(kernels, pairwise(widths), strict=True), 1):
            if number > 1:
                layers[f"bn{number}"] = nn.BatchNorm2d(width)
                layers[f"relu{number}"] = nn.ReLU(inplace=True)
            layers[f"conv{number}"] = _convolution(*channels, kernel, stride if number == 1 else 1)
        self.branch = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the shortcut."""
        activated = self.relu1(self.bn1(x))
        shortcut = self.shortcut(activated if self.projects else x)
        return self.branch(activated) + shortcut


class PreActivationNet(ThreeStageNet):
    """A 3×3 stem of 16 channels, three stages, norm and ReLU, mean and classifier.

    Args:
        depth: units in each stage.
        width: output channels of the first stage; each other has twice those before it.
        kernels, narrowing: of a unit, see `PreActivationUnit`.
        num_classes: logits.

    Initialisation is :func:`senet.models.resnet.initialise_he`, from the global seed.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        *,
        kernels: Sequence[int],
        narrowing: int = 1,
        num_classes: int = 10,
    ) -> None:
        unit = partial(PreActivationUnit, kernels=kernels, narrowing=narrowing)
        stem = _convolution(3, 16, 3, 1)
        super().__init__(stem, unit, depth, width, normed=True, num_classes=num_classes)


def resnet164(num_classes: int = 10) -> PreActivationNet:
    """ResNet-164, pre-activation bottlenecks: 1.70M parameters and 245 MMACs at 32×32."""
    return PreActivationNet(18, 64, kernels=(1, 3, 1), narrowing=4, num_classes=num_classes)


def wrn16_8(num_classes: int = 10) -> PreActivationNet:
    """WRN-16-8: 10.96M parameters and 1.55 GMACs at 32×32."""
    return PreActivationNet(2, 128, kernels=(3, 3), num_classes=num_classes)
