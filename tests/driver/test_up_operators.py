"""`ptunnel up` for whoever looks after it: figures for Prometheus with each remembered peer, and a log of JSON lines."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.driver.programs import PATIENCE_S, Lab, echo_through, pair
from tests.driver.test_log_lines import logged
from tests.schema import schema


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


def figure(place: str, name: str, **labels: str) -> float | None:
    with urllib.request.urlopen(f"http://{place}/metrics", timeout=PATIENCE_S) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return next((s.value for family in families for s in family.samples if s.name == name and s.labels == labels), None)


def wait_figure(place: str, wanted: float, name: str, **labels: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while (found := figure(place, name, **labels)) != wanted:
        assert time.monotonic() < end, found
        time.sleep(0.1)


def test_each_remembered_peer_has_figures_and_every_line_is_an_object(lab: Lab) -> None:
    exposing, connecting, _bind = pair(lab)
    connecting.end()
    config = f'server = "{lab.server}"\nmetrics = "0"\n[[forward]]\npeer = "home"\nlisten = ["0:{lab.port}"]\n'
    (lab.connector / "config.toml").write_text(config, encoding="utf-8")
    with logged(lab.connector, "up", "--log-json") as told:
        place = told.wait(r"http://(127\.0\.0\.1:\d+)/metrics")[1]
        bind = told.wait(rf'"target": "tcp/{lab.port}"[^\n]*"message": "(\S+) -> home')[1]
        told.wait(r'"what": "connected", "who": "home"')
        assert echo_through(bind, b"hello") == b"hello"
        told.wait(r'"what": "connection_closed", "who": "home"')
        wait_figure(place, 1, "ptunnel_peer_up", peer="home")
        assert (figure(place, "ptunnel_peer_sent_bytes_total", peer="home") or 0) > 0
        assert figure(place, "ptunnel_links") == 1
        exposing.end()
        wait_figure(place, 0, "ptunnel_peer_up", peer="home")
        told.end()
    found = [json.loads(line) for line in told.text.splitlines()]
    assert [problem for each in found for problem in schema()._compare(each, schema().objects["log line"])] == []
