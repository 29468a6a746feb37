"""senet.folders: both layouts, and each way a folder can be wrong."""

from __future__ import annotations

import gc
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
from generated import make_image_folder

from senet.data import DataOptions, load_data
from senet.errors import UserError
from senet.folders import FolderSplit, fingerprint, read_folder


def read(root: Path, *, val_fraction: float = 0.25, seed: int = 0) -> FolderSplit:
    return read_folder(root, val_fraction=val_fraction, seed=seed)


def told(split: FolderSplit) -> str:
    return fingerprint(split.root, (split.train_paths, split.val_paths))


def refusal(root: Path) -> str:
    with pytest.raises(UserError) as error:
        read(root)
    text = str(error.value)
    assert "\n" not in text
    assert str(root) in text
    return text


def test_given_split(tmp_path: Path) -> None:
    split = read(make_image_folder(tmp_path, classes=("b", "a", "ç 1"), per_class=4))
    assert split.classes == ("a", "b", "ç 1")
    assert len(split.train_paths) == 12
    assert split.val_labels.tolist() == [0, 0, 1, 1, 2, 2]
    for path, label in zip(split.train_paths, split.train_labels.tolist(), strict=True):
        assert path.parts[-3:-1] == ("train", split.classes[label])


def test_own_split(tmp_path: Path) -> None:
    make_image_folder(tmp_path, per_class=8, split=False)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "cat" / "more").mkdir()
    shutil.move(tmp_path / "cat" / "0.png", tmp_path / "cat" / "more" / "0.png")
    split = read(tmp_path)
    assert split.classes == ("cat", "dog")
    assert split.val_labels.tolist() == [0, 0, 1, 1]
    assert len({*split.train_paths, *split.val_paths}) == 16
    for path, label in zip(split.val_paths, split.val_labels.tolist(), strict=True):
        assert split.classes[label] in path.parts
    assert read(tmp_path).val_paths == split.val_paths
    assert read(tmp_path, seed=1).val_paths != split.val_paths
    assert len(read(tmp_path, val_fraction=0.5).val_paths) == 8


def test_classes_may_be_called_train_and_val(tmp_path: Path) -> None:
    make_image_folder(tmp_path, classes=("plane", "train"), split=False)
    assert read(tmp_path).classes == ("plane", "train")


@pytest.mark.parametrize("parts", [("train", "val"), ("train", "test")])
def test_parts_without_classes_are_no_classes(tmp_path: Path, parts: tuple[str, str]) -> None:
    make_image_folder(tmp_path, classes=parts, split=False)
    assert "are parts of data, with images but no classes in them" in refusal(tmp_path)


def test_folder_is_missing(tmp_path: Path) -> None:
    assert "no such image folder" in refusal(tmp_path / "absent")
    (tmp_path / "file").touch()
    assert "no such image folder" in refusal(tmp_path / "file")


def test_no_images_at_all(tmp_path: Path) -> None:
    assert "no class folders" in refusal(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "readme.txt").touch()
    assert "no images at all" in refusal(tmp_path)


def test_images_without_class_folders(tmp_path: Path) -> None:
    (tmp_path / "1.png").touch()
    assert "<class>/" in refusal(tmp_path)


@pytest.mark.parametrize("split", [True, False])
def test_empty_class_folder(tmp_path: Path, split: bool) -> None:
    make_image_folder(tmp_path, split=split)
    empty = tmp_path / ("val" if split else "") / "fox"
    empty.mkdir()
    assert str(empty) in refusal(tmp_path)


def test_several_empty_class_folders(tmp_path: Path) -> None:
    make_image_folder(tmp_path, split=False)
    for name in ("x", "y", "z"):
        (tmp_path / name).mkdir()
    assert "nor have 2 more" in refusal(tmp_path)


def test_classes_of_train_and_val_differ(tmp_path: Path) -> None:
    make_image_folder(tmp_path, classes=("cat", "dog", "fox"))
    shutil.rmtree(tmp_path / "val" / "fox")
    (tmp_path / "train" / "dog").rename(tmp_path / "train" / "dogs")
    text = refusal(tmp_path)
    assert "'dog' only in val/, 'dogs' only in train/, 'fox' only in train/" in text


@pytest.mark.parametrize(("kept", "absent"), [("train", "val"), ("val", "train")])
def test_half_a_split(tmp_path: Path, kept: str, absent: str) -> None:
    make_image_folder(tmp_path)
    shutil.rmtree(tmp_path / absent)
    assert f"{kept}/ with class folders but no {absent}/" in refusal(tmp_path)


def test_a_single_class(tmp_path: Path) -> None:
    make_image_folder(tmp_path, classes=("cat",), split=False)
    assert "only one class folder, 'cat'" in refusal(tmp_path)


def test_a_single_image_cannot_be_split(tmp_path: Path) -> None:
    make_image_folder(tmp_path, split=False)
    for path in (tmp_path / "dog").glob("[1-9].png"):
        path.unlink()
    assert "class 'dog'" in refusal(tmp_path)


def test_the_fingerprint_is_that_of_paths_and_sizes(tmp_path: Path) -> None:
    one = make_image_folder(tmp_path / "one", per_class=4)
    before = told(read(one))
    shutil.copytree(one, tmp_path / "two")
    assert told(read(tmp_path / "two")) == before
    image = one / "train" / "cat" / "0.png"
    image.rename(image.with_name("new.png"))
    renamed = told(read(one))
    image.with_name("new.png").rename(image)
    assert told(read(one)) == before
    image.write_bytes(image.read_bytes() + b"\0")
    longer = told(read(one))
    shutil.move(image, one / "val" / "cat" / "more.png")
    assert len({before, renamed, longer, told(read(one))}) == 4


def test_a_link_that_leads_nowhere_has_a_fingerprint_too(tmp_path: Path) -> None:
    """Reading it will tell what is wrong, in its own words."""
    make_image_folder(tmp_path, per_class=4)
    (tmp_path / "train" / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert len(told(read(tmp_path))) == 16


def test_the_fingerprint_of_a_split_is_the_same_every_time(tmp_path: Path) -> None:
    make_image_folder(tmp_path, per_class=8, split=False)
    assert told(read(tmp_path)) == told(read(tmp_path))
    assert told(read(tmp_path)) != told(read(tmp_path, seed=1))


def test_the_lists_of_paths_are_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million of them would be copied into every process that loads images."""
    make_image_folder(tmp_path)
    splits: list[weakref.ref[FolderSplit]] = []

    def noted(root: Path, **options: Any) -> FolderSplit:
        split = read_folder(root, **options)
        splits.append(weakref.ref(split))
        return split

    monkeypatch.setattr("senet.data.read_folder", noted)
    data = load_data(DataOptions(data=str(tmp_path)))
    gc.collect()
    assert [split() for split in splits] == [None]
    assert data.record().files == told(read(tmp_path))
