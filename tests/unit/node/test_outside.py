"""Whether a port is reached from outside: what another server's answers, and their absence, say."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tunnel.nat import stun
from tunnel.node.outside import GREETINGS, PATIENCE, Outside
from tunnel.node.stun_codec import ServerStun
from tunnel.rendezvous import messages
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.server import Server
from tunnel.rendezvous.stun import ServerSocket
from tunnel.units import Address, Instant, SocketId

HERE = Address("203.0.113.5", 24_531)
THERE = Address("198.51.100.1", 24_531)
SECOND = Address("198.51.100.1", 24_532)


def entropy_of(seed: int) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes


def look(lets_in: Callable[[Address], bool], *, seconds: bool = True, is_up: bool = True, lost: int = 0) -> Outside:
    """Until it is done; `lets_in` is the firewall before us, by who writes."""
    now = Instant(5.0)
    first, second = ServerSocket(SocketId(0), THERE, SocketId(1)), ServerSocket(SocketId(1), SECOND, SocketId(0))
    server = Server(
        ServerConfig(), sockets=[first, second] if seconds else [ServerSocket(SocketId(0), THERE, None)], now=now,
        entropy=entropy_of(1), stun=ServerStun(), unix_time=lambda: 1_700_000_000,
    )  # fmt: skip
    outside = Outside(THERE, now=now, entropy=entropy_of(2))
    while not outside.is_done:
        outside.handle_timeout(now)
        while (datagram := outside.poll_transmit(now)) is not None:
            if lost:
                lost -= 1
                continue
            if is_up:
                server.handle_datagram(now, SocketId(0), HERE, datagram)
        while (answer := server.poll_transmit(now)) is not None:
            source = THERE if answer.socket_id == 0 else SECOND
            if lets_in(source):
                outside.handle_datagram(now, source, bytes(answer.buffer))
        due = outside.poll_timeout()
        now = Instant(max(now + 0.001, now if due is None else due))
        assert now < 5.0 + 2 * PATIENCE + 1
    return outside


@pytest.mark.parametrize("lost", [0, 1, 2, 3])
def test_a_port_that_lets_strangers_in_is_reached_though_datagrams_are_lost(lost: int) -> None:
    outside = look(lambda _source: True, lost=lost)
    assert (outside.seen, outside.is_reached, outside.has_second) == (HERE, True, True)
    assert outside.calendar is not None
    assert outside.calendar[0] == 1_700_000_000


def test_a_firewall_that_lets_only_answers_in_is_no_open_port() -> None:
    outside = look(lambda source: source == THERE)
    assert (outside.seen, outside.is_reached, outside.has_second) == (HERE, False, True)


def test_a_server_that_does_not_answer_says_nothing_about_the_port() -> None:
    outside = look(lambda _source: True, is_up=False)
    assert (outside.seen, outside.is_reached) == (None, False)
    assert len(GREETINGS) == 4


def test_a_server_with_one_port_cannot_tell() -> None:
    outside = look(lambda _source: True, seconds=False)
    assert (outside.seen, outside.is_reached, outside.has_second) == (HERE, False, False)


def test_an_answer_from_the_port_that_was_asked_is_no_stranger_and_others_datagrams_are_left_alone() -> None:
    now = Instant(0.0)
    outside = Outside(THERE, now=now, entropy=entropy_of(3))
    greeting = outside.poll_transmit(now)
    assert greeting is not None
    retry = messages.Retry(bytes(16), messages.pack_address(HERE), 24_532, b"", 1, 0)
    transaction = int.from_bytes(greeting[2:10], "big")
    answer = messages.encode_response(transaction, retry)
    assert not outside.handle_datagram(now, SECOND, answer), "from somebody else"
    assert not outside.handle_datagram(now, THERE, messages.encode_response(transaction + 1, retry))
    assert outside.handle_datagram(now, THERE, answer)
    question = outside.poll_transmit(now)
    assert question is not None
    for junk in (b"", b"\x01", b"\x01\x01" + bytes(40), bytes(200), greeting, question):
        assert not outside.handle_datagram(now, SECOND, junk)
    response = stun.encode_binding_response(stun.decode(question), HERE)
    assert outside.handle_datagram(now, THERE, response)
    assert not outside.is_reached
    assert outside.handle_datagram(now, SECOND, response)
    assert outside.is_reached
    assert outside.is_done
