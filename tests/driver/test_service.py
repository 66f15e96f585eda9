"""`serve` as a service: what its manager hears, and a start before the network is there."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.driver.programs import Program
from tests.twins.notify import Manager

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="systemd's protocol is by Unix sockets")


def test_a_server_tells_its_manager_when_it_is_ready_reloads_lives_and_ends(tmp_path: Path) -> None:
    with Manager(watchdog_s=0.5) as manager:
        server = Program(tmp_path, "serve", "--listen", "127.0.0.1:0", **manager.variables)
        try:
            bind = server.wait("listening")["bind"]
            assert manager.until("READY") == {"READY": "1", "STATUS": f"Serving on udp {bind}"}
            for _ in range(2):
                manager.until("WATCHDOG")
            server.process.send_signal(signal.SIGHUP)
            assert int(manager.until("RELOADING")["MONOTONIC_USEC"]) > 0
            assert manager.until("READY") == {"READY": "1"}
            code, _ = server.end(signal.SIGTERM)
            assert code == 0
            assert manager.until("STOPPING") == {"STOPPING": "1"}
        finally:
            server.close()


def test_a_service_waits_for_an_address_that_is_not_there_yet(tmp_path: Path) -> None:
    """Its manager is told that it is ready, so that the start of the machine goes on."""
    with Manager() as manager:
        server = Program(tmp_path, "serve", "--listen", "192.0.2.1:0", **manager.variables)
        try:
            text = "192.0.2.1 is not an address of this machine. Waiting for it."
            server.wait("warning", code="address_absent", message=text)
            assert manager.until("READY")["STATUS"] == text
            assert server.end(signal.SIGTERM)[0] == 0
        finally:
            server.close()


def test_whoever_types_a_wrong_address_is_told_at_once(tmp_path: Path) -> None:
    server = Program(tmp_path, "serve", "--listen", "192.0.2.1:0")
    try:
        assert server.join() == 2
        assert server.events[-1]["message"] == "192.0.2.1 is not an address of this machine."
    finally:
        server.close()
