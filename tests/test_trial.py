"""verify runs a copy of whatever network, in the types it has, and takes whatever it returns."""

from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from networks import small_resnet
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from senet import SqueezeExcite, UserError, VerificationError, attach, verify

SIZE = (3, 16, 16)


def _attached():
    return attach(small_resnet(), input_size=SIZE)


# What a forward may return, and where it may run


@dataclass
class _Prediction:
    logits: torch.Tensor
    label: str = "none"


@dataclass(slots=True)
class _Slotted:
    scores: list[torch.Tensor]


class _ModelOutput(OrderedDict):
    """As Hugging Face's: a mapping that torch's trees do not know."""


class _Returning(nn.Module):
    def __init__(self, form, network=None):
        super().__init__()
        self.network, self.form = network or small_resnet(), form

    def forward(self, x):
        return self.form(self.network(x))


@pytest.mark.parametrize(
    "form",
    [
        _Prediction,
        lambda y: _Slotted([y]),
        lambda y: _ModelOutput(logits=y, loss=None),
        lambda y: SimpleNamespace(heads={"a": (y, 3)}),
        lambda y: [{"boxes": y}],
    ],
    ids=["dataclass", "slots", "model output", "namespace", "list of dicts"],
)
def test_any_form_of_output(form):
    model = attach(_Returning(form), input_size=SIZE)
    checks = verify(model, torch.randn(2, *SIZE))
    assert [check.gate_gradient > 0 for check in checks] == [True] * 3


def test_a_detector_that_finds_nothing(monkeypatch):
    backbone = attach(small_resnet()[:2], input_size=(3, 64, 64))
    backbone.out_channels = 16
    model = FasterRCNN(
        backbone,
        num_classes=2,
        min_size=64,
        max_size=64,
        rpn_anchor_generator=AnchorGenerator(((16,),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2),
        box_score_thresh=2.0,
    ).eval()
    images = [torch.rand(3, 64, 64)]
    assert not model(images)[0]["boxes"].numel()
    assert [check.gate_gradient > 0 for check in verify(model, images)] == [True] * 3
    monkeypatch.setattr("senet.norm.norm_excite", lambda x, *operands: 2 * x)
    with pytest.raises(VerificationError, match=r"bn2: .*as one operation"):
        verify(model, images)


class _Listed(nn.Module):
    """Takes a list of images, as detectors do, and shrinks them to a single position."""

    def __init__(self, norm):
        super().__init__()
        self.network, self.pool = small_resnet()[:2], nn.AdaptiveAvgPool2d(1)
        self.last = nn.Sequential(nn.Conv2d(16, 4, 1), norm(4, track_running_stats=True))

    def forward(self, images):
        return self.last(self.pool(self.network(torch.stack(images))))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d])
@pytest.mark.parametrize("count", [1, 2])
def test_norms_of_a_single_value(norm, count):
    images = [torch.randn(3, 16, 16) for _ in range(count)]
    model = _Listed(norm).eval()
    attach(model, example_inputs=(images,))
    assert len(verify(model, images)) == 3


class _Frozen(nn.Module):
    """A head on a network that is run with autograd off."""

    def __init__(self, how):
        super().__init__()
        self.features, self.head, self.how = small_resnet()[:2], nn.Conv2d(16, 2, 1), how

    def forward(self, x):
        if self.how == "detached":
            return self.head(self.features(x).detach())
        if self.how == "unused":
            with torch.no_grad():
                self.features(x)
            return self.head(self.features[0](x))
        with torch.no_grad() if self.how == "no_grad" else torch.inference_mode():
            y = self.features(x)
        return self.head(y.clone())


@pytest.mark.parametrize("how", ["no_grad", "inference_mode"])
def test_blocks_of_a_backbone_that_runs_without_autograd_are_frozen(how):
    checks = verify(attach(_Frozen(how), input_size=SIZE), torch.randn(2, *SIZE))
    assert [check.path for check in checks] == [f"features.1.{i}.bn2" for i in range(3)]
    assert all(check.frozen and check.gate_gradient == 0 for check in checks)
    assert {check.note for check in checks} == {"its output carries no gradient"}


def test_a_block_that_is_detached_has_to_be_frozen():
    model = attach(_Frozen("detached"), input_size=SIZE)
    with pytest.raises(VerificationError, match=r"features\.1\.0\.bn2: .* detached on the way"):
        verify(model, torch.randn(2, *SIZE))
    model.features.requires_grad_(False)
    assert all(check.frozen and check.note for check in verify(model, torch.randn(2, *SIZE)))


def test_a_block_without_autograd_that_enters_nothing_is_refused():
    model = attach(_Frozen("unused"), input_size=SIZE)
    with pytest.raises(VerificationError, match="what it makes does not enter the output"):
        verify(model, torch.randn(2, *SIZE))


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_called_where_autograd_is_off(around):
    model = _attached()
    with around():
        x = torch.randn(2, *SIZE)
        assert not any(check.frozen for check in verify(model, x))


class _Keeping(nn.Module):
    """Keeps what it computed, as modules for visualisation do."""

    def __init__(self):
        super().__init__()
        self.network, self.features, self.last = small_resnet(), [], None

    def forward(self, x):
        self.last = self.network[:2](x)
        self.features.append({"last": self.last})
        return self.network[2](self.last)


def test_kept_features_and_old_style_norms_are_copied():
    model = attach(_Keeping(), input_size=SIZE)
    x = torch.randn(2, *SIZE)
    model(x)
    assert len(verify(model, x)) == 3
    assert len(model.features) == 1
    assert model.last.grad_fn is not None


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_old_style_norms_of_weights(norm):
    model = small_resnet()
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d):
            norm(module)
    attach(model, input_size=SIZE)
    x = torch.randn(2, *SIZE)
    model(x)
    assert all(check.gate_gradient > 0 for check in verify(model, x))


# Types


def test_bfloat16_whose_forward_says_so():
    model = attach(_Returning(lambda y: y, nn.Sequential(_Cast(), small_resnet())), input_size=SIZE)
    assert len(verify(model.bfloat16(), torch.randn(2, *SIZE))) == 3


class _Cast(nn.Module):
    def forward(self, x):
        return x.to(torch.bfloat16)


def _with_float32_norms():
    """In bfloat16 but for its norms, as is usual; it runs."""
    model = small_resnet().bfloat16()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    x = torch.randn(2, *SIZE, dtype=torch.bfloat16)
    assert model(x).dtype == torch.bfloat16
    return attach(model, input_size=SIZE), x


def test_float32_norms_among_bfloat16_convolutions():
    model, x = _with_float32_norms()
    calls = []
    for block in [m for m in model.modules() if isinstance(m, SqueezeExcite)]:
        assert block.fc1.weight.dtype == torch.float32
        block.register_forward_hook(lambda *call: calls.append(call[2].dtype))
    assert model(x).dtype == torch.bfloat16
    assert calls == [torch.bfloat16] * 3
    assert all(check.gate_gradient > 0 for check in verify(model, x))


def test_types_that_do_not_go_together_are_not_hidden():
    model, x = _with_float32_norms()
    model[1][1].conv1.float()
    with pytest.raises(RuntimeError):
        model(x)
    with pytest.raises(UserError, match="its parameters are bfloat16 and float32") as caught:
        verify(model, x)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)
