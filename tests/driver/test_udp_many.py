"""Sockets that hear from many and answer many: one call into the kernel for all that has come, and one for all that leaves."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from tests.driver.udp import on_linux
from tests.twins.udp import MemoryNetwork
from tunnel.doors.udp import many, mmsg
from tunnel.doors.udp.batches import OneByOne, by_batches
from tunnel.doors.udp.many import MOST, ManySocket
from tunnel.doors.udp.mmsg import LETTER
from tunnel.doors.udp.socket import ReceivedBatch, open_socket
from tunnel.units import Address, SocketId

pytestmark = on_linux
HOSTS = ["127.0.0.1", "::1"]


@contextmanager
def a_socket(host: str = "127.0.0.1", **options: bool) -> Iterator[ManySocket]:
    udp = open_socket(host, 0, many=True, **options)
    assert isinstance(udp, ManySocket)
    try:
        yield udp
    finally:
        udp.close()


@contextmanager
def senders(host: str, count: int) -> Iterator[list[socket.socket]]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(count)]
    for each in found:
        each.bind((host, 0))
        each.settimeout(5)
    try:
        yield found
    finally:
        for each in found:
            each.close()


async def received(udp: ManySocket, count: int) -> list[ReceivedBatch]:
    """All of so many batches; what they hold is copied."""
    found: list[ReceivedBatch] = []
    with trio.fail_after(5):
        while len(found) < count:
            await udp.wait_readable()
            found += [each._replace(buffer=memoryview(bytes(each.buffer))) for each in udp.receive_many()]
    return found


def place(each: socket.socket) -> Address:
    return Address(*each.getsockname()[:2])


@pytest.mark.parametrize("host", HOSTS)
async def test_what_came_from_many_is_one_call(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    receive = mmsg.Inbox.receive

    def counted(inbox: mmsg.Inbox, descriptor: int, most: int) -> int:
        calls.append(most)
        return receive(inbox, descriptor, most)

    monkeypatch.setattr(mmsg.Inbox, "receive", counted)
    with a_socket(host) as udp, senders(host, 40) as those:
        for number, each in enumerate(those):
            each.sendto(bytes((number,)) * (number + 1), tuple(udp.local_address))
        batches = await received(udp, 40)
        assert udp.is_drained
        assert calls == [MOST]
        assert [each.remote for each in batches] == [place(each) for each in those]
        assert [bytes(each.buffer) for each in batches] == [bytes((number,)) * (number + 1) for number in range(40)]
        assert all(each.stride == len(each.buffer) and not each.ecn and not each.local for each in batches)
        assert udp.counters.received_datagrams == 40
        assert udp.counters.received_bytes == sum(range(41))
        assert udp.receive_many() == []


@pytest.mark.parametrize("host", HOSTS)
async def test_what_is_posted_to_many_leaves_in_one_call(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    send = mmsg.Post.send

    def counted(post: mmsg.Post, descriptor: int, first: int) -> int:
        calls.append(post.count)
        return send(post, descriptor, first)

    monkeypatch.setattr(mmsg.Post, "send", counted)
    with a_socket(host) as udp, senders(host, 40) as those:
        for number, each in enumerate(those):
            data = bytearray((number,)) * (number + 1)
            assert udp.post(place(each), data, len(data), ecn=number % 4)
            data[:] = bytes(len(data))  # it was taken already
        assert not calls
        assert udp.deliver()
        assert calls == [40]
        for number, each in enumerate(those):
            assert each.recv(100) == bytes((number,)) * (number + 1)
        assert udp.counters.sent_datagrams == 40
        assert udp.counters.sent_bytes == sum(range(41))


@pytest.mark.parametrize("source", ["", "127.0.0.77"])
async def test_many_answers_are_posted_at_once_and_what_has_no_place_is_told(
    monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    with a_socket("0.0.0.0", tells_local=True) as udp, a_socket("127.0.0.9") as peer:
        letters = [(SocketId(0), peer.local_address, number.to_bytes(2, "big")) for number in range(MOST + 5)]
        assert udp.post_all(letters, source) == 0
        assert udp.deliver()
        batches = await received(peer, len(letters))
        assert [bytes(each.buffer) for each in batches] == [data for _, _, data in letters]
        assert {each.remote.host for each in batches} == {source or "127.0.0.1"}
        monkeypatch.setattr(ManySocket, "deliver", lambda _: False)
        assert udp.post_all(letters, source) == 5
    network = MemoryNetwork()
    one, other = (by_batches(network.open_socket("127.0.0.1", port)) for port in (1_000, 1_001))
    assert one.post_all([(SocketId(0), other.local_address, b"hello")]) == 0
    assert [bytes(each.buffer) for each in other.receive_many()] == [b"hello"]


async def test_more_than_one_call_takes_is_all_there_in_order() -> None:
    with a_socket() as one, a_socket() as other:
        count = 3 * MOST + 5
        for number in range(count):
            assert one.post(other.local_address, number.to_bytes(2, "big"), 2)
        assert one.deliver()
        batches = await received(other, count)
        assert [int.from_bytes(each.buffer, "big") for each in batches] == list(range(count))


async def test_bursts_keep_their_place_among_single_datagrams() -> None:
    burst = memoryview(bytes(2 * LETTER) + b"e")
    with a_socket() as one, a_socket() as other:
        assert one.post(other.local_address, b"first", 5)
        assert one.post(other.local_address, burst, LETTER)
        assert one.post(other.local_address, b"last", 4)
        assert one.deliver()
        batches = await received(other, 3)
        assert [len(each.buffer) for each in batches] == [5, 2 * LETTER + 1, 4]
        assert batches[1].stride == LETTER
        assert other.counters.received_datagrams == one.counters.sent_datagrams == 5


async def test_fewer_messages_are_asked_for_while_they_are_large() -> None:
    burst = memoryview(bytes(45 * 1_400))
    with a_socket() as one, a_socket() as other:
        for _ in range(6):
            assert one.post(other.local_address, burst, 1_400)
        await received(other, 6)
        assert other._ask_for < MOST
        assert one.post(other.local_address, b"small", 5)
        assert one.deliver()
        for _ in range(6):
            assert one.post(other.local_address, b"small", 5)
            assert one.deliver()
            await received(other, 1)
        assert other._ask_for == MOST


async def test_ecn_and_the_address_that_was_asked_are_told_and_answered_from() -> None:
    with a_socket("0.0.0.0", tells_local=True) as udp, a_socket("127.0.0.9") as peer:
        for ecn in range(4):
            assert peer.post(Address("127.0.0.77", udp.local_address.port), b"ask", 3, ecn)
            assert peer.deliver()
            (batch,) = await received(udp, 1)
            assert (batch.remote, batch.local, batch.ecn) == (peer.local_address, "127.0.0.77", ecn)
            assert udp.post(batch.remote, b"answer", 6, ecn, batch.local)
            assert udp.deliver()
            (batch,) = await received(peer, 1)
            assert (batch.remote.host, bytes(batch.buffer), batch.ecn) == ("127.0.0.77", b"answer", ecn)


async def test_one_that_cannot_be_sent_keeps_no_other_from_leaving() -> None:
    with a_socket() as udp, senders("127.0.0.1", 2) as (one, other):
        assert udp.post(place(one), b"one", 3)
        assert udp.post(Address("127.0.0.1", 0), b"no port", 7)
        assert udp.post(Address("::1", 5), b"no family", 9)
        assert udp.post(place(one), b"no such source", 14, 0, "192.0.2.1")
        assert udp.post(place(other), b"other", 5)
        assert udp.deliver()
        assert (one.recv(100), other.recv(100)) == (b"one", b"other")
        assert udp.counters.errors == {"bad_address": 1, "family": 1, "ENETUNREACH": 1}
        assert udp.counters.sent_datagrams == 2


async def test_a_full_send_buffer_is_told_and_what_is_left_leaves_later_or_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    takes = [2, -1, 1, -1, -1]  # how many leave in each call; -1: the buffer is full

    def send(post: mmsg.Post, _descriptor: int, first: int) -> int:
        taken = takes.pop(0)
        if taken < 0:
            raise BlockingIOError(errno.EAGAIN, "full")
        sent.extend(bytes(post.datagram(first + each)) for each in range(taken))
        return taken

    sent: list[bytes] = []
    monkeypatch.setattr(mmsg.Post, "send", send)
    with a_socket() as udp:
        for number in range(5):
            assert udp.post(Address("127.0.0.1", 9), bytes((number,)), 1)
        assert not udp.deliver()
        assert not udp.deliver()
        assert sent == [b"\0", b"\1", b"\2"]
        assert udp.give_up() == 2
        assert udp.deliver()
        assert udp.counters.sent_datagrams == 3
        takes[:] = [-1, -1]
        for _ in range(MOST):
            assert udp.post(Address("127.0.0.1", 9), b"x", 1)
        assert not udp.post(Address("127.0.0.1", 9), b"one too many", 12)
        assert not udp.post(Address("127.0.0.1", 9), bytes(3 * LETTER), LETTER)  # nothing overtakes what waits
        assert udp.give_up() == MOST


async def test_an_empty_datagram_is_counted_and_hides_no_other() -> None:
    with a_socket() as udp, senders("127.0.0.1", 1) as (one,):
        for data in (b"before", b"", b"after"):
            one.sendto(data, tuple(udp.local_address))
        batches = await received(udp, 2)
        assert [bytes(each.buffer) for each in batches] == [b"before", b"after"]
        assert udp.counters.errors == {"empty": 1}
        assert udp.counters.received_datagrams == 2


async def test_an_error_of_the_network_hides_nothing_that_came(monkeypatch: pytest.MonkeyPatch) -> None:
    with a_socket() as udp, senders("127.0.0.1", 1) as (one,):
        one.sendto(b"here", tuple(udp.local_address))
        receive, refusals = mmsg.Inbox.receive, [OSError(errno.ECONNREFUSED, "refused")]

        def sometimes(inbox: mmsg.Inbox, descriptor: int, most: int) -> int:
            if refusals:
                raise refusals.pop()
            return receive(inbox, descriptor, most)

        monkeypatch.setattr(mmsg.Inbox, "receive", sometimes)
        assert udp.receive_many() == []
        assert not udp.is_drained
        assert [bytes(each.buffer) for each in await received(udp, 1)] == [b"here"]
        assert udp.counters.errors == {"ECONNREFUSED": 1}


async def test_a_closed_socket_has_nothing_and_counts_what_is_sent() -> None:
    with a_socket() as udp:
        udp.close()
        assert udp.receive_many() == []
        assert udp.is_drained
        assert udp.post(Address("127.0.0.1", 9), b"x", 1)
        assert udp.deliver()
        assert udp.counters.errors["closed"] == 2


async def test_what_is_remembered_of_senders_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many, "MAX_NAMES", 8)
    monkeypatch.setattr(many, "MAX_TOLD", 2)
    with a_socket("0.0.0.0", tells_local=True) as udp, senders("127.0.0.1", 20) as those:
        for number, each in enumerate(those):
            each.sendto(b"x", (f"127.0.1.{number + 1}", udp.local_address.port))
        for batch in await received(udp, 20):
            assert udp.post(batch.remote, b"y", 1, 0, batch.local)
        assert udp.deliver()
        assert [each.recv(10) for each in those] == [b"y"] * 20
        assert max(len(udp._hosts), len(udp._names)) <= 8
        assert max(len(udp._told), len(udp._headers)) <= 2


async def test_any_other_socket_does_the_same_one_by_one() -> None:
    network = MemoryNetwork()
    one, other = (by_batches(network.open_socket("127.0.0.1", port)) for port in (1_000, 1_001))
    assert isinstance(one, OneByOne)
    assert one.post(Address("127.0.0.1", 1_001), b"hello", 5)
    assert one.deliver()
    with trio.fail_after(5):
        await other.wait_readable()
    (batch,) = other.receive_many()
    assert (batch.remote, bytes(batch.buffer)) == (Address("127.0.0.1", 1_000), b"hello")
    assert not other.is_drained
    assert other.receive_many() == []
    assert other.is_drained
    await one.wait_writable()
    assert one.give_up() == 0


def test_a_system_without_these_calls_gets_the_usual_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmsg, "IS_THERE", False)
    udp = open_socket("127.0.0.1", 0, many=True)
    assert not isinstance(udp, ManySocket)
    assert isinstance(by_batches(udp), OneByOne)
    udp.close()
