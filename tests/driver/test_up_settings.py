"""Settings that a reload of `ptunnel up` goes by: where the page and the figures are; and what it says of the others."""

from __future__ import annotations

import http.client
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.driver.programs import PATIENCE_S, Lab
from tests.driver.test_cli_up import is_closed, until
from tests.driver.test_up_page import free_port
from tests.driver.ups import configure


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


def answers(url: str) -> bool:
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=PATIENCE_S)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def test_the_page_and_the_figures_come_move_and_go_with_a_reload(lab: Lab) -> None:
    home = lab.connector
    configure(home, f'server = "{lab.server}"\n')
    running = lab.run(home, "up")
    until((home / "run" / f"{running.process.pid}.sock").exists)
    assert lab.ask(home, "page", "--json").returncode == 2

    def reload(text: str) -> None:
        configure(home, f'server = "{lab.server}"\n{text}')
        done = lab.ask(home, "reload", "--json")
        assert done.returncode == 0, done.stdout + done.stderr

    def place() -> str:
        done = lab.ask(home, "page", "--print")
        return done.stdout.strip() if done.returncode == 0 else ""

    page = f'page = "127.0.0.1:{free_port()}"\nmetrics = "0"\n'
    reload(page)
    until(place)
    first = place()
    assert answers(first)
    figures = running.wait("listening", metrics=True)["bind"]
    with urllib.request.urlopen(f"http://{figures}/metrics", timeout=PATIENCE_S) as answer:
        assert b"ptunnel_links" in answer.read()
    reload(page + 'name = "ann"\n')
    assert running.wait("warning", code="counts_later")["message"].startswith("name in config.toml changed")
    assert place() == first
    reload('name = "ann"\n')
    until(lambda: is_closed(figures))
    until(lambda: not answers(first))
    assert place() == ""
