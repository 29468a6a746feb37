"""senet.mixing: batches mixed by their place in the run, images and labels alike."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from senet.mixing import BatchMixing
from senet.options import TrainOptions

CLASSES = 5


def batch_of(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images whose every pixel is their class, one-hot over the channels; and the classes."""
    labels = torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(seed))
    shares = torch.nn.functional.one_hot(labels, CLASSES).float()
    return shares[:, :, None, None].expand(-1, -1, 8, 6).clone(), labels


def mixed(options: TrainOptions, count: int = 8, **place: int) -> tuple[Tensor, Tensor]:
    given = {"epoch": 0, "batch": 0, "rank": 0} | place
    return BatchMixing(options, classes=CLASSES)(*batch_of(count), **given)


@given(
    mixup=st.sampled_from([0.0, 0.1, 1.0]),
    cutmix=st.sampled_from([0.0, 0.5, 1.0]),
    repeats=st.integers(1, 3),
    count=st.integers(1, 9),
    batch=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_labels_are_the_shares_of_the_images(
    mixup: float, cutmix: float, repeats: int, count: int, batch: int
) -> None:
    options = TrainOptions(mixup=mixup, cutmix=cutmix, repeats=repeats)
    images, labels = mixed(options, count, batch=batch)
    if not mixup and not cutmix:
        assert torch.equal(labels, batch_of(count)[1])
        return
    assert labels.shape == (count, CLASSES)
    torch.testing.assert_close(images.mean((2, 3)), labels)
    torch.testing.assert_close(labels.sum(1), torch.ones(count))


@pytest.mark.parametrize(("option", "blends"), [("mixup", True), ("cutmix", False)])
def test_mixup_blends_and_cutmix_pastes(option: str, blends: bool) -> None:
    for batch in range(20):
        images, labels = mixed(TrainOptions(**{option: 1.0}), batch=batch)
        if bool((labels.max(1).values < 0.99).any()):  # else the same class, or nearly all of one
            inside = (images > 0.01) & (images < 0.99)
            assert bool(inside.any()) == blends


def test_a_batch_is_a_function_of_its_place() -> None:
    options = TrainOptions(mixup=0.5, cutmix=1.0)
    usual = mixed(options, epoch=1, batch=2)
    random.seed(9)
    np.random.seed(9)
    torch.manual_seed(9)
    again = mixed(options, epoch=1, batch=2)
    assert all(map(torch.equal, usual, again))
    for place in (
        {"epoch": 2, "batch": 2},
        {"epoch": 1, "batch": 3},
        {"epoch": 1, "batch": 2} | {"rank": 1},
    ):
        assert not torch.equal(mixed(options, **place)[1], usual[1]), place
    other = TrainOptions(mixup=0.5, cutmix=1.0, seed=8)
    assert not torch.equal(mixed(other, epoch=1, batch=2)[1], usual[1])


def test_the_global_generators_are_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    mixed(TrainOptions(mixup=0.5, cutmix=1.0, repeats=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_both_get_their_share_and_some_batches_stay_as_they_are() -> None:
    options = TrainOptions(mixup=1.0, cutmix=1.0, mix_prob=0.6)
    kinds = {"left": 0, "blended": 0, "pasted": 0}
    for batch in range(400):
        images, labels = mixed(options, batch=batch)
        if labels.ndim == 1:
            kinds["left"] += 1
        else:
            blended = bool(((images > 0) & (images < 1)).any())
            kinds["blended" if blended else "pasted"] += 1
    assert abs(kinds["left"] - 160) < 50
    assert abs(kinds["blended"] - 120) < 50
    assert abs(kinds["pasted"] - 120) < 50


def test_nothing_is_mixed_with_probability_zero() -> None:
    images, labels = mixed(TrainOptions(mixup=1.0, mix_prob=0.0))
    assert torch.equal(images, batch_of(8)[0])
    assert torch.equal(labels, batch_of(8)[1])


def test_versions_of_an_image_are_not_mixed_with_each_other() -> None:
    """With three in a row two of three neighbours would be of one image: nothing to learn."""
    images, labels = torch.eye(4).repeat_interleave(3, 0), torch.arange(4).repeat_interleave(3)
    images = images[:, :, None, None].expand(-1, -1, 4, 4)
    alone = 0
    for batch in range(50):
        mixing = BatchMixing(TrainOptions(mixup=20.0, repeats=3), classes=4)
        _, shares = mixing(images, labels, epoch=0, batch=batch, rank=0)
        alone += int((shares.max(1).values > 0.999).sum())
    assert alone / (50 * 12) < 0.3  # 2 of 11 by chance
