"""Warm start on real trained weights: nothing is lost when SE goes in, nor by a fine-tune."""

import torch
from digits import digits, fit
from networks import Residual
from torch import nn

from senet import attach, se_parameters


@torch.no_grad()
def _right(model, images, labels):
    return int((model.eval()(images).argmax(1) == labels).sum())


def test_a_trained_network_keeps_its_accuracy_and_trains_on():
    torch.manual_seed(0)
    (images, labels), held_out = digits()
    blocks = [Residual(16), Residual(16, stride=2), Residual(16)]
    stem, head = nn.Conv2d(1, 16, 3, padding=1), nn.Linear(16, 10)
    model = nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    fit(model, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9), images, labels, 8)
    before = _right(model, *held_out)
    outputs = model(held_out[0])
    assert before > 0.9 * len(held_out[1])

    attach(model, input_size=(1, 8, 8), warm_start=True, min_hidden=4)
    assert torch.equal(model(held_out[0]), outputs)
    assert _right(model, *held_out) == before

    network, se = se_parameters(model)
    optimizer = torch.optim.SGD([network, se | {"lr": 0.02}], 0.005, momentum=0.9)
    fit(model, optimizer, images, labels, 3)
    assert _right(model, *held_out) >= before
    assert all(block.bn2.se.fc1.weight.grad.any() for block in blocks)
