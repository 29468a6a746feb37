from __future__ import annotations

import pytest
import torch
from torch import nn

from senet.models.inception_resnet_v2 import inception_resnet_v2


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(3)
    return inception_resnet_v2(7).eval()


@pytest.mark.parametrize(
    "size", [(75, 75), *(pytest.param(s, marks=pytest.mark.slow) for s in ((97, 130), (299, 299)))]
)
def test_any_image_size_from_75_on(size: tuple[int, int]) -> None:
    with torch.device("meta"):
        assert inception_resnet_v2(1).eval()(torch.empty(2, 3, *size)).shape == (2, 1)


def test_smallest_image(model: nn.Module) -> None:
    assert model(torch.randn(1, 3, 75, 75)).isfinite().all()
    with pytest.raises(RuntimeError):
        model(torch.randn(1, 3, 74, 74))


def test_initialisation_is_he_and_follows_the_seed(model: nn.Module) -> None:
    torch.manual_seed(3)
    again = inception_resnet_v2(7).state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again[name]), name
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 30_000:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)


def test_modules_scales_and_dropout_are_tf_slims(model: nn.Module) -> None:
    blocks = [module for module in model.modules() if hasattr(module, "scale")]
    assert [block.scale for block in blocks] == [0.17] * 10 + [0.1] * 20 + [0.2] * 9 + [1.0]
    dropouts = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert dropouts == [0.2]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {1e-3}
