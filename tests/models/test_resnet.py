from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from breadth import others_slow
from torch import Tensor, nn

from senet.errors import UserError
from senet.models.bn_inception import bn_inception
from senet.models.cifar_resnet import resnet20
from senet.models.mobilenet import mobilenet
from senet.models.net154 import Net154
from senet.models.preactivation import PreActivationNet
from senet.models.resnet import BottleneckUnit, conv_norm, resnet18, resnet34, resnet50
from senet.models.resnext import resnext50_32x4d
from senet.models.shake_shake import ShakeShakeNet, ShakeShakeNeXt
from senet.models.shufflenet import shufflenet
from senet.models.vgg import vgg16

Builder = Callable[[int], nn.Module]


def small_net154(classes: int) -> nn.Module:
    return Net154((1, 2, 1, 1), classes)


def small_resnet164(classes: int) -> nn.Module:
    return PreActivationNet(2, 64, kernels=(1, 3, 1), narrowing=4, num_classes=classes)


def small_wrn16(classes: int) -> nn.Module:
    return PreActivationNet(2, 32, kernels=(3, 3), num_classes=classes)


def small_shake_shake_26(classes: int) -> nn.Module:
    return ShakeShakeNet(2, 32, classes)


def small_shake_shake_29(classes: int) -> nn.Module:
    return ShakeShakeNeXt(1, classes)


# The deepest and widest with fewer units or channels, where nothing but the time differs.
BUILDERS = [
    resnet18,
    resnet50,
    resnet20,
    bn_inception,
    resnext50_32x4d,
    small_net154,
    vgg16,
    mobilenet,
    shufflenet,
    small_resnet164,
    small_wrn16,
    small_shake_shake_26,
    small_shake_shake_29,
]
ONE_OF_A_KIND = {resnet18, resnet20, bn_inception, small_net154, shufflenet, small_wrn16}
ONE_OF_A_KIND |= {small_shake_shake_26}
"""What others are built of too; `make test-slow` has them all."""
_BUILDERS = others_slow(BUILDERS, ONE_OF_A_KIND)


@pytest.mark.parametrize("build", _BUILDERS)
@pytest.mark.parametrize("size", [(97, 75), pytest.param((33, 50), marks=pytest.mark.slow)])
def test_any_image_size_and_number_of_classes(build: Builder, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = build(7).eval()
        assert model(torch.empty(2, 3, *size)).shape == (2, 7)


@pytest.mark.parametrize(
    ("build", "least"),
    others_slow(
        [
            (resnet18, 3),
            (resnet50, 3),
            (resnet20, 1),
            (bn_inception, 7),
            (resnext50_32x4d, 3),
            (small_net154, 3),
            (vgg16, 32),
            (mobilenet, 1),
            (shufflenet, 1),
            (small_resnet164, 1),
            (small_shake_shake_26, 1),
            (small_shake_shake_29, 1),
        ],
        {resnet18, resnet20, bn_inception, vgg16, mobilenet, small_shake_shake_26},
    ),
)
def test_smallest_image(build: Builder, least: int) -> None:
    """The least size is the one that the docstring promises, and it gives numbers."""
    model = build(3).eval()
    assert model(torch.randn(1, 3, least, least)).isfinite().all()
    with pytest.raises(RuntimeError):
        model(torch.randn(1, 3, least - 1, least - 1))


@pytest.mark.parametrize("build", _BUILDERS)
def test_every_module_with_a_job_runs_once(build: Builder) -> None:
    """A module that ran twice could not be wrapped by itself, one that never runs is no part."""
    calls: Counter[str] = Counter()
    with torch.device("meta"):
        model = build(10).eval()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    model(torch.empty(1, 3, 64, 64, device="meta"))
    assert calls == Counter({name: 1 for name, _ in model.named_modules()})


@pytest.mark.parametrize("build", _BUILDERS)
def test_shared_modules_do_not_exist(build: Builder) -> None:
    with torch.device("meta"):
        model = build(10)
    named = list(model.named_modules(remove_duplicate=False))
    assert len(named) == len({id(module) for _, module in named})


@pytest.mark.parametrize("build", _BUILDERS)
def test_initialisation_is_he_and_follows_the_seed(build: Builder) -> None:
    torch.manual_seed(3)
    model = build(10)
    torch.manual_seed(3)
    again = build(10)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    checked = 0
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 30_000:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)
            checked += 1
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        if isinstance(module, nn.Linear):
            assert module.weight.abs().max() <= module.in_features**-0.5
    assert checked


@pytest.mark.parametrize("build", _BUILDERS)
def test_networks_never_mention_se(build: Builder) -> None:
    assert not [
        name
        for name, _ in build(10).named_modules()
        if re.search(r"squeeze|excit|\bse\b|fc1|gate", name, re.IGNORECASE)
    ]


@pytest.mark.parametrize("build", _BUILDERS)
def test_training_step_reaches_every_parameter(build: Builder) -> None:
    torch.manual_seed(0)
    model = build(4).train()
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    dead = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert dead == []


@pytest.mark.parametrize("build", _BUILDERS)
def test_one_class_is_enough(build: Builder) -> None:
    with torch.device("meta"):
        assert build(1).eval()(torch.empty(2, 3, 64, 64)).shape == (2, 1)


@pytest.mark.parametrize("build", _BUILDERS)
def test_symbolic_tracing_sees_the_whole_network(build: Builder) -> None:
    model = build(5).eval()
    traced = torch.fx.symbolic_trace(copy.deepcopy(model))
    x = torch.randn(1, 3, 75, 70)
    assert torch.equal(traced(x), model(x))


def test_parameters_of_the_basic_networks() -> None:
    """He et al.'s ResNet-18 and 34, as widely published: 11,689,512 and 21,797,672."""
    with torch.device("meta"):
        counts = [sum(p.numel() for p in build().parameters()) for build in (resnet18, resnet34)]
    assert counts == [11_689_512, 21_797_672]


def test_unit_is_the_sum_of_branch_and_shortcut() -> None:
    torch.manual_seed(0)
    unit = BottleneckUnit(8, 16, 2, conv_norm(8, 16, 1, 2)).eval()
    x = torch.randn(2, 8, 7, 7)
    kept: list[Tensor] = []
    unit.increase.register_forward_hook(lambda *call: kept.append(call[-1]))
    y = unit(x)
    branch = unit.increase(
        unit.spatial_relu(unit.spatial(unit.reduce_relu(unit.reduce(x)))),
    )
    # the branch's output is still what it was: nothing was added to it in place
    assert torch.equal(kept[0], branch)
    assert torch.equal(y, (branch + unit.shortcut(x)).relu())


def test_input_of_an_identity_unit_is_left_alone() -> None:
    unit = BottleneckUnit(16, 16, 1, nn.Identity()).eval()
    x = torch.randn(2, 16, 5, 5)
    before = x.clone()
    unit(x)
    assert torch.equal(x, before)


def test_stride_in_moves_the_stride() -> None:
    with torch.device("meta"):
        original, later = resnet50(), resnet50(stride_in="3x3")
    for model, reduce, spatial in ((original, (2, 2), (1, 1)), (later, (1, 1), (2, 2))):
        for stage in (model.stage3, model.stage4, model.stage5):
            assert stage.unit1.reduce.conv.stride == reduce
            assert stage.unit1.spatial.conv.stride == spatial
            assert stage.unit1.shortcut.conv.stride == (2, 2)
            assert stage.unit2.reduce.conv.stride == (1, 1)
    with pytest.raises(UserError, match=r"stride_in is '1x3'; it can be '1x1' or '3x3'"):
        resnet50(stride_in="1x3")
