"""One place decides what runs, says why, and refuses by name what cannot."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from senet import UserError
from senet.kernels import IMPLEMENTATIONS, Choice, Excitation, Norm, norm_excite, select
from senet.kernels.selection import SMALL

BLOCK = Excitation(None, None, torch.eye(3), torch.zeros(3))
NORM = Norm(torch.ones(3), torch.zeros(3), torch.zeros(3), torch.ones(3))
X = torch.randn(2, 3, 4, 5)


class Own(Tensor):
    pass


LARGE = torch.zeros(1).expand(SMALL // 3 // 64 + 1, 3, 8, 8)


def test_left_to_itself_it_picks_and_says_why() -> None:
    assert select(LARGE, NORM, BLOCK) == Choice("aten", "norm and scale are one affine write")


def test_for_small_maps_it_picks_the_two_one_after_the_other() -> None:
    below = LARGE[:-1]
    assert below.numel() < SMALL <= LARGE.numel()
    choice = select(below, NORM, BLOCK)
    assert choice.implementation == "reference"
    size = f"{below.numel():,}"
    assert choice.reason == f"of a map of {size} values; below 524,288 the two in turn are faster"
    assert select(below, NORM, BLOCK, "aten") == Choice("aten", "asked for")


def test_only_the_one_operation_computes_in_a_wider_type() -> None:
    wide = [None if t is None else t.double() for t in NORM[:4]]
    for x, norm in (
        (X.bfloat16(), NORM),
        (X.double(), NORM),
        (X.double(), Norm(*wide)),
    ):
        assert select(x, norm, BLOCK).implementation == "aten"
    half = BLOCK._replace(w2=BLOCK.w2.half(), b2=BLOCK.b2.half())
    assert select(X.half(), Norm(*(t.half() for t in wide)), half).implementation == "aten"
    with torch.autocast("cpu", torch.bfloat16):
        assert select(X, NORM, BLOCK).implementation == "aten"


def test_fixed_statistics_of_a_small_map_are_kept_for_its_backward() -> None:
    fixed = NORM._replace(batch_statistics=False)
    assert select(X, fixed, BLOCK).implementation == "aten"
    with torch.no_grad():
        assert select(X, fixed, BLOCK).implementation == "reference"


REFUSED = [
    (X, NORM, BLOCK._replace(squeeze="max"), "the squeeze is 'max'"),
    (X, NORM, BLOCK._replace(squeeze="none"), "the squeeze is 'none'"),
    (X[:, :, 0, 0], NORM, BLOCK, "no positions to squeeze"),
    (X[:0], NORM, BLOCK, "the batch is empty"),
    (X.long(), NORM, BLOCK, "torch.int64"),
    (torch.randn(2, 4, 5), NORM, BLOCK, "4 channels, but a vector of 3"),
    (X, NORM, BLOCK._replace(w2=torch.eye(4, 3), b2=None), "3 channels, but 4 gates"),
    (X, NORM._replace(weight=torch.ones(3).half()), BLOCK, "x is torch.float32, the norm torch.f"),
]


@pytest.mark.parametrize(("x", "norm", "block", "reason"), REFUSED, ids=[r[3] for r in REFUSED])
def test_what_the_algebra_does_not_cover_is_composed(
    x: Tensor, norm: Norm, block: Excitation, reason: str
) -> None:
    choice = select(x, norm, block)
    assert choice.implementation == "reference"
    assert reason in choice.reason
    for name in ("aten", "traced"):
        with pytest.raises(UserError, match=f"implementation '{name}' cannot run here") as refusal:
            norm_excite(x, norm, block, name)
        assert reason in str(refusal.value)


@pytest.mark.parametrize(
    ("x", "reason"),
    [(X.to("meta"), "meta device"), (X.as_subclass(Own), "a class of its own")],
)
def test_a_backward_by_hand_needs_plain_tensors(x: Tensor, reason: str) -> None:
    assert reason in select(x, NORM, BLOCK).reason
    with pytest.raises(UserError, match=reason):
        select(x, NORM, BLOCK, "aten")
    assert select(x, NORM, BLOCK, "traced").implementation == "traced"


def test_inside_function_transforms_it_is_composed() -> None:
    seen: list[Choice] = []

    def function(x: Tensor) -> Tensor:
        seen.append(select(x, NORM, BLOCK))
        return norm_excite(x, Norm(None, None, None, None), BLOCK).sum()

    torch.func.grad(function)(X)
    with torch.autograd.forward_ad.dual_level():
        function(X)
    assert [choice.implementation for choice in seen] == ["reference", "reference"]
    assert "forward derivative" in seen[1].reason
    for name in ("aten", "traced"):
        forward = torch.autograd.forward_ad.dual_level()
        with forward, pytest.raises(UserError, match="forward derivative"):
            select(X, NORM, BLOCK, name)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown implementation 'atten'; .*aten"):
        select(X, NORM, BLOCK, "atten")


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_asked_for_by_name_it_runs(name: str) -> None:
    assert select(X, NORM, BLOCK, name) == Choice(name, "asked for")
    assert norm_excite(X, NORM, BLOCK, name).shape == X.shape
