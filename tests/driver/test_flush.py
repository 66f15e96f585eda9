"""EndpointDriver.flush: what was to be called before anything is sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.driver.meeting import lone_driver


async def test_what_waits_for_a_flush_is_called_once_and_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = lone_driver(tmp_path)
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
