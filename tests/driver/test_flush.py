"""EndpointDriver.flush: what was to be called before anything is sent, and how much is sent before others get their turn."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.driver.core_link import CoreLinks
from tests.driver.meeting import lone_driver
from tunnel.shell.endpoint import BURSTS_A_TURN
from tunnel.shell.hurry import BURSTS_IN_A_HURRY, LASTS, Hurry
from tunnel.units import Address, Instant, SocketId, Transmit


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


async def test_turns_are_short_for_a_moment_after_a_stream_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = lone_driver(tmp_path)
    burst = Transmit(SocketId(99), Address("192.88.99.1", 9), 100, memoryview(bytearray(100)))  # by a socket that is gone
    sent: list[Transmit] = []

    def endless(_now: Instant, _out: bytearray) -> Transmit:
        sent.append(burst)
        return burst

    monkeypatch.setattr(driver.core, "poll_transmit", endless)
    driver.flush()
    assert len(sent) == BURSTS_A_TURN
    monkeypatch.setattr(driver._hurry, "until", Instant(driver.clock() + 3600))
    driver.flush()
    assert len(sent) == BURSTS_A_TURN + BURSTS_IN_A_HURRY
    driver.release()


async def test_both_sides_hurry_when_a_stream_is_opened() -> None:
    links = CoreLinks()
    told: list[str] = []
    links.near.hurry, links.far.hurry = (lambda: told.append("near")), (lambda: told.append("far"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(links.run)
        await links.near.open_stream(b"first")
        assert told == ["near"]
        await links.far.accept_stream()
        assert told == ["near", "far"]
        nursery.cancel_scope.cancel()


def test_a_hurry_ends_by_itself() -> None:
    now = [Instant(5.0)]
    hurry = Hurry(lambda: now[0])
    assert hurry.until < now[0]
    hurry()
    assert hurry.until == now[0] + LASTS
