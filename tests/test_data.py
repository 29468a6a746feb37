"""senet.data: the same batches whoever prepares them, and plain words for what is wrong."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generated import make_image_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from senet.data import (
    DataOptions,
    ImageData,
    ImageLoader,
    load_data,
    read_image,
    train_loader,
    val_loader,
)
from senet.errors import UserError
from senet.image_sets import crop_and_flip

# Python 3.12 warns of every fork of a process in which PyTorch has threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process .*multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_folder(tmp_path_factory.mktemp("images"), per_class=7, size=(50, 40))


def options_for(kind: str, folder: Path, **changes: Any) -> DataOptions:
    if kind == "digits":
        return DataOptions(batch_size=300, **changes)
    return DataOptions(data=str(folder), batch_size=4, image_size=24, **changes)


def epoch_of(loader: ImageLoader, epoch: int) -> tuple[Tensor, Tensor]:
    """All images and labels of an epoch, in order."""
    loader.sampler.set_epoch(epoch)
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize("kind", ["digits", "folder"])
def test_batches_are_a_function_of_seed_epoch_and_index(kind: str, folder: Path) -> None:
    options = options_for(kind, folder)
    whole = train_loader(load_data(options), options)
    epochs = [epoch_of(whole, epoch) for epoch in range(3)]
    for workers in (1, 2):
        with_workers = options_for(kind, folder, workers=workers)
        loader = train_loader(load_data(with_workers), with_workers)
        torch.manual_seed(workers)
        for epoch in (1, 2):  # as after a resume: the first epoch was in another process
            images, labels = epoch_of(loader, epoch)
            assert torch.equal(images, epochs[epoch][0])
            assert torch.equal(labels, epochs[epoch][1])
    assert not torch.equal(epochs[0][0], epochs[1][0])
    other = options_for(kind, folder, seed=8)
    assert not torch.equal(epoch_of(train_loader(load_data(other), other), 0)[0], epochs[0][0])


@pytest.mark.parametrize("kind", ["digits", "folder"])
def test_augmentation_follows_the_image_not_its_place(kind: str, folder: Path) -> None:
    data = load_data(options_for(kind, folder))
    keys = [(3, 5), (3, 2), (4, 5)]
    together, _ = data.train.batch(keys)
    for key, image in zip(keys, together, strict=True):
        assert torch.equal(data.train[key][0], image)
    assert not torch.equal(together[0], together[2])


@pytest.mark.parametrize("kind", ["digits", "folder"])
@pytest.mark.parametrize("workers", [0, 1])
def test_global_generators_are_left_alone(kind: str, workers: int, folder: Path) -> None:
    options = options_for(kind, folder, workers=workers)
    loader = train_loader(load_data(options), options)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    epoch_of(loader, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_validation_sees_every_image_in_order(folder: Path) -> None:
    for kind in ("digits", "folder"):
        options = options_for(kind, folder)
        data = load_data(options)
        images, labels = epoch_of(val_loader(data, options), 0)
        again, _ = epoch_of(val_loader(data, options), 5)
        assert len(images) == len(data.val)
        assert torch.equal(images, again)
        for index in (0, len(data.val) - 1):
            pixels, label = data.val.source(index)
            assert torch.equal(images[index], data.eval_transform(pixels))
            assert labels[index] == label


@pytest.mark.parametrize("kind", ["digits", "folder"])
def test_a_held_out_file_is_seen_as_in_validation(kind: str, folder: Path, tmp_path: Path) -> None:
    """Predicting a file gives what evaluation saw."""
    data = load_data(options_for(kind, folder))
    pixels, _ = data.val.source(1)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    image = data.eval_transform(read_image(tmp_path / "a.png"))
    assert torch.equal(image, data.val[1][0])
    assert torch.equal(data.eval_transform(Image.open(tmp_path / "a.png")), image)


def test_digits_are_normalised() -> None:
    options = DataOptions(augment=False)
    data = load_data(options)
    images, _ = data.train.batch([(0, index) for index in range(len(data.train))])
    assert images.shape == (1438, 3, 16, 16)
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    assert abs(float(images.mean())) < 0.01
    assert abs(float(images.std()) - 1) < 0.01


def test_the_held_out_digits_are_always_the_same() -> None:
    first = load_data(DataOptions(seed=1)).val
    second = load_data(DataOptions(seed=2, val_fraction=0.5)).val
    assert len(first) == len(second) == 359
    assert torch.equal(first[100][0], second[100][0])


@pytest.mark.parametrize("augment", [True, False])
def test_augmentation_can_be_turned_off(augment: bool, folder: Path) -> None:
    for kind in ("digits", "folder"):
        data = load_data(options_for(kind, folder, augment=augment))
        same = [torch.equal(data.train[0, i][0], data.train[1, i][0]) for i in range(6)]
        plain = data.eval_transform(data.train.source(3)[0])
        assert any(same) is not augment
        assert torch.equal(data.train[0, 3][0], plain) is not augment


@given(
    count=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    margin=st.integers(0, 4),
    flip=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_crops_are_windows_of_the_padded_image(
    count: int, channels: int, height: int, width: int, margin: int, flip: bool, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    pixels = torch.from_numpy(
        generator.integers(1, 256, (count, channels, height, width), np.uint8)
    )
    draws = generator.integers(0, 2**64, count, np.uint64)
    crops = crop_and_flip(pixels, draws, margin=margin, flip=flip)
    assert crops.shape == pixels.shape
    padded = torch.nn.functional.pad(pixels, [margin] * 4)
    for image, crop in zip(padded, crops, strict=True):
        windows = [
            image[:, top : top + height, left : left + width]
            for top in range(2 * margin + 1)
            for left in range(2 * margin + 1)
        ]
        forms = [crop, crop.flip(-1)] if flip else [crop]
        assert any(torch.equal(form, window) for form in forms for window in windows)


def test_crops_and_flips_are_all_equally_likely() -> None:
    pixels = torch.zeros(1, 1, 3, 4, dtype=torch.uint8)
    pixels[0, 0, 1, 1] = 255
    from senet.sampling import mix

    draws = mix(7, 0, np.arange(9000))
    crops = crop_and_flip(pixels.expand(9000, -1, -1, -1), draws, margin=1, flip=True)
    rows, columns = np.unravel_index(crops.flatten(1).argmax(dim=1).numpy(), (3, 4))
    counts = np.zeros((3, 4), int)
    np.add.at(counts, (rows, columns), 1)
    # Unflipped, column 1 moves to 0, 1, 2; flipped, column 2 to 1, 2, 3: 1 + 2 + 2 + 1 of 6.
    assert np.abs(counts / 9000 - np.array([1, 2, 2, 1]) / 18).max() < 0.015


def test_incomplete_batches(folder: Path) -> None:
    options = DataOptions(data=str(folder), image_size=16, batch_size=5)
    data = load_data(options)
    assert [len(y) for _, y in train_loader(data, options)] == [5, 5]
    assert len(train_loader(data, options)) == 2
    assert [len(y) for _, y in val_loader(data, options)] == [5, 1]
    large = DataOptions(data=str(folder), image_size=16, batch_size=100)
    assert [len(y) for _, y in train_loader(data, large)] == [14]


def test_a_plain_dataloader_takes_the_sets_too(folder: Path) -> None:
    data = load_data(options_for("folder", folder))
    images, labels = next(iter(DataLoader(data.val, batch_size=3)))
    assert images.shape == (3, 3, 24, 24)
    assert labels.tolist() == [0, 0, 0]
    assert len(list(data.val)) == len(data.val)
    assert torch.equal(data.val[-1][0], data.val[len(data.val) - 1][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_image_is_named_in_one_line(tmp_path: Path, workers: int) -> None:
    make_image_folder(tmp_path)
    broken = tmp_path / "train" / "dog" / "3.png"
    broken.write_bytes(broken.read_bytes()[:200])
    options = DataOptions(data=str(tmp_path), image_size=16, batch_size=2, workers=workers)
    loader = train_loader(load_data(options), options)
    with pytest.raises(UserError) as error:
        list(loader)
    assert type(error.value) is UserError
    assert "\n" not in str(error.value)
    assert str(broken) in str(error.value)


def test_an_image_that_went_away_is_named(tmp_path: Path) -> None:
    data: ImageData = load_data(DataOptions(data=str(make_image_folder(tmp_path)), image_size=16))
    (tmp_path / "val" / "cat" / "0.png").unlink()
    with pytest.raises(UserError, match=r"val/cat/0\.png.*no such file"):
        data.val[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar01", "nearest: 'cifar10'"),
        ("digit", "nearest: 'digits'"),
        ("zzz", "known: 'cifar10'"),
        ("z" * 5000, "unknown data set"),
        ("z/" * 5000, "no such folder, of images"),
        ("./digits", "no such folder, of images"),
        ("~/absent/images", "no such folder, of images"),
    ],
)
def test_unknown_data(name: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected.replace("'", ".")) as error:
        load_data(DataOptions(data=name))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("workers", -1),
        ("image_size", 4),
        ("val_fraction", 0.0),
        ("val_fraction", 1.0),
        ("val_fraction", float("nan")),
    ],
)
def test_options_out_of_range(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{name} is {value}"):
        DataOptions(**{name: value})


def test_digits_come_fast_enough() -> None:
    """On one core 3,000 images a second would keep a small network's training waiting."""
    options = DataOptions()
    loader = train_loader(load_data(options), options)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        speeds = []
        for epoch in range(5):
            start = time.thread_time()  # whatever else the machine does meanwhile
            images, _ = epoch_of(loader, epoch)
            speeds.append(len(images) / (time.thread_time() - start))
    finally:
        torch.set_num_threads(threads)
    assert max(speeds) > 3000


def test_more_workers_than_a_machine_can_take_are_refused() -> None:
    with pytest.raises(UserError, match=r"workers is 100000, .* use at most \d+"):
        DataOptions(workers=100_000)
