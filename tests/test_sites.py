"""The sites of known architectures, worked out by hand from their papers and module structure.

Nothing below was copied from a plan: each expectation is written from what the network's paper
calls its transformation, and from where its implementation ends it. Networks that concatenate
are in test_concatenated_sites.py.
"""

from __future__ import annotations

import pytest
import timm
import torch
from architectures import INPUT_SIZES, OWN, build_on_meta, plan_of, staged
from breadth import others_slow
from networks import randomise

from senet import adopt, attach, plan, verify
from senet.block import SqueezeExcite
from senet.insertion import attached_plan

RESNET_50 = (3, 4, 6, 3)


RESIDUAL = {
    # He et al. 2016: a block is two 3×3 convolutions, then the sum; 2 blocks in each of 4 stages.
    "torchvision/resnet18": staged("layer{s}.{b}.bn2", (2, 2, 2, 2), 1),
    # Bottlenecks: the transformation ends in the norm of the last 1×1.
    "timm/resnet50": staged("layer{s}.{b}.bn3", RESNET_50, 1),
    # Xie et al. 2017: 32 paths are one grouped convolution inside the bottleneck.
    "torchvision/resnext50_32x4d": staged("layer{s}.{b}.bn3", RESNET_50, 1),
    # He et al. 2016b: norms come first, the branch ends in a bare convolution; the projections
    # of the first blocks start after the first norm, the identities of the others before it.
    "timm/resnetv2_50": staged("stages.{s}.blocks.{b}.conv3", RESNET_50),
    # Brock et al. 2021: no norms, the branch is scaled by α after its last convolution, which is
    # where the authors' nf_seresnet50 has its SE block.
    "timm/nf_resnet50": staged("stages.{s}.{b}.conv3", RESNET_50),
    # Gao et al. 2019: the sums between the scales inside a block add slices of one tensor, they
    # are no shortcuts; the paper puts SE before the block's own sum.
    "timm/res2net50_26w_4s": staged("layer{s}.{b}.bn3", RESNET_50, 1),
    # Radosavovic et al. 2020: X blocks, numbered from 1, depths (1, 1, 4, 7) for 200 MF.
    "timm/regnetx_002": [
        f"s{stage}.b{block}.conv3.bn"
        for stage, blocks in enumerate((1, 1, 4, 7), 1)
        for block in range(1, blocks + 1)
    ],
    # Sandler et al. 2018: 17 inverted residuals in runs of 1, 2, 3, 4, 3, 3, 1; the first of each
    # run changes shape, so has no sum and no identity to be the other branch of.
    "torchvision/mobilenet_v2": [
        f"features.{i}.conv.3" for i in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)
    ],
    # Tan et al. 2019, without SE (B1): runs of 3, 3, 3, 2, 4, 1, of which the first have no sum.
    "torchvision/mnasnet1_0": [
        f"layers.{run}.{block}.layers.7"
        for run, blocks in enumerate((3, 3, 3, 2, 4, 1), 8)
        for block in range(1, blocks)
    ],
    # Han et al. 2020: a bottleneck of two ghost modules; those that have SE between them are
    # left out as a whole. Strided ones go round through a depthwise and a 1×1 convolution
    # without an activation, which is a projection.
    "timm/ghostnet_100": [
        f"blocks.{block}.ghost2"
        for block in ("0.0", "1.0", "2.0", "5.0", "6.0", "6.1", "6.2", "8.0", "8.2")
    ],
    # Chen et al. 2022: the same with sums instead of concatenations in its ghost modules. Those add
    # a depthwise convolution to a norm, which is one convolution and no transformation.
    "timm/repghostnet_100": [
        f"blocks.{block}.ghost2"
        for block in ("0.0", "1.0", "2.0", "5.0", "6.0", "6.1", "6.2", "8.0", "8.2")
    ],
    # Liu et al. 2022: the branch ends in the second linear layer, channels last; its permutation,
    # layer-scale and drop-path come after.
    "timm/convnext_atto": staged("stages.{s}.blocks.{b}.mlp.fc2", (2, 2, 6, 2)),
    # Trockman & Kolter 2022: only the depthwise half of a block has a sum.
    "timm/convmixer_768_32": [f"blocks.{i}.0.fn.2" for i in range(32)],
    # Chollet 2017: a branch that is strided ends in its max-pooling, and that goes into the sum;
    # 12 blocks, the middle eight not strided: three times relu, conv and norm; the first block
    # is without its first ReLU.
    "timm/legacy_xception": [
        "block1.rep.5",
        "block2.rep.6",
        "block3.rep.6",
        *(f"block{i}.rep.8" for i in range(4, 12)),
        "block12.rep.6",
    ],
    # Redmon & Farhadi 2018: 1, 2, 8, 8, 4 residual blocks of a 1×1 and a 3×3, each convolution
    # with its norm and activation; the strided convolutions between them have no sum.
    "timm/darknet53": staged("stages.{s}.blocks.{b}.conv2.bn", (1, 2, 8, 8, 4)),
    # Yu et al. 2018: trees of depth 1, 2, 2, 1 with two basic blocks at each pair of leaves; the
    # roots concatenate and project what blocks made, and are no transformation of their own.
    "timm/dla34": [
        f"{tree}.tree{leaf}.bn2"
        for tree in (
            "level2",
            *(f"level{level}.tree{side}" for level in (3, 4) for side in (1, 2)),
            "level5",
        )
        for leaf in (1, 2)
    ],
    # Wang et al. 2019: one bottleneck, then two basic blocks on each of 2, 3 and 4 resolutions,
    # then a bottleneck on each resolution in the head. Fusions have no shortcut.
    "timm/hrnet_w18_small": [
        "layer1.0.bn3",
        *(
            f"stage{stage}.0.branches.{resolution}.{block}.bn2"
            for stage in (2, 3, 4)
            for resolution in range(stage)
            for block in range(2)
        ),
        *(f"incre_modules.{resolution}.0.bn3" for resolution in range(4)),
    ],
    # Chen et al. 2017: what a block makes is split into a summed and a concatenated part; the
    # transformation ends before the split.
    "timm/dpn68": [
        f"features.conv{stage}_{block}.c1x1_c.conv"
        for stage, blocks in enumerate((3, 4, 12, 3), 2)
        for block in range(1, blocks + 1)
    ],
    # El-Nouby et al. 2021: of the three branches of a block the local patch interaction is of
    # convolutions, which ends in the second; tokens become a map before and tokens again after.
    "timm/xcit_nano_12_p8_224": [f"blocks.{i}.local_mp.conv2" for i in range(12)],
    # A 1-D ResNet, the shortcut as the sum's first term.
    "resnet_1d": staged("{s}.{b}.norm2", (2, 2), 1),
    # Tran et al. 2018: in 3-D, and in (2+1)-D with the norm after the second factor.
    "torchvision/r3d_18": staged("layer{s}.{b}.conv2.1", (2, 2, 2, 2), 1),
    "torchvision/r2plus1d_18": staged("layer{s}.{b}.conv2.1", (2, 2, 2, 2), 1),
    "torchvision/mc3_18": staged("layer{s}.{b}.conv2.1", (2, 2, 2, 2), 1),
}


SECOND_OF_A_KIND = {
    *("torchvision/resnext50_32x4d", "torchvision/mc3_18", "torchvision/r2plus1d_18"),
    *("torchvision/mnasnet1_0", "timm/repghostnet_100", "timm/convmixer_768_32"),
    *("timm/darknet53", "timm/xcit_nano_12_p8_224", "timm/resnet50", "timm/regnetx_002"),
}


@pytest.mark.parametrize("name", others_slow(RESIDUAL, RESIDUAL.keys() - SECOND_OF_A_KIND))
def test_residual_branches_before_the_sum(name):
    found = plan_of(name)
    assert [site.path for site in found] == RESIDUAL[name]
    assert {site.kind for site in found} == {"residual"}
    assert not any(site.before for site in found)


def test_repvgg_is_gated_after_the_sum_of_its_branches():
    """Where RepVGG-D2se of the same authors has its blocks, the stem's among them.

    Ding et al. 2021: 3×3, 1×1 and norm in parallel, none of them a shortcut; 2, 4, 14, 1 blocks.
    """
    found = plan_of("timm/repvgg_a0")
    assert [site.path for site in found] == [
        "stem.attn",
        *staged("stages.{s}.{b}.attn", (2, 4, 14, 1)),
    ]
    assert {(site.kind, site.note) for site in found} == {
        ("parallel", "the sum of parallel branches, of which none is a shortcut")
    }
    theirs = build_on_meta("timm/repvgg_d2se")
    assert type(theirs.stem.attn).__name__ == type(theirs.stages[0][1].attn).__name__ == "SEModule"


def test_repvgg_without_a_module_for_its_sum_is_gated_by_what_takes_it():
    """The ReLU after the sum, whose input it is: the stem, two equal blocks and a strided one."""
    found = plan_of("repvgg_bare")
    assert [(site.path, site.before) for site in found] == [(f"{i}.relu", True) for i in range(4)]
    assert {site.kind for site in found} == {"parallel"}
    assert [site.channels for site in found] == [16, 16, 32, 32]


def test_mobileone_is_gated_after_the_sums_of_its_branches():
    """Where its authors' S4 has SE: after the sum, also where that has only two terms.

    Vasu et al. 2023: a stem and 2, 8, 10, 1 pairs of a depthwise and a pointwise block. Blocks are
    sums of convolutions and norms; pointwise ones that change the width are one convolution.
    """
    found = plan_of("timm/mobileone_s1")
    sums = [
        (s, b)
        for s, pairs in enumerate((2, 8, 10, 1))
        for b in range(2 * pairs)
        if b % 2 == 0 or b > 1  # the first pointwise block of a stage changes the width
    ]
    assert [site.path.rpartition(".")[0] for site in found] == [
        "stem",
        *(f"stages.{s}.{b}" for s, b in sums),
    ]
    assert {site.kind for site in found} == {"parallel"}


@pytest.mark.parametrize(
    ("name", "blocks"),
    others_slow(
        [
            # After the aggregation of each of its modules; in the middle of each block; after the
            # sum of each; before the sum; in the middle.
            ("timm/ese_vovnet19b_dw", 4),
            ("timm/regnety_002", 13),
            ("timm/repvgg_d2se", 48),
            ("timm/legacy_seresnet18", 8),
            ("torchvision/efficientnet_b0", 16),
        ],
        {"timm/ese_vovnet19b_dw", "timm/legacy_seresnet18", "torchvision/efficientnet_b0"},
    ),
)
def test_networks_with_se_in_every_block_get_no_second_one(name, blocks):
    model = build_on_meta(name)
    found = plan(model)
    assert [site.path for site in found] == []
    assert any("existing SE" in entry.reason for entry in found.skipped)
    adopt(model)
    assert sum(isinstance(module, SqueezeExcite) for module in model.modules()) == blocks


def test_fusions_of_hrnet_are_left_out_with_the_reason():
    left_out = {entry.path: entry.reason for entry in plan_of("timm/hrnet_w18_small").skipped}
    for stage in (2, 3, 4):
        reason = left_out[f"stage{stage}.0"]
        assert "transformations of its own" in reason or "no shortcut" in reason


# Ronneberger et al. 2015: two units a level, down and up again; each ends after its ReLU. What
# goes up is one convolution or none, and the last 1×1 is the head.
U_NET = [
    *(f"down.{level}.{relu}" for level in range(3) for relu in (2, 5)),
    *(f"up.{level}.{relu}" for level in range(2) for relu in (2, 5)),
]

CHAINS = {
    # Simonyan & Zisserman 2015, configuration D: 2, 2, 3, 3, 3 units of convolution, norm and
    # ReLU with a pooling after each group: plus 3 for a unit and 1 for a pooling. A unit ends
    # after its ReLU.
    "torchvision/vgg16_bn": [
        f"features.{i}" for i in (2, 5, 9, 12, 16, 19, 22, 26, 29, 32, 36, 39, 42)
    ],
    # Krizhevsky 2014: five convolutions with ReLU, poolings after 1, 2 and 5.
    "torchvision/alexnet": [f"features.{i}" for i in (1, 4, 7, 9, 11)],
    # Howard et al. 2017: after each of 13 depthwise + pointwise pairs (the paper's 4.7M), whose
    # last module is a norm that ends in its activation; the stem is no pair.
    "timm/mobilenetv1_100": staged("blocks.{s}.{b}.bn2", (1, 2, 2, 6, 2)),
    # Snyder et al. 2018: five frame-level units that end in their norm, as ECAPA's do.
    "tdnn": [f"frames.{i}.norm" for i in range(5)],
    # PyTorch's tutorial: its ReLUs are function calls, so that units are gated before them.
    "tutorial_cnn": ["conv1", "conv2"],
    "unet_transposed": U_NET,
    "unet_interpolated": U_NET,
}


@pytest.mark.parametrize("name", CHAINS)
def test_units_of_plain_stacks(name):
    found = plan_of(name)
    assert [site.path for site in found] == CHAINS[name]
    assert {site.kind for site in found} == {"chain"}


def test_units_that_end_in_a_function_call_say_so():
    assert all("before the activation" in site.note for site in plan_of("tutorial_cnn"))
    assert not any(site.note for site in plan_of("torchvision/vgg16_bn"))


@pytest.mark.parametrize("name", ["unet_transposed", "unet_interpolated"])
def test_skips_of_an_encoder_decoder_are_left_out_with_the_reason(name):
    found = plan_of(name)
    assert any("encoder-decoder" in entry.reason for entry in found.skipped)
    assert not any(site.note for site in found)


@pytest.mark.parametrize("name", OWN)
def test_the_networks_written_out_work_with_their_blocks(name):
    size = INPUT_SIZES[name]
    model = attach(OWN[name](), input_size=size, reduction=4)
    assert len(verify(model, torch.randn(2, *size))) == len(attached_plan(model))


# ---------------------------------------------------------------------------- timm's own SE


def test_attached_resnet50_computes_what_seresnet50_does():
    theirs = randomise(timm.create_model("seresnet50", num_classes=7)).eval()
    ours = attach(timm.create_model("resnet50", num_classes=7)).eval()
    weights = {}
    for name, value in theirs.state_dict().items():
        if ".se." in name:
            # Their 1×1 convolutions on one position are our linear layers.
            name = name.replace(".se.", ".bn3.se.")
            value = value.flatten(1) if value.dim() == 4 else value
        weights[name] = value
    ours.load_state_dict(weights, strict=True)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = theirs(images)
        assert expected.std() > 0.01
        torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("plain", "with_se", "block", "end"),
    others_slow(
        [
            ("resnet18", "seresnet18", "se", "bn2"),
            ("resnet50", "seresnet50", "se", "bn3"),
            ("resnet50d", "seresnet50t", "se", "bn3"),
            ("resnext50_32x4d", "seresnext50_32x4d", "se", "bn3"),
            ("resnetaa50d", "seresnetaa50d", "se", "bn3"),
            ("nf_resnet50", "nf_seresnet50", "attn_last", "conv3"),
        ],
        {"resnet18", "resnet50d", "nf_resnet50"},
    ),
)
def test_sites_are_where_timm_has_its_own(plain, with_se, block, end):
    theirs = [
        path.removesuffix(block) + end
        for path, module in build_on_meta(f"timm/{with_se}").named_modules()
        if type(module).__name__ == "SEModule"
    ]
    assert len(theirs) in (8, 16)
    assert [site.path for site in plan_of(f"timm/{plain}")] == theirs
