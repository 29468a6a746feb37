"""senet.catalogue: the table against torchvision, files in torchvision's formats, no network."""

from __future__ import annotations

import gzip
import inspect
import json
import pickle
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generated import make_image
from torchvision import datasets

from senet.catalogue import CATALOGUE, digit_arrays
from senet.data import DataOptions, load_data, train_loader
from senet.errors import UserError


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything goes through a proxy that refuses connections."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def refusal(options: DataOptions) -> str:
    with pytest.raises(UserError) as error:
        load_data(options)
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", sorted(set(CATALOGUE) - {"digits"}))
def test_rows_fit_torchvision(name: str) -> None:
    entry = CATALOGUE[name]
    kind = getattr(datasets, entry.kind)
    for part in entry.parts:
        inspect.signature(kind).bind("root", **part, download=False)


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=CATALOGUE)
def test_rows_are_sound(entry: Any) -> None:
    assert len(entry.mean) == len(entry.std) == 3
    assert all(0 < value < 1 for value in (*entry.mean, *entry.std))
    assert entry.parts[0] != entry.parts[1]


def test_help_lists_every_name() -> None:
    text = inspect.getdoc(DataOptions)
    assert text is not None
    for name in CATALOGUE:
        assert f"{name}," in text or f"{name};" in text or f"{name} (" in text


@pytest.mark.parametrize("name", ["mnist", "cifar10", "usps", "svhn", "food101"])
@pytest.mark.usefixtures("offline")
def test_absent_and_offline(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    start = time.perf_counter()
    text = refusal(DataOptions(data=name, data_root=tmp_path / "data"))
    assert time.perf_counter() - start < 20
    assert repr(name) in text
    assert str(tmp_path / "data") in text
    assert "'digits'" in text
    assert capfd.readouterr().out == ""


@pytest.mark.usefixtures("offline")
def test_absent_and_not_to_be_downloaded(tmp_path: Path) -> None:
    text = refusal(DataOptions(data="cifar100", data_root=tmp_path, download=False))
    assert "downloading is off" in text
    assert list(tmp_path.iterdir()) == []


def test_data_root_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "'mnist'" in refusal(DataOptions(data="mnist", data_root=tmp_path / "file"))


def write_mnist(root: Path, train: int = 20, test: int = 10) -> Path:
    """MNIST's files, with generated digits."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        pixels = generator.integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        for file, data in (
            (f"{part}-images-idx3-ubyte", header + pixels.tobytes()),
            (f"{part}-labels-idx1-ubyte", struct.pack(">II", 0x801, count) + labels.tobytes()),
        ):
            (raw / file).write_bytes(data)
            (raw / f"{file}.gz").write_bytes(gzip.compress(data))
    return raw


@pytest.mark.usefixtures("offline")
def test_mnist(tmp_path: Path) -> None:
    raw = write_mnist(tmp_path)
    options = DataOptions(data="mnist", data_root=tmp_path, batch_size=4)
    data = load_data(options)
    assert (len(data.train), len(data.val), data.image_size) == (20, 10, 28)
    assert data.classes == tuple("0123456789")
    stored = np.frombuffer((raw / "t10k-images-idx3-ubyte").read_bytes()[16:], np.uint8)
    pixels, label = data.val.source(3)
    assert label == 3
    assert torch.equal(pixels[2].flatten(), torch.tensor(stored.reshape(10, -1)[3]))
    images, _ = next(iter(train_loader(data, options)))
    assert images.shape == (4, 3, 28, 28)


@pytest.mark.usefixtures("offline")
def test_damaged_mnist(tmp_path: Path) -> None:
    raw = write_mnist(tmp_path)
    file = raw / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:3000])
    assert "damaged" in refusal(DataOptions(data="mnist", data_root=tmp_path))


def test_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), np.uint8)
    names = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    documents = {
        "train": {"data": pixels.reshape(6, -1), "labels": [3, 1, 4, 1, 5, 9]},
        "test": {"data": pixels[:2].reshape(2, -1), "labels": [8, 0]},
        "meta": {"label_names": names},
    }
    for name, document in documents.items():
        (folder / name).write_bytes(pickle.dumps(document))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["train", None]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test", None]])
    meta = {"filename": "meta", "key": "label_names", "md5": None}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    options = DataOptions(data="cifar10", data_root=tmp_path, batch_size=6, augment=False)
    data = load_data(options)
    assert data.classes == tuple(names)
    assert torch.equal(data.train.source(2)[0], torch.from_numpy(pixels[2]))
    images, labels = next(iter(train_loader(data, options)))
    assert images.shape == (6, 3, 32, 32)
    assert sorted(labels.tolist()) == [1, 1, 3, 4, 5, 9]


def write_food(root: Path) -> Path:
    """Food101's files: two images of each of two classes in each part."""
    base = root / "food-101"
    (base / "meta").mkdir(parents=True)
    for part in ("train", "test"):
        listing = {name: [f"{name}/{part}{i}" for i in range(2)] for name in ("pie", "rice")}
        (base / "meta" / f"{part}.json").write_text(json.dumps(listing))
        for files in listing.values():
            for file in files:
                path = base / "images" / f"{file}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                make_image((60, 50), 0.5, np.random.default_rng(0)).save(path)
    return base


def test_a_set_that_stays_in_its_files(tmp_path: Path) -> None:
    base = write_food(tmp_path)
    options = DataOptions(data="food101", data_root=tmp_path, batch_size=2, image_size=32)
    data = load_data(options)
    assert data.classes == ("pie", "rice")
    images, labels = next(iter(train_loader(data, options)))
    assert images.shape == (2, 3, 32, 32)
    assert labels.dtype == torch.int64
    file = base / "images" / "rice" / "test1.jpg"
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(UserError, match="image 3 of food101") as error:
        data.val[3]
    assert "\n" not in str(error.value)


def test_digits_are_held_out_evenly() -> None:
    (pixels, labels), (held, held_labels) = digit_arrays(8)
    assert pixels.shape == (1438, 1, 8, 8)
    assert pixels.dtype == torch.uint8
    assert held.shape == (359, 1, 8, 8)
    assert int(held.max()) == 255
    every = labels.bincount() + held_labels.bincount()
    assert (held_labels.bincount() / every - 0.2).abs().max() < 0.01
    together = torch.cat([pixels, held])
    assert len(together.flatten(1).unique(dim=0)) == 1797  # none twice, so none in both parts
    # Frozen: published accuracies are those of these images.
    assert held_labels[:8].tolist() == [3, 4, 9, 0, 7, 9, 1, 6]
