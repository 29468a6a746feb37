from __future__ import annotations

from pathlib import Path

import pytest
import torch
from breadth import others_slow
from torch import Tensor, nn

from senet.commands import bench, export
from senet.errors import UserError
from senet.models import check_image_size, create_model
from senet.models.image_sizes import check_forward
from senet.options import TrainOptions
from senet.training import train


@pytest.mark.parametrize(
    ("name", "least"),
    others_slow(
        [
            ("resnet18", 3),
            ("se_bn_inception", 7),
            ("vgg16", 32),
            ("inception_resnet_v2", 75),
            ("net154", 3),
            ("se_shufflenet", 1),
        ],
        ("resnet18", "vgg16", "se_shufflenet"),
    ),
)
def test_the_smallest_image_is_taken_and_smaller_ones_are_told_in_a_line(name, least) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=2)
    state = torch.get_rng_state()
    check_image_size(model, name, least)
    if least > 1:
        with pytest.raises(UserError) as caught:
            check_image_size(model, name, least - 1)
        message = str(caught.value)
        assert message.startswith(f"{name!r} does not take images of {least - 1}×{least - 1} (")
        assert "try --image_size" in message
        assert "\n" not in message
    assert torch.equal(torch.get_rng_state(), state)


def test_networks_of_one_size() -> None:
    model = create_model("timm/vit_tiny_patch16_224", num_classes=2)
    check_image_size(model, "timm/vit_tiny_patch16_224", 224)
    with pytest.raises(UserError, match=r"does not take images of 32×32 .*try --image_size 224"):
        check_image_size(model, "timm/vit_tiny_patch16_224", 32)


def test_a_run_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    options = TrainOptions(model="vgg16", data="digits", image_size=16, limit_batches=1)
    with pytest.raises(UserError, match="'vgg16' does not take images of 16×16"):
        train(options, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_bench_and_export_tell_it_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'resnet18' does not take images of 2×2"):
        bench.main(["resnet18", "--image_size=2", "--columns=infer"])
    out = tmp_path / "it.pt2"
    arguments = ["timm/inception_v4", "--format=torch", "--image_size=48", f"--out={out}"]
    with pytest.raises(UserError, match="'timm/inception_v4' does not take images of 48×48"):
        export.main(arguments)
    assert not list(tmp_path.iterdir())


class _Asks(nn.Module):
    """Its forward asks for a value, which the meta device has not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x).mean((2, 3))
        return y if y.sum().item() < 1e6 else -y


def test_what_cannot_run_on_meta_runs_for_real() -> None:
    check_forward(_Asks(), "asks", 5, 5)
    with pytest.raises(UserError, match=r"'asks' does not take images of 4×4 \(.*Kernel size"):
        check_forward(_Asks(), "asks", 4, 5)
