"""Why a candidate is left out: the reasons that a plan gives are true, and say what can be done."""

from __future__ import annotations

import threading

import pytest
import torch
from architectures import plan_of
from networks import Residual, small_resnet
from torch import nn

from senet import UserError, attach, plan, verify
from senet.tracing import ForwardError


def _reasons(found):
    return {entry.path: entry.reason for entry in found.skipped}


class _Parallel(nn.Module):
    """RepVGG's block with a functional ReLU: no module makes or takes its sum."""

    def __init__(self):
        super().__init__()
        self.c3 = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.c1 = nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16))
        self.idn = nn.BatchNorm2d(16)

    def forward(self, x):
        y = self.c3(x) + self.c1(x)
        return (y + self.idn(x)).relu()


class _Beside(nn.Module):
    """Two units whose outputs are added, and no shortcut."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(16, 16, 5, padding=2), nn.BatchNorm2d(16), nn.ReLU())

    def forward(self, x):
        return self.a(x) + self.b(x)


@pytest.mark.parametrize(
    ("block", "reason"),
    [(_Parallel, "ends in a function call"), (_Beside, "a sum with no shortcut")],
)
def test_branches_of_a_sum_that_is_left_out_are_no_units(block, reason):
    found = plan(nn.Sequential(block(), block()), input_size=(16, 8, 8))
    assert not found
    assert [entry.path for entry in found.skipped] == ["0", "1"]
    assert all(reason in entry.reason for entry in found.skipped)


def test_units_beside_a_sum_that_is_left_out_are_units():
    unit = nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
    found = plan(nn.Sequential(unit, _Beside()), input_size=(16, 8, 8))
    assert [site.path for site in found] == ["0.2"]


def test_convolutions_of_blocks_with_se_are_no_stem():
    """TResNet-M has SE in its first three stages of 3, 4 and 11 blocks; its stem is one layer."""
    found = plan_of("timm/tresnet_m")
    assert [site.path for site in found] == [f"body.layer4.{b}.conv3.bn" for b in range(3)]
    reasons = _reasons(found)
    assert [path for path, reason in reasons.items() if "stem" in reason] == ["body.conv1.conv"]
    gated = {path for path, reason in reasons.items() if "existing SE" in reason}
    blocks = [(stage, b) for stage, n in enumerate((3, 4, 11), 1) for b in range(n)]
    assert gated == {f"body.layer{stage}.{b}.se" for stage, b in blocks}
    assert set(reasons) - gated == {"body.conv1.conv", "body.layer4.0.downsample.1.conv"}


def test_blocks_of_the_body_without_a_sum_are_no_stem():
    """MobileNetV4's first two stages are plain convolutions."""
    reasons = _reasons(plan_of("timm/mobilenetv4_conv_small"))
    assert "stem" in reasons["conv_stem"]
    for path in ("blocks.0.0.conv", "blocks.0.1.conv", "blocks.1.0.conv", "blocks.1.1.conv"):
        assert reasons[path] == "a convolution outside every transformation"


class _Up(nn.Module):
    """A level of a decoder that takes the skip and goes up itself."""

    def __init__(self, low, high):
        super().__init__()
        self.up = nn.ConvTranspose2d(low, high, 2, 2)
        self.conv = nn.Sequential(nn.Conv2d(2 * high, high, 3, padding=1), nn.ReLU())

    def forward(self, x, skip):
        return self.conv(torch.cat([skip, self.up(x)], 1))


class _UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.d1 = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
        self.d2 = nn.Sequential(nn.Conv2d(16, 32, 3, 2, padding=1), nn.ReLU())
        self.d3 = nn.Sequential(nn.Conv2d(32, 64, 3, 2, padding=1), nn.ReLU())
        self.u2, self.u1 = _Up(64, 32), _Up(32, 16)

    def forward(self, x):
        x1 = self.d1(x)
        x2 = self.d2(x1)
        return self.u1(self.u2(self.d3(x2), x2), x1)


def test_a_level_that_goes_up_itself_is_a_skip_of_a_decoder():
    found = plan(_UNet(), input_size=(3, 32, 32))
    assert [site.path for site in found] == ["d1.1", "d2.1", "d3.1", "u2.conv.1", "u1.conv.1"]
    assert list(_reasons(found)) == ["u2", "u1"]
    assert all("encoder-decoder" in reason for reason in _reasons(found).values())


class _Cell(nn.Module):
    """A searched cell of two sums, with a channel gate after it or none."""

    def __init__(self, gated):
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(16, 8, 5, padding=2)
        self.c, self.gate = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 16, 1) if gated else None

    def forward(self, x):
        a, b, c = self.a(x).relu(), self.b(x).relu(), self.c(x).relu()
        y = torch.cat([a + b, b + c], 1)
        return y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid() if self.gate else y


def test_a_cell_with_se_is_left_out_as_a_whole():
    found = plan(nn.Sequential(_Cell(False), _Cell(True)), input_size=(16, 8, 8))
    assert [(site.path, site.kind) for site in found] == [("0", "inception")]
    assert [entry.path for entry in found.skipped] == ["1"]
    assert "existing SE" in found.skipped[0].reason


class _Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = small_resnet(), nn.Linear(10, 2)

    def forward(self, x, y):
        return self.head(torch.cat([self.encoder(x), self.encoder(y)], 1))


def test_a_shared_encoder_says_what_its_owner_can_do():
    model, pair = _Siamese(), (torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16))
    found = plan(model, example_inputs=pair)
    assert not found
    wanted = (
        "its end encoder.1.0.bn2 is called 2 times in one forward; "
        "for blocks inside the shared encoder, attach to that module by itself"
    )
    assert wanted in {entry.reason for entry in found.skipped}
    attach(model.encoder, input_size=(3, 16, 16), warm_start=True)  # and so it works
    assert len(verify(model.encoder, pair[0])) == 3
    assert model(*pair).shape == (2, 2)


class _Wrapped(nn.Module):
    def __init__(self, backbone, before=None):
        super().__init__()
        self.before, self.backbone = before or nn.Identity(), backbone

    def forward(self, x):
        return self.backbone(self.before(x))


def test_what_is_wrong_with_a_backbone_is_told():
    """Nothing is wrong with its forward: the whole model would fail for the same reason, or not."""
    backbone = small_resnet()
    backbone.lock = threading.Lock()
    with pytest.raises(UserError, match="Sequential cannot be copied") as caught:
        plan(_Wrapped(backbone), input_size=(3, 16, 16))
    assert not isinstance(caught.value, ForwardError)
    with pytest.raises(UserError, match="leave no hidden unit"):
        plan(_Wrapped(small_resnet()), input_size=(3, 16, 16), reduction=32, min_hidden=0)


def test_a_backbone_that_takes_no_images_is_planned_in_the_whole():
    model = _Wrapped(nn.Sequential(Residual(), Residual()), nn.Conv2d(3, 16, 1))
    found = plan(model, input_size=(3, 16, 16))
    assert [site.path for site in found] == ["backbone.0.bn2", "backbone.1.bn2"]


def test_a_backbone_and_a_model_that_both_fail_are_both_told():
    model = _Wrapped(nn.Sequential(Residual()), nn.Conv2d(4, 16, 1))
    with pytest.raises(ForwardError, match=r"forward of _Wrapped .*alone: the forward of Seq") as e:
        plan(model, input_size=(3, 16, 16))
    assert "\n" not in str(e.value)
