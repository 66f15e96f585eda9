"""The side of a fleet's server that the owner of its store sees."""

from __future__ import annotations

import logging

import pytest

from tests.sim.fleet_servers import FleetWorld
from tunnel.rendezvous.fleet.members import FORGOTTEN
from tunnel.shell.fleet import NO_TWIN, TWIN, Feed
from tunnel.units import Instant


def test_an_operator_is_told_once_that_another_server_gives_the_same_addresses(caplog: pytest.LogCaptureFixture) -> None:
    world = FleetWorld(2)
    fleet, now = world.servers[0].fleet, world.now
    feed = Feed(fleet, lambda: now, lambda: None)
    with caplog.at_level(logging.WARNING):
        feed.finish([])
        fleet.members.twin_at = now
        feed.finish([])
        feed.finish([])
        now = Instant(now + FORGOTTEN)
        feed.finish([])
    assert [record.getMessage() for record in caplog.records] == [TWIN, NO_TWIN]
    assert "--advertise" in TWIN
