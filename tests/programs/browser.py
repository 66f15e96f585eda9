"""A real Chromium with the page in it, and another site beside it in the same browser."""

from __future__ import annotations

import http.server
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.programs.homes import SLOW_S, find
from tests.twins.home import TwinHome, offer
from tunnel.faults import Faults
from tunnel.page.gate import Gate, token_of
from tunnel.page.place import Place
from tunnel.page.server import Page, address_of, open_listener

TOKEN = token_of(b"a secret of this home, of 32 bytes")
PICTURES = os.environ.get("PTUNNEL_PICTURES")
"""A folder in which the tests leave what they saw."""


class Served:
    """A page that is served in a thread of its own, so that the test can wait for the browser."""

    def __init__(self, home: TwinHome, port: int = 0) -> None:
        self.home = home
        if not port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
        self.place = Place("127.0.0.1", port)
        self.address = address_of(self.place, TOKEN)
        self.origin = f"http://127.0.0.1:{port}"
        self.page = Page(home, offer, Gate(self.place, TOKEN), Faults())
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=[self._run])
        self._thread.start()
        assert self._ready.wait(SLOW_S)

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._scope = trio.CancelScope()
        with self._scope, open_listener(self.place) as listener:
            self._ready.set()
            await self.page.run(listener)

    def stop(self) -> None:
        self._token.run_sync_soon(self._scope.cancel)
        self._thread.join(SLOW_S)
        assert not self._thread.is_alive()


class Seen:
    """A browser's window, and what a person does in it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def until(self, look: Callable[[], Any]) -> Any:
        def see(_driver: object) -> Any:
            try:
                return look()
            except (StaleElementReferenceException, IndexError, StopIteration):
                return None

        return WebDriverWait(self.driver, SLOW_S, poll_frequency=0.1).until(see)

    def open(self, address: str) -> None:
        self.driver.get("about:blank")
        self.driver.get(address)

    def open_page(self, served: Served) -> None:
        self.open(served.address)
        self.until(lambda: self.card("ben"))

    def card(self, peer: str) -> WebElement:
        found = [each for each in self.driver.find_elements(By.CSS_SELECTOR, "#peers article")
                 if each.find_element(By.TAG_NAME, "h3").text == peer]  # fmt: skip
        return found[0]

    def labelled(self, within: WebElement | webdriver.Chrome, label: str) -> WebElement:
        """The field that a screen reader would call so."""
        found = [each for each in within.find_elements(By.TAG_NAME, "input") if each.accessible_name == label]
        return found[0]

    def button(self, within: WebElement | webdriver.Chrome, name: str) -> WebElement:
        found = [
            each for each in within.find_elements(By.TAG_NAME, "button") if each.is_displayed() and each.accessible_name == name
        ]
        return found[0]

    def text(self) -> str:
        found: str = self.driver.find_element(By.TAG_NAME, "body").text
        return found

    def console(self) -> list[str]:
        log = cast("Any", self.driver).get_log("browser")
        return [each["message"] for each in log if each["level"] in ("SEVERE", "WARNING")]

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def run_async(self, script: str) -> Any:
        return self.driver.execute_async_script(script)

    def picture(self, name: str) -> None:
        if PICTURES:
            height = self.run("return document.documentElement.scrollHeight")
            size = self.driver.get_window_size()
            self.resize(self.run("return innerWidth"), height)
            self.driver.save_screenshot(str(Path(PICTURES) / f"{name}.png"))
            self.driver.set_window_size(size["width"], size["height"])

    def resize(self, width: int, height: int) -> None:
        """The page's own size, which a window of Chromium may not be small enough for."""
        values = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", values)

    def scheme(self, name: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(find("chromium"))
    folder = tmp_path_factory.mktemp("chromium")
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={folder}",
                 "--host-resolver-rules=MAP evil.example 127.0.0.1", "--no-proxy-server", "--disable-background-networking",
                 "--disable-component-update", "--no-first-run", "--window-size=1100,900"):  # fmt: skip
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=str(find("chromedriver")))
    found = webdriver.Chrome(options=options, service=service)
    found.set_script_timeout(SLOW_S)
    yield found
    found.quit()


@pytest.fixture
def seen(driver: webdriver.Chrome) -> Iterator[Seen]:
    seen = Seen(driver)
    seen.resize(1100, 900)
    seen.scheme("light")
    seen.console()  # of the one before
    yield seen
    driver.get("about:blank")


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served(TwinHome())
    yield served
    served.stop()


class Elsewhere:
    """Another web server of this machine: a peer's program behind a forward, or a site that wants something."""

    def __init__(self) -> None:
        heard: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                heard.append(f"{self.requestline}\n{self.headers}")
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(b"<title>elsewhere</title><body><iframe name=inside></iframe>")

            def log_message(self, *_words: object) -> None:
                pass

        self.heard = heard
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    found = Elsewhere()
    yield found
    found.stop()
