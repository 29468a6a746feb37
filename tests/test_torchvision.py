"""All of torchvision's convolutional networks: classifiers, segmentation, detection, video."""

from __future__ import annotations

import pytest
import torch
import torchvision
from architectures import build_on_meta
from breadth import others_slow
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.misc import FrozenBatchNorm2d

from senet import UserError, adopt, attach, plan
from senet.block import SqueezeExcite

CLASSIFIERS = torchvision.models.list_models(module=torchvision.models)
TRANSFORMERS = ("vit_", "swin_")
SE_EVERYWHERE = ("efficientnet_b", "regnet_y_", "maxvit_t")
ONE_EACH = {
    *("alexnet", "convnext_tiny", "densenet121", "googlenet"),
    *("mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "resnet18", "resnet50"),
    *("shufflenet_v2_x0_5", "squeezenet1_0", "vgg11_bn", "efficientnet_b0", "regnet_y_400mf"),
}
"""One of each family; `make test-slow` has the others, larger and built of the same blocks."""


def _one_each(names: list[str]) -> list[object]:
    return others_slow(names, ONE_EACH & set(names))


def _resnet(prefix: str, depths: tuple[int, ...] = (3, 4, 6, 3)) -> list[str]:
    return [f"{prefix}.layer{s}.{b}.bn3" for s, n in enumerate(depths, 1) for b in range(n)]


def _blocks(model: nn.Module) -> int:
    return sum(isinstance(module, SqueezeExcite) for module in model.modules())


@pytest.mark.parametrize(
    "name",
    _one_each([n for n in CLASSIFIERS if not n.startswith((*TRANSFORMERS, *SE_EVERYWHERE))]),
)
def test_every_convolutional_classifier_attaches(name):
    model = build_on_meta(f"torchvision/{name}")
    sites = plan(model)
    assert sites
    attach(model, sites)
    assert _blocks(model) == len(sites)


@pytest.mark.parametrize("name", _one_each([n for n in CLASSIFIERS if n.startswith(SE_EVERYWHERE)]))
def test_classifiers_that_have_se_in_every_block_are_adopted(name):
    model = build_on_meta(f"torchvision/{name}")
    theirs = sum(type(m).__name__ == "SqueezeExcitation" for m in model.modules())
    found = plan(model)
    assert not found
    assert any("existing SE" in entry.reason for entry in found.skipped)
    adopt(model)
    assert _blocks(model) == theirs > 0


@pytest.mark.parametrize("name", others_slow(["vit_b_32", "swin_t", "swin_v2_t"], {"swin_t"}))
def test_transformers_are_told_what_was_looked_for(name):
    with pytest.raises(UserError, match=r"nothing to attach to .*looked for"):
        attach(build_on_meta(f"torchvision/{name}"))


@pytest.mark.parametrize(
    ("name", "expected"),
    others_slow(
        [
            # The backbone is a dilated ResNet, its blocks are those of the classifier.
            ("fcn_resnet50", _resnet("backbone")),
            ("deeplabv3_resnet50", _resnet("backbone")),
            ("fcn_resnet101", _resnet("backbone", (3, 4, 23, 3))),
            ("deeplabv3_resnet101", _resnet("backbone", (3, 4, 23, 3))),
        ],
        {"fcn_resnet50", "deeplabv3_resnet50"},
    ),
)
def test_segmentation_models_are_gated_in_the_backbone(name, expected):
    model = build_on_meta(f"torchvision/{name}", weights_backbone=None)
    assert [site.path for site in plan(model)] == expected
    assert set(expected) <= {site.path for site in plan(model, scope="")}


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
def test_mobile_backbones_are_gated_where_they_have_no_se(name):
    """MobileNetV3-Large: the blocks with a sum and without SE are 1, 3, 8, 9 and 10 of 15."""
    found = plan(build_on_meta(f"torchvision/{name}", weights_backbone=None))
    # A block's last unit is its projection; block 1 (16 to 16 channels) does not expand before.
    projections = {1: 1, 3: 2, 8: 2, 9: 2, 10: 2}
    assert [site.path for site in found] == [
        f"backbone.{block}.block.{unit}.1" for block, unit in projections.items()
    ]


DETECTORS = torchvision.models.list_models(module=detection)


def _detector(name: str) -> nn.Module:
    """On the CPU: what it detects depends on values, so the forward has to be a real one."""
    sizes = {} if name.startswith("ssd") else {"min_size": 64, "max_size": 64}
    return torchvision.models.get_model(name, weights=None, weights_backbone=None, **sizes)


@pytest.mark.parametrize(
    "name",
    others_slow(
        [n for n in DETECTORS if "_resnet50_" in n],
        {"fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn_v2"},
    ),
)
def test_detectors_are_gated_in_the_body_of_their_backbone(name):
    """The laterals of the feature pyramid are sums without a shortcut."""
    found = plan(_detector(name), input_size=(3, 64, 64))
    assert [site.path for site in found] == _resnet("backbone.body")


@pytest.mark.parametrize(
    "name",
    others_slow(
        [n for n in DETECTORS if "_mobilenet_" in n], {"fasterrcnn_mobilenet_v3_large_320_fpn"}
    ),
)
def test_mobile_detectors_are_gated_in_their_backbone(name):
    found = plan(_detector(name), input_size=(3, 64, 64))
    assert found
    assert all(site.path.startswith("backbone.") for site in found)


@pytest.mark.slow
def test_ssd_is_a_plain_stack():
    """Liu et al. 2016: VGG-16 to conv4_3, then conv5_1 … fc7, then four pairs, without norms.

    The last pair leaves one position, where there is nothing to squeeze.
    """
    found = plan(_detector("ssd300_vgg16"), input_size=(3, 300, 300))
    assert [site.path for site in found] == [
        *(f"backbone.features.{i}" for i in (1, 3, 6, 8, 11, 13, 15, 18, 20, 22)),
        *(f"backbone.extra.0.{i}" for i in (2, 4, 6)),  # after the pooling
        *(f"backbone.extra.0.7.{i}" for i in (2, 4)),  # fc6 and fc7, after a pooling of their own
        *(f"backbone.extra.{i}.{unit}" for i in (1, 2, 3) for unit in (1, 3)),
        "backbone.extra.4.1",
    ]


def test_frozen_batch_norms_are_wrapped_like_others():
    body = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    model = detection.FasterRCNN(body, num_classes=3, min_size=64, max_size=64)
    images = [torch.rand(3, 64, 64)]
    attach(model, example_inputs=(images,))
    wrapped = [model.get_submodule(path) for path in _resnet("backbone.body")]
    assert all(isinstance(wrapper.norm, FrozenBatchNorm2d) for wrapper in wrapped)
    ran = []
    for wrapper in wrapped:
        wrapper.se.register_forward_hook(lambda module, *_: ran.append(module))
    with torch.inference_mode():
        model.eval()(images)
    assert ran == [wrapper.se for wrapper in wrapped]
