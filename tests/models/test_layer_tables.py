"""The networks against the layer tables of the SE authors' release, row by row and in total."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from breadth import others_slow
from torch import Tensor, nn

from senet.block import SqueezeExcite
from senet.cost import count_macs, count_parameters
from senet.models import build_plain, create_model, twin_name
from senet.models.bn_inception import HalvingInception, Inception
from senet.models.resnet import resnet50

TABLES = Path(__file__).parent / "layer_tables"
NETWORKS = {
    "resnet50": "SE-ResNet-50",
    "resnet101": "SE-ResNet-101",
    "resnet152": "SE-ResNet-152",
    "bn_inception": "SE-BN-Inception",
    "resnext50_32x4d": "SE-ResNeXt-50",
    "resnext101_32x4d": "SE-ResNeXt-101",
    "net154": "SENet-154",
}
# (parameters, MACs) as published beside the tables, so that a table cut short shows
TOTALS = {
    "resnet50": (28_088_024, 3_860_488_192),
    "resnet101": (49_326_872, 7_574_937_600),
    "resnet152": (66_821_848, 11_288_993_792),
    "bn_inception": (11_931_622, 2_033_239_424),
    "resnext50_32x4d": (27_559_896, 4_232_994_816),
    "resnext101_32x4d": (48_955_416, 7_974_739_968),
    "net154": (115_088_984, 20_688_363_520),
}
SITES = {
    "resnet50": 16,
    "resnet101": 33,
    "resnet152": 50,
    "bn_inception": 10,
    "resnext50_32x4d": 16,
    "resnext101_32x4d": 33,
    "net154": 50,
}
# GMACs and millions of parameters that the reference page prints
PRINTED = {
    "resnet50": (3.861, 28.088),
    "resnet101": (7.575, 49.327),
    "resnet152": (11.289, 66.822),
    "bn_inception": (2.033, 11.932),
    "resnext50_32x4d": (4.233, 27.560),
    "resnext101_32x4d": (7.975, 48.955),
    "net154": (20.688, 115.089),
}

# One of each kind of unit: the deeper ones have more of them.
_NETWORKS = others_slow(NETWORKS, ("resnet50", "bn_inception", "resnext50_32x4d"))

Row = dict[str, str]


@dataclass(frozen=True)
class Layer:
    """What a row says about a layer; None where it says nothing."""

    kind: str
    in_channels: int | None
    out_channels: int
    size: str
    kernel: int | None = None
    stride: int | None = None
    padding: int | None = None
    groups: int | None = None
    bias: bool | None = None
    note: str = ""
    params: int = 0


def read_table(network: str) -> list[Row]:
    with (TABLES / f"{NETWORKS[network]}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def is_excitation(row: Row) -> bool:
    """One of the two fully connected layers, which the table has as 1×1 convolutions."""
    return row["name"].endswith(("_1x1_down", "_1x1_up"))


def is_block(row: Row) -> bool:
    """A row of an SE block or of the sum that a block is merged with."""
    return (
        is_excitation(row)
        or row["note"] == "AVE global"
        or row["name"].endswith("_down/relu")
        or row["type"] in ("Sigmoid", "Reshape", "Axpy")
        or row["note"].startswith("channel-wise scale")
    )


def number(text: str) -> int | None:
    return int(text) if text else None


def expected_layers(rows: list[Row]) -> list[Layer]:
    """The table's plain layers; a BatchNorm carries the parameters of its Scale row."""
    layers = []
    plain = [row for row in rows if not is_block(row) and row["type"] not in ("Scale", "Softmax")]
    affine = {r["inputs"]: int(r["params"]) for r in rows if "gamma/beta" in r["note"]}
    for row in plain:
        layers.append(
            Layer(
                kind=row["type"],
                in_channels=number(row["in_ch"]) if row["type"] not in ("ReLU", "Concat") else None,
                out_channels=int(row["out_ch"]),
                size=row["out_hw"],
                kernel=number(row["k"]),
                stride=number(row["stride"]),
                padding=number(row["pad"]),
                groups=number(row["group"]),
                bias=None if not row["bias"] else row["bias"] == "1",
                note=row["note"] if row["type"] in ("Pooling", "Dropout") else "",
                params=affine[row["inputs"]] if row["type"] == "BatchNorm" else int(row["params"]),
            )
        )
    return layers


def one(value: int | tuple[int, ...]) -> int:
    """The side of something square."""
    sides = {value} if isinstance(value, int) else set(value)
    assert len(sides) == 1
    return sides.pop()


def describe(module: nn.Module, x: Tensor, y: Tensor) -> Layer | None:
    """The row that a module's call amounts to; None for what the tables have no row for."""
    size = "x".join(str(side) for side in y.shape[2:]) or "1x1"
    params = sum(p.numel() for p in module.parameters(recurse=False))
    channels = x.shape[1]
    if isinstance(module, nn.Conv2d):
        return Layer(
            "Convolution",
            module.in_channels,
            module.out_channels,
            size,
            one(module.kernel_size),
            one(module.stride),
            one(module.padding),
            module.groups,
            module.bias is not None,
            params=params,
        )
    if isinstance(module, nn.BatchNorm2d):
        return Layer("BatchNorm", channels, module.num_features, size, params=params)
    if isinstance(module, nn.Dropout):
        return Layer("Dropout", None, y.shape[1], size, note=str(module.p))
    if isinstance(module, nn.ReLU):
        return Layer("ReLU", None, y.shape[1], size)
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        what = "MAX" if isinstance(module, nn.MaxPool2d) else "AVE"
        note = f"{what} ceil_mode" if module.ceil_mode else what
        window = one(module.kernel_size), one(module.stride), one(module.padding)
        return Layer("Pooling", channels, y.shape[1], size, *window, note=note)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        # the whole map is the table's window of 7×7
        return Layer(
            "Pooling", channels, y.shape[1], size, one(x.shape[2:]), 1, 0, note="AVE ceil_mode"
        )
    if isinstance(module, nn.Linear):
        bias = module.bias is not None
        return Layer("InnerProduct", channels, y.shape[1], size, bias=bias, params=params)
    if isinstance(module, Inception | HalvingInception):
        return Layer("Concat", None, y.shape[1], size)
    return None


def observed_layers(model: nn.Module) -> list[Layer]:
    layers: list[Layer] = []

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        layer = describe(module, inputs[0], output)
        if layer is not None:
            layers.append(layer)

    for module in model.modules():
        module.register_forward_hook(hook)
    with torch.no_grad():
        model.eval()(torch.empty(1, 3, 224, 224, device="meta"))
    return layers


@pytest.mark.parametrize("network", NETWORKS)
def test_every_layer_is_the_tables(network: str) -> None:
    with torch.device("meta"):
        model = build_plain(network)
    observed, expected = observed_layers(model), expected_layers(read_table(network))
    for index, (ours, theirs) in enumerate(zip(observed, expected, strict=False)):
        assert ours == theirs, f"layer {index}"
    assert len(observed) == len(expected)


@pytest.mark.parametrize("network", _NETWORKS)
def test_plain_totals(network: str) -> None:
    rows = [row for row in read_table(network) if not is_excitation(row)]
    with torch.device("meta"):
        model = build_plain(network)
    assert count_parameters(model) == sum(int(row["params"]) for row in rows)
    assert count_macs(model) == sum(int(row["macs"]) for row in rows)


@cache
def twin(network: str) -> nn.Module:
    with torch.device("meta"):
        return create_model(twin_name(network))


@pytest.mark.parametrize("network", _NETWORKS)
def test_se_totals(network: str) -> None:
    rows = read_table(network)
    model = twin(network)
    assert count_parameters(model) == sum(int(row["params"]) for row in rows)
    assert count_macs(model) == sum(int(row["macs"]) for row in rows)
    assert (count_parameters(model), count_macs(model)) == TOTALS[network]
    # within a unit of the last digit: 3.8605 is printed as 3.861
    gmacs, millions = PRINTED[network]
    assert count_macs(model) / 1e9 == pytest.approx(gmacs, abs=0.001)
    assert count_parameters(model) / 1e6 == pytest.approx(millions, abs=0.0005)


@pytest.mark.parametrize("network", _NETWORKS)
def test_every_block_is_the_tables(network: str) -> None:
    rows = [row for row in read_table(network) if is_excitation(row)]
    expected = [(int(row["in_ch"]), int(row["out_ch"]), int(row["params"])) for row in rows]
    model = twin(network)
    blocks = [module for module in model.modules() if isinstance(module, SqueezeExcite)]
    layers = [layer for block in blocks for layer in (block.fc1, block.fc2)]
    observed = [(fc.in_features, fc.out_features, count_parameters(fc)) for fc in layers]
    assert observed == expected
    assert len(blocks) == SITES[network]


def test_later_variant_costs_what_the_paper_page_says() -> None:
    with torch.device("meta"):
        original, later = resnet50(), resnet50(stride_in="3x3")
    assert count_parameters(original) == count_parameters(later)
    # only the first 1×1 of a strided stage differs: it runs at four times the positions
    reductions = 256 * 128 * 28**2, 512 * 256 * 14**2, 1024 * 512 * 7**2
    assert count_macs(later) - count_macs(original) == 3 * sum(reductions)
    assert round(count_macs(later) / 1e9, 2) == 4.09
