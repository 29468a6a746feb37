"""senet.gate_streams: what is streamed is what the slow way finds; the null is a null."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from gate_networks import eta_squared, moments
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from senet.gate_streams import GateStream, RandomAssignments, group_cells

CPU = torch.device("cpu")


def stream(classes: int, channels: int, **options: object) -> GateStream:
    dtype = options.pop("dtype", torch.float64)
    bounds = [torch.full((channels,), bound, dtype=dtype) for bound in (0.05, 0.95)]
    given = {"permutations": 5, "examples": 3, "expected": None, "seed": 0, **options}
    return GateStream(classes, channels, low=bounds[0], high=bounds[1], **given)


def fed(x: Tensor, labels: Tensor, size: int, **options: object) -> GateStream:
    """A stream that has taken x in, ``size`` vectors at a time."""
    kept = stream(**{"classes": int(labels.max()) + 1, **options}, channels=x.shape[1])
    for part, own in zip(x.split(size), labels.split(size), strict=True):
        kept.add(part, own)
    return kept


@given(
    images=st.integers(1, 40),
    classes=st.integers(1, 6),
    channels=st.integers(1, 4),
    size=st.integers(1, 41),
    offset=st.sampled_from([0.0, 1e3]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_moments_are_those_of_all_at_once(images, classes, channels, size, offset, seed):
    random = torch.Generator().manual_seed(seed)
    x = torch.rand(images, channels, generator=random, dtype=torch.float64) + offset
    x[:, 0] = 0.25  # a constant gate
    labels = torch.randint(classes, (images,), generator=random)
    kept = fed(x, labels, size, classes=classes)
    mean, variance = moments(x, labels, classes)
    came = kept.moments.counts > 0
    assert torch.equal(kept.moments.counts, torch.bincount(labels, minlength=classes))
    torch.testing.assert_close(kept.moments.mean[came], mean[came], rtol=1e-12, atol=0)
    found = kept.moments.squares[came] / kept.moments.counts[came, None]
    torch.testing.assert_close(found, variance[came], rtol=1e-9, atol=1e-20)
    squares = (x - x.mean(0)).square().sum(0)
    torch.testing.assert_close(kept.moments.total_squares(), squares, rtol=1e-9, atol=1e-20)
    assert torch.equal(kept.low, (x < 0.05).sum(0))
    assert torch.equal(kept.high, (x > 0.95).sum(0))
    for kept_ones, descending in ((kept.most, True), (kept.least, False)):
        values, numbers = kept_ones.results(images)
        assert torch.equal(values, x.sort(0, descending=descending).values[:3].t())
        assert torch.equal(x.gather(0, numbers.t()).t(), values)
        assert all(len(set(row)) == len(row) for row in numbers[1:].tolist())


@pytest.mark.parametrize("known", [True, False])
def test_the_null_is_that_of_the_assignments_drawn(known: bool) -> None:
    torch.manual_seed(0)
    x, labels = torch.rand(50, 3, dtype=torch.float64), torch.arange(50) % 4
    expected = torch.bincount(labels) if known else None
    kept = fed(x, labels, 20, permutations=6, expected=expected)
    again = RandomAssignments(4, 3, 6, expected, 0, CPU)
    drawn = [list(again._drawn(n)) for n in (20, 20, 10)]
    for number, found in enumerate(kept.null()):
        assigned = torch.cat([part[number] for part in drawn])
        torch.testing.assert_close(found, eta_squared(x, assigned))
        if known:
            assert torch.equal(assigned.bincount(), labels.bincount())
    assert kept.assignments.are_permutations(labels.bincount()) == known


def test_permutations_are_drawn_with_equal_chance() -> None:
    """All arrangements of two and two, though they come in parts."""
    assignments = RandomAssignments(2, 1, 6000, torch.tensor([2, 2]), 0, CPU)
    parts = [torch.stack(list(assignments._drawn(n))) for n in (1, 2, 1)]
    found = Counter(map(tuple, torch.cat(parts, dim=1).tolist()))
    arrangements = {p for p in itertools.product((0, 1), repeat=4) if sum(p) == 2}
    assert found.keys() == arrangements
    assert sum((n - 1000) ** 2 / 1000 for n in found.values()) < 20.5  # χ², 5 degrees, 0.1 %


def p_values(known: bool, effect: float, times: int, images: int, classes: int) -> list[float]:
    found = []
    for seed in range(times):
        random = torch.Generator().manual_seed(seed)
        x = torch.rand(images, 6, generator=random, dtype=torch.float64)
        x[:, 1:3] = x[:, :1] + 0.1 * x[:, 1:3]  # channels depend on each other
        labels = torch.arange(images) % classes
        x += effect * labels[:, None]
        expected = labels.bincount() if known else None
        kept = fed(x, labels, 32, permutations=19, expected=expected, seed=seed)
        total = kept.moments.total_squares()
        own = (eta_squared(x, labels) * total).sum()
        null = (kept.null() * total).sum(1)
        found.append((1 + int((null >= own).sum())) / 20)
    return found


@pytest.mark.parametrize(
    ("known", "images", "classes"),
    [(True, 40, 16), pytest.param(False, 60, 5, marks=pytest.mark.slow), (False, 40, 16)],
)
def test_p_values_are_uniform_where_labels_mean_nothing(known, images, classes) -> None:
    found = p_values(known, 0.0, 150, images, classes)
    fifths = torch.histc(torch.tensor(found) - 0.01, bins=5, min=0, max=1)
    assert (fifths - 30).square().sum() / 30 < 18.5  # χ², 4 degrees, 0.1 %


@pytest.mark.parametrize("known", [True, False])
def test_p_values_are_the_least_where_classes_differ(known: bool) -> None:
    assert p_values(known, 1.0, 3, 60, 5) == [1 / 20] * 3


@pytest.mark.parametrize(
    ("counts", "known"),
    [
        ([30, 30, 30, 30], True),
        ([100, 10, 5, 5], True),
        ([30, 30, 30, 30], False),
        ([100, 10, 5, 5], False),
        ([2] * 60, False),  # some cells stay empty
        ([60, 60] + [0] * 98, False),  # most classes do not come
    ],
)
def test_the_null_is_k_minus_1_of_n_minus_1_on_average(counts: list[int], known: bool) -> None:
    torch.manual_seed(0)
    sizes = torch.tensor(counts)
    labels = torch.arange(len(counts)).repeat_interleave(sizes)  # in order, as folders are read
    x = torch.rand(len(labels), 200, dtype=torch.float64) + labels[:, None]
    kept = fed(
        x, labels, 50, classes=len(counts), permutations=40, expected=sizes if known else None
    )
    expectation = (int((sizes > 0).sum()) - 1) / (len(labels) - 1)
    varying = kept.null()
    # The same for all channels, since these vary with the labels alone: 40 draws are averaged.
    assert abs(float(varying.mean()) / expectation - 1) < 4 * float(varying[:, 0].std()) / (
        40**0.5 * expectation
    )


def test_another_number_of_images_than_expected_is_no_matter() -> None:
    torch.manual_seed(0)
    x, labels = torch.rand(60, 2, dtype=torch.float64), torch.arange(60) % 3
    for expected in ([10, 10, 10], [40, 40, 40]):
        kept = fed(x, labels, 7, expected=torch.tensor(expected))
        assert int(kept.assignments.sizes.sum()) == 5 * 60
        assert not kept.assignments.are_permutations(labels.bincount())
        assert (kept.null() > 0).all()


def test_cells_are_shared_out_by_size() -> None:
    assert group_cells(torch.tensor([0, 5, 0, 15, 1])).tolist() == [0, 0, 1, 1, 2]
    assert group_cells(torch.tensor([3])).tolist() == [0]
    for _ in range(20):
        counts = torch.randint(0, 9, (12,)) + torch.eye(12, dtype=torch.int64)[0]
        groups = group_cells(counts)
        assert len(groups) == 12
        assert (groups.bincount() > 0).all()
        assert int(groups.max()) + 1 == int((counts > 0).sum())


def test_what_is_kept_of_a_million_images() -> None:
    """1,000 classes by SE-ResNet-50's 15,104 gates, on the meta device, where nothing is."""
    bounds = torch.zeros(15_104, device="meta")
    kept = GateStream(
        1000, 15_104, low=bounds, high=bounds, permutations=20, examples=9, expected=None, seed=0
    )
    by_class = 1000 * 15_104
    sums, statistics = 20 * 4 * by_class, 2 * 8 * by_class
    assert sums == 1_208_320_000
    assert statistics == 241_664_000
    assert 0 < kept.nbytes - sums - statistics < 5_000_000
    assert kept.nbytes < 1_460_000_000


def test_how_many_assignments_there_are() -> None:
    meta = torch.device("meta")
    assert RandomAssignments(1000, 15_104, None, None, 0, meta).sums.shape[0] == 20
    assert RandomAssignments(1000, 40_000, None, None, 0, meta).sums.shape[0] == 8
    assert RandomAssignments(10**6, 10**4, None, None, 0, meta).sums.shape[0] == 1
    asked = RandomAssignments(1000, 40_000, 20, None, 0, meta).sums
    assert asked.shape[0] == 20
    assert asked.dtype == torch.float32
    assert RandomAssignments(10, 100, 999, None, 0, meta).sums.dtype == torch.float64


def test_bytes_do_not_grow_with_the_stream() -> None:
    x = torch.rand(10, 4, dtype=torch.float64)
    kept = fed(x, torch.arange(10) % 3, 10)
    before = kept.nbytes
    for _ in range(20):
        kept.add(x, torch.arange(10) % 3)
    assert kept.nbytes == before
