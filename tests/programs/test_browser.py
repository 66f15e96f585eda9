"""A browser through the SOCKS door; it needs no network of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driver.programs import Lab
from tests.programs.homes import find, needs

pytestmark = [pytest.mark.nightly, needs("chromium"), pytest.mark.time_limit(400)]

SLOW_S = 120.0
PAGE = "<p id=who>the printer</p>"
SERVER = """
import http.server, sys
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[int]:
    """The port of a page."""
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "index.html").write_text(PAGE, encoding="ascii")
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as program:
        assert program.stdout is not None
        yield int(program.stdout.readline())
        program.kill()


def test_a_page_is_shown_through_the_door_and_what_is_not_shared_is_not(lab: Lab, web: int, tmp_path: Path) -> None:
    exposing = lab.expose("--net", f"127.0.0.1:{web}")
    code = exposing.wait("code")["code"]
    connecting = lab.run(lab.connector, "connect", "--server", lab.server, "--socks", "0", PTUNNEL_CODE=code)
    bind = connecting.wait("forward", target="socks")["bind"]
    words = [
        find("chromium") or "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'browser'}",
    ]
    words += [f"--proxy-server=socks5://{bind}", "--proxy-bypass-list=<-loopback>", "--dump-dom"]

    def shown(url: str) -> str:
        return subprocess.run([*words, url], capture_output=True, text=True, timeout=SLOW_S, check=False).stdout

    assert '<p id="who">the printer</p>' in shown(f"http://127.0.0.1:{web}/")
    exposing.wait("connection", target=f"tcp/127.0.0.1:{web}", state="closed")
    assert "the printer" not in shown(f"http://127.0.0.2:{web}/")
