"""The page that is opened in Chromium: what was recorded for it, and how tests look at it."""

from __future__ import annotations

import re

from recorded import make_excitations
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

__all__ = [
    "CLASSES",
    "EXCITATIONS",
    "FILE",
    "PATH",
    "SCRIPT",
    "WIDTHS",
    "box",
    "find",
    "panels",
    "picture_of",
    "plot",
    "press",
    "readout",
    "text",
    "texts",
    "values_in",
]

SCRIPT, PATH = "<script>alert(1)</script>", "../x\"'"
CLASSES = (
    SCRIPT,
    PATH,
    "<img src=x onerror=alert(2)>",
    "Zoë & co",
    *map("class {}".format, range(10)),
)
FILE = '"><img src=x onerror=alert(3)>.png'
WIDTHS = (8, 8, 8, 16, 16, 16, 150, 150)
EXCITATIONS = make_excitations(CLASSES, WIDTHS, (2, 2, 2, 3, 3, 3, 4, 4))


def find(shown: webdriver.Chrome, css: str) -> WebElement:
    return shown.find_element(By.CSS_SELECTOR, css)


def text(shown: webdriver.Chrome, css: str) -> str:
    return find(shown, css).text


def texts(shown: webdriver.Chrome, css: str) -> list[str]:
    return [found.text for found in shown.find_elements(By.CSS_SELECTOR, css)]


def panels(shown: webdriver.Chrome) -> list[str | None]:
    found = shown.find_elements(By.CSS_SELECTOR, ".panel")
    return [panel.get_attribute("data-block") for panel in found]


def plot(shown: webdriver.Chrome, block: str) -> WebElement:
    return find(shown, f'.panel[data-block="{block}"] .plot')


def readout(shown: webdriver.Chrome, block: str) -> str:
    return text(shown, f'.panel[data-block="{block}"] .readout')


def picture_of(shown: webdriver.Chrome, element: WebElement) -> str:
    script = "return arguments[0].querySelector('canvas').toDataURL()"
    drawn: str = shown.execute_script(script, element)
    return drawn


def box(shown: webdriver.Chrome, where: str, name: str) -> WebElement:
    """The box of a list whose label says ``name``."""
    for label in shown.find_elements(By.CSS_SELECTOR, f"#{where} .options label"):
        if label.get_attribute("textContent") == name:
            return label.find_element(By.TAG_NAME, "input")
    raise AssertionError(name)


def press(element: WebElement, *keys: str) -> None:
    element.send_keys(*keys)


def values_in(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d\.\d{3}", line)]
