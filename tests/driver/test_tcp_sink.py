"""What a Relay's sink makes of the local socket: all it takes, many small pieces, and its errors."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from tests.driver.fake_link import FakeStream, Half
from tunnel.forward.counters import ForwardCounters
from tunnel.forward.tcp import IOV_MAX, Relay


@pytest.fixture
def sockets() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return ours, theirs


def take(relay: Relay, views: list[memoryview]) -> int:
    """Another connection has had its turn."""
    relay._counters.tcp_straight += 1
    return relay._take(views)


async def test_a_connection_alone_leaves_it_to_its_task(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = sockets
    with ours, theirs:
        counters = ForwardCounters()
        one, other = (Relay(ours, FakeStream(Half(), Half()), counters) for _ in range(2))
        view = memoryview(b"abc")
        assert [one._take([view]), one._take([view]), one._take([view])] == [3, 0, 0]
        assert [other._take([view]), other._take([view]), one._take([view]), other._take([view])] == [3, 0, 3, 3]
        assert theirs.recv(1 << 16) == b"abc" * 4
        assert counters.tcp_straight == 4


async def test_more_pieces_than_one_call_takes_go_out_whole(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = sockets
    with ours, theirs:
        relay = Relay(ours, FakeStream(Half(), Half()), ForwardCounters())
        text = os.urandom(IOV_MAX + 500)
        views = [memoryview(text)[at : at + 1] for at in range(len(text))]
        assert take(relay, views) == len(text)
        assert theirs.recv(1 << 16) == text


async def test_a_full_socket_takes_a_part_and_then_nothing(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = sockets
    with ours, theirs:
        relay = Relay(ours, FakeStream(Half(), Half()), ForwardCounters())
        text = memoryview(os.urandom(1 << 16))
        taken = sum(take(relay, [text]) for _ in range(1_000))
        assert 0 < taken < 1_000 * len(text)
        assert take(relay, [text]) == 0
        assert relay._write_error is None


async def test_an_error_is_kept_for_the_task(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = sockets
    with ours:
        theirs.close()
        relay = Relay(ours, FakeStream(Half(), Half()), ForwardCounters())
        assert take(relay, [memoryview(b"x")]) == 0
        assert relay._write_error is not None
        assert relay._write_error.errno == errno.EPIPE
        assert relay._is_unwritable
