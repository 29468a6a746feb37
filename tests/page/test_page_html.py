"""senet.page: one file that holds all, executes no name and stays small."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from recorded import make_excitations, make_picture

from senet.excitations import Excitations
from senet.page import page_html
from senet.page.document import document, packed

HOSTILE = ("</script><script>alert(1)</script>", "../x\"'", "<!--", "{{script}}", "\udcff", "& co")


class _Elements(HTMLParser):
    """Elements by name, with their attributes and the text in them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        self.found.append(("", {}, []))

    def handle_data(self, data: str) -> None:
        if self.found:
            self.found[-1][2].append(data)

    def of(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attrs, "".join(parts)) for name, attrs, parts in self.found if name == tag]


def page(excitations: Excitations, **options: Any) -> str:
    given = {"title": "se_net", "data": "images", "blocks": [0], "classes": [0]} | options
    return page_html(excitations, **given)


def data_of(html: str) -> dict[str, Any]:
    (text,) = (text for attrs, text in _Elements(html).of("script") if attrs.get("id") == "data")
    read: dict[str, Any] = json.loads(text)
    return read


def unpacked(one: dict[str, Any]) -> np.ndarray:
    """As the page's own script does it."""
    codes = np.frombuffer(base64.b64decode(one["codes"]), "u1" if one["bits"] == 8 else "<u2")
    none = 2 ** one["bits"] - 1
    values = one["low"] + codes * (one["high"] - one["low"]) / (none - 1)
    return np.where(codes == none, np.nan, values)


@pytest.mark.parametrize("bits", [8, 16])
def test_numbers_come_back_to_half_a_step(bits: int) -> None:
    values = np.random.default_rng(0).uniform(-0.3, 2.1, (4, 50))
    values[1, 7] = np.nan
    step = (np.nanmax(values) - np.nanmin(values)) / (2**bits - 2)
    back = unpacked(packed(values, bits)).reshape(4, 50)
    np.testing.assert_allclose(back, values, rtol=0, atol=0.501 * step)


@pytest.mark.parametrize("values", [[0.25, 0.25], [np.nan, np.nan], [0.5], [np.nan, 1.0]])
def test_numbers_without_a_range(values: list[float]) -> None:
    np.testing.assert_array_equal(unpacked(packed(values, 16)), values)


def test_the_document_holds_what_was_recorded() -> None:
    excitations = make_excitations(widths=(6, 12))
    shown = document(excitations, title="t", data="d", blocks=[1], classes=[0, 2])
    assert shown["names"] == ["cat", "dog", "eel"]
    assert shown["classes"] == [0, 1, 2]
    for entry, block in zip(shown["blocks"], excitations.blocks, strict=True):
        means = unpacked(entry["means"]).reshape(3, block.channels)
        np.testing.assert_allclose(means, block.mean, atol=1e-5)
        for name, values in (
            ("mean", block.total_mean),
            ("specificity", block.eta_squared),
            ("null", block.null.max(0).values),
            ("lowest", block.mean.min(0).values),
            ("highest", block.mean.max(0).values),
        ):
            np.testing.assert_allclose(unpacked(entry["values"][name]), values, atol=1e-5)
        numbers = np.frombuffer(base64.b64decode(entry["most"]["images"]), "<u2")
        np.testing.assert_array_equal(numbers.reshape(-1, 3), block.most_images)
        gates = unpacked(entry["least"]["gates"]).reshape(-1, 3)
        np.testing.assert_allclose(gates, block.least, atol=1e-5)


def test_numbers_of_many_images_take_32_bits() -> None:
    excitations = make_excitations(widths=(4,), images=1_000_000)
    entry = document(excitations, title="t", data="d", blocks=[0], classes=[0])["blocks"][0]
    assert entry["most"]["bits"] == 32
    numbers = np.frombuffer(base64.b64decode(entry["most"]["images"]), "<u4")
    np.testing.assert_array_equal(numbers.reshape(-1, 3), excitations.blocks[0].most_images)


def test_names_cannot_leave_the_data() -> None:
    html = page(
        make_excitations(HOSTILE),
        title=HOSTILE[0],
        data=HOSTILE[2],
        classes=range(6),
        picture=lambda index: replace(make_picture(index), name=HOSTILE[index % 6]),
    )
    assert data_of(html)["names"] == list(HOSTILE)
    assert data_of(html)["title"] == HOSTILE[0]
    pictures = data_of(html)["pictures"]["images"]
    assert {int(n): name for n, (_, name, _) in pictures.items()} == {
        int(n): HOSTILE[int(n) % 6] for n in pictures
    }
    assert {name for _, name, _ in pictures.values()} == set(HOSTILE)
    elements = _Elements(html)
    assert len(elements.of("script")) == 2
    assert elements.of("title")[0][1] == HOSTILE[0]
    assert html.count("<!--") == 0
    html.encode("ascii", "xmlcharrefreplace")


def test_the_policy_lets_the_page_s_own_parts_in_and_nothing_else() -> None:
    elements = _Elements(page(make_excitations()))
    (policy,) = (
        attrs["content"]
        for attrs, _ in elements.of("meta")
        if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    rules = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert set(rules) == {
        *("default-src", "script-src", "style-src", "img-src", "base-uri", "form-action")
    }
    (script,) = (text for attrs, text in elements.of("script") if "id" not in attrs)
    for rule, content in (("script-src", script), ("style-src", elements.of("style")[0][1])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"


def test_the_page_names_no_other_place() -> None:
    html = page(make_excitations(), picture=make_picture)
    addresses = set(re.findall(r"(?:https?:)?//[\w.]+\.\w+[^\s\"'<]*", html))
    assert addresses == {"http://www.w3.org/2000/svg"}, "a name, which is not asked for"
    for attribute in ("src=", 'href="http', "@import", "url("):
        assert attribute not in html


def test_no_value_stays_none() -> None:
    excitations = make_excitations(widths=(4,), permutations=0)
    block = excitations.blocks[0]
    mean, variance = block.mean.clone(), block.variance.clone()
    mean[1] = variance[1] = torch.nan
    block = replace(block, mean=mean, variance=variance, counts=torch.tensor([30, 0, 30]))
    entry = data_of(page(replace(excitations, blocks=(block,))))["blocks"][0]
    assert entry["nullRange"] is None
    assert np.isnan(unpacked(entry["values"]["null"])).all()
    means = unpacked(entry["means"]).reshape(3, 4)
    assert np.isnan(means[1]).all()
    assert np.isfinite(means[[0, 2]]).all()


def test_se_resnet_50_with_100_classes_is_below_10_mb() -> None:
    """15,104 channels, 9 images at each end of each; pictures fill what is left."""
    widths = [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3
    excitations = make_excitations(
        [f"class {label}" for label in range(100)],
        widths,
        [2] * 3 + [3] * 4 + [4] * 6 + [5] * 3,
        images=5000,
        examples=9,
    )
    pictures = [make_picture(index, 64, 100) for index in range(200)]
    html = page(excitations, picture=lambda index: pictures[index % 200])
    size = len(html.encode())
    assert 8_500_000 < size < 10_000_000
    shown = data_of(html)
    assert sum(block["channels"] for block in shown["blocks"]) == shown["pictures"]["of"] == 15_104
    assert len(shown["classes"]) == 100
    assert 50 < shown["pictures"]["complete"] < 15_104
    assert len(shown["pictures"]["images"]) > 1500
    means = unpacked(shown["blocks"][15]["means"]).reshape(100, 2048)
    np.testing.assert_allclose(means, excitations.blocks[15].mean, atol=0.0021)


def test_with_1000_classes_a_sample_of_them_is_kept() -> None:
    widths = [1024] * 8 + [2048] * 3
    excitations = make_excitations([str(n) for n in range(1000)], widths, examples=1)
    html = page(excitations, classes=[123, 7])
    assert len(html.encode()) < 10_000_000
    shown = data_of(html)
    assert len(shown["names"]) == 1000
    assert {0, 7, 123, 999} <= set(shown["classes"])
    assert 100 < len(shown["classes"]) < 400
    place = shown["classes"].index(123)
    means = unpacked(shown["blocks"][10]["means"]).reshape(-1, 2048)
    np.testing.assert_allclose(means[place], excitations.blocks[10].mean[123], atol=0.0021)
