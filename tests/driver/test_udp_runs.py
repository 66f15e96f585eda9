"""Sockets where the kernel neither joins nor cuts: many datagrams in one call, and the same of them as by one call for each."""

from __future__ import annotations

import ctypes
import errno
import random
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio

from tests.driver.udp import PAYLOAD, cut, on_linux, receive, view
from tunnel.doors.udp import linux, runs
from tunnel.doors.udp.linux import LONE, LinuxSocket
from tunnel.doors.udp.socket import MAX_SEGMENTS, open_socket
from tunnel.units import Address

pytestmark = [on_linux, pytest.mark.skipif(not runs.IS_THERE, reason="this system has no recvmmsg")]
Socket = Callable[[], LinuxSocket]


@pytest.fixture(params=["127.0.0.1", "::1"])
def opened(request: pytest.FixtureRequest) -> Iterator[Socket]:
    sockets: list[LinuxSocket] = []

    def one() -> LinuxSocket:
        made = open_socket(str(request.param), 0)
        assert isinstance(made, LinuxSocket)
        made.uses_gso = False
        sockets.append(made)
        return made

    yield one
    for each in sockets:
        each.close()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each of the two calls was made since the dict was cleared."""
    counts: dict[str, int] = {}

    def count(name: str, call: Callable[..., int]) -> Callable[..., int]:
        def counted(*arguments: Any) -> int:
            counts[name] = counts.get(name, 0) + 1
            return call(*arguments)

        return counted

    for name in ("recvmmsg", "sendmmsg"):
        monkeypatch.setattr(runs, name, count(name, getattr(runs, name)))
    return counts


async def warm(receiver: LinuxSocket, sender: LinuxSocket, size: int = 1200) -> None:
    """Let the receiver see that its datagrams come alone."""
    for _ in range(LONE):
        assert sender.send(receiver.local_address, view(bytes(size)), size)
        await receive(receiver, 1)
    assert receiver._reads_runs


async def drained(receiver: LinuxSocket) -> list[tuple[Address, bytes]]:
    """What came, with its sender, until there is nothing more."""
    with trio.fail_after(5):
        await receiver.wait_readable()
    got = []
    while (batch := receiver.receive()) is not None:
        got += [(batch.remote, each) for each in cut(batch)]
    return got


async def test_a_run_is_sent_by_one_call_and_received_by_one(opened: Socket, calls: dict[str, int]) -> None:
    sender, receiver = opened(), opened()
    await warm(receiver, sender)
    calls.clear()
    before = receiver.counters.received_datagrams, sender.counters.sent_datagrams
    assert sender.send(receiver.local_address, view(PAYLOAD), 1200)
    await receiver.wait_readable()
    batch = receiver.receive()
    assert batch is not None
    assert cut(batch) == [PAYLOAD[at : at + 1200] for at in range(0, len(PAYLOAD), 1200)]
    assert batch.remote == sender.local_address
    assert receiver.receive() is None
    assert calls == {"sendmmsg": 1, "recvmmsg": 1}
    assert (receiver.counters.received_datagrams, sender.counters.sent_datagrams) == (before[0] + 43, before[1] + 43)


async def test_one_that_comes_alone_takes_one_call_and_no_second_that_finds_nothing(
    opened: Socket, calls: dict[str, int]
) -> None:
    sender, receiver = opened(), opened()
    await warm(receiver, sender)
    calls.clear()
    for size in (1200, 60, 1, 1200):
        assert sender.send(receiver.local_address, view(b"x" * size), size)
        assert await drained(receiver) == [(sender.local_address, b"x" * size)]
    assert calls == {"recvmmsg": 4}


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_comes_it_is_the_same_as_by_one_call_each(opened: Socket, seed: int) -> None:
    """Order, borders, senders and counters."""
    chance = random.Random(seed)
    one, other, receiver, plain = opened(), opened(), opened(), opened()
    await warm(receiver, one)
    receiver.counters.received_datagrams = receiver.counters.received_bytes = 0
    for _ in range(20):
        size = chance.choice((40, 700, 1200, 1472))
        sent = []
        receiver._reads_runs = True  # also after the kernel has joined something
        for _ in range(chance.choice((1, 2, 9, 30, MAX_SEGMENTS + 6))):
            if chance.random() < 0.03:
                one.uses_gso, data = True, chance.randbytes(chance.randint(50, 3_000))
                cut_at = chance.randint(50, 1_400)
                for to in (receiver, plain):
                    assert one.send(to.local_address, view(data), cut_at)
                sent += [(one.local_address, data[at : at + cut_at]) for at in range(0, len(data), cut_at)]
                one.uses_gso = False
                continue
            if chance.random() < 0.2:
                size = chance.choice((40, 700, 1200, 1472, 9_000, 20_000))
            sender = other if chance.random() < 0.1 else one
            data = chance.randbytes(size if chance.random() < 0.9 else chance.randint(1, size))
            sent.append((sender.local_address, data))
            for to in (receiver, plain):
                assert sender.send(to.local_address, view(data), len(data), ecn=chance.choice((0, 0, 0, 0, 0, 0, 0, 0, 1)))
        for to in (receiver, plain):
            plain._lone = 0  # never by runs
            assert await drained(to) == sent
        assert not plain._reads_runs
    assert receiver.counters.received_datagrams == plain.counters.received_datagrams
    assert receiver.counters.received_bytes == plain.counters.received_bytes
    assert not receiver.counters.errors


async def test_a_batch_is_no_longer_than_ever(opened: Socket) -> None:
    sender, receiver = opened(), opened()
    await warm(receiver, sender, 9)
    for _ in range(MAX_SEGMENTS + 3):
        assert sender.send(receiver.local_address, view(b"x" * 9), 9)
    got, batches = await receive(receiver, MAX_SEGMENTS + 3)
    assert [len(each) for each in got] == [9] * (MAX_SEGMENTS + 3)
    assert [len(batch.buffer) for batch in batches] == [9 * MAX_SEGMENTS, 27]


async def test_where_the_kernel_joins_after_all_it_is_left_to_it(opened: Socket, calls: dict[str, int]) -> None:
    sender, receiver = opened(), opened()
    await warm(receiver, sender)
    sender.uses_gso = True  # over loopback such a burst arrives as it left
    calls.clear()
    for _ in range(3):
        assert sender.send(receiver.local_address, view(PAYLOAD), 1200)
        assert b"".join(data for _, data in await drained(receiver)) == PAYLOAD
    assert calls["recvmmsg"] == 1
    assert not receiver._reads_runs
    assert receiver.counters.received_datagrams == LONE + 3 * 43


@pytest.mark.parametrize("size", [300, 700, 1000])
async def test_a_joined_batch_that_fits_where_one_datagram_was_expected_is_cut_as_it_was_joined(
    opened: Socket, size: int
) -> None:
    """As the two halves of a packet that is too large for its path."""
    sender, receiver = opened(), opened()
    await warm(receiver, sender, 1472)
    sender.uses_gso = True
    data = random.Random(size).randbytes(size + size // 3)
    before = receiver.counters.received_datagrams
    assert sender.send(receiver.local_address, view(data), size)
    assert [each for _, each in await drained(receiver)] == [data[:size], data[size:]]
    assert receiver.counters.received_datagrams == before + 2
    assert not receiver._reads_runs


async def test_an_empty_datagram_is_counted_and_passed_over(opened: Socket) -> None:
    sender, receiver = opened(), opened()
    await warm(receiver, sender)
    family = socket.AF_INET6 if receiver.is_ipv6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as raw:
        raw.connect(tuple(receiver.local_address))
        for data in (b"", b"one", b"", b"two"):
            raw.send(data)
        assert [data for _, data in await drained(receiver)] == [b"one", b"two"]
        raw.send(b"")
        await receiver.wait_readable()
        assert receiver.receive() is None
    assert receiver.counters.errors["empty"] == 3


def takes(monkeypatch: pytest.MonkeyPatch, *datagrams: int) -> Iterator[int]:
    """The kernel takes so many of each call; 0: it would block.  Returns what is left of them."""
    whole = runs.sendmmsg
    assert whole is not None
    answers = iter(datagrams)

    def some(descriptor: int, address: int, count: int, flags: int) -> int:
        most = next(answers)
        if not most:
            ctypes.set_errno(errno.EAGAIN)
            return -1
        return whole(descriptor, address, min(count, most), flags)

    monkeypatch.setattr(runs, "sendmmsg", some)
    return answers


async def test_what_the_kernel_did_not_take_is_sent_later_and_nothing_twice(
    opened: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, receiver = opened(), opened()
    answers = takes(monkeypatch, 7, 0, 20, 0, 0, 100)
    buffer = view(PAYLOAD)
    assert not sender.send(receiver.local_address, buffer, 1200)
    assert sender.counters.sent_datagrams == 7
    assert not sender.send(receiver.local_address, buffer, 1200)
    assert not sender.send(receiver.local_address, buffer, 1200)
    assert sender.send(receiver.local_address, buffer, 1200)
    assert next(answers, None) is None
    got, _ = await receive(receiver, 43)
    assert b"".join(got) == PAYLOAD
    assert sender.counters.sent_datagrams == 43
    assert sender.counters.sent_bytes == len(PAYLOAD)


async def test_a_datagram_that_is_refused_is_counted_and_the_others_leave(
    opened: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, receiver = opened(), opened()
    whole = runs.sendmmsg
    assert whole is not None
    refused = iter([False, True, False])

    def call(descriptor: int, address: int, count: int, flags: int) -> int:
        if next(refused):
            ctypes.set_errno(errno.EPERM)
            return -1
        return whole(descriptor, address, min(count, 3), flags)

    monkeypatch.setattr(runs, "sendmmsg", call)
    data = bytes(range(7)) * 100
    assert sender.send(receiver.local_address, view(data), 100)
    got, _ = await receive(receiver, 6)
    assert b"".join(got) == data[:300] + data[400:]
    assert sender.counters.errors == {"EPERM": 1}
    assert sender.counters.sent_datagrams == 6


@pytest.mark.parametrize("refusal", [errno.EIO, errno.EINVAL])
async def test_where_gso_is_refused_the_burst_leaves_by_a_run_and_so_do_all_others(
    opened: Socket, calls: dict[str, int], monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    sender, receiver = opened(), opened()
    sender.uses_gso = True
    asked: list[int] = []

    def refuse(*_: object) -> int:
        asked.append(refusal)
        raise OSError(refusal, "no")

    monkeypatch.setattr(sender, "_sendmsg", refuse)
    for turn in (1, 2):
        assert sender.send(receiver.local_address, view(PAYLOAD[:5000]), 1200)
        got, _ = await receive(receiver, 5)
        assert b"".join(got) == PAYLOAD[:5000]
        assert calls == {"sendmmsg": turn}
    assert len(asked) == 1
    assert sender.counters.errors == {"no_gso": 1}
    assert not sender.uses_gso


async def test_after_a_burst_that_blocked_another_one_is_sent_whole(opened: Socket, monkeypatch: pytest.MonkeyPatch) -> None:
    sender, receiver = opened(), opened()
    takes(monkeypatch, 2, 0, 9, 9)
    batch, other = view(PAYLOAD[:6000]), view(b"other" * 600)
    assert not sender.send(receiver.local_address, batch, 1000)
    assert sender.send(receiver.local_address, other, 1000)
    assert sender.send(receiver.local_address, batch, 1000)
    got, _ = await receive(receiver, 2 + 3 + 6)
    assert b"".join(got) == PAYLOAD[:2000] + bytes(other) + PAYLOAD[:6000]


async def test_a_closed_socket_says_so(opened: Socket) -> None:
    sender, receiver = opened(), opened()
    await warm(receiver, sender)
    receiver.close()
    assert receiver.receive() is None
    assert receiver.counters.errors["closed"] == 1
    sender.close()
    assert sender.send(Address("127.0.0.1", 9), view(bytes(300)), 100)
    assert sender.counters.errors["closed"] == 3 or sender.is_ipv6


async def test_without_these_calls_everything_is_as_ever(opened: Socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "IS_THERE", False)
    sender, receiver = opened(), opened()
    assert not sender._sends_runs
    for _ in range(2 * LONE):
        assert sender.send(receiver.local_address, view(PAYLOAD), 1200)
        got, _ = await receive(receiver, 43)
        assert b"".join(got) == PAYLOAD
    assert not receiver._reads_runs
