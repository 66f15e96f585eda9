"""A paired peer and the relay channels of the one that exposes."""

from __future__ import annotations

import itertools

from tests.adversary.reproduction.people import Cast
from tests.adversary.reproduction.wire import DIAL, JOIN, LISTEN, REFRESH, REQUEST, Client, read_request
from tests.sim.world import Host
from tunnel.units import Address

DIALS = 257


def dialing(cast: Cast) -> Client:
    """The evil peer has dialed home 257 times by hand, in the pair's rooms as its own ptunnel named them."""
    evil = cast.people["evil"]
    rooms: set[bytes] = set()

    def watch(sender: Host, destination: Address, datagram: bytes) -> bool:
        if sender is evil.host and datagram[0] == REQUEST:
            asked = read_request(datagram)
            if asked[:2] == [JOIN, DIAL]:
                rooms.update(asked[2])
        return True

    cast.world.filter = watch
    evil.connect(cast.home)
    cast.world.filter = None
    evil.end()
    assert rooms
    client = Client(cast.world, evil.host, evil.host.bind(), cast.server.addresses[0], b"of an evil mind.")
    client.say([JOIN, LISTEN, [bytes(16)]])
    cast.world.run(1.0)
    for _, room in zip(range(DIALS), itertools.cycle(sorted(rooms)), strict=False):
        client.say([JOIN, DIAL, [room]])
        cast.world.run(0.05)
    assert client.channels
    return client


def wait(cast: Cast, client: Client, seconds: int) -> None:
    """Its session is kept alive."""
    for _ in range(seconds // 7):
        client.say([REFRESH])
        cast.world.run(7.0)


def test_a_peer_that_dials_without_end_keeps_nobody_else_from_connecting() -> None:
    with Cast("friend", "evil") as cast:
        client = dialing(cast)
        wait(cast, client, 70)
        cast.people["friend"].connect(cast.home, 60)


def test_no_relay_channel_leads_from_a_forgotten_peer_to_us() -> None:
    with Cast("evil") as cast:
        client = dialing(cast)
        cast.home.forget(cast.people["evil"])
        wait(cast, client, 70)
        arrived = 0

        def count(sender: Host, destination: Address, datagram: bytes) -> bool:
            nonlocal arrived
            arrived += sender is cast.server_host and destination.host == cast.public("home") and datagram[0] >= 0xC0
            return True

        cast.world.filter = count
        client.send_into_channels(b"\x80" + bytes(60))
        cast.world.run(1.0)
    assert arrived == 0, f"{arrived} of {len(client.channels)} channels still lead to home"
