from __future__ import annotations

import torch
import torchvision
from torch import nn

from senet.cost import count_macs, count_parameters
from senet.models.vgg import vgg16


def test_it_is_torchvisions_without_the_biases_of_the_convolutions() -> None:
    with torch.device("meta"):
        ours, theirs = vgg16(), torchvision.models.vgg16_bn(init_weights=False)
    kinds = nn.Conv2d | nn.BatchNorm2d | nn.ReLU | nn.MaxPool2d | nn.Linear | nn.Dropout
    layers = [[m for m in model.modules() if isinstance(m, kinds)] for model in (ours, theirs)]
    for mine, other in zip(*layers, strict=True):
        if isinstance(mine, nn.Conv2d):
            assert mine.bias is None
            assert mine.weight.shape == other.weight.shape
            assert (mine.stride, mine.padding) == (other.stride, other.padding)
        else:
            assert repr(mine) == repr(other)
    biases = sum(m.bias.numel() for m in theirs.modules() if isinstance(m, nn.Conv2d))
    assert count_parameters(theirs) - count_parameters(ours) == biases == 4224
    assert count_macs(ours) == count_macs(theirs)
