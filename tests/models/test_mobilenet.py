from __future__ import annotations

import torch
from torch import nn

from senet.models.mobilenet import Separable, mobilenet


def test_every_convolution_is_the_papers_table_1() -> None:
    """(channels in, out, side of the kernel, stride, groups) in order, and 28 weighted layers."""
    with torch.device("meta"):
        model = mobilenet()
    found = [
        (m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0], m.groups)
        for m in model.modules()
        if isinstance(m, nn.Conv2d)
    ]
    expected = [(3, 32, 3, 2, 1)]
    channels = 32
    strides = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
    widths = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    for stride, width in zip(strides, widths, strict=True):
        expected += [(channels, channels, 3, stride, channels), (channels, width, 1, 1, 1)]
        channels = width
    assert found == expected
    assert len(found) + 1 == 28


def test_a_pair_has_norm_and_relu_after_each_convolution() -> None:
    torch.manual_seed(0)
    pair = Separable(4, 6, 2).eval()
    x = torch.randn(2, 4, 7, 6)
    y = pair.depthwise.bn(pair.depthwise.conv(x)).relu()
    assert torch.equal(pair(x), pair.pointwise.bn(pair.pointwise.conv(y)).relu())
    assert pair(x).shape == (2, 6, 4, 3)
