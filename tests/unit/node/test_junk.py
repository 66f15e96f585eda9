"""What is dropped costs the same with one peer and with a hundred, and nobody is woken for it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import pytest

from tests.sim.peers import EPOCH_NS, FIRST, SERVER, entropy_of
from tests.sim.store import PeersInMemory
from tests.unit.connection.pair import keypairs
from tests.work import instructions
from tunnel.node.context import EndpointConfig
from tunnel.node.endpoint import Endpoint
from tunnel.node.events import KnownPeer
from tunnel.node.peering import Peering
from tunnel.node.pool import MAX_QUESTIONS, SocketPool
from tunnel.transport.crypto.handshake import FINISH, INIT, RESPONSE, Completed
from tunnel.transport.crypto.params import Params
from tunnel.units import Address, Instant, PathKey

STRANGER: Final = Address("45.1.0.99", 4444)
AT_SERVER: Final = Address("192.88.99.1", 24_531)
MANY: Final = 100
MEASURED: Final = 120  # instructions of the interpreter, to note what strangers take of the processor


def endpoint_with(count: int) -> tuple[Endpoint, Instant]:
    """An endpoint with so many links, every other of which it has begun itself and is meeting anew."""
    rng, now = random.Random(count), Instant(1000.0)
    endpoint = Endpoint(
        config=EndpointConfig(name="home", aeads=(1, 2), receive_buffer=212_992),
        static_key=bytes(range(32)),
        peers=[],
        store=PeersInMemory(),
        entropy=entropy_of(count),
        rng=rng,
        wall_ns=lambda: EPOCH_NS,
    )
    endpoint.add_socket(FIRST, is_ipv6=False, port=4000)
    endpoint.set_hosts(now, ["192.168.1.2"])
    endpoint.add_server(now, SERVER, [AT_SERVER])
    for number in range(count):
        peer = KnownPeer(name=f"peer{number}", static=rng.randbytes(32), psk=rng.randbytes(32), server=SERVER)
        endpoint.peers[peer.static] = peer
        peering = Peering(endpoint._context, peer, is_initiator=number % 2 == 0, server=SERVER, instance=number + 1)
        completed = Completed(
            keypair=keypairs(rng, 1_000 + 2 * number)[0],
            remote_static=peer.static,
            params=Params(instance=number + 1, name=peer.name, aeads=(1, 2), receive_buffer=212_992),
            pair_psk=peer.psk,
            handshake_hash=bytes(32),
        )
        path = PathKey(FIRST, Address(f"45.1.1.{number + 1}", 1000), b"")
        endpoint._meetings.peerings.connect(now, peering, completed, path)
        if peering.is_initiator:
            peering.begin_handshake(now, path)
    out = bytearray(65_536)
    while endpoint.poll_transmit(now, out) is not None or endpoint.poll_event(now) is not None:
        pass
    return endpoint, now


def framed(*head: int, size: int) -> Callable[[], bytes]:
    return lambda: bytes(head) + random.Random(size).randbytes(size - len(head))


JUNK: Final[dict[str, tuple[Address, Callable[[], bytes]]]] = {
    "transport under no key": (STRANGER, framed(0x80, 0xFF, 0xFF, size=60)),
    "a record under no key": (STRANGER, framed(0x81, 0xFF, 0xFF, size=1400)),
    "an init of IK": (STRANGER, framed(INIT, 2, 0, 0, size=320)),
    "an init of XX": (STRANGER, framed(INIT, 1, 0, 0, size=320)),
    "an answer to no init": (STRANGER, framed(RESPONSE, 2, 0, 0, size=256)),
    "a finish": (STRANGER, framed(FINISH, 1, 0, 0, size=256)),
    "a cookie reply": (STRANGER, framed(0x73, 0, 0, 0, size=52)),
    "a challenge": (STRANGER, framed(0x74, 0, 0, 0, size=120)),
    "a handshake cut short": (STRANGER, framed(INIT, size=20)),
    "a response of a server that nobody asked": (STRANGER, framed(0x41, 1, size=60)),
    "a response to no request, as if of our server": (AT_SERVER, framed(0x41, 1, size=60)),
    "a push of another session, as if of our server": (AT_SERVER, framed(0x42, 1, size=60)),
    "an answer of STUN": (STRANGER, framed(1, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42, size=60)),
    "an unknown first byte": (STRANGER, framed(0x50, size=60)),
    "transport under no key, relayed": (AT_SERVER, framed(0xC0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0xFF, 0xFF, size=68)),
    "an init, relayed": (AT_SERVER, framed(0xC0, 0, 0, 0, 0, 0, 0, 0, INIT, 2, 0, 0, size=328)),
}


def cost(count: int, source: Address, datagram: bytes) -> int:
    endpoint, now = endpoint_with(count)

    def deliver() -> None:
        assert not endpoint.handle_batch(now, FIRST, source, memoryview(datagram), len(datagram)), (
            "somebody is to be woken for it"
        )

    deliver()  # what is made once
    before = sum(sum(drops.values()) for drops in endpoint.counters().values())
    work = instructions(deliver)
    assert sum(sum(drops.values()) for drops in endpoint.counters().values()) == before + 1, "a drop without a name"
    return work


@pytest.mark.parametrize("kind", JUNK)
def test_junk_costs_the_same_with_one_peer_and_with_a_hundred(kind: str) -> None:
    source, make = JUNK[kind]
    few, many = cost(2, source, make()), cost(MANY, source, make())
    assert few == many
    assert 0 <= many - cost(1, source, make()) < MEASURED  # with one peer nobody's share is measured


def test_questions_to_servers_are_remembered_up_to_a_number() -> None:
    pool = SocketPool()
    asked = [number.to_bytes(12, "big") for number in range(MAX_QUESTIONS + 1)]
    for transaction in asked:
        pool.asked(transaction)
    assert not pool.has_asked(bytes(8) + asked[0])
    assert all(pool.has_asked(bytes(8) + transaction + b"rest") for transaction in asked[1:])
