"""`ptunnel serve --check` on loopback: ports that are free, ours or somebody else's, and another server that tries them."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.driver.programs import PATIENCE_S, Lab
from tests.driver.tls import make_certificate


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


def free_port() -> int:
    """One whose neighbour is free, too."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port
    raise AssertionError("no two free ports")


def check(lab: Lab, home: Path, *words: str, code: int = 0) -> dict[str, list[dict[str, Any]]]:
    """The findings by what was looked at."""
    done = lab.ask(home, "serve", "--check", "--json", *words)
    assert done.returncode == code, (done.stdout, done.stderr)
    found: dict[str, list[dict[str, Any]]] = {}
    for line in done.stdout.splitlines():
        event = json.loads(line)
        found.setdefault(event["what"], []).append(event)
    return found


def states(found: list[dict[str, Any]]) -> list[str]:
    return [each["state"] for each in found]


def test_where_all_is_well_another_server_reaches_both_ports(lab: Lab, tmp_path: Path) -> None:
    port = free_port()
    found = check(lab, tmp_path / "new", "--listen", f"127.0.0.1:{port}", "--from", lab.server, "--metrics", "127.0.0.1:0")
    assert states(found["udp_port"]) == ["ok"]
    assert [each["message"].split(",")[0] for each in found["outside"]] == [
        f"UDP port {port + more} is reached from outside" for more in (0, 1)
    ]
    assert states(found["outside"]) == ["ok", "ok"]
    assert states(found["clock"]) == ["ok"]
    assert states(found["metrics_port"]) == ["ok"]
    assert not (tmp_path / "new" / "server.json").exists(), "a look changes nothing"
    done = lab.ask(tmp_path / "new", "serve", "--check", "--listen", f"127.0.0.1:{port}")
    assert done.stdout.splitlines()[0] == f"ok       UDP 127.0.0.1:{port} is free."
    assert "unknown  Whether the UDP ports are reached from outside cannot be known from here" in done.stdout
    assert done.stdout.splitlines()[-1] == "Nothing that can be seen from here keeps it from serving."


def test_a_port_that_another_program_has_is_told_and_so_is_the_second_one(lab: Lab, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        found = check(lab, tmp_path / "new", "--listen", f"127.0.0.1:{port}", code=2)
        assert states(found["udp_port"]) == ["failed"]
        assert f"ss -ulpn sport = :{port}" in found["udp_port"][0]["message"]
        found = check(lab, tmp_path / "new", "--listen", f"127.0.0.1:{port - 1}")
        assert states(found["udp_port"]) == ["ok", "warning"]
        assert f"beside {port - 1}" in found["udp_port"][1]["message"]
        found = check(lab, tmp_path / "new", "--listen", "192.0.2.1", code=2)
        assert "not an address of this machine" in found["udp_port"][0]["message"]


def test_a_server_that_runs_is_tried_from_outside_by_itself(lab: Lab, tmp_path: Path) -> None:
    server = lab.run(tmp_path / "ours", "serve", "--listen", "127.0.0.1:0")
    bind = server.wait("listening")["bind"]
    found = check(lab, tmp_path / "ours", "--listen", bind, "--from", lab.server)
    assert found["udp_port"][0]["message"] == f"UDP {bind} is served by ptunnel, process {server.process.pid}."
    assert states(found["outside"]) == ["ok", "ok"]
    found = check(lab, tmp_path / "somebody", "--listen", bind, "--from", lab.server)
    assert "another user" in found["udp_port"][0]["message"]
    assert states(found["outside"]) == ["unknown"]
    # its clients have noticed nothing
    assert server.process.poll() is None
    [status] = map(json.loads, lab.ask(tmp_path / "ours", "status", "--json").stdout.splitlines())
    assert status["counters"].get("server_internal") == 0


def test_a_server_that_does_not_answer_says_nothing_about_ours(lab: Lab, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        words = ("--listen", f"127.0.0.1:{free_port()}", "--from", f"127.0.0.1:{silent.getsockname()[1]}")
        found = check(lab, tmp_path / "new", *words)
        assert states(found["outside"]) == ["unknown", "unknown"]


def test_the_door_for_tls_needs_a_certificate_its_key_and_its_port(lab: Lab, tmp_path: Path) -> None:
    made = make_certificate(tmp_path, "rv.example.net")
    place = ("--listen", f"127.0.0.1:{free_port()}")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        words = (*place, "--tls-port", port, "--tls-cert", made.certificate, "--tls-key", made.key)
        found = check(lab, tmp_path / "new", *words, code=2)
        assert states(found["tcp_port"]) == ["failed"]
        assert f"ss -tlpn sport = :{port}" in found["tcp_port"][0]["message"]
        assert states(found["tls_outside"]) == ["unknown"]
    found = check(lab, tmp_path / "new", *words)
    assert states(found["tcp_port"]) == ["ok"]
    Path(made.key).write_text("nonsense", encoding="ascii")
    found = check(lab, tmp_path / "new", *words, code=2)
    assert states(found["certificate"]) == ["failed"]
    assert "tcp_port" not in found


def test_a_wrong_access_list_is_one_of_the_findings_and_an_option_alone_is_refused(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "access").write_text("nobody here\n", encoding="utf-8")
    found = check(lab, tmp_path / "new", "--listen", f"127.0.0.1:{free_port()}", "--access", str(tmp_path / "access"), code=2)
    assert states(found["access"]) == ["failed"]
    assert states(found["udp_port"]) == ["ok"]
    assert "--check" in lab.ask(tmp_path / "new", "serve", "--from", lab.server).stderr
