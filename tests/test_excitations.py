"""senet.record: gates as they are, statistics as the slow way has them, and the model as it was."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from gate_networks import Gated, eta_squared, moments
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import small_resnet
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import senet
from senet import SqueezeExcite, UserError
from senet.data import DataOptions, load_data, val_loader
from senet.excitations import HIGH, LOW

pytestmark = pytest.mark.usefixtures("one_operation")


def batches(images: int, classes: int = 3, size: int = 16, step: int = 4) -> list[Any]:
    random = torch.Generator().manual_seed(0)
    x = torch.rand(images, 3, size, size, generator=random)
    y = torch.randint(classes, (images,), generator=random)
    return list(zip(x.split(step), y.split(step), strict=True))


def attached(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return senet.attach(small_resnet(), input_size=(3, 16, 16), reduction=4, **options)


def raw_gates(directory: Path) -> tuple[dict[str, Tensor], Tensor]:
    """Gates (N, C) by block and labels (N,), from the files in the order of their images."""
    index = json.loads((directory / "gates.json").read_text())
    parts = [load_file(directory / name) for name in index["files"]]
    assert torch.equal(torch.cat([p["images"] for p in parts]), torch.arange(index["images"]))
    gates = {
        b["path"]: torch.cat([p[f"gates/{b['path']}"] for p in parts]) for b in index["blocks"]
    }
    return gates, torch.cat([p["labels"] for p in parts])


@given(
    images=st.integers(1, 30),
    classes=st.integers(1, 5),
    channels=st.integers(1, 6),
    step=st.integers(1, 31),
    gate=st.sampled_from(["sigmoid", "hard_sigmoid", "tanh", "relu"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_statistics_are_those_of_the_stored_gates(
    tmp_path_factory, images, classes, channels, step, gate, seed
):
    random = torch.Generator().manual_seed(seed)
    x = 4 * torch.randn(images, channels, 1, 1, generator=random)
    x[:, 0] = 1.5
    labels = torch.randint(classes, (images,), generator=random)
    place = tmp_path_factory.mktemp("gates")
    loader = list(zip(x.split(step), labels.split(step), strict=True))
    names = [f"class {k}" for k in range(classes)]
    found = senet.record(Gated(channels, gate), loader, classes=names, gates_dir=place)
    (block,) = found.blocks
    (gates,), stored = raw_gates(place)[0].values(), raw_gates(place)[1]
    function = {"sigmoid": torch.sigmoid, "hard_sigmoid": nn.functional.hardsigmoid}
    expected = function.get(gate) or getattr(torch, gate)
    torch.testing.assert_close(gates, expected(x.flatten(1)))
    assert torch.equal(stored, labels)
    assert torch.equal(block.counts, labels.bincount(minlength=classes))
    mean, variance = moments(gates, labels, classes)
    torch.testing.assert_close(block.mean, mean, equal_nan=True, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(block.variance, variance, equal_nan=True, rtol=1e-9, atol=1e-18)
    wide = gates.double()
    torch.testing.assert_close(block.total_mean, wide.mean(0))
    torch.testing.assert_close(block.deviation, wide.std(0, correction=0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(block.eta_squared, eta_squared(gates, labels), atol=1e-9, rtol=1e-9)
    assert block.constant[0]
    assert block.eta_squared[0] == 0
    assert not block.null[:, 0].any()
    start, end = {"tanh": (-1, 1), "relu": (0, float("inf"))}.get(gate, (0, 1))
    if gate == "relu":
        low, high = gates <= 0, gates < 0
    else:
        low, high = (gates < start + LOW * (end - start)), (gates > start + HIGH * (end - start))
    torch.testing.assert_close(block.low, low.double().mean(0))
    torch.testing.assert_close(block.high, high.double().mean(0))
    for values, numbers, descending in (
        (block.most, block.most_images, True),
        (block.least, block.least_images, False),
    ):
        ordered = wide.sort(0, descending=descending).values[:9].t()
        assert torch.equal(values, ordered)
        assert torch.equal(wide.gather(0, numbers.t()).t(), ordered)
    pooled = (wide - wide.mean(0)).square().sum(0)
    share = (eta_squared(gates, labels) * pooled).sum() / pooled.sum() if pooled.sum() else 0
    assert block.specificity == pytest.approx(float(share), abs=1e-9)
    assert 1 / 21 <= block.p_value <= 1


def reference_gates(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Gates of the two modules called one after the other, by a hook on each block."""
    seen: dict[str, Tensor] = {}
    twin = copy.deepcopy(model).eval()
    for path, block in twin.named_modules():
        if isinstance(block, SqueezeExcite):
            block.register_forward_pre_hook(
                lambda m, args, p=path: seen.update({p: m.gates(args[0]) / m.options.gate_scale})
            )
    with torch.no_grad():
        twin(images)
    return seen


NETWORKS: dict[str, Callable[[], tuple[nn.Module, int]]] = {
    "attached": lambda: (attached(), 16),
    "warm start": lambda: (attached(warm_start=True), 16),
    "pre": lambda: (attached(placement="pre"), 16),
    "max": lambda: (attached(squeeze="max"), 16),
    "released": lambda: (senet.create_model("se_resnet20", num_classes=5), 16),
    "efficientnet": lambda: (
        senet.adopt(timm.create_model("efficientnet_b0", num_classes=5)), 32
    ),
    "seresnet": lambda: (senet.adopt(timm.create_model("seresnet18", num_classes=5)), 32),
    "mobilenet": lambda: (
        senet.adopt(torchvision.models.mobilenet_v3_small(num_classes=5)), 32
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_gates_are_those_of_the_blocks(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, size = NETWORKS[name]()
    loader = batches(6, size=size)
    found = senet.record(model, loader, gates_dir=tmp_path)
    gates, labels = raw_gates(tmp_path)
    parts = [reference_gates(model, x) for x, _ in loader]
    blocks = [path for path, m in model.named_modules() if isinstance(m, SqueezeExcite)]
    assert [b.path for b in found.blocks] == list(parts[0])  # in order of execution
    assert sorted(gates) == sorted(blocks)
    assert [b.depth for b in found.blocks] == list(range(len(blocks)))
    for path, s in gates.items():
        torch.testing.assert_close(s, torch.cat([p[path] for p in parts]), atol=1e-5, rtol=1e-4)
    assert torch.equal(labels, torch.cat([y for _, y in loader]))
    assert found.images == 6
    assert found.classes == ("0", "1", "2", "3", "4")


def test_the_fused_operation_runs_while_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = attached()
    calls = []
    plain = SqueezeExcite.gates
    monkeypatch.setattr(SqueezeExcite, "gates", lambda *args: calls.append(1) or plain(*args))
    senet.record(model, batches(8))
    assert not calls


def test_stages_come_from_the_plan_or_from_sizes() -> None:
    model = attached()
    stages = [site.stage for site in senet.attached_plan(model)]
    assert [b.stage for b in senet.record(model, batches(4)).blocks] == stages
    adopted = senet.adopt(timm.create_model("seresnet18", num_classes=3))
    found = senet.record(adopted, batches(4, size=64))
    assert [b.stage for b in found.blocks] == [2, 2, 3, 3, 4, 4, 5, 5]
    assert (
        senet.record(nn.Sequential(SqueezeExcite(3), nn.Flatten()), batches(4)).blocks[0].stage == 0
    )
    flat = nn.Sequential(nn.Flatten(), SqueezeExcite(12))
    assert senet.record(flat, batches(4, size=2)).blocks[0].stage is None


def test_gates_for_every_position_are_averaged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    block = SqueezeExcite(3, squeeze="none", reduction=1)
    loader = batches(5)
    senet.record(nn.Sequential(block, nn.Flatten()), loader, gates_dir=tmp_path)
    expected = torch.cat([block.gates(x).mean((2, 3)) for x, _ in loader])
    torch.testing.assert_close(raw_gates(tmp_path)[0]["0"], expected)


def test_channels_may_be_last(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(SqueezeExcite(8, channels_last=True), nn.Flatten())
    x = torch.rand(4, 16, 16, 8)
    found = senet.record(model, [x], gates_dir=tmp_path)
    torch.testing.assert_close(raw_gates(tmp_path)[0]["0"], model[0].gates(x.movedim(-1, 1)))
    assert found.classes == ("all",)


@pytest.mark.parametrize("scale", [2.0, 0.0])
def test_the_gate_is_that_before_the_constant(scale: float, tmp_path: Path) -> None:
    x = torch.randn(4, 3, 1, 1)
    senet.record(Gated(3, gate_scale=scale), [x], gates_dir=tmp_path)
    torch.testing.assert_close(raw_gates(tmp_path)[0]["se"], x.flatten(1).sigmoid())


def test_half_precision_and_double(tmp_path: Path) -> None:
    x = torch.randn(4, 3, 1, 1)
    for number, dtype in enumerate((torch.bfloat16, torch.float64)):
        model = Gated(3).to(dtype)
        found = senet.record(model, [x.to(dtype)], gates_dir=tmp_path / str(number))
        stored = raw_gates(tmp_path / str(number))[0]["se"]
        assert stored.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(found.blocks[0].total_mean, stored.double().mean(0))


def state(model: nn.Module) -> dict[str, Any]:
    """All that a model is, but for values that change with every forward."""
    return {
        path: (
            module.training,
            type(module),
            {k: v for k, v in vars(module).items() if k not in ("_parameters", "_buffers")}.keys(),
            [len(v) for k, v in sorted(vars(module).items()) if "hook" in k and v is not None
             and not isinstance(v, bool)],
            {k: (id(p), p.requires_grad, None if p is None else p.grad, p._version)
             for k, p in module._parameters.items() if p is not None},
            {k: b._version for k, b in module._buffers.items() if b is not None},
        )
        for path, module in model.named_modules()
    }  # fmt: skip


class Breaks(nn.Module):
    """Fails from the second forward on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError("out of order")
        return x


def interrupted() -> Iterator[Any]:
    yield batches(4)[0]
    raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["well", "failing", "interrupted", "adopted"])
def test_the_model_is_left_as_it_came(how: str) -> None:
    model = attached()
    if how == "adopted":
        model = senet.adopt(timm.create_model("seresnet18", num_classes=3))
    model.train()
    frozen = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    frozen.weight.requires_grad_(False)
    if how == "failing":
        model.append(Breaks())
    gradient = torch.ones_like(next(model.parameters()))
    next(model.parameters()).grad = gradient
    before = state(model)
    loader = interrupted() if how == "interrupted" else batches(8, size=32)
    error = {"failing": UserError, "interrupted": KeyboardInterrupt}.get(how)
    if error:
        with pytest.raises(error):
            senet.record(model, loader)
    else:
        senet.record(model, loader)
    assert state(model) == before
    assert not frozen.training
    assert model.training
    assert torch.is_grad_enabled()
    model(batches(4, size=32)[0][0]) if how != "failing" else None


@pytest.mark.parametrize("shape", ["tensors", "pairs", "loader", "singles", "workers"])
def test_loaders_of_all_kinds(shape: str) -> None:
    x, y = (torch.cat(parts) for parts in zip(*batches(8), strict=True))
    data = TensorDataset(x, y)
    loader: Any = {
        "tensors": x.split(3),
        "pairs": [[a, b.tolist()] for a, b in zip(x.split(3), y.split(3), strict=True)],
        "loader": DataLoader(data, batch_size=3, shuffle=True),
        "singles": DataLoader(TensorDataset(x), batch_size=5),
        "workers": DataLoader(data, batch_size=3, num_workers=1),
    }[shape]
    found = senet.record(attached(), loader)
    assert found.images == 8
    if shape in ("tensors", "singles"):
        assert found.classes == ("all",)
        assert found.blocks[0].specificity == 0
        assert found.blocks[0].p_value == 1
    else:
        assert found.permuted
        assert torch.equal(found.blocks[0].counts, y.bincount(minlength=5))


def test_a_generator_tells_nothing_beforehand() -> None:
    found = senet.record(attached(), iter(batches(8)))
    assert not found.permuted
    assert not senet.record(attached(), iter(batches(4)), permutations=0).permuted
    assert found.blocks[0].null.shape == (20, 16)


@pytest.mark.parametrize("part", [0, 3])
def test_labels_of_our_own_loaders_are_known_beforehand(part: int) -> None:
    options = DataOptions(data="digits", batch_size=64)
    data = load_data(options)
    model = senet.create_model("se_resnet20", num_classes=10)
    loader = val_loader(data, options)
    found = senet.record(model, islice(loader, part) if part else loader, classes=data.classes)
    assert found.permuted == (not part)
    assert found.images == (192 if part else len(data.val))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32], ids=str)
def test_labels_are_whole_numbers_of_any_width(dtype: torch.dtype) -> None:
    narrow = [(x, y.to(dtype)) for x, y in batches(9)]
    found, expected = senet.record(attached(), narrow), senet.record(attached(), batches(9))
    for one, other in zip(found.blocks, expected.blocks, strict=True):
        assert torch.equal(one.counts, other.counts)
        torch.testing.assert_close(one.mean, other.mean, equal_nan=True)


def test_a_single_image() -> None:
    found = senet.record(attached(), batches(1))
    for block in found.blocks:
        assert not block.deviation.any()
        assert block.constant.all()
        assert block.specificity == 0
        assert block.p_value == 1
        assert block.most.shape == (16, 1)
        assert not block.most_images.any()
        assert int(block.mean.isnan().all(1).sum()) == 4


def test_it_is_repeatable() -> None:
    loader = batches(9)
    first, again, other = (
        senet.record(attached(), loader, seed=seed, permutations=3) for seed in (1, 1, 2)
    )
    for a, b, c in zip(first.blocks, again.blocks, other.blocks, strict=True):
        assert torch.equal(a.null, b.null)
        assert not torch.equal(a.null, c.null)
        torch.testing.assert_close(a.mean, b.mean, rtol=0, atol=0, equal_nan=True)


def test_a_class_dependent_gate_is_told_from_noise() -> None:
    torch.manual_seed(0)
    y = torch.arange(60) % 4
    x = torch.randn(60, 3, 1, 1)
    x[:, 0, 0, 0] += y  # the first channel knows the class, the others do not
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    found = senet.record(Gated(3), loader, classes=list("abcd"))
    block = found.block("se")
    assert block.p_value == 1 / 21
    assert block.eta_squared[0] > 0.4 > 0.2 > block.eta_squared[1:].max()
    assert abs(block.null.mean() - 3 / 59) < 0.015


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.se = SqueezeExcite(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.se(self.se(x)).flatten(1)


class Patches(Shared):
    def forward(self, x: Tensor) -> Tensor:
        return self.se(torch.cat(x.chunk(2, dim=2))).unflatten(0, (2, -1)).mean(0).flatten(1)


class Aside(Shared):
    """Its second block runs where images are bright, or never."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = least
        self.head = SqueezeExcite(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.se(x)
        return (self.head(x) if x.mean() > self.least else x).flatten(1)


class OwnGates(SqueezeExcite):
    def gates(self, u: Tensor) -> Tensor:
        return super().gates(u)


def with_nan() -> list[Any]:
    loader = batches(9)
    loader[1][0][2] = float("nan")
    return loader


REFUSALS: dict[str, tuple[Callable[[], Any], str]] = {
    "no module": (lambda: senet.record("resnet50", []), "no torch.nn.Module"),
    "plain": (lambda: senet.record(small_resnet(), batches(4)), "has no SE block.*senet.attach"),
    "adoptable": (
        lambda: senet.record(timm.create_model("seresnet18"), batches(4)), "adopt makes its 8"
    ),
    "deployed": (
        lambda: senet.record(senet.deploy(attached(), input_size=(3, 16, 16)), batches(4)),
        "is deployed",
    ),
    "meta": (lambda: senet.record(attached().to("meta"), batches(4)), "meta device"),
    "shared": (lambda: senet.record(Shared(), batches(4)), "'se' ran 2 times in one forward"),
    "patches": (lambda: senet.record(Patches(), batches(4)), "for 8 samples .* 4 images"),
    "own gates": (lambda: senet.record(nn.Sequential(OwnGates(3)), batches(4)), "'0' has its own"),
    "observed": (
        lambda: senet.record(m := attached(), (senet.record(m, [b]) and b for b in batches(4))),
        "observed already",
    ),
    "now and then": (
        lambda: senet.record(Aside(0.1), [torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)]),
        "'head' did not run for image 2",
    ),
    "now for once": (
        lambda: senet.record(Aside(0.1), [torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)]),
        "'head' ran for image 2",
    ),
    "no images": (lambda: senet.record(attached(), []), "the loader is empty"),
    "empty batch": (lambda: senet.record(attached(), [torch.ones(0, 3, 8, 8)]), "is empty"),
    "nan": (lambda: senet.record(attached(), with_nan()), r"'1\.0.*' are not finite for image 6"),
    "wrong size": (lambda: senet.record(Shared(), [torch.ones(2, 5, 4, 4)]), "forward of Shared"),
    "dictionary": (lambda: senet.record(attached(), [{"x": 1}]), "loader gives a dict"),
    "text": (lambda: senet.record(attached(), ["ab"]), "loader gives a str"),
    "label beyond": (
        lambda: senet.record(attached(), [(batches(4)[0][0], torch.tensor([0, 1, 7, 2]))]),
        "label 7 in the data, but there are 5 classes",
    ),
    "label below": (
        lambda: senet.record(attached(), [(batches(4)[0][0], torch.tensor([0, -1, 1, 2]))]),
        "label -1",
    ),
    "soft labels": (
        lambda: senet.record(attached(), [(batches(4)[0][0], torch.rand(4, 5))]), "number of one"
    ),
    "too few labels": (
        lambda: senet.record(attached(), [(batches(4)[0][0], torch.tensor([0]))]), r"shape \(1,\)"
    ),
    "labels at times": (
        lambda: senet.record(attached(), [batches(4)[0], batches(4)[0][0]]), "not for all"
    ),
    "names, no labels": (
        lambda: senet.record(attached(), [batches(4)[0][0]], classes=["a", "b"]), "images alone"
    ),
    "a name twice": (
        lambda: senet.record(attached(), batches(4), classes=["a", "b", "a"]), "'a' is there twice"
    ),
    "a word": (lambda: senet.record(attached(), batches(4), classes="cat"), "no list of names"),
    "no logits": (
        lambda: senet.record(nn.Sequential(SqueezeExcite(3)), batches(4)), "name them"
    ),
    "no device": (lambda: senet.record(attached(), batches(4), device="abacus"), "device 'abacus'"),
    "permutations": (lambda: senet.record(attached(), batches(4), permutations=-1), "-1"),
    "examples": (lambda: senet.record(attached(), batches(4), examples=1.5), "examples=1.5"),
    "seed": (lambda: senet.record(attached(), batches(4), seed=-1), "seed=-1 is not a whole"),
    "memory": (
        lambda: senet.record(attached(), batches(4), permutations=10**12), "not fit .* fewer perm"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSALS)
def test_what_cannot_be_recorded_is_told_in_a_line(what: str) -> None:
    run, told = REFUSALS[what]
    with pytest.raises(UserError, match=told) as caught:
        run()
    assert "\n" not in str(caught.value)


def test_blocks_that_never_run_are_named() -> None:
    found = senet.record(Aside(9.0), batches(4), classes=list("abc"))
    assert found.never_ran == ("head",)
    assert [b.path for b in found.blocks] == ["se"]
    with pytest.raises(UserError, match="'head' never ran"):
        found.block("head")


def test_nothing_is_left_of_gates_that_did_not_come_to_an_end(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not finite"):
        senet.record(attached(), with_nan() * 40, gates_dir=tmp_path / "gates")
    assert list((tmp_path / "gates").iterdir()) == []


def test_a_model_returns_from_a_device() -> None:
    model = attached()
    senet.record(model, batches(4), device="cpu")
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_compiled_parts_run_as_they_are() -> None:
    model = attached()
    expected = senet.record(model, batches(8))
    model[1].compile()
    found = senet.record(model, batches(8))
    assert [b.path for b in found.blocks] == [b.path for b in expected.blocks]
    torch.testing.assert_close(found.blocks[0].total_mean, expected.blocks[0].total_mean)
