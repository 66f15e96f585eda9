"""What a Relay's sink makes of the local socket: all it takes, many pieces, its errors, and an answer that comes at once."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

import pytest
import trio
import trio.testing

from tests.driver.fake_link import WINDOW, FakeStream, Half
from tunnel.ports import tcp
from tunnel.ports.counters import ForwardCounters
from tunnel.ports.tcp import IN_A_ROW, IOV_MAX, SMALL, Relay, cut
from tunnel.shell.stream import StreamCode


@pytest.fixture
def sockets() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return ours, theirs


@pytest.fixture
def small_is_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "LITTLE", SMALL)


def take(relay: Relay, views: list[memoryview]) -> int:
    """Another connection has had its turn."""
    relay._counters.tcp_straight += 1
    return relay._take(views)


@pytest.mark.usefixtures("small_is_much")
async def test_a_connection_alone_leaves_bulk_to_its_task(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = sockets
    with ours, theirs:
        counters = ForwardCounters()
        one, other = (Relay(ours, FakeStream(Half(), Half()), counters) for _ in range(2))
        bulk = [memoryview(bytes(SMALL)), memoryview(b"x")]
        size = SMALL + 1
        turn = [size] * IN_A_ROW
        assert [one._take(bulk) for _ in range(IN_A_ROW + 2)] == [*turn, 0, 0]
        assert [other._take(bulk) for _ in range(IN_A_ROW + 1)] == [*turn, 0]
        assert [one._take(bulk), other._take(bulk)] == [size, size]
        assert [one._take(bulk) for _ in range(IN_A_ROW + 1)] == [*turn, 0]
        assert counters.tcp_straight == 3 * IN_A_ROW + 2
        assert theirs.recv(1 << 16) == (bytes(SMALL) + b"x") * counters.tcp_straight
        assert counters.tcp_small == 0


@pytest.mark.usefixtures("small_is_much")
async def test_a_few_bytes_are_taken_always_and_change_no_turn(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = sockets
    with ours, theirs:
        counters = ForwardCounters()
        relay = Relay(ours, FakeStream(Half(), Half()), counters)
        key, bulk = [memoryview(b"key")], [memoryview(bytes(SMALL + 1))]
        assert [relay._take(each) for each in (key, key, bulk, key)] == [3, 3, SMALL + 1, 3]
        assert [relay._take(bulk) for _ in range(IN_A_ROW)] == [SMALL + 1] * (IN_A_ROW - 1) + [0]
        assert theirs.recv(1 << 16) == b"keykey" + bytes(SMALL + 1) + b"key" + bytes(SMALL + 1) * (IN_A_ROW - 1)
        assert (counters.tcp_small, counters.tcp_straight) == (3, IN_A_ROW)


async def test_what_comes_a_few_datagrams_at_a_time_needs_no_task(sockets: tuple[socket.socket, socket.socket]) -> None:
    """As over a link of 100 Mbit/s: the task would find no more in its turn."""
    ours, theirs = sockets
    with ours, theirs:
        counters = ForwardCounters()
        relay = Relay(ours, FakeStream(Half(), Half()), counters)
        few = [memoryview(bytes(SMALL))] * 9
        assert [relay._take(few) for _ in range(3 * IN_A_ROW)] == [9 * SMALL] * 3 * IN_A_ROW
        assert theirs.recv(1 << 20) == bytes(9 * SMALL) * 3 * IN_A_ROW
        assert (counters.tcp_small, counters.tcp_straight) == (0, 3 * IN_A_ROW)


async def test_an_answer_that_is_there_already_leaves_before_the_task_has_its_turn(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = sockets
    with ours, theirs:
        stream, counters, first = FakeStream(Half(), Half()), ForwardCounters(), list[Callable[[], None]]()
        stream.before_flush = first.append
        relay = Relay(ours, stream, counters)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay._upload)
            await trio.testing.wait_all_tasks_blocked()
            assert relay._take([memoryview(b"question")]) == 8
            assert theirs.recv(100) == b"question"
            theirs.send(b"answer")
            assert first == [relay._hear]
            relay._hear()
            assert list(stream.out.chunks) == [b"answer"]
            relay._hear()  # nothing more: not taken for the end
            theirs.send(b"more")
            await trio.testing.wait_all_tasks_blocked()
            assert list(stream.out.chunks) == [b"answer", b"more"]
            theirs.close()
            relay._hear()  # the end is for the task
            assert not stream.out.finished
        assert stream.out.finished
        assert counters.tcp_heard == 1


async def test_what_is_read_before_a_flush_is_only_what_the_task_waits_for(sockets: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = sockets
    with ours, theirs:
        stream = FakeStream(Half(), Half())
        relay = Relay(ours, stream, ForwardCounters())
        theirs.send(b"answer")
        relay._hear()  # no task waits to read
        stream.out.held = WINDOW
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay._upload)  # it waits for room, not for the local program
            await trio.testing.wait_all_tasks_blocked()
            relay._hear()
            nursery.cancel_scope.cancel()
        stream.out.held = 0
        relay._hear()  # the task is gone
        assert not stream.out.chunks
        assert theirs.send(b"!") == 1
        assert ours.recv(100) == b"answer!"


async def test_an_error_met_before_a_flush_ends_the_task() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _address = listener.accept()
    with ours, theirs:
        ours.setblocking(False)
        stream = FakeStream(Half(), Half())
        relay = Relay(ours, stream, ForwardCounters())
        async with trio.open_nursery() as nursery:
            relay._nursery = nursery
            nursery.start_soon(relay._upload)
            await trio.testing.wait_all_tasks_blocked()
            cut(theirs)
            relay._hear()
            assert isinstance(relay._read_error, OSError)
            assert relay._read_error.errno == errno.ECONNRESET
        assert relay._was_cut
        assert stream.out.reset == StreamCode.RESET


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
        assert isinstance(relay._write_error, OSError)
        assert relay._write_error.errno == errno.EPIPE
        assert relay._is_unwritable
