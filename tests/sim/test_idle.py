"""What an idle link costs, and that it finds out how long the NATs on its way remember it.  All in virtual time."""

from __future__ import annotations

import pytest

from tests.sim.cast import Cast
from tests.sim.link import Link
from tests.sim.peers import PeerNode
from tests.sim.world import Host
from tunnel.node.events import PeeringEvent
from tunnel.transport.connection.events import PathChanged
from tunnel.transport.connection.paths import KEEPALIVE, MAX_KEEPALIVE, MIN_KEEPALIVE
from tunnel.units import Seconds, Transmit

LINE = Link(delay=Seconds(0.010))
HEADERS = 28  # bytes of IPv4 and UDP
MEGABYTE = 1_000_000


def changes(node: PeerNode) -> int:
    return sum(isinstance(event, PeeringEvent) and isinstance(event.event, PathChanged) for event in node.told)


def intervals(cast: Cast) -> list[float]:
    connections = [peering.connection for node in (cast.home, cast.friend) for peering in node.endpoint.peerings]
    return [connection._shared.paths.keepalive.interval for connection in connections if connection is not None]


@pytest.mark.parametrize("kind", ["prc", "uprc", "sym"])
def test_an_idle_link_costs_less_than_a_megabyte_an_hour(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cast(link=LINE, home=kind, friend=kind) as cast:
        if kind == "sym":
            cast.meet()
        else:
            cast.meet_directly()
        cast.world.run(60.0)
        spent = dict.fromkeys(("home", "friend", "server"), 0)
        send = cast.world._send

        def count(host: Host, burst: Transmit) -> None:
            spent[host.name] += len(burst.buffer) + HEADERS * -(-len(burst.buffer) // burst.segment_size)
            send(host, burst)

        monkeypatch.setattr(cast.world, "_send", count)
        cast.world.run(3600.0)
        # All that both ends send and all that they receive: 0.71 MB over a direct path, 0.99 MB over the server.
        assert sum(spent.values()) < MEGABYTE
        assert max(spent.values()) < 0.4 * MEGABYTE


@pytest.mark.parametrize("kind", ["prc", "uprc"])
def test_where_mappings_live_the_keepalive_grows_and_nothing_happens(kind: str) -> None:
    with Cast(link=LINE, home=kind, friend=kind) as cast:
        cast.meet_directly()
        cast.world.run(30.0)
        before = changes(cast.home) + changes(cast.friend)
        cast.world.run(3600.0)
        assert changes(cast.home) + changes(cast.friend) == before
        assert max(intervals(cast)) == MAX_KEEPALIVE


@pytest.mark.parametrize("sides", [("short", "short"), ("short", "prc"), ("prc", "short")])
def test_where_mappings_die_young_the_keepalive_learns_it_and_the_path_stays_up(sides: tuple[str, str]) -> None:
    with Cast(link=LINE, home=sides[0], friend=sides[1]) as cast:
        peering = cast.meet_directly()
        cast.world.run(300.0)
        assert MIN_KEEPALIVE <= min(intervals(cast)) < KEEPALIVE
        before = changes(cast.home) + changes(cast.friend)
        cast.world.run(2400.0)
        assert changes(cast.home) + changes(cast.friend) == before
        assert cast.is_direct()
        assert cast.transfer(peering) < 0.5
