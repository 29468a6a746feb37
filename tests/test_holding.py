"""senet.holding: decoded images in memory, the same as those in files, and never too many."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from generated import make_image_folder

from senet import holding
from senet.data import DataOptions, load_data, train_loader
from senet.errors import UserError
from senet.holding import HeldPixels, check_memory, free_memory
from senet.image_sets import ImageSet
from senet.options import TrainOptions
from senet.training import data_options_of

pytestmark = pytest.mark.filterwarnings("ignore:This process .*multi-threaded:DeprecationWarning")


def held_in(images: ImageSet) -> HeldPixels:
    held: HeldPixels = images.held  # type: ignore[attr-defined]
    return held


def test_what_was_put_is_got() -> None:
    held = HeldPixels([(3, 4), (2, 2)], shared=False)
    assert held.get(0) is None
    turned = torch.arange(36, dtype=torch.uint8).view(3, 4, 3)  # upright: width for height
    held.put(0, turned, 5)
    pixels, label = held.get(0) or (torch.empty(0), -1)
    assert torch.equal(pixels, turned)
    assert label == 5
    assert held.get(1) is None
    held.put(1, torch.zeros(3, 9, 9, dtype=torch.uint8), 1)  # grown since it was measured
    assert held.get(1) is None


@pytest.mark.parametrize("workers", [0, 2])
def test_files_are_read_once(tmp_path: Path, workers: int) -> None:
    """The second epoch needs none of them any more, whichever worker had read them."""
    folder = make_image_folder(tmp_path / "set", per_class=8)
    options = DataOptions(
        data=str(folder), batch_size=4, image_size=16, workers=workers, cache=True
    )
    plain = DataOptions(data=str(folder), batch_size=4, image_size=16)
    expected = []
    for epoch in (0, 1):
        loader = train_loader(load_data(plain), plain)
        loader.sampler.set_epoch(epoch)
        expected.append(torch.cat([images for images, _ in loader]))
    loader = train_loader(load_data(options), options)
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        assert torch.equal(torch.cat([images for images, _ in loader]), expected[epoch])
        for path in folder.rglob("train/*/*.png"):
            path.unlink(missing_ok=True)


def test_turned_pictures_are_held_upright(tmp_path: Path) -> None:
    from PIL import Image

    folder = make_image_folder(tmp_path / "set", per_class=2, size=(30, 20))
    for path in folder.rglob("*.png"):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.open(path).save(path.with_suffix(".jpg"), exif=exif)
        path.unlink()
    data = load_data(DataOptions(data=str(folder), image_size=16, cache=True))
    first, again = data.val[0][0], data.val[0][0]
    assert torch.equal(first, again)
    pixels, _ = held_in(data.val).get(0) or (torch.empty(0), 0)
    assert pixels.shape == (3, 30, 20)


def test_a_set_in_memory_stays_as_it_is() -> None:
    data = load_data(DataOptions(cache=True))
    assert not hasattr(data.train, "held")


def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_image_folder(tmp_path / "set", per_class=8, size=(100, 100))
    needed = 3 * 100 * 100 * 24
    monkeypatch.setattr(holding, "free_memory", lambda: needed)
    with pytest.raises(UserError) as caught:
        load_data(DataOptions(data=str(folder), cache=True))
    text = str(caught.value)
    assert "cache would hold 24 images in 0.7 MB, but only 0.7 MB of memory is free" in text
    assert "leave --cache out" in text
    monkeypatch.setattr(holding, "free_memory", lambda: 2 * needed)
    load_data(DataOptions(data=str(folder), cache=True))


def test_more_than_the_machine_has() -> None:
    assert 10**8 < free_memory() < 10**15
    with pytest.raises(UserError, match=r"cache would hold 3 images in 1000000\.0 GB"):
        check_memory(3, 10**15, shared=False)


@pytest.mark.parametrize("version", [1, 2])
def test_files_that_were_read_are_not_in_the_way_in_a_container(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "_CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(holding, "_machine_free", lambda: 10**12)
    assert free_memory() == 10**12
    limit, used, prefix = ("memory.max", "memory.current", "")
    place = tmp_path
    if version == 1:
        place = tmp_path / "memory"
        limit, used, prefix = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        place.mkdir()
    (place / limit).write_text("1000\n")
    (place / used).write_text("900\n")
    (place / "memory.stat").write_text(f"anon 200\n{prefix}inactive_file 700\n")
    assert free_memory() == 800


def test_each_process_holds_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_image_folder(tmp_path / "set", per_class=8, size=(100, 100))
    monkeypatch.setattr(holding, "free_memory", lambda: 3 * 3 * 100 * 100 * 24)
    options = TrainOptions(data=str(folder), cache=True, accelerator="cpu", devices=2)
    load_data(data_options_of(options))
    with pytest.raises(UserError, match=r"in 0\.7 MB in each of 3 processes, but only 2\.2 MB"):
        load_data(data_options_of(replace(options, devices=3)))


def test_a_small_shared_folder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "_free_shared", lambda: 64 * 2**20)
    with pytest.raises(UserError, match=r"67\.1 MB of /dev/shm, through which workers share it"):
        check_memory(9, 10**8, shared=True)
    check_memory(9, 10**8, shared=False)
