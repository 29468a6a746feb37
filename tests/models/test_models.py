from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from senet.block import SqueezeExcite
from senet.cost import count_parameters
from senet.errors import UserError
from senet.models import (
    build_plain,
    create_model,
    default_min_hidden,
    list_models,
    native_input_size,
    plain_name,
    split_name,
    twin_name,
)

PLAIN = [
    "bn_inception",
    "inception_resnet_v2",
    "mobilenet",
    "net154",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "resnet56",
    "resnet101",
    "resnet110",
    "resnet152",
    "resnet164",
    "resnext101_32x4d",
    "resnext50_32x4d",
    "shake_shake_26_2x96d",
    "shake_shake_29_2x4x64d",
    "shufflenet",
    "vgg16",
    "wrn16_8",
]


def blocks_of(model: nn.Module) -> list[SqueezeExcite]:
    return [module for module in model.modules() if isinstance(module, SqueezeExcite)]


def test_list() -> None:
    twins = [f"se_{name}" if name != "net154" else "senet154" for name in PLAIN]
    assert list_models() == PLAIN + twins
    assert [twin_name(name) for name in PLAIN] == twins
    assert [split_name(name) for name in twins] == [(name, True) for name in PLAIN]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50", ("resnet50", False)),
        ("se_resnet50", ("resnet50", True)),
        ("timm/resnet50", ("timm/resnet50", False)),
        ("senet154", ("net154", True)),
        ("se_net154", ("net154", True)),
        ("net154", ("net154", False)),
        ("se_wrn16_8", ("wrn16_8", True)),
        ("se_timm/resnet50.a1_in1k", ("timm/resnet50.a1_in1k", True)),
    ],
)
def test_plain_name(name: str, expected: tuple[str, bool]) -> None:
    assert plain_name(name) == expected


SLOW = {"resnet101", "resnet152", "resnet110", "resnet164", "resnext101_32x4d", "net154"}
SLOW |= {"inception_resnet_v2", "resnext50_32x4d", "resnet34"} | {
    name for name in list_models() if "shake_shake" in name
}
"""Networks whose twins take seconds to attach, which the counts of them do anyway."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if split_name(name)[0] in SLOW else name
        for name in list_models()
    ],
)
def test_every_name_builds_and_runs_at_its_size(name: str) -> None:
    size = native_input_size(name)
    with torch.device("meta"):
        model = create_model(name, num_classes=12).eval()
        assert model(torch.empty(2, *size)).shape == (2, 12)
    assert bool(blocks_of(model)) == split_name(name)[1]


def test_sizes_and_least_widths() -> None:
    assert native_input_size("se_resnet50") == (3, 224, 224)
    assert native_input_size("resnet110") == (3, 32, 32)
    assert native_input_size("se_inception_resnet_v2") == (3, 299, 299)
    assert native_input_size("senet154") == native_input_size("net154") == (3, 224, 224)
    assert native_input_size("timm/resnet18") == (3, 224, 224)
    assert [default_min_hidden(n) for n in ("resnet20", "se_resnet50", "timm/resnet18")] == [
        4,
        1,
        1,
    ]


def test_cifar_twins_keep_four_hidden_units_unless_told_otherwise() -> None:
    def widths(**options: int) -> list[int]:
        return [b.fc1.out_features for b in blocks_of(create_model("se_resnet20", **options))]

    assert widths() == [4] * 9
    assert widths(reduction=8) == [4] * 6 + [8] * 3
    assert widths(min_hidden=1) == [1] * 3 + [2] * 3 + [4] * 3
    assert widths(hidden=5) == [5] * 9


def test_options_reach_the_blocks() -> None:
    model = create_model(
        "se_resnet20",
        reduction=4,
        divisor=8,
        bias=False,
        gate="hard_sigmoid",
        activation="silu",
        squeeze="max",
        placement="inner",
        sites="stage2.*",
    )
    paths = [name for name, module in model.named_modules() if isinstance(module, SqueezeExcite)]
    assert len(paths) == 3
    assert all(path.startswith("stage2.") for path in paths)
    for block in blocks_of(model):
        assert block.fc1.bias is None
        assert block.fc1.out_features == 16
        options = block.options
        assert (options.gate, options.activation, options.squeeze) == (
            "hard_sigmoid",
            "silu",
            "max",
        )


def test_twins_of_one_seed_share_their_weights() -> None:
    torch.manual_seed(5)
    plain = create_model("resnet20", num_classes=10)
    torch.manual_seed(5)
    twin = create_model("se_resnet20", num_classes=10)
    ours = {key.replace(".bn.norm.", ".bn."): value for key, value in twin.state_dict().items()}
    for key, value in plain.state_dict().items():
        assert torch.equal(ours[key], value), key


@pytest.mark.parametrize("name", ["resnet20", "timm/resnet18"])
def test_warm_start_computes_what_the_plain_network_does(name: str) -> None:
    x = torch.randn(2, 3, 64, 64)
    torch.manual_seed(5)
    plain = create_model(name, num_classes=10).eval()
    torch.manual_seed(5)
    twin = create_model(f"se_{name}", num_classes=10, warm_start=True).eval()
    assert blocks_of(twin)
    torch.testing.assert_close(twin(x), plain(x), rtol=1e-5, atol=1e-5)


def test_timm_networks() -> None:
    plain = create_model("timm/resnet18", num_classes=5)
    twin = create_model("se_timm/resnet18", num_classes=5)
    assert plain(torch.randn(2, 3, 64, 64)).shape == (2, 5)
    assert len(blocks_of(twin)) == 8
    assert count_parameters(twin) - count_parameters(plain) == sum(
        map(count_parameters, blocks_of(twin))
    )


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet5O", "'resnet50'"),
        ("se_resnet51", "'se_resnet50'"),
        ("timm/resnet5O", "'timm/resnet50'"),
        ("se_timm/resnext50_32x4", "'timm/resnext50_32x4d'"),
        ("timm/resnet50.a1_in2k", "'timm/resnet50.a1_in1k'"),
        ("timm/hf-hub:someone/model", "unknown model"),
        ("timm/", "unknown model"),
        ("", "unknown model"),
    ],
)
def test_unknown_names_get_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UserError) as caught:
        create_model(name)
    message = str(caught.value)
    assert near in message
    assert repr(name) in message or repr(name.removeprefix("se_")) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet20", "num_classes": 0}, "num_classes is 0; a classifier needs at least 1"),
        (
            {"name": "resnet20", "reduction": 8, "bias": False},
            "'resnet20' has no SE blocks that reduction=8, bias=False could be for; "
            "its SE twin is 'se_resnet20'",
        ),
        (
            {"name": "se_resnet50", "pretrained": True},
            "there are no pretrained weights for 'resnet50'; try 'timm/resnet50'",
        ),
        (
            {"name": "timm/resnet20", "pretrained": True},
            "unknown model 'timm/resnet20'",
        ),
        (
            {"name": "timm/test_resnet.untrained", "pretrained": True},
            "timm has no weights tagged 'untrained'",
        ),
        (
            {"name": "timm/coatnet_0_224", "pretrained": True},
            "timm has no pretrained weights for 'timm/coatnet_0_224'; use pretrained=False",
        ),
        ({"name": "se_resnet20", "placement": "somewhere"}, "placement 'somewhere'"),
        ({"name": "net154", "reduction": 8}, "its SE twin is 'senet154'"),
        ({"name": "senet145"}, "nearest: 'senet154'"),
        ({"name": "se_senet154"}, "unknown model 'se_senet154'"),
    ],
)
def test_mistakes(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        create_model(**options)
    assert message in str(caught.value)


def test_build_plain_refuses_a_twin() -> None:
    with pytest.raises(UserError, match="its plain twin is 'resnet20'"):
        build_plain("se_resnet20", 10)


def test_weights_that_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's library is told to be off line, as HF_HUB_OFFLINE=1 tells it, and has no cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="could not fetch the weights of 'timm/test_resnet'"):
        create_model("timm/test_resnet", pretrained=True)
