"""Where SE goes: residual branches and Inception modules, what is left out, and plans."""

import json

import pytest
import timm
import torch
import torchvision
from architectures import build_on_meta
from breadth import others_slow
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Joined, Residual, small_resnet
from torch import nn

from senet import Plan, UserError, attach, create_model, plan, verify
from senet.models import build_plain


def _paths(model, **options):
    return [site.path for site in plan(model, **options)]


def test_timms_resnet50_gets_the_sites_of_timms_seresnet50():
    expected = [
        name.replace(".se", ".bn3")
        for name, module in timm.create_model("seresnet50").named_modules()
        if type(module).__name__ == "SEModule"
    ]
    assert _paths(timm.create_model("resnet50")) == expected


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet20", "bn_inception"])
def test_our_networks(name):
    sites = plan(build_plain(name, 10))
    blocks = {"resnet18": 8, "resnet50": 16, "resnet20": 9, "bn_inception": 10}
    assert len(sites) == blocks[name]
    assert {site.kind for site in sites} == {"inception" if "inception" in name else "residual"}


def test_stages_are_the_papers():
    by_stage = {}
    for site in plan(create_model("resnet50")):
        by_stage[site.stage] = by_stage.get(site.stage, 0) + 1
    assert by_stage == {2: 3, 3: 4, 4: 6, 5: 3}


def test_googlenet_is_gated_after_each_module():
    model = torchvision.models.GoogLeNet(init_weights=False, aux_logits=False)
    names = ["3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"]
    assert _paths(model) == [f"inception{name}" for name in names]


@pytest.mark.parametrize("in_place", [True, False])
def test_blocks_written_in_different_ways(in_place):
    found = plan(small_resnet(in_place=in_place), input_size=(3, 16, 16))
    assert [site.path for site in found] == ["1.0.bn2", "1.1.bn2", "1.2.bn2"]
    assert [site.stage for site in found] == [0, 1, 1]
    reasons = {entry.path: entry.reason for entry in found.skipped}
    assert "stem" in reasons["0.0"]
    assert "downsample" in reasons["1.1.shortcut.0"]


class _LayerScaled(nn.Module):
    """Drop-path (as Identity), layer-scale and a scalar after the branch."""

    def __init__(self):
        super().__init__()
        self.branch = Residual(16)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.gamma = nn.Parameter(torch.ones(16, 1, 1))
        self.drop_path = nn.Identity()

    def forward(self, x):
        return x + 0.3 * self.drop_path(self.gamma * self.norm(self.conv(x)))


def test_site_is_before_drop_path_and_layer_scale():
    assert _paths(_LayerScaled(), input_size=(16, 8, 8)) == ["norm"]


_HALF = torch.tensor([0.5])
SUMS = {
    "stack, sum(0)": lambda x, f: torch.stack([x, f]).sum(0),
    "stack, sum(dim=1)": lambda x, f: torch.sum(torch.stack((f, x), 1), dim=1),
    "stack, mean(-1)": lambda x, f: torch.stack([x, f], dim=-1).mean([-1]),
    "addcmul": lambda x, f: torch.addcmul(x, f, _HALF.to(x.device)),
    "addcmul_, keywords": lambda x, f: x.clone().addcmul_(tensor1=_HALF.to(x.device), tensor2=f),
    "addcdiv": lambda x, f: torch.addcdiv(x, f, _HALF.to(x.device)),
    "lerp": lambda x, f: torch.lerp(x, f, 0.3),
    "x - f": lambda x, f: x - f,
    "f - x": lambda x, f: f - x,
    "x -= f": lambda x, f: x.clone().sub_(f),
    "subtract": lambda x, f: torch.subtract(x, f, alpha=2),
    "rsub": lambda x, f: torch.rsub(f, x),
    "sum([f, x])": lambda x, f: sum([f, x]),
    "sum([x, f])": lambda x, f: sum([x, f]),
    "x + f + 1": lambda x, f: x + f + 1,
    "x + (-f)": lambda x, f: x + (-f),
    "add, alpha": lambda x, f: torch.add(x, f, alpha=0.5),
    "add, keywords": lambda x, f: torch.add(input=x, other=f),
    "x.add_(f)": lambda x, f: x.add_(f),
    "f.add_(x)": lambda x, f: f.add_(x),
    "aten": lambda x, f: torch.ops.aten.add.Tensor(x, f),
}


@pytest.mark.parametrize("join", SUMS.values(), ids=SUMS)
def test_sums_however_they_are_written(join):
    found = plan(nn.Sequential(Joined(join), Joined(join)), input_size=(16, 8, 8))
    assert [(site.path, site.kind) for site in found] == [
        ("0.bn2", "residual"),
        ("1.bn2", "residual"),
    ]


@pytest.mark.parametrize("add", [torch.addcmul, torch.lerp])
def test_a_gate_inside_a_sum_is_an_existing_one(add):
    gated = Joined(lambda x, f: add(x, f, f.mean((2, 3), keepdim=True).sigmoid()))
    found = plan(gated, input_size=(16, 8, 8))
    assert not found
    assert "existing SE" in found.skipped[0].reason


def test_a_sum_over_another_dimension_of_a_stack_is_no_residual_one():
    model = Joined(lambda x, f: torch.stack([x, f]).sum(2))
    assert {site.kind for site in plan(model, input_size=(16, 8, 8))} == {"chain"}


class _Plain(nn.Module):
    """A plain stack with one ReLU module for all units, and no module after the last."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3)
        self.norm, self.relu, self.head = nn.BatchNorm2d(32), nn.ReLU(), nn.Linear(32, 5)

    def forward(self, x):
        x = self.relu(self.norm(self.conv2(self.relu(self.conv1(x)))))
        return self.head(x.mean((2, 3)))


def test_units_with_one_activation_module_for_all_are_gated_before_it():
    found = plan(_Plain(), input_size=(3, 16, 16))
    assert [(site.path, site.before) for site in found] == [("conv1", False), ("norm", False)]
    assert all("before the activation" in site.note for site in found)
    x = torch.randn(2, 3, 16, 16)
    assert len(verify(attach(_Plain(), found), x)) == 2


# Of modules with several ways through, `inner` gates each at its last k × k convolution.
RESNET_50 = [f"layer{s}.{b}" for s, blocks in enumerate((3, 4, 6, 3), 1) for b in range(blocks)]
INNER = {
    # Szegedy et al. 2015: 1×1; 1×1 and 3×3; 1×1 and "5×5" (3×3 in this implementation); a pooling
    # and 1×1.
    "torchvision/googlenet": [
        f"inception{module}.branch{branch}.1"
        for module in ("3a", "3b", *(f"4{m}" for m in "abcde"), "5a", "5b")
        for branch in (2, 3)
    ],
    # Gao et al. 2019: of four parts three are convolved, and each goes into the concatenation.
    "timm/res2net50_26w_4s": [f"{block}.bns.{part}" for block in RESNET_50 for part in range(3)],
    # He et al. 2016: the 3×3 of each bottleneck, whose ReLU (one module for three places) the last
    # 1×1 takes.
    "torchvision/resnet50": [f"{block}.conv3" for block in RESNET_50],
    # Ding et al. 2021: 3×3, 1×1 and norm in parallel are one 3×3 convolution in the end.
    "timm/repvgg_a0": [
        "stem.attn",
        *(f"stages.{s}.{b}.attn" for s, blocks in enumerate((2, 4, 14, 1)) for b in range(blocks)),
    ],
    # Vasu et al. 2023: depthwise 3×3 and pointwise blocks by turns, the stem a 3×3.
    "timm/mobileone_s1": [
        "stem.attn",
        *(
            f"stages.{s}.{b}.attn"
            for s, pairs in enumerate((2, 8, 10, 1))
            for b in range(0, 2 * pairs, 2)
        ),
    ],
}


@pytest.mark.parametrize("name", others_slow(INNER, list(INNER)[:3]))
def test_inner_gates_every_path(name):
    found = plan(build_on_meta(name), placement="inner")
    assert [site.path for site in found] == INNER[name]
    assert {site.before for site in found} == {name == "torchvision/resnet50"}


def test_input_of_unclear_channels_is_left_out_with_the_reason():
    """DaViT's blocks go from tokens to maps and back, and take tokens of views."""
    found = plan(build_on_meta("timm/davit_tiny"), placement="pre")
    assert any("channels is not clear" in entry.reason for entry in found.skipped)


class _Mixed(nn.Module):
    """A block of two residual halves, the first of them a module (MetaFormer's shape)."""

    def __init__(self):
        super().__init__()
        self.mixer = Joined(torch.add)
        self.conv1, self.conv2 = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 16, 1)

    def forward(self, x):
        x = self.mixer(x)
        return x + self.conv2(self.conv1(x).relu())


def test_a_block_after_whose_sum_is_gated_may_hold_another():
    model = nn.Sequential(_Mixed(), _Mixed()).eval()
    x, weights = torch.randn(2, 16, 8, 8), nn.Sequential(_Mixed(), _Mixed()).eval()
    found = plan(model, input_size=(16, 8, 8), placement="post")
    assert [site.path for site in found] == ["0.mixer", "0", "1.mixer", "1"]
    attach(model, found, warm_start=True).load_state_dict(weights.state_dict(), strict=True)
    torch.testing.assert_close(model(x), weights(x))
    assert len(verify(model, x)) == 4


class _PreActivated(nn.Module):
    def __init__(self):
        super().__init__()
        self.act, self.conv1 = nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)
        self.conv2, self.shortcut = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)

    def forward(self, x):
        x = self.act(x)
        return self.shortcut(x) + self.conv2(self.conv1(x).relu())


def test_post_does_not_reach_into_the_next_block():
    model = nn.Sequential(_PreActivated(), _PreActivated(), nn.Sequential(nn.ReLU()))
    found = plan(model, input_size=(16, 8, 8), placement="post")
    # The last activation is no block's beginning, it is the one after the sum.
    assert [(site.path, site.before) for site in found] == [("0", False), ("2.0", False)]


class _NoShortcut(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        return self.a(x) + self.b(x)


def test_a_sum_with_no_shortcut_is_left_out_with_the_reason():
    found = plan(_NoShortcut(), input_size=(16, 8, 8))
    assert not found
    assert "no shortcut" in found.skipped[0].reason


class _SharedNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x):
        return x + self.norm(self.conv2(self.norm(self.conv1(x)).relu()))


def test_a_module_called_twice_is_left_out_with_the_reason():
    found = plan(_SharedNorm(), input_size=(16, 8, 8))
    assert not found
    assert "called 2 times" in found.skipped[0].reason


def test_existing_se_is_left_out():
    found = plan(timm.create_model("seresnet50"))
    assert not found
    assert "existing SE" in found.skipped[0].reason


def test_block_figures_are_the_blocks():
    model = attach(small_resnet(), input_size=(3, 16, 16), reduction=4, min_hidden=2, bias=False)
    for site in plan(small_resnet(), input_size=(3, 16, 16), reduction=4, bias=False):
        block = model.get_submodule(site.path).se
        assert site.params == sum(p.numel() for p in block.parameters())
        assert site.hidden == block.fc1.out_features == 4
        assert site.macs == 2 * 16 * 4


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [(8, [2, 2, 2]), ({0: 4, 1: 2}, [4, 8, 8]), ({"1.2.*": 4}, [1, 1, 4])],
)
def test_reduction_per_stage_and_site(reduction, expected):
    found = plan(small_resnet(), input_size=(3, 16, 16), reduction=reduction)
    assert [site.hidden for site in found] == expected


@pytest.mark.parametrize(
    ("sites", "expected"),
    [
        ("1.0.*", ["1.0.bn2"]),
        (1, ["1.1.bn2", "1.2.bn2"]),
        (lambda s: s.positions == (16, 16), ["1.0.bn2"]),
        ([0, "1.2.*"], ["1.0.bn2", "1.2.bn2"]),
    ],
)
def test_filters(sites, expected):
    whole = plan(small_resnet(), input_size=(3, 16, 16))
    assert [site.path for site in whole.select(sites)] == expected
    assert _paths(small_resnet(), input_size=(3, 16, 16), sites=sites) == expected


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([2, 4, 16]), st.booleans(), st.sampled_from(["avg", "max", "none"]))
def test_json_round_trip(reduction, bias, squeeze):
    whole = plan(
        small_resnet(), input_size=(3, 16, 16), reduction=reduction, bias=bias, squeeze=squeeze
    )
    assert Plan.from_json(whole.to_json()) == whole
    assert json.loads(whole.to_json())["params"] == whole.params == sum(s.params for s in whole)


def test_table_has_a_row_a_site_and_totals():
    found = plan(create_model("resnet50"))
    lines = str(found).splitlines()
    assert sum("residual" in line for line in lines) == 16
    assert "16 sites" in str(found)
    assert "2,530,992" in str(found)


def test_slice_is_a_plan():
    whole = plan(small_resnet(), input_size=(3, 16, 16))
    assert isinstance(whole[1:], Plan)
    assert whole[1:].params == whole[1].params + whole[2].params


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": "9.*"}, "matches no site"),
        ({"sites": 7}, "no site is in stage 7; stages: 0, 1"),
        ({"sites": lambda s: False}, "accepts none of the 3 sites"),
        ({"placement": "standart"}, "nearest: 'standard'"),
        ({"reduction": 32, "min_hidden": 0}, "leave no hidden unit"),
        ({"reduction": 1e-320}, "reduction 9.99989e-321 have no width"),
        ({"input_size": (3, 0)}, "positive whole numbers"),
        ({"input_size": (1, 16, 16)}, "give input_size="),
        ({"scope": "body"}, "no module 'body'"),
        ({"example_inputs": torch.ones(1, 3, 8, 8)}, "say the same twice"),
    ],
)
def test_mistakes_get_one_line(options, message):
    with pytest.raises(UserError, match=message) as caught:
        plan(small_resnet(), **({"input_size": (3, 16, 16)} | options))
    assert "\n" not in str(caught.value)


DEEP = 100_000
NARROW = (
    plan(small_resnet(), input_size=(3, 16, 16))
    .to_json()
    .replace('"reduction": 16,\n        "hidden": 1', '"reduction": 1e-320, "hidden": null')
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        *((text, "plan") for text in ("", "[]", '{"version": 2}', '{"version": 1}', "{")),
        ("[" * DEEP + "]" * DEEP, "not a plan written by"),
        (NARROW, "have no width"),
    ],
    ids=["nothing", "a list", "version 2", "a version only", "cut", "deep", "endless"],
)
def test_what_is_no_plan_is_refused(text, reason):
    with pytest.raises(UserError, match=reason):
        Plan.from_json(text)


class _TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Residual()

    def forward(self, image, offset):
        return {"features": [self.block(image) + offset]}


@pytest.mark.parametrize("as_mapping", [False, True])
def test_example_inputs(as_mapping):
    tensors = (torch.ones(1, 16, 8, 8), torch.ones(1))
    given_ = dict(zip(("image", "offset"), tensors, strict=True)) if as_mapping else tensors
    assert _paths(_TwoInputs(), example_inputs=given_) == ["block.bn2"]
    with pytest.raises(UserError, match="example_inputs="):
        plan(_TwoInputs(), input_size=(16, 8, 8))


class _WithNeck(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.neck = small_resnet()[:2], Residual()

    def forward(self, x):
        return self.neck(self.backbone(x))


def test_scope_is_the_backbone_where_there_is_one():
    model = _WithNeck()
    assert _paths(model, input_size=(3, 16, 16)) == [f"backbone.1.{i}.bn2" for i in range(3)]
    assert _paths(model, input_size=(3, 16, 16), scope="neck") == ["neck.bn2"]
    assert len(_paths(model, input_size=(3, 16, 16), scope="")) == 4
