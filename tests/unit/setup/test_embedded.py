"""What a server that a command embeds lends to its guests."""

from __future__ import annotations

from itertools import combinations

import pytest

from tests.unit.rendezvous.world import V4, entropy_of
from tunnel.rendezvous.relay import Relay
from tunnel.room.core.addresses import MAX_MEMBERS
from tunnel.setup.servers import embedded_config
from tunnel.shell.serve import ServerConfig
from tunnel.units import Address, Instant

NOW = Instant(50.0)


@pytest.mark.parametrize("hosts", ["192.168.1.{}", "203.0.113.7"], ids=["one network", "one router"])
def test_all_of_a_full_room_meet_in_one_building(hosts: str) -> None:
    relay = Relay(embedded_config(frozenset(), MAX_MEMBERS), entropy_of(1))
    people = [(V4, Address(hosts.format(number), 40_000 + number), bytes((number,))) for number in range(1, 1 + MAX_MEMBERS)]
    assert all(relay.open(NOW, one, other) is not None for one, other in combinations(people, 2))


def test_without_guests_it_lends_what_any_server_does() -> None:
    config = embedded_config(frozenset())
    assert config.channels_per_address == ServerConfig().channels_per_address
    assert not config.has_guests
