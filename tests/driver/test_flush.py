"""EndpointDriver.flush: what was to be called before anything is sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunnel.api.store import HomeStore
from tunnel.driver.endpoint import EndpointDriver
from tunnel.udp.memory import MemoryNetwork


async def test_what_waits_for_a_flush_is_called_once_and_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = MemoryNetwork(seed=1)
    driver = EndpointDriver(
        static_key=bytes(range(32)),
        name="home",
        peers=[],
        store=HomeStore(tmp_path, print),
        opener=lambda host, port: network.open_socket("198.18.0.1", port),
        bind=("0.0.0.0",),
        hosts=list,
    )
    told: list[str] = []

    def waiting() -> None:
        told.append("called")
        driver.flush()  # as a commit does; merged into the one under way

    monkeypatch.setattr(driver.core, "poll_transmit", lambda _now, _out: told.append("sent"))
    driver._before_flush.append(waiting)
    driver.flush()
    assert told == ["called", "sent"]
    driver.flush()
    assert told == ["called", "sent", "sent"]
    driver.release()
