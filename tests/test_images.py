"""senet.images: real files of many kinds, whole and broken."""

from __future__ import annotations

import io
import os
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generated import make_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.transforms import v2

from senet.errors import UserError
from senet.images import (
    MAX_PIXELS,
    frame,
    image_extent,
    image_transform,
    list_images,
    read_image,
)


def picture(width: int = 40, height: int = 30) -> Image.Image:
    return make_image((width, height), 0.3, np.random.default_rng(0))


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_png_of_every_mode_is_rgb(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((30, 40), 0x80FF, np.uint16))
    else:
        image = picture().convert(mode)
    image.save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png")
    assert pixels.shape == (3, 30, 40)
    assert pixels.dtype == torch.uint8
    expected = Image.new("RGB", (40, 30), (128,) * 3) if mode == "I;16" else image.convert("RGB")
    assert torch.equal(pixels, torch.from_numpy(np.array(expected)).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("CMYK", "tiff"),
        ("YCbCr", "jpg"),
        ("LAB", "tiff"),
        ("I", "tiff"),
        ("P", "gif"),
        ("RGB", "bmp"),
        ("L", "pgm"),
        ("RGB", "webp"),
        ("RGB", "JPEG"),
    ],
)
def test_other_formats_are_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    picture().convert(mode).save(path)
    pixels = read_image(path)
    assert pixels.shape == (3, 30, 40)
    close = torch.from_numpy(np.array(picture().convert("L"), dtype=np.float32))
    grey = pixels.float().mean(dim=0)
    assert (grey - close).abs().mean() < 25


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.save(tmp_path / "a.png")
    image.convert("P").save(tmp_path / "b.png", transparency=bytes([0] * 256))
    pixels = read_image(tmp_path / "a.png")
    assert pixels[:, 0, 0].tolist() == [255] * 3
    assert pixels[:, 1, 1].tolist() == [10, 20, 30]
    assert (read_image(tmp_path / "b.png") == 255).all()


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # held sideways
    picture(40, 30).save(tmp_path / "a.png", exif=exif)
    upright = torch.from_numpy(np.array(picture(40, 30).rotate(270, expand=True)))
    assert torch.equal(read_image(tmp_path / "a.png"), upright.permute(2, 0, 1))


def test_floating_point_images_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((3, 3), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(UserError, match="floating-point") as error:
        read_image(tmp_path / "a.tiff")
    one_line(error)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "tiff", "webp"])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.9])
def test_truncated_files_are_told(tmp_path: Path, suffix: str, part: float) -> None:
    path = tmp_path / f"broken.{suffix}"
    picture(200, 150).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(UserError, match=f"broken.{suffix}") as error:
        read_image(path)
    one_line(error)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tiff", "webp"])
def test_damaged_bytes_never_raise_anything_else(tmp_path: Path, suffix: str) -> None:
    whole = io.BytesIO()
    picture().save(whole, {"jpg": "JPEG"}.get(suffix, suffix.upper()))
    generator = random.Random(0)
    path = tmp_path / f"a.{suffix}"
    messages: list[str] = []
    for _ in range(150):
        data = bytearray(whole.getvalue())
        for _ in range(generator.randint(1, 20)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(data)
        try:
            pixels = read_image(path)
        except UserError as error:
            messages.append(str(error))
        else:
            assert pixels.dtype == torch.uint8
            assert pixels.shape[0] == 3
    assert messages
    assert not any("\n" in message for message in messages)


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for name, reason in (
        ("a.png", "not an image"),
        ("empty.png", "empty file"),
        ("folder.png", "a folder"),
        ("pipe.png", "not a file"),
        ("absent.png", "no such file"),
    ):
        with pytest.raises(UserError, match=reason) as error:
            read_image(tmp_path / name)
        assert name in one_line(error)
    with pytest.raises(UserError, match="not a file"):  # and is not waited for
        image_extent(tmp_path / "pipe.png", "pipe.png")


def test_no_other_program_reads_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    picture().save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UserError, match="not an image, or a damaged one"):
        read_image(tmp_path / "a.jpg")
    assert not (tmp_path / "ran").exists()


def test_whole_numbers_beyond_16_bits_have_no_range(tmp_path: Path) -> None:
    for low, high in ((-1024, 3000), (0, 65536)):
        Image.fromarray(np.array([[low, high]], np.int32)).save(tmp_path / "a.tiff")
        with pytest.raises(UserError, match=f"pixels from {low} to {high} have no fixed range"):
            read_image(tmp_path / "a.tiff")
    Image.fromarray(np.array([[0, 65535]], np.int32)).save(tmp_path / "a.tiff")
    assert read_image(tmp_path / "a.tiff").unique().tolist() == [0, 255]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {"exif": b"garbage!"}),
        ("a.webp", {"exif": b"garbage!", "lossless": True}),
        ("a.jpg", {"exif": b"Exif\0\0garbage!", "dpi": (72, 72)}),
    ],
)
def test_damaged_metadata_are_not_the_picture(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    picture().save(tmp_path / name, **options)
    expected = np.array(Image.open(tmp_path / name).convert("RGB"))
    assert np.array_equal(read_image(tmp_path / name).permute(1, 2, 0).numpy(), expected)


def test_an_image_is_turned_whatever_else_its_metadata_are(tmp_path: Path) -> None:
    """The maker's name is a number here, which Pillow does not write when it turns an image."""
    turned, maker = (
        struct.pack("<HHLHH", 0x0112, 3, 1, 6, 0),
        struct.pack("<HHLL", 0x010F, 12, 1, 0),
    )
    data = b"Exif\0\0II*\0" + struct.pack("<LH", 8, 2) + maker + turned + struct.pack("<L", 0)
    picture().save(tmp_path / "a.png", exif=data)
    with Image.open(tmp_path / "a.png") as image, pytest.raises(AttributeError):
        ImageOps.exif_transpose(image)
    upright = np.array(picture().convert("RGB").transpose(Image.Transpose.ROTATE_270))
    assert np.array_equal(read_image(tmp_path / "a.png").permute(1, 2, 0).numpy(), upright)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_every_orientation_is_turned_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    picture().save(tmp_path / f"a.{suffix}", exif=exif, **options)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        expected = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    found = read_image(tmp_path / f"a.{suffix}").permute(1, 2, 0).numpy()
    assert np.array_equal(found, expected)


def test_folders_that_cannot_be_listed_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A privileged user may list all, so that the refusal is made here."""
    for name in ("a.png", "more/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture().save(tmp_path / name)
    scan = os.scandir

    def scandir(path: str) -> Any:
        if Path(path).name == "more":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"cannot list folder '.*more': Permission denied") as error:
        list_images(tmp_path)
    one_line(error)


def test_files_that_cannot_be_looked_for_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stat(path: Path, **_: object) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(Path, "stat", stat)
    for look in (read_image, lambda path: image_extent(path, "a")):
        with pytest.raises(UserError, match="Input/output error") as error:
            look(tmp_path / "a.png")
        one_line(error)


def test_the_way_to_a_folder_does_not_depend_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b").mkdir()
    picture().save(tmp_path / "b" / "1.png")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    scan = os.scandir

    class Backwards:
        def __init__(self, path: str) -> None:
            self.entries = iter(sorted(scan(path), key=lambda entry: entry.name, reverse=True))

        def __enter__(self) -> Any:
            return self.entries

        def __exit__(self, *_: object) -> None: ...

        def __next__(self) -> Any:
            return next(self.entries)

    expected = list_images(tmp_path)
    assert expected == [tmp_path / "a" / "1.png"]
    monkeypatch.setattr(os, "scandir", Backwards)
    assert list_images(tmp_path) == expected


@pytest.mark.parametrize("side", [9_500, 30_000])
def test_decompression_bombs_are_refused(tmp_path: Path, side: int) -> None:
    assert side * side > MAX_PIXELS
    path = tmp_path / "a.png"
    bomb(path, side)
    assert path.stat().st_size < 2_000_000
    with pytest.raises(UserError, match=r"a\.png.* pixels(; at most|\) exceeds)") as error:
        read_image(path)
    assert "pixels" in one_line(error)


def bomb(path: Path, side: int) -> None:
    """A black PNG of side × side pixels, of one bit each, without making them here."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = zlib.compress(bytes((side // 8 + 2) * side))
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def test_listing(tmp_path: Path) -> None:
    wanted = ["A.JPG", "b/c/d.webp", "b/e.png", "ü 1.jpeg"]
    for name in [*wanted, ".hidden.png", ".cache/f.png", "notes.txt", "b/g.png.part"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert [str(path.relative_to(tmp_path)) for path in list_images(tmp_path)] == wanted


def test_listing_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder") as error:
        list_images(tmp_path / "absent")
    one_line(error)
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match="no images") as error:
        list_images(tmp_path)
    assert str(tmp_path) in one_line(error)


@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    size=st.integers(2, 64),
    channels=st.sampled_from([1, 3]),
)
@settings(max_examples=60, deadline=None)
def test_frame_fits_any_shape(height: int, width: int, size: int, channels: int) -> None:
    pixels = torch.full((channels, height, width), 7, dtype=torch.uint8)
    framed = frame(pixels, size)
    assert framed.shape == (channels, size, size)
    assert (framed == 7).all()  # no padding shows


def test_frame_is_the_usual_crop_of_large_images() -> None:
    pixels = torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8)
    usual = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(224)])
    assert torch.equal(frame(pixels, 224), usual(pixels))


def test_frame_keeps_small_images_whole() -> None:
    pixels = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    assert torch.equal(frame(pixels, 32), pixels)
    assert torch.equal(frame(pixels, 64), v2.functional.resize(pixels, [64, 64], antialias=True))


def test_frame_of_a_long_strip_stays_small() -> None:
    strip = torch.zeros(3, 1, 200_000, dtype=torch.uint8)  # resized first: 39 GB
    assert frame(strip, 224).shape == (3, 224, 224)


def test_image_transform() -> None:
    transform = image_transform(16, (0.5, 0.4, 0.3), (0.1, 0.2, 0.4))
    image = Image.new("RGB", (30, 20), (51, 102, 204))
    out = transform(image)
    assert out.shape == (3, 16, 16)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out[:, 3, 5], torch.tensor([-3.0, 0.0, 1.25]))
    as_tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(transform(as_tensor), out)
    assert torch.equal(
        transform(image.convert("L").convert("RGB"))[0], transform(image.convert("L"))[0]
    )
    with pytest.raises(ValueError, match="uint8"):
        transform(torch.zeros(3, 16, 16))
