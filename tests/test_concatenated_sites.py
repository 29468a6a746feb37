"""The sites of networks that concatenate: Inception-like, dense, dual path and searched cells.

As in test_sites.py, each expectation is written from the network's paper and from where its
implementation ends the transformation.
"""

from __future__ import annotations

import pytest
from architectures import plan_of, staged
from breadth import others_slow

DENSENET_121 = [
    f"features.denseblock{block}.denselayer{layer}.conv2"
    for block, layers in enumerate((6, 12, 24, 16), 1)
    for layer in range(1, layers + 1)
]

CONCATENATIONS = {
    # Szegedy et al. 2015: nine modules, gated as a whole; the two poolings between are outside.
    "torchvision/googlenet": [
        f"inception{module}" for module in ("3a", "3b", *(f"4{m}" for m in "abcde"), "5a", "5b")
    ],
    # Szegedy et al. 2016: three A, four C, two E modules with the grid reductions 6a and 7a, which
    # are modules too (the authors' SE-BN-Inception gates its strided 3c and 4e); the auxiliary
    # head does not run in evaluation.
    "torchvision/inception_v3": [
        f"Mixed_{stage}{module}"
        for stage, modules in ((5, "bcd"), (6, "abcde"), (7, "abc"))
        for module in modules
    ],
    # Szegedy et al. 2017: in the residual modules the transformation ends in the 1×1 convolution,
    # before it is scaled by 0.17, 0.1, 0.2 (10, 20, 9 and a last one); the first module and the
    # two reductions are plain Inception.
    "timm/inception_resnet_v2": [
        "mixed_5b",
        *(f"repeat.{i}.conv2d" for i in range(10)),
        "mixed_6a",
        *(f"repeat_1.{i}.conv2d" for i in range(20)),
        "mixed_7a",
        *(f"repeat_2.{i}.conv2d" for i in range(9)),
        "block8.conv2d",
    ],
    # Iandola et al. 2016: a Fire module expands in two parallel ways and concatenates them.
    "torchvision/squeezenet1_1": [f"features.{i}" for i in (3, 4, 6, 7, 9, 10, 11, 12)],
    # Xie et al. 2018: GoogLeNet in 3-D; features 7 and 13 are the poolings between its modules.
    "torchvision/s3d": [f"features.{i}" for i in (5, 6, 8, 9, 10, 11, 12, 14, 15)],
    # Huang et al. 2017: layers of a 1×1 and a 3×3 convolution; the new features leave the 3×3.
    # Transitions are one convolution and a pooling, no transformation.
    "torchvision/densenet121": DENSENET_121,
    "timm/densenet121": DENSENET_121,
    # The same written so that each layer returns its input with the new features.
    "densenet_own": staged("{s}.{b}.conv", (0, 2, 0, 2)),
    # Zhang et al. 2018, and the SE paper with it: on the branch, also where the other way is
    # pooled and concatenated.
    "shufflenet_v1": [f"{unit}.bn3" for unit in range(8)],
    # Ma et al. 2018: half of the channels pass by, the branch of the other half is gated at its
    # end. In the strided first unit of a stage both branches are convolved and none is the
    # input, so that it is an Inception module of two branches: gated as a whole.
    "torchvision/shufflenet_v2_x1_0": [
        f"stage{stage}.{unit}" + (".branch2.7" if unit else "")
        for stage, units in ((2, 4), (3, 8), (4, 4))
        for unit in range(units)
    ],
    # Lee et al. 2019: one-shot aggregation, five convolutions concatenated once and projected;
    # in the authors' own SE variant (CenterMask) the gate is after that projection.
    "timm/vovnet39a": staged("stages.{s}.blocks.{b}.conv_concat.bn", (1, 1, 2, 2)),
    # The same aggregation with two projections; version 1 of its authors gates after them. The
    # blocks after a stage's first add their input. The stem's pooling beside two convolutions,
    # with a third after them, is a stem.
    "timm/hgnetv2_b4": staged("stages.{s}.blocks.{b}.aggregation.1.act", (1, 1, 3, 1)),
    # Chen et al. 2017, variant b: what a block makes leaves two 1×1 convolutions, one for the part
    # that is summed and one for the part that is concatenated.
    "timm/dpn48b": [
        f"features.conv{stage}_{block}.c1x1_c{part}"
        for stage, blocks in enumerate((3, 4, 6, 3), 2)
        for block in range(1, blocks + 1)
        for part in (1, 2)
    ],
    # Zoph et al. 2018: two cells in the stem, then three times six normal ones, with a reduction
    # cell between. Five sums of pairs are concatenated: the cell is an Inception module.
    "timm/nasnetalarge": [
        "cell_stem_0",
        "cell_stem_1",
        *(f"cell_{i}" for i in range(6)),
        "reduction_cell_0",
        *(f"cell_{i}" for i in range(6, 12)),
        "reduction_cell_1",
        *(f"cell_{i}" for i in range(12, 18)),
    ],
    # Liu et al. 2018: the same with one kind of cell, twelve of them after the stem's two.
    "timm/pnasnet5large": [
        "cell_stem_0",
        "cell_stem_1",
        *(f"cell_{i}" for i in range(12)),
    ],
}


TYPICAL = {
    *("torchvision/googlenet", "torchvision/squeezenet1_1", "torchvision/densenet121"),
    *("densenet_own", "shufflenet_v1", "torchvision/shufflenet_v2_x1_0", "timm/vovnet39a"),
    "timm/dpn48b",
}
"""Those built of thousands of modules, and second ones of a kind, are slow."""


@pytest.mark.parametrize("name", others_slow(CONCATENATIONS, TYPICAL))
def test_concatenated_features(name):
    assert [site.path for site in plan_of(name)] == CONCATENATIONS[name]


@pytest.mark.parametrize(
    ("name", "kinds"),
    others_slow(
        [
            ("torchvision/googlenet", {"inception"}),
            ("timm/inception_resnet_v2", {"inception", "residual"}),
            ("torchvision/densenet121", {"dense"}),
            ("densenet_own", {"dense"}),
            ("timm/dpn48b", {"residual", "dense"}),
            ("timm/nasnetalarge", {"inception"}),
            ("shufflenet_v1", {"residual"}),
            ("torchvision/shufflenet_v2_x1_0", {"inception", "residual"}),
        ],
        TYPICAL - {"torchvision/squeezenet1_1", "timm/vovnet39a"},
    ),
)
def test_kinds_of_concatenated_features(name, kinds):
    assert {site.kind for site in plan_of(name)} == kinds


@pytest.mark.parametrize(
    ("name", "channels"),
    others_slow(
        [
            ("torchvision/inception_v3", {"Mixed_5b": 256, "Mixed_6a": 768, "Mixed_7c": 2048}),
            ("torchvision/shufflenet_v2_x1_0", {"stage2.0": 116, "stage2.1.branch2.7": 58}),
            ("torchvision/densenet121", dict.fromkeys(DENSENET_121, 32)),  # the growth rate
            ("timm/dpn48b", {"features.conv2_2.c1x1_c1": 64, "features.conv2_2.c1x1_c2": 16}),
            ("timm/nasnetalarge", {"cell_stem_0": 4 * 42, "cell_0": 6 * 168, "cell_17": 6 * 672}),
            ("densenet_own", dict.fromkeys(("1.0.conv", "1.1.conv", "3.0.conv", "3.1.conv"), 8)),
            ("shufflenet_v1", {"0.bn3": 216, "1.bn3": 240, "4.bn3": 240, "5.bn3": 480}),
        ],
        {
            "torchvision/shufflenet_v2_x1_0",
            "timm/dpn48b",
            "densenet_own",
            "shufflenet_v1",
            "torchvision/densenet121",
        },
    ),
)
def test_channels_are_those_of_the_gated_tensor(name, channels):
    found = {site.path: site.channels for site in plan_of(name)}
    assert {path: found.get(path) for path in channels} == channels


@pytest.mark.parametrize(
    ("name", "reductions"),
    others_slow(
        [
            (
                "timm/nasnetalarge",
                [
                    f"{cell}.final_path_bn"
                    for cell in ("cell_stem_1", "cell_0", "cell_6", "cell_12")
                ],
            ),
            (
                "timm/pnasnet5large",
                [
                    f"{cell}.conv_prev_1x1.final_path_bn"
                    for cell in ("cell_stem_1", "cell_0", "cell_5", "cell_9")
                ],
            ),
        ],
        ("timm/pnasnet5large",),
    ),
)
def test_factorised_reductions_are_a_downsample_path(name, reductions):
    """Two strided 1×1 convolutions of one input, side by side."""
    left_out = plan_of(name).skipped
    assert [e.path for e in left_out if e.reason.startswith("a downsample path")] == reductions


def test_new_features_of_a_layer_are_no_thin_bottleneck():
    assert not any(site.note for site in plan_of("densenet_own"))
