"""The paper's placements in networks that are not residual alone: where they gate, and whether
a warm start keeps what the networks compute.

The sites are written by hand: "pre" gates what a transformation takes, "post" and "identity" are
those of a sum and elsewhere the standard one, "inner" is after the last k × k convolution.
"""

from __future__ import annotations

import pytest
import torch
from architectures import OWN, plan_of
from breadth import others_slow
from networks import randomise
from timm.models.densenet import DenseNet as TimmDenseNet
from timm.models.dpn import DPN
from torchvision.models import DenseNet, ShuffleNetV2
from torchvision.models.vgg import make_layers

from senet import UserError, attach, plan, verify

SIZE = (3, 32, 32)
DUAL_PATH = {"small": True, "num_init_features": 10, "k_r": 32, "groups": 8}
NETWORKS = {
    "densenet": lambda: DenseNet(8, (2, 2), 16, num_classes=5),
    "timm_densenet": lambda: TimmDenseNet(8, (2, 2), 5),
    "densenet_own": OWN["densenet_own"],
    "dpn": lambda: DPN((2, 1, 1, 1), (8, 8, 8, 8), num_classes=5, **DUAL_PATH),
    "dpn_b": lambda: DPN((2, 1, 1, 1), (8, 8, 8, 8), num_classes=5, b=True, **DUAL_PATH),
    "repvgg_bare": OWN["repvgg_bare"],
    "shufflenet": lambda: ShuffleNetV2([2, 2, 1], [24, 48, 96, 192, 64], 5),
    "vgg": lambda: make_layers([16, "M", 32, 32, "M"], batch_norm=True),
    "unet": OWN["unet_transposed"],
}
DENSE_LAYERS = [f"features.denseblock{b}.denselayer{i}" for b in (1, 2) for i in (1, 2)]
DUAL_PATHS = [f"features.conv{block}" for block in ("2_1", "2_2", "3_1", "4_1", "5_1")]
STRIDED = ["stage2.0", "stage3.0", "stage4.0"]
LEVELS = [f"{way}.{i}" for way, levels in (("down", 3), ("up", 2)) for i in range(levels)]


def _after(paths, *ends):
    return [(path + end, False) for path in paths for end in ends or ("",)]


def _before(paths, *ends):
    return [(path + end, True) for path in paths for end in ends or ("",)]


# Of a layer that has no sum, all but "pre" and "inner" are the standard placement.
_NEW = dict.fromkeys(("post", "identity", "inner"), _after(DENSE_LAYERS, ".conv2"))
# What takes the concatenation is the layer's first norm; the layer itself takes a list.
_DENSE = _NEW | {"pre": _before(DENSE_LAYERS, ".norm1")}
_OWN_NEW = _after(("1.0", "1.1", "3.0", "3.1"), ".conv")
_DUAL = {
    "pre": _before(DUAL_PATHS, ".c1x1_a.bn"),
    "post": "add in features.conv2_1.*not a module",  # and its sum is concatenated at once
    "identity": "getitem in features.conv2_1.*not a module",  # its shortcut is a slice
    "inner": _after(DUAL_PATHS, ".c1x1_c.bn"),  # the norm before the last 1×1 is after the 3×3
}
_SUMMED = dict.fromkeys(("post", "identity", "inner"), _before("0123", ".relu"))
_UNITS = dict.fromkeys(("post", "identity", "inner"), _after(("2", "6", "9")))
_LEVELS = dict.fromkeys(("post", "identity", "inner"), _after(LEVELS, ".2", ".5"))
EXPECTED = {
    "densenet": _DENSE,
    "timm_densenet": _DENSE,
    "densenet_own": dict.fromkeys(_NEW, _OWN_NEW)
    | {"pre": _before(("1.0", "1.1"), ".norm") + _before(("3.0", "3.1"), ".bottleneck.0")},
    "dpn": _DUAL,
    "dpn_b": _DUAL,
    # Three modules of a block take its input.
    "repvgg_bare": _SUMMED | {"pre": "no single module of the branch takes the block's input"},
    # Strided units are Inception modules. The sum of the others is a concatenation with what
    # passes by and shuffled, in function calls; their branch takes a chunk of the unit's input.
    "shufflenet": {
        "pre": _before(STRIDED),
        "post": _after(STRIDED),
        "identity": _after(STRIDED),
        # The depthwise convolution's norm.
        "inner": [
            ("stage2.0.branch1.1", False),
            ("stage2.0.branch2.4", False),
            ("stage2.1.branch2.4", False),
            ("stage3.0.branch1.1", False),
            ("stage3.0.branch2.4", False),
            ("stage3.1.branch2.4", False),
            ("stage4.0.branch1.1", False),
            ("stage4.0.branch2.4", False),
        ],
    },
    # Units of convolution, norm, ReLU, with poolings at 3 and 10.
    "vgg": _UNITS | {"pre": _before("047")},
    "unet": _LEVELS | {"pre": _before(LEVELS, ".0", ".3")},
}
CASES = [(name, placement) for name, sites in EXPECTED.items() for placement in sites]


@pytest.mark.parametrize(
    ("name", "placement"), others_slow(CASES, EXPECTED.keys() - {"timm_densenet", "dpn_b"})
)
def test_sites_and_warm_start(name, placement):
    torch.manual_seed(0)
    model, expected = randomise(NETWORKS[name]()).eval(), EXPECTED[name][placement]
    found = plan(model, input_size=SIZE, placement=placement)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected) as caught:
            attach(model, found)
        assert "\n" not in str(caught.value)
        return
    assert [(site.path, site.before) for site in found] == expected
    x = torch.randn(2, *SIZE)
    layouts = (torch.contiguous_format, torch.channels_last)
    before = [_outputs(model, x, layout) for layout in layouts]
    attach(model, found, warm_start=True)
    for layout, wanted in zip(layouts, before, strict=True):
        error = (_outputs(model, x, layout) - wanted).abs().max()
        assert error <= 1e-6 * wanted.abs().max()
    assert len(verify(model, x)) == len(expected)


@torch.no_grad()
def _outputs(model, x, layout):
    return model.to(memory_format=layout)(x.to(memory_format=layout))


def test_a_module_that_takes_a_list_is_not_gated_before():
    """Nor is the first layer of a block, which takes a list of one tensor."""
    for name in ("torchvision/densenet121", "timm/densenet121"):
        sites = plan_of(name, placement="pre").sites
        assert [site.path for site in sites] == [
            f"features.denseblock{block}.denselayer{layer}.norm1"
            for block, layers in enumerate((6, 12, 24, 16), 1)
            for layer in range(1, layers + 1)
        ]
        # Each layer takes 32 channels more than the one before it.
        assert [site.channels for site in sites[:6]] == [64, 96, 128, 160, 192, 224]
