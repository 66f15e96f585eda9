"""`ptunnel bench`, `--qlog` and the drops of `status`, as real processes on loopback."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driver.programs import Lab, pair


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


def test_bench_measures_both_ways_from_either_side(lab: Lab) -> None:
    _exposing, connecting, _bind = pair(lab)
    connecting.wait("path", kind="direct")
    for home, peer in ((lab.connector, "home"), (lab.exposer, "friend")):
        done = lab.ask(home, "bench", peer, "--time", "0.3", "--json")
        assert done.returncode == 0, done.stderr
        results = [json.loads(line) for line in done.stdout.splitlines()]
        assert [(each["what"], each.get("way")) for each in results] == [
            ("path", None),
            ("rtt", None),
            ("stream", "up"),
            ("stream", "down"),
            ("datagrams", "up"),
            ("datagrams", "down"),
        ]
        assert all(each["event"] == "bench" and each["peer"] == peer for each in results)
        assert all(each["mbit_s"] > 1 for each in results[2:])
        assert all(each["received"] > 100 for each in results[4:])
        assert 0 < results[1]["median_s"] < 1
    table = lab.ask(lab.connector, "bench", "--time", "0.1")
    assert table.returncode == 0
    assert [line.split()[0] for line in table.stdout.splitlines()] == ["path", "round", *["stream"] * 2, *["datagrams"] * 2]


def test_bench_says_when_nobody_holds_a_link(lab: Lab) -> None:
    done = lab.ask(lab.connector, "bench")
    assert done.returncode == 5
    assert "No ptunnel command of this home runs" in done.stderr


def test_traces_and_drops_of_a_running_pair(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "traces"
    exposing = lab.expose(str(lab.port), "--qlog", str(folder))
    options = ("--server", lab.server, "--forward", f"0:{lab.port}")
    code = exposing.wait("code")["code"]
    connecting = lab.run(lab.connector, "connect", *options, PTUNNEL_CODE=code, PTUNNEL_QLOG=str(folder))
    connecting.wait("path", kind="direct")
    for home in (lab.connector, lab.exposer):
        drops = json.loads(lab.ask(home, "status", "--json").stdout)["drops"]
        places = {place.split()[0] for place in drops}
        assert places == {"endpoint", "server", "udp", "forwards", "link"}
    connecting.end(signal.SIGINT)
    exposing.wait("closed")
    exposing.end(signal.SIGTERM)
    sides = []
    for path in folder.glob("*.sqlog"):
        header, *events = [json.loads(line.lstrip("\x1e")) for line in path.read_text().strip().split("\n")]
        sides.append(header["trace"]["vantage_point"]["type"])
        names = {event["name"] for event in events}
        assert {"quic:packet_sent", "quic:packet_received", "quic:recovery_metrics_updated", "quic:connection_closed"} <= names
        assert path.stat().st_mode & 0o077 == 0
    assert sorted(sides) == ["client", "server"]
