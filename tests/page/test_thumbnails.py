"""senet.page.thumbnails: as many pictures as fit, the most specific channels first."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from recorded import make_excitations, make_picture

from senet.page import Picture
from senet.page.thumbnails import Thumbnails, choose_thumbnails


def read(made: Thumbnails, number: int) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(made.images[number].jpeg)))


def test_with_room_for_all_each_image_is_there_once() -> None:
    excitations = make_excitations(images=20)
    seen: list[int] = []

    def picture(index: int) -> Picture:
        seen.append(index)
        return make_picture(index)

    made = choose_thumbnails(excitations, picture, 10_000_000)
    assert sorted(seen) == sorted(set(seen)) == sorted(made.images)
    assert len(made.channels) == made.total == 36
    assert made.images[4].label == 4 % 3
    assert made.images[4].name == "4.png"


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(640, 480, (48, 64)), (64, 64, (64, 64)), (16, 16, (16, 16)), (1, 300, (64, 1))],
)
def test_pictures_are_small_and_alike(height: int, width: int, size: tuple[int, int]) -> None:
    column = torch.linspace(0, 255, height)[:, None].expand(height, width)
    pixels = torch.stack([column, 255 - column, column / 2]).to(torch.uint8)
    made = choose_thumbnails(
        make_excitations(widths=(2,), images=1), lambda index: Picture(pixels, 0), 100_000
    )
    image = read(made, 0)
    assert image.format == "JPEG"
    assert image.size == size
    top, bottom = np.asarray(image)[0, 0].astype(int), np.asarray(image)[-1, 0].astype(int)
    if height > 1:
        assert top[0] < 60 < 190 < bottom[0]
        assert top[1] > 190 > 60 > bottom[1]


@pytest.mark.parametrize("budget", [30_000, 60_000, 120_000])
def test_they_keep_within_their_bytes(budget: int) -> None:
    excitations = make_excitations(widths=(40, 40), images=2000)
    shares: list[float] = []
    made = choose_thumbnails(excitations, make_picture, budget, shares.append)
    used = sum(thumbnail.size for thumbnail in made.images.values())
    assert budget / 2 < used <= budget
    assert 0 < len(made.channels) < made.total
    assert shares == sorted(shares)
    assert 0.5 < shares[-1] <= 1


def test_the_most_specific_come_first_and_others_are_a_sample() -> None:
    excitations = make_excitations(widths=(100, 100), images=3000)
    made = choose_thumbnails(excitations, make_picture, 250_000)
    eta = torch.cat([block.eta_squared for block in excitations.blocks])
    ranked = [divmod(place, 100) for place in eta.argsort(descending=True).tolist()]
    first = 0
    while ranked[first] in made.channels:
        first += 1
    assert first >= 8
    others = [place for place in made.channels if place not in ranked[:first]]
    assert {block for block, _ in others} == {0, 1}, "from both blocks"


def test_no_pictures_and_no_room() -> None:
    assert choose_thumbnails(make_excitations(), None, 10**6).images == {}
    assert choose_thumbnails(make_excitations(), make_picture, 0).images == {}
