"""Two clients that have been introduced by a server."""

from __future__ import annotations

from tests.unit.rendezvous.world import World
from tunnel.rendezvous import messages
from tunnel.rendezvous.events import RelayChannel

ROOMS = [bytes((day,)) * 16 for day in range(3)]


def introduced(world: World) -> tuple[RelayChannel, RelayChannel]:
    """The hosts 0 (listening) and 1 (dialing) meet in a room."""
    listener, dialer = world.hosts[:2]
    listener.client.listen(world.now, ROOMS)
    dialer.client.dial(world.now, ROOMS)
    world.run(20, until=lambda: bool(listener.of(messages.Introduced) and dialer.of(messages.Introduced)))
    return listener.of(messages.Introduced)[-1].channel, dialer.of(messages.Introduced)[-1].channel


def relays_both_ways(world: World, channel: bytes, seconds: float = 1.0) -> bool:
    first, second = world.hosts[:2]
    first.relayed.clear()
    second.relayed.clear()
    first.relay(channel, b"\x80from first")
    second.relay(channel, b"\x80from second")
    world.run(seconds)
    return first.relayed == [channel + b"\x80from second"] and second.relayed == [channel + b"\x80from first"]
