"""What the unproven get, and that none of them can use it up for another."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.rendezvous.world import SOCKETS, V4, V6, World, entropy_of
from tunnel.nat import stun
from tunnel.node.punching import QUESTION_SIZE
from tunnel.node.stun_codec import ServerStun
from tunnel.rendezvous import messages
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.server import Server
from tunnel.shell.server_log import LOG_BURST, LOG_RATE, LogTrace
from tunnel.units import Address, Instant, SocketId

VICTIM = Address("198.18.0.1", 1000)
SHORT = stun.encode_binding_request(bytes(12))
OURS = stun.encode_binding_request(bytes(12), padding_to=QUESTION_SIZE)


def tell(world: World, source: Address, data: bytes, socket_id: SocketId = V4) -> list[bytes]:
    """What a datagram from there is answered by."""
    world.server.handle_batch(world.now, socket_id, source, memoryview(data), len(data))
    answers = []
    while (transmit := world.server.poll_transmit(world.now)) is not None:
        assert transmit.remote == source
        answers.append(bytes(transmit.buffer))
    return answers


def lost(channel: int) -> bytes:
    """A relayed datagram of a channel that is not there."""
    return bytes((0xC1,)) + channel.to_bytes(7, "big") + b"\x80" + bytes(60)


@pytest.mark.parametrize("options", [{}, {"change_port": True}, {"change_address": True, "change_port": True}])
def test_our_own_questions_are_never_shorter_than_their_answers(options: dict[str, Any]) -> None:
    world = World(stun=ServerStun())
    question = stun.encode_binding_request(bytes(12), padding_to=QUESTION_SIZE, **options)
    for socket_id, source in ((V4, VICTIM), (V6, Address("3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65_535))):
        for answer in tell(world, source, question, socket_id):
            assert len(answer) <= len(question)


def test_a_flood_of_short_questions_takes_no_answer_from_those_whose_questions_are_as_long() -> None:
    world = World(stun=ServerStun())
    answered = hinted = asked = short = 0
    for number in range(30_000):  # ten seconds of it
        world.now = Instant(world.now + 1 / 3_000)
        short += len(tell(world, Address(f"100.64.{number >> 8 & 255}.{number & 255}", 9), SHORT))
        if number % 300 == 0:
            asked += 1
            source = Address(f"198.18.0.{asked % 20}", 1000)
            answered += len(tell(world, source, OURS))
            hinted += len(tell(world, source, lost(asked)))
    assert asked == answered == hinted == 100
    assert 20_000 <= short <= 22_000  # 2,000 a second of longer answers


def test_whoever_speaks_in_a_victims_name_silences_nothing_of_it() -> None:
    world = World(stun=ServerStun())
    answered = hinted = 0
    for second in range(40):
        for forged in range(20):  # from other ports: a NAT's are not known to those who forge
            world.now = Instant(world.now + 0.05)
            forger = Address(VICTIM.host, 2000 + forged)
            tell(world, forger, SHORT)
            tell(world, forger, lost(7))
            tell(world, VICTIM, SHORT)
        answered += len(tell(world, VICTIM, OURS))
        hinted += len(tell(world, VICTIM, lost(7)))
        hinted += len(tell(world, VICTIM, lost(1000 + second)))
    assert answered == 40
    assert hinted == 80


def test_who_relays_much_through_a_lost_channel_hears_so_now_and_then() -> None:
    world = World()
    hints = 0
    for _ in range(10_000):
        world.now = Instant(world.now + 0.001)
        hints += len(tell(world, VICTIM, lost(1)))
    config = world.config
    assert config.hint_burst + 9 * config.hint_rate <= hints <= config.hint_burst + 10 * config.hint_rate + 1


@pytest.mark.parametrize("data", [OURS, lost(1), SHORT, b"ip ver", messages.encode_request(1, bytes(16), messages.Hello())])
def test_out_is_never_more_than_in_but_for_the_two_that_are_rationed(data: bytes) -> None:
    world = World(stun=ServerStun(), config=ServerConfig(open_directory=True))
    for number in range(100):
        tell(world, Address(f"198.18.5.{number}", 9), b"ip ver")
    came = went = longer = 0
    for _ in range(1_000):
        world.now = Instant(world.now + 0.01)
        for answer in tell(world, VICTIM, data):
            longer += len(answer) > len(data)
            went += len(answer)
        came += len(data)
    assert went <= came or longer <= 10 + 10


# the log


class Heard:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def event(self, now: Instant, name: str, data: dict[str, Any]) -> None:
        self.events.append((name, data))


def test_of_the_open_directory_only_what_is_answered_is_reported() -> None:
    heard = Heard()
    config = ServerConfig(open_directory=True)
    server = Server(config, sockets=SOCKETS, now=Instant(0.0), entropy=entropy_of(1), trace=heard)
    answers = 0
    for number in range(100_000):
        server.handle_datagram(
            Instant(number / 10_000), V4, Address(f"100.{number >> 16}.{number >> 8 & 255}.{number & 255}", 9), b"ip ver"
        )
        while server.poll_transmit(Instant(0.0)) is not None:
            answers += 1
    assert len(heard.events) == answers < 25_000
    assert server.drops["server_directory_rate"] == 100_000 - answers


@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG])
def test_the_log_grows_by_a_few_lines_a_second_whatever_strangers_send(caplog: pytest.LogCaptureFixture, level: int) -> None:
    caplog.set_level(level, "ptunnel.serve")
    config = ServerConfig(open_directory=True)
    server = Server(config, sockets=SOCKETS, now=Instant(0.0), entropy=entropy_of(1), stun=ServerStun(), trace=LogTrace())
    seconds = 20
    for number in range(seconds * 1_000):
        now = Instant(number / 1_000)
        source = Address(f"100.64.{number >> 8 & 255}.{number & 255}", 9)
        for data in (b"ip ver", SHORT, OURS, lost(number), messages.encode_request(1, bytes(16), messages.Hello()), b"junk"):
            server.handle_batch(now, V4, source, memoryview(data), len(data))
        while server.poll_transmit(now) is not None:
            pass
    lines = [record.getMessage() for record in caplog.records]
    assert LOG_BURST <= len(lines) <= LOG_BURST + 2 * LOG_RATE * seconds + 2  # each may be followed by how many were left out
    assert max(map(len, lines)) < 200
    assert any("lines were left out" in line for line in lines)


def test_every_event_of_the_server_that_a_proven_client_causes_is_bounded_by_the_log_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "ptunnel.serve")
    world = World(config=ServerConfig(requests_per_second=1e6, request_burst=10**6))
    world.server._trace = LogTrace()
    cookie = world.cookie(VICTIM)
    kinds: Iterator[messages.RequestMessage] = itertools.cycle(
        (messages.Allocate(), messages.Claim(999, b"x"), messages.Join(1, (bytes(16),)), messages.Allocate(5))
    )
    for _ in range(2_000):
        world.ask(VICTIM, next(kinds), cookie=cookie)
    assert len(caplog.records) <= 2 * (LOG_BURST + 2), "what it did, and what it was refused"
