"""senet.distortion: RandAugment and erasing by (seed, epoch, index), in every kind of data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from generated import make_image_folder
from torch import Tensor

from senet.data import DataOptions, load_data, train_loader, val_loader
from senet.distortion import Distortion
from senet.sampling import REPEAT, EpochSampler, mix

DISTORTED = DataOptions(batch_size=4, rand_augment=9, erase=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_folder(tmp_path_factory.mktemp("images") / "set", per_class=6)


@pytest.fixture(params=["digits", "folder"])
def options(request: pytest.FixtureRequest, folder: Path) -> DataOptions:
    if request.param == "digits":
        return DISTORTED
    return replace(DISTORTED, data=str(folder), image_size=16)


def batches(options: DataOptions, epoch: int, count: int = 3) -> Tensor:
    loader = train_loader(load_data(options), options)
    loader.sampler.set_epoch(epoch)
    return torch.stack([images for _, (images, _) in zip(range(count), loader, strict=False)])


def test_batches_are_a_function_of_seed_epoch_and_index(options: DataOptions) -> None:
    usual = batches(options, 1)
    torch.manual_seed(5)
    assert torch.equal(batches(replace(options, workers=1), 1), usual)
    assert not torch.equal(batches(options, 2), usual)
    assert not torch.equal(batches(replace(options, seed=8), 1), usual)


def test_an_image_does_not_depend_on_its_batch(options: DataOptions) -> None:
    train = load_data(options).train
    keys = [(3, 5), (3, 2), (4, 5), (3 + REPEAT, 5)]
    together, _ = train.batch(keys)
    for key, image in zip(keys, together, strict=True):
        assert torch.equal(train[key][0], image)
    assert not torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[3])


def test_each_of_the_two_changes_images(options: DataOptions) -> None:
    plain = replace(options, rand_augment=None, erase=0.0)
    usual = batches(plain, 0)
    for changes in ({"rand_augment": 9}, {"erase": 1.0}):
        changed = batches(replace(plain, **changes), 0)
        differing = (changed != usual).flatten(2).any(2).float().mean()
        assert differing > 0.5, changes
    assert torch.equal(batches(replace(plain, rand_augment=None), 0), usual)


def test_held_out_images_and_global_generators_are_left_alone(options: DataOptions) -> None:
    data = load_data(options)
    pixels, _ = data.val.source(0)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    images, _ = next(iter(val_loader(data, options)))
    data.train.batch([(0, 0), (0, 1)])
    assert torch.equal(images[0], data.eval_transform(pixels))
    assert torch.equal(torch.get_rng_state(), before)


def test_erasing_is_as_probable_as_asked_for() -> None:
    draws = mix(0, 0, torch.arange(400).numpy(), 2)
    images = torch.zeros(400, 3, 16, 16)
    erased = (Distortion(erase=0.25).of_images(images, draws) != 0).flatten(1).any(1).sum()
    assert abs(int(erased) - 100) < 40
    assert torch.equal(Distortion().of_images(images, draws), images)


def test_a_rectangle_of_noise_is_what_erasing_leaves() -> None:
    images = torch.full((30, 3, 32, 32), 7.0)
    changed = Distortion(erase=1.0).of_images(images, mix(1, torch.arange(30).numpy()))
    for image in changed:
        where = (image != 7).all(0)
        rows, columns = where.any(1).nonzero(), where.any(0).nonzero()
        height, width = len(rows), len(columns)
        assert int(where.sum()) == height * width  # a full rectangle
        assert 0.01 < height * width / 1024 < 0.36
        assert image[:, where].std() > 0.3


def test_what_rand_augment_leaves_empty_has_the_mean_of_the_data() -> None:
    mean = (0.2, 0.4, 0.6)
    pixels = torch.full((200, 3, 16, 16), 255, dtype=torch.uint8)
    draws = mix(2, torch.arange(200).numpy())
    changed = Distortion(rand_augment=30, mean=mean).of_pixels(pixels, draws)
    assert changed.dtype == torch.uint8
    corner = torch.tensor([51, 102, 153], dtype=torch.uint8)
    filled = (changed[:, :, 0, 0] == corner).all(1) | (changed[:, :, -1, -1] == corner).all(1)
    assert filled.sum() > 20  # moved, sheared or turned, and nothing done after that


@pytest.mark.parametrize("repeats", [1, 2, 3])
@pytest.mark.parametrize("world", [1, 2])
def test_each_image_comes_so_many_times_in_a_row(repeats: int, world: int) -> None:
    parts = []
    for rank in range(world):
        sampler = EpochSampler(
            12, seed=3, shuffle=True, repeats=repeats, rank=rank, world_size=world
        )
        sampler.set_epoch(5)
        parts.append(list(sampler))
        assert len(parts[-1]) == len(sampler) == 12 // world
    keys = [key for keys in zip(*parts, strict=True) for key in keys]
    assert len(set(keys)) == 12
    indices = [index for _, index in keys]
    assert indices == [index for index in indices[::repeats] for _ in range(repeats)]
    assert len(set(indices)) == 12 // repeats
    assert [epoch for epoch, _ in keys] == [5 + n % repeats * REPEAT for n in range(12)]


def test_a_number_of_images_that_repeats_do_not_divide() -> None:
    sampler = EpochSampler(10, seed=3, shuffle=True, repeats=4)
    indices = [index for _, index in sampler]
    assert len(indices) == len(sampler) == 10
    assert [indices.count(index) for index in dict.fromkeys(indices)] == [4, 4, 2]


def test_every_image_gets_its_turn_over_the_epochs() -> None:
    sampler = EpochSampler(12, seed=3, shuffle=True, repeats=3)
    seen = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        seen |= {index for _, index in sampler}
    assert seen == set(range(12))


def test_held_out_images_are_not_repeated(options: DataOptions) -> None:
    three = replace(options, repeats=3)
    data = load_data(three)
    assert len(val_loader(data, three).sampler) == len(data.val)
    loader = train_loader(data, three)
    loader.sampler.set_epoch(0)
    assert len(loader) == len(train_loader(data, options))
    images, labels = next(iter(loader))
    assert labels[0] == labels[1] == labels[2]
    assert not torch.equal(images[0], images[1])
