"""The many ways in which networks are written: SE is put in rightly, or it is said why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import senet
from senet import UserError
from senet.cost import count_macs


def _convolution() -> nn.Conv2d:
    return nn.Conv2d(32, 32, 3, padding=1)


class Block(nn.Module):
    """A residual block whose branch ends in what ``end`` makes of two convolutions."""

    def __init__(self, end: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.first, self.second = _convolution(), _convolution()
        for name, module in modules.items():
            self.add_module(name, module)
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        return x + self.end(self, self.second(self.first(x).relu()))


class Bundled(nn.Module):
    """Two convolutions and a ReLU, and what they make in a container of some kind."""

    def __init__(self, kind: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second = _convolution(), _convolution()
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        return self.kind(F.relu(self.second(F.relu(self.first(x)))))


IMAGES = torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(0))
SIZE = (32, 8, 8)


@pytest.mark.parametrize("training", [True, False])
def test_modules_called_by_keyword_end_in_se(training: bool) -> None:
    def by_keyword(block: Any, y: Tensor) -> Tensor:
        return block.norm(input=y)

    def by_position(block: Any, y: Tensor) -> Tensor:
        return block.norm(y)

    outputs = []
    for end in (by_keyword, by_position):
        torch.manual_seed(0)
        made = senet.attach(Block(end, norm=nn.BatchNorm2d(32)), input_size=SIZE)
        assert [site.path for site in made._senet_plan] == ["norm"]
        outputs.append(made.train(training)(IMAGES))
        assert len(senet.verify(made, IMAGES)) == 1
        fast = senet.deploy(made, example_inputs=IMAGES)
        assert (fast.report.count("folded"), fast.report.count("left")) == (1, 0)
        torch.testing.assert_close(fast(IMAGES), made.eval()(IMAGES), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*outputs)


class Conditioned(nn.Module):
    """Takes what it gates second, and calls it x."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = _convolution()

    def forward(self, condition: float, x: Tensor) -> Tensor:
        return self.conv(x) * condition


def test_what_is_gated_may_have_any_name() -> None:
    block = Block(lambda block, y: block.last(0.5, x=y), last=Conditioned())
    assert senet.attach(block, input_size=SIZE)(IMAGES).shape == IMAGES.shape


@pytest.mark.parametrize(
    ("kind", "of"),
    [
        (lambda y: (y, None), lambda made: made[0]),
        (lambda y: [y], lambda made: made[0]),
        (lambda y: {"out": y}, lambda made: made["out"]),
    ],
    ids=["tuple", "list", "dict"],
)
@pytest.mark.parametrize("placement", ["standard", "post", "identity", "inner", "pre"])
def test_modules_that_return_containers_are_not_wrapped(
    kind: Callable[[Tensor], Any], of: Callable[[Any], Tensor], placement: str
) -> None:
    class Summing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = Bundled(kind)

        def forward(self, x: Tensor) -> Tensor:
            return x + of(self.branch(x))

    network = nn.Sequential(_convolution(), Summing(), _convolution())
    plan = senet.plan(network, input_size=SIZE, placement=placement)
    assert "1.branch" not in [site.path for site in plan if not site.before]
    if plan:
        made = senet.attach(network, plan)
        assert made(IMAGES).shape == IMAGES.shape


def test_rms_norms_have_their_channels_last() -> None:
    def end(block: Any, y: Tensor) -> Tensor:
        return block.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    made = senet.attach(Block(end, norm=nn.RMSNorm(32)), input_size=(32, 8, 12))
    (site,) = made._senet_plan
    assert (site.path, site.channels, site.channels_last) == ("norm", 32, True)
    for height in (8, 10):
        assert made(torch.randn(2, 32, height, 12)).shape == (2, 32, height, 12)


def test_channels_in_the_middle_are_not_gated() -> None:
    block = Block(lambda block, y: block.act(y.transpose(1, 2)).transpose(1, 2), act=nn.ReLU())
    plan = senet.plan(block, input_size=SIZE)
    assert not any(site.path == "act" for site in plan)
    if plan:
        senet.attach(block, plan)(IMAGES)


@pytest.mark.parametrize("wrapper", [nn.DataParallel, nn.parallel.DistributedDataParallel])
def test_parallel_wrappers_are_refused(wrapper: type[Any]) -> None:
    model = wrapper.__new__(wrapper)  # a process group takes more than one process
    nn.Module.__init__(model)
    model.module = nn.Sequential(_convolution(), _convolution())
    with pytest.raises(UserError, match=f"is in a {wrapper.__name__}.* attach to its .module"):
        senet.attach(model, input_size=SIZE)


def test_a_compiled_part_is_refused() -> None:
    model = torchvision.models.resnet18()
    model.layer1 = torch.compile(model.layer1)
    with pytest.raises(UserError, match=r"module 'layer1' is compiled.* \(layer1._orig_mod\)"):
        senet.plan(model)


def test_a_backbone_by_another_name_is_no_backbone() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = torchvision.models.resnet18()

        @property
        def backbone(self) -> nn.Module:
            return self.encoder

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(x)

    made = senet.attach(Named())
    assert all(site.path.startswith("encoder.") for site in made._senet_plan)


def test_attributes_that_begin_like_hooks_are_copied() -> None:
    class Switching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block(lambda block, y: y)
            self._forward_fns: Mapping[str, Any] = {"a": torch.relu}

        def forward(self, x: Tensor) -> Tensor:
            return self._forward_fns["a"](self.block(x))

    assert len(senet.plan(Switching(), input_size=SIZE)) == 1


class InPlace(nn.Module):
    """Normalises its images where they are, and asks for a value of them."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.25)
        return self.inside(x / 255 if x.max() > 100 else x)


def test_a_forward_that_works_on_its_images_leaves_ours_alone() -> None:
    torch.manual_seed(0)
    body = Block(lambda block, y: block.norm(y), norm=nn.BatchNorm2d(32))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3))
    network = InPlace(nn.Sequential(body, *head))
    x = IMAGES.clone()
    made = senet.attach(network, example_inputs=x)
    fast = senet.deploy(made.eval(), example_inputs=x)
    assert fast.report.count("left") == 0
    loader = [(IMAGES.clone(), torch.tensor([0, 1]))]
    slimmed = senet.slim(made, loader, [(IMAGES.clone(), torch.tensor([0, 1]))], max_drop=100)
    assert not slimmed.report.kept
    assert torch.equal(x, IMAGES)


def test_operations_of_a_forward_that_asks_for_values_are_counted() -> None:
    plain = nn.Sequential(_convolution(), nn.ReLU())
    assert count_macs(InPlace(plain), SIZE) == count_macs(plain, SIZE) == 32 * 32 * 9 * 64


@pytest.mark.parametrize("kind", ["ids", "shared", "keywords", "scalar", "table"])
def test_verify_takes_single_samples_of_any_arguments(kind: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.table = torchvision.models.resnet18(num_classes=8), nn.Embedding(5, 4)

        def forward(self, x: Tensor, more: Tensor) -> Tensor:
            self.samples = len(x)
            if more.is_floating_point():
                return self.net(x) + more.mean(0)
            return torch.cat([self.net(x), self.table(more)], 1)

    x, ids = torch.randn(1, 3, 64, 64), torch.tensor([1])
    given: Any = {
        "ids": (x, ids),
        "shared": (torch.randn(2, 3, 64, 64), torch.randn(1, 8)),
        "keywords": {"x": x, "more": ids},
        "scalar": (x, torch.tensor(0.5)),
        "table": (x, torch.randn(7, 8)),
    }[kind]
    made = senet.attach(Two(), example_inputs=given)
    counts: list[int] = []
    norm_of(made).register_forward_pre_hook(lambda module, args: counts.append(len(args[0])))
    assert len(senet.verify(made, given)) == 8
    assert set(counts) == {2 if kind == "shared" else 4}


def test_weights_that_are_computed_anew_are_not_adopted() -> None:
    model = timm.create_model("mobilenetv3_small_050")
    blocks = [name for name, m in model.named_modules() if hasattr(m, "conv_reduce")]
    torch.nn.utils.parametrizations.spectral_norm(model.get_submodule(blocks[0]).conv_reduce)
    with pytest.warns(UserWarning, match="computed anew each time"):
        senet.adopt(model)
    adopted = [m for m in model.modules() if isinstance(m, senet.SqueezeExcite)]
    assert len(adopted) == len(blocks) - 1


@pytest.mark.parametrize("what", ["resnet", F.relu])
def test_only_modules_are_recalibrated(what: Any) -> None:
    with pytest.raises(UserError, match=r"is no torch\.nn\.Module"):
        senet.recalibrate(what, 64)


def norm_of(model: Any) -> nn.Module:
    """One that hooks of its own do not make run otherwise."""
    return model.net.bn1


class Early(nn.Module):
    """A block whose branch may begin with an `Identity`, and whose shortcut may be one."""

    def __init__(self, order: str, entry: bool, shortcut: bool) -> None:
        super().__init__()
        self.entry = nn.Identity() if entry else nn.BatchNorm2d(32)
        self.conv, self.norm = _convolution(), nn.BatchNorm2d(32)
        self.shortcut = nn.Sequential(nn.Identity()) if shortcut else None
        self.order = order

    def branch(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.entry(x)))

    def forward(self, x: Tensor) -> Tensor:
        if self.shortcut is None:
            return x + self.branch(x)
        if self.order == "shortcut first":
            return self.shortcut(x) + self.branch(x)
        return self.branch(x) + self.shortcut(x)


@pytest.mark.parametrize("order", ["shortcut first", "branch first"])
@pytest.mark.parametrize("entry", [True, False])
@pytest.mark.parametrize("shortcut", [True, False])
def test_the_identity_of_a_shortcut_is_told_from_that_of_a_branch(
    order: str, entry: bool, shortcut: bool
) -> None:
    network = nn.Sequential(_convolution(), Early(order, entry, shortcut))
    plan = senet.plan(network, input_size=SIZE, placement="identity")
    assert [site.path for site in plan] == ["1.shortcut.0"] * shortcut
    if not shortcut:
        assert any("its shortcut is no module" in entry.reason for entry in plan.skipped)
    else:
        made = senet.attach(network, plan)
        block = made[1].shortcut[0]
        seen: list[Tensor] = []
        block.se.register_forward_hook(lambda module, args, output: seen.append(output))
        expected = made[1].eval()
        x = IMAGES.clone()
        torch.testing.assert_close(expected(x), expected.branch(x) + seen[0])


def test_an_identity_before_both_is_no_shortcut() -> None:
    class Both(Early):
        def forward(self, x: Tensor) -> Tensor:
            x = self.entry(x)
            return x + self.norm(self.conv(x))

    network = nn.Sequential(_convolution(), Both("", entry=True, shortcut=False))
    assert not senet.plan(network, input_size=SIZE, placement="identity")


def test_a_part_may_be_compiled_after_all_is_attached() -> None:
    model = senet.attach(torchvision.models.resnet18(num_classes=3))
    model.layer1 = torch.compile(model.layer1, backend="eager")
    found = senet.record(model, [(torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))])
    assert len(found.blocks) == 8
    senet.detach(model)


def test_branches_of_mobilenetv4_are_not_taken_for_shortcuts() -> None:
    plan = senet.plan(timm.create_model("mobilenetv4_conv_small"), placement="identity")
    assert not any("dw_start" in site.path for site in plan)
