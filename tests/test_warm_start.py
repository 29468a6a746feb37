"""Warm start: nothing is lost when SE goes in, wherever, nor by a fine-tune of trained weights."""

import copy

import pytest
import timm
import torch
from digits import digits, fit
from networks import Residual, randomise
from ordinary_networks import NETWORKS, SIZE, images
from torch import nn

from senet import Recalibrated, attach, attached_plan, se_parameters
from senet.sites import PLACEMENTS

MAKE = NETWORKS | {"channels last": lambda: timm.create_model("test_convnext", num_classes=5)}


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


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_wherever_the_blocks_are_the_outputs_stay(name, placement):
    torch.manual_seed(0)
    model = randomise(MAKE[name]()).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # affines, and the layer scales that would hide a branch
            nn.init.uniform_(parameter, 0.2, 1.0)
    plain, x = copy.deepcopy(model), images()
    attach(model, input_size=SIZE, placement=placement, warm_start=True, reduction=2)
    sites = attached_plan(model)
    assert {site.placement for site in sites} == {placement}
    last = (name, placement) == ("channels last", "standard")
    assert {site.channels_last for site in sites} == {last}
    expected, found = plain(x), model(x)
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert torch.equal(found.argmax(1), expected.argmax(1))
    found.square().sum().backward()
    wrappers = [module for module in model.modules() if isinstance(module, Recalibrated)]
    assert len(wrappers) == len(sites)
    assert all(wrapper.se.fc2.weight.grad.any() for wrapper in wrappers)
