"""A Chromium, and the page of an inspection in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
from chromium import CLASSES, EXCITATIONS, FILE
from recorded import make_picture
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from senet.inspection import PAGE, write_inspection

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--window-size=1400,1000", "--force-device-scale-factor=1"),
)


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("inspection")
    write_inspection(
        EXCITATIONS,
        folder,
        title="<b>se_net</b> · images",
        data="images, held out",
        classes=[0, 1, 2, 5],
        picture=lambda index: replace(make_picture(index, 48, len(CLASSES)), name=FILE),
    )
    return (folder / PAGE).as_uri()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.fail("chromium or chromedriver is missing; apt install chromium chromium-driver")
    options = Options()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    yield started
    started.quit()


@pytest.fixture
def shown(browser: webdriver.Chrome, page: str) -> webdriver.Chrome:
    """The page, freshly loaded."""
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(page)
    return browser
