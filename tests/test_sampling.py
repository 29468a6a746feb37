"""senet.sampling: orders, draws and splits as functions of their numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from senet.sampling import EpochSampler, SubsetSampler, mix, stratified_split


def test_mix_is_the_same_everywhere() -> None:
    # Frozen: another mixing would change what a resumed run computes.
    assert mix(7, 0, 0).tolist() == [11241344834629033336]
    assert mix(7, 3, np.array([0, 1])).tolist() == [11248596980798508817, 1173472824657711729]
    assert mix(-1).tolist() == mix(2**64 - 1).tolist()


def test_mix_tells_all_its_words_apart() -> None:
    index = np.arange(50_000)
    numbers = np.concatenate([mix(s, e, index) for s in (0, 1) for e in (0, 1, 2)])
    assert len(np.unique(numbers)) == len(numbers)
    assert mix(1, 2)[0] != mix(2, 1)[0]


def test_bits_of_mix_are_fair() -> None:
    numbers = mix(7, 0, np.arange(20_000))
    for bit in range(64):
        ones = int(((numbers >> np.uint64(bit)) & np.uint64(1)).sum())
        assert abs(ones - 10_000) < 5 * np.sqrt(20_000 / 4), bit


@given(
    length=st.integers(0, 60),
    world=st.integers(1, 7),
    epoch=st.integers(0, 1000),
    seed=st.integers(0, 2**63),
    shuffle=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_ranks_share_the_images(
    length: int, world: int, epoch: int, seed: int, shuffle: bool
) -> None:
    samplers = [
        EpochSampler(length, seed=seed, shuffle=shuffle, rank=rank, world_size=world)
        for rank in range(world)
    ]
    seen = []
    for sampler in samplers:
        sampler.set_epoch(epoch)
        pairs = list(sampler)
        assert len(pairs) == len(sampler)
        assert {e for e, _ in pairs} <= {epoch}
        seen.append([index for _, index in pairs])
    everything = [index for part in seen for index in part]
    assert len(set(everything)) == len(everything)
    if shuffle:
        assert len({len(part) for part in seen}) == 1
        assert length - len(everything) < world
    else:
        assert sorted(everything) == list(range(length))
        assert all(part == sorted(part) for part in seen)


def test_order_depends_on_seed_and_epoch_only() -> None:
    def order(seed: int, epoch: int) -> list[tuple[int, int]]:
        sampler = EpochSampler(100, seed=seed, shuffle=True)
        sampler.set_epoch(epoch)
        torch.rand(epoch + seed)  # what else has been drawn does not matter
        return list(sampler)

    assert order(1, 5) == order(1, 5)
    orders = [tuple(i for _, i in order(seed, epoch)) for seed in (1, 2) for epoch in range(4)]
    assert len(set(orders)) == len(orders)
    assert all(sorted(o) == list(range(100)) for o in orders)


@pytest.fixture
def second_of_four() -> Iterator[None]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=1, world_size=4, store=FakeStore())
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("second_of_four")
def test_rank_comes_from_torch_distributed() -> None:
    sampler = EpochSampler(10, seed=0, shuffle=False)
    assert list(sampler) == [(0, 1), (0, 5), (0, 9)]
    assert len(EpochSampler(10, seed=0, shuffle=True)) == 2


@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=60).map(lambda some: some * 2),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 100),
)
@settings(max_examples=80, deadline=None)
def test_split_is_stratified(labels: list[int], fraction: float, seed: int) -> None:
    tensor = torch.tensor(labels)
    train, val = stratified_split(tensor, fraction, seed)
    assert sorted(train.tolist() + val.tolist()) == list(range(len(labels)))
    for label in set(labels):
        count, held = labels.count(label), int((tensor[val] == label).sum())
        assert 1 <= held <= count - 1
        assert abs(held - fraction * count) <= 1
    again = stratified_split(tensor, fraction, seed)
    assert torch.equal(again[0], train)
    assert torch.equal(again[1], val)


def test_split_follows_the_seed_and_needs_two() -> None:
    labels = torch.arange(100) % 2
    assert not torch.equal(stratified_split(labels, 0.2, 0)[1], stratified_split(labels, 0.2, 1)[1])
    with pytest.raises(ValueError, match="one image"):
        stratified_split(torch.tensor([0, 0, 1]), 0.5, 0)


def test_a_subset_comes_in_its_own_order_with_the_epoch() -> None:
    sampler = SubsetSampler([4, 1, 7])
    assert len(sampler) == 3
    assert list(sampler) == [(0, 4), (0, 1), (0, 7)]
    sampler.set_epoch(2)
    assert list(sampler) == [(2, 4), (2, 1), (2, 7)]
