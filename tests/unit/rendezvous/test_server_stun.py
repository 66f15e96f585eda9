"""The server as a STUN server for everybody, and the open directory."""

from __future__ import annotations

import json

import pytest

from tests.unit.rendezvous.strangers import A, B, has_no_state, stun_ask
from tests.unit.rendezvous.world import SECOND, SERVER, SOCKETS, V4, World, entropy_of
from tunnel.node.stun_codec import ServerStun
from tunnel.rendezvous import messages
from tunnel.rendezvous.admission import address_key
from tunnel.rendezvous.directory import MAX_ANSWER
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.server import Server
from tunnel.units import Address, Instant


def test_stun_answers_the_mapped_address_alone_and_more_when_asked() -> None:
    world = World(stun=ServerStun())
    ((socket_id, plain),) = stun_ask(world, A)
    assert socket_id == V4
    assert plain.mapped_address == A
    assert plain.other_address is None
    ((socket_id, changed),) = stun_ask(world, A, change_port=True)
    assert socket_id == SECOND
    assert changed.mapped_address == A
    assert changed.response_origin == SERVER[SECOND]
    assert changed.other_address == SERVER[SECOND]
    assert stun_ask(world, A, change_address=True) == []  # there is one IPv4 address only
    world.server.handle_datagram(world.now, V4, A, b"\0\1\0\4" + bytes(16))
    assert world.server.poll_transmit(world.now) is None


@pytest.mark.parametrize(
    ("first", "second"),
    [("198.18.0.1", "198.18.0.1"), ("3fff::1:0:0:0:1", "3fff::1:ffff:0:0:2")],
)
def test_stun_answers_one_a_second_per_ipv4_address_or_ipv6_slash_64(first: str, second: str) -> None:
    world = World(stun=ServerStun(), config=ServerConfig(stun_burst=3))
    assert address_key(first) == address_key(second)
    hosts = [first, second] * 3
    assert [len(stun_ask(world, Address(host, 1000 + n))) for n, host in enumerate(hosts)] == [1, 1, 1, 0, 0, 0]
    world.now = Instant(world.now + 1.01 / world.config.stun_rate)
    assert [len(stun_ask(world, Address(host, 1000))) for host in hosts] == [1, 0, 0, 0, 0, 0]
    assert stun_ask(world, Address("198.18.0.99", 1))


def test_a_flood_of_forged_sources_is_limited_as_a_whole_and_leaves_no_state() -> None:
    world = World(stun=ServerStun(), config=ServerConfig(unproven_rate=100.0))
    answered = sum(len(stun_ask(world, Address(f"198.18.{n >> 8}.{n & 255}", 9))) for n in range(5000))
    assert answered == 100
    assert has_no_state(world.server)


def ip_ver(world: World, source: Address, text: bytes = b"ip ver") -> list[bytes]:
    world.server.handle_datagram(world.now, V4, source, text)
    answers = []
    while (transmit := world.server.poll_transmit(world.now)) is not None:
        assert transmit.remote == source
        answers.append(bytes(transmit.buffer))
    return answers


def test_the_open_directory_lists_the_others_newest_first_each_once() -> None:
    world = World(config=ServerConfig(open_directory=True))
    c = Address("3fff::7", 7)
    assert ip_ver(world, A) == [b"[]"]
    assert ip_ver(world, B, b" ip ver\n") == [b'[["198.18.0.1", 1000]]']
    assert ip_ver(world, c) == [b'[["198.18.0.2", 1000], ["198.18.0.1", 1000]]']
    assert ip_ver(world, A) == [b'[["3fff::7", 7], ["198.18.0.2", 1000]]']
    assert ip_ver(world, B) == [b'[["198.18.0.1", 1000], ["3fff::7", 7]]']
    assert ip_ver(world, B, b"ip verme") == []
    world.ask(Address("198.18.0.9", 9), messages.Hello())  # speaks another protocol
    world.now = Instant(world.now + 400)
    assert ip_ver(world, A) == [b'[["198.18.0.2", 1000], ["3fff::7", 7]]']
    world.now = Instant(world.now + 400)
    assert ip_ver(world, B) == [b'[["198.18.0.1", 1000]]']


def test_the_open_directory_is_off_by_default_bounded_and_fits_into_a_kilobyte() -> None:
    assert ip_ver(World(), A) == []
    world = World(config=ServerConfig(open_directory=True))
    for n in range(1000):
        world.now = Instant(world.now + 0.01)
        for answer in ip_ver(world, Address(f"198.18.{n >> 8}.{n & 255}", 60_000 + n)):
            assert len(answer) <= MAX_ANSWER
            json.loads(answer)
    assert len(json.loads(answer)) >= 40
    assert len(answer) > MAX_ANSWER - len(', ["198.18.0.255", 65535]')
    assert len(world.server._strangers.directory) == world.config.directory_entries
    burst = world.config.directory_burst
    answers = [len(ip_ver(world, A)) for _ in range(burst + 5)]
    assert answers == [1] * burst + [0] * 5
    world.now = Instant(world.now + 2.01 / world.config.directory_rate)
    assert [len(ip_ver(world, A)) for _ in range(4)] == [1, 1, 0, 0]


def test_every_message_of_the_open_directory_is_reported_with_its_address() -> None:
    heard = []

    class Listener:
        def event(self, now: Instant, name: str, data: dict[str, object]) -> None:
            heard.append((name, data))

    server = Server(
        ServerConfig(open_directory=True),
        sockets=SOCKETS,
        now=Instant(0.0),
        entropy=entropy_of(1),
        trace=Listener(),
    )
    server.handle_datagram(Instant(0.0), V4, A, b"ip ver")
    assert heard == [("rendezvous:directory", {"remote": A, "text": "ip ver"})]
