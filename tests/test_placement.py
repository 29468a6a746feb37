"""Where SE goes: residual branches and Inception modules, what is left out, and plans."""

import json

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Residual, small_resnet
from torch import nn

from senet import Plan, UserError, attach, create_model, plan
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


@pytest.mark.parametrize("text", ["", "[]", '{"version": 2}', '{"version": 1}', "{"])
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(UserError, match="plan"):
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
