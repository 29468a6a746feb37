"""The page in a real Chromium: names stay text, and nothing is asked of the network."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest
from chromium import CLASSES, FILE, PATH, SCRIPT, box, plot, readout, texts
from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By

pytestmark = pytest.mark.browser


def test_names_are_text_and_nothing_else(shown: webdriver.Chrome) -> None:
    """No element came of a name, in the lists, the legend, the bars and the pictures."""
    assert set(CLASSES) == {
        label.get_attribute("textContent")
        for label in shown.find_elements(By.CSS_SELECTOR, "#class-choice .options label")
    }
    assert {SCRIPT, PATH} < set(texts(shown, "#legend li"))
    for name in CLASSES:
        if not box(shown, "class-choice", name).is_selected():
            box(shown, "class-choice", name).click()
    ActionChains(shown).move_to_element(plot(shown, "layer7")).click().perform()
    assert SCRIPT in readout(shown, "layer7")
    pictures = shown.find_elements(By.CSS_SELECTOR, "#most img")
    assert pictures
    assert all(FILE in (picture.get_attribute("alt") or "") for picture in pictures)
    assert (
        shown.execute_script("return document.querySelectorAll('main script, img[src=x]').length")
        == 0
    )
    scripts = shown.execute_script("return [...document.scripts].map(s => s.type)")
    assert scripts == ["application/json", ""]
    assert shown.get_log("browser") == []
    assert shown.execute_script("return window.length") == 0


def test_nothing_is_asked_of_the_network(shown: webdriver.Chrome, page: str) -> None:
    box(shown, "block-choice", "layer0").click()
    ActionChains(shown).move_to_element(plot(shown, "layer0")).click().perform()
    messages = [json.loads(entry["message"])["message"] for entry in shown.get_log("performance")]
    asked = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert page in asked
    assert [url for url in asked if url != page and not url.startswith("data:image/jpeg;")] == []


class _Counting(BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_the_policy_forbids_the_network(shown: webdriver.Chrome) -> None:
    """Should a name ever become markup, it could still ask for nothing and run nothing."""
    server = HTTPServer(("127.0.0.1", 0), _Counting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        place = f"http://127.0.0.1:{server.server_port}"
        outcome = shown.execute_async_script(
            "const [place, done] = arguments; window.ran = false;"
            "const image = new Image(); image.src = place + '/image'; document.body.append(image);"
            "const script = document.createElement('script');"
            "script.textContent = 'window.ran = true';"
            "document.body.append(script);"
            "fetch(place + '/fetch').then(() => 'went', () => 'refused').then(done)",
            place,
        )
        assert outcome == "refused"
        assert shown.execute_script("return window.ran") is False
        assert _Counting.asked == []
    finally:
        server.shutdown()
        server.server_close()
