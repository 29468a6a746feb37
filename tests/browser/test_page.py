"""The page of `senet inspect` in a real Chromium: what its controls change.

Run by `make test-browser`; needs Debian's chromium and chromium-driver.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from chromium import (
    CLASSES,
    EXCITATIONS,
    SCRIPT,
    WIDTHS,
    box,
    find,
    panels,
    picture_of,
    plot,
    press,
    readout,
    text,
    texts,
    values_in,
)
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

pytestmark = pytest.mark.browser


def test_it_loads_without_a_word_on_the_console(shown: webdriver.Chrome) -> None:
    assert shown.get_log("browser") == []
    assert shown.title == text(shown, "h1") == "<b>se_net</b> · images"
    assert "60 images of images, held out · 14 classes · 8 blocks · 372 channels" in text(
        shown, "#summary"
    )
    assert panels(shown) == ["layer2", "layer5", "layer6", "layer7"]
    shown.find_element(By.CSS_SELECTOR, "summary").click()
    rows = shown.find_elements(By.CSS_SELECTOR, "#depth-table tbody tr")
    assert len(rows) == len(WIDTHS)
    first = EXCITATIONS.blocks[0]
    assert rows[0].text.split()[:3] == ["layer0.bn2.se", "2", "8"]
    assert f"{first.specificity:.3f}" in rows[0].text


def test_blocks_come_and_go(shown: webdriver.Chrome) -> None:
    box(shown, "block-choice", "layer0").click()
    assert panels(shown) == ["layer0", "layer2", "layer5", "layer6", "layer7"]
    box(shown, "block-choice", "layer5").click()
    assert panels(shown) == ["layer0", "layer2", "layer6", "layer7"]
    assert "4 of 8 blocks shown" in text(shown, "#block-choice .count")
    buttons = {b.text: b for b in shown.find_elements(By.CSS_SELECTOR, "#block-choice button")}
    buttons["None"].click()
    assert panels(shown) == []
    assert find(shown, "#no-panels").is_displayed()
    buttons["All"].click()
    assert len(panels(shown)) == 8
    assert not find(shown, "#no-panels").is_displayed()
    buttons["As at first"].click()
    assert panels(shown) == ["layer2", "layer5", "layer6", "layer7"]


def test_classes_come_and_go(shown: webdriver.Chrome) -> None:
    before = picture_of(shown, plot(shown, "layer5"))
    assert len(texts(shown, "#legend li")) == 5
    box(shown, "class-choice", "class 9").click()
    assert "class 9" in texts(shown, "#legend li")
    assert (more := picture_of(shown, plot(shown, "layer5"))) != before
    box(shown, "class-choice", SCRIPT).click()
    assert SCRIPT not in texts(shown, "#legend li")
    assert picture_of(shown, plot(shown, "layer5")) not in (before, more)


def test_the_colour_of_a_class_stays(shown: webdriver.Chrome) -> None:
    stroke = "return arguments[0].querySelector('line').style.stroke"
    line = "//ul[@id='legend']/li[span='class 1']"
    before = shown.execute_script(stroke, shown.find_element(By.XPATH, line))
    box(shown, "class-choice", SCRIPT).click()
    assert shown.execute_script(stroke, shown.find_element(By.XPATH, line)) == before


def test_the_filter_of_classes(shown: webdriver.Chrome) -> None:
    search = find(shown, "#class-choice input[type=search]")
    press(search, "ZOË")
    visible = [t for t in texts(shown, "#class-choice .options label") if t]
    assert visible == ["Zoë & co"]
    assert "1 match" in text(shown, "#class-choice .count")
    assert not find(shown, "#block-choice input[type=search]").is_displayed()  # eight need none


@pytest.mark.parametrize("order", ["specificity", "mean", "deviation"])
def test_sorting(shown: webdriver.Chrome, order: str) -> None:
    block = EXCITATIONS.blocks[5]
    values = {
        "specificity": block.eta_squared,
        "mean": block.total_mean,
        "deviation": block.deviation,
    }[order]
    before = picture_of(shown, plot(shown, "layer5"))
    Select(find(shown, "#sort")).select_by_value(order)
    assert picture_of(shown, plot(shown, "layer5")) != before
    press(plot(shown, "layer5"), Keys.HOME)
    assert readout(shown, "layer5").startswith(f"channel {int(values.argmax())} ")
    press(plot(shown, "layer5"), Keys.END)
    assert readout(shown, "layer5").startswith(f"channel {int(values.argmin())} ")


def test_how_many_channels_are_shown(shown: webdriver.Chrome) -> None:
    """Blocks are wide here: at first a sample, with the channel that is looked at in it."""
    assert Select(find(shown, "#extent")).first_selected_option.get_attribute("value") == "even"
    most = plot(shown, "layer7").get_attribute("aria-valuemax")
    assert most in ("50", "51")
    assert plot(shown, "layer5").get_attribute("aria-valuemax") == "16"
    before = picture_of(shown, plot(shown, "layer7"))
    Select(find(shown, "#extent")).select_by_value("all")
    assert plot(shown, "layer7").get_attribute("aria-valuemax") == "150"
    assert picture_of(shown, plot(shown, "layer7")) != before
    Select(find(shown, "#extent")).select_by_value("first")
    assert plot(shown, "layer6").get_attribute("aria-valuemax") == "50"


@pytest.mark.parametrize("control", ["range", "relative", "fit"])
def test_boxes_change_the_charts(shown: webdriver.Chrome, control: str) -> None:
    before = picture_of(shown, plot(shown, "layer5"))
    find(shown, f"#{control}").click()
    assert picture_of(shown, plot(shown, "layer5")) != before
    find(shown, f"#{control}").click()
    assert picture_of(shown, plot(shown, "layer5")) == before


def test_pointing_shows_values(shown: webdriver.Chrome) -> None:
    chart = plot(shown, "layer5")
    before = picture_of(shown, chart)
    ActionChains(shown).move_to_element_with_offset(chart, 100, 0).perform()
    told = readout(shown, "layer5")
    channel = int(re.findall(r"channel (\d+)", told)[0])
    block = EXCITATIONS.blocks[5]
    expected = [block.total_mean[channel], *block.mean[[0, 1, 2, 5], channel]]
    expected += [block.eta_squared[channel], block.deviation[channel]]
    assert values_in(told)[:7] == pytest.approx([float(v) for v in expected], abs=6e-4)
    assert picture_of(shown, chart) != before
    ActionChains(shown).move_to_element(find(shown, "h1")).perform()
    assert readout(shown, "layer5") == ""
    assert picture_of(shown, chart) == before


def test_keys_move_and_choose(shown: webdriver.Chrome) -> None:
    chart = plot(shown, "layer5")
    assert chart.get_attribute("role") == "slider"
    press(chart, Keys.HOME)
    press(chart, Keys.ARROW_RIGHT)
    press(chart, Keys.ARROW_RIGHT)
    assert chart.get_attribute("aria-valuenow") == "3"
    assert chart.get_attribute("aria-valuetext") == "channel 2, 3 of 16"
    assert readout(shown, "layer5").startswith("channel 2 ")
    press(chart, Keys.ARROW_LEFT)
    assert readout(shown, "layer5").startswith("channel 1 ")
    ActionChains(shown).key_down(Keys.SHIFT).send_keys(Keys.ARROW_RIGHT).key_up(
        Keys.SHIFT
    ).perform()
    assert readout(shown, "layer5").startswith("channel 11 ")
    press(chart, Keys.END)
    assert readout(shown, "layer5").startswith("channel 15 ")
    before = picture_of(shown, chart)
    press(chart, Keys.ENTER)
    assert text(shown, "#detail-heading") == "layer5 · channel 15"
    assert picture_of(shown, chart) != before
    live = find(shown, "#detail-status")
    assert live.get_attribute("aria-live") == "polite"
    assert "Channel 15 of layer5" in (live.get_attribute("textContent") or "")


def test_everything_is_reached_by_tab_and_shows_where_one_is(shown: webdriver.Chrome) -> None:
    seen = []
    for _ in range(80):
        ActionChains(shown).send_keys(Keys.TAB).perform()
        found: dict[str, Any] = shown.execute_script(
            "const e = document.activeElement, s = getComputedStyle(e);"
            "return {id: e.id || e.getAttribute('aria-label') || e.textContent || e.type,"
            " name: e.getAttribute('aria-label') || e.textContent || e.labels?.[0]?.textContent,"
            " ring: s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2,"
            " body: e === document.body}"
        )
        if found["body"]:
            break
        assert found["name"], found
        assert found["ring"], found
        seen.append(found["id"])
    assert seen[0] == "Skip to the channels"
    expected = {"theme", "specificity", "saturation", "sort", "extent", "range", "relative", "fit"}
    assert expected <= set(seen)
    assert {"Mean gate by channel, layer2", "Mean gate by channel, layer7"} <= set(seen)


def test_a_click_shows_the_images_of_a_channel(shown: webdriver.Chrome) -> None:
    chart = plot(shown, "layer5")
    ActionChains(shown).move_to_element(chart).click().perform()
    heading = text(shown, "#detail-heading")
    channel = int(re.findall(r"channel (\d+)", heading)[0])
    block = EXCITATIONS.blocks[5]
    for end in ("most", "least"):
        items = shown.find_elements(By.CSS_SELECTOR, f"#{end} li")
        gates = [float(item.text.splitlines()[-1]) for item in items]
        assert gates == pytest.approx(getattr(block, end)[channel].tolist(), abs=6e-4)
        numbers = getattr(block, f"{end}_images")[channel].tolist()
        for item, number in zip(items, numbers, strict=True):
            image = item.find_element(By.TAG_NAME, "img")
            assert f"image {number}" in (image.get_attribute("alt") or "")
            assert CLASSES[number % len(CLASSES)] in (image.get_attribute("alt") or "")
            size = shown.execute_script(
                "return arguments[0].decode().then(() => arguments[0].naturalWidth)", image
            )
            assert size == 48
    bars = texts(shown, "#detail-classes .number")
    assert len(bars) == 8
    assert bars[0] == f"{float(block.mean[:, channel].max()):.3f}"
    assert bars[-1] == f"{float(block.mean[:, channel].min()):.3f}"


def test_the_charts_by_depth(shown: webdriver.Chrome) -> None:
    chart = find(shown, "#specificity")
    other = picture_of(shown, find(shown, "#saturation"))
    press(chart, Keys.HOME)
    press(chart, Keys.ARROW_RIGHT)
    block = EXCITATIONS.blocks[1]
    told = text(shown, "#depth-readout")
    assert told.startswith("layer1 ")
    assert f"{block.specificity:.3f}" in told
    assert f"{100 * float(block.low.mean()):.1f} %" in told
    assert picture_of(shown, find(shown, "#saturation")) != other, "the cursor is in both"
    press(chart, Keys.ENTER)
    assert "layer1" in panels(shown)
    assert box(shown, "block-choice", "layer1").is_selected()
    press(chart, Keys.ENTER)
    assert "layer1" not in panels(shown)


def test_light_and_dark(shown: webdriver.Chrome) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    light, drawn = shown.execute_script(ground), picture_of(shown, plot(shown, "layer5"))
    button = find(shown, "#theme")
    assert button.get_attribute("aria-pressed") == "false"
    press(button, Keys.SPACE)
    assert button.get_attribute("aria-pressed") == "true"
    assert shown.execute_script(ground) != light
    assert picture_of(shown, plot(shown, "layer5")) != drawn
    button.click()
    assert shown.execute_script(ground) == light
    assert picture_of(shown, plot(shown, "layer5")) == drawn


def test_the_reader_s_own_preference_comes_first(shown: webdriver.Chrome, page: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    try:
        shown.get(page)
        assert find(shown, "#theme").get_attribute("aria-pressed") == "true"
        assert shown.execute_script("return document.documentElement.dataset.theme") == "dark"
    finally:
        shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.parametrize("width", [380, 800, 1400])
def test_it_fits_narrow_windows(shown: webdriver.Chrome, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    shown.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert shown.execute_script("return innerWidth") == width
        assert shown.execute_script("return document.scrollingElement.scrollWidth") <= width
        chart = plot(shown, "layer5")
        sizes = "return [arguments[0].clientWidth, arguments[0].querySelector('canvas').width]"
        shown.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 50))")
        assert len(set(shown.execute_script(sizes, chart))) == 1
    finally:
        shown.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
