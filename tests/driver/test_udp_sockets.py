"""The sockets of the door and their twin in memory pass the same tests; what only Linux can do comes after."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing

from tests.driver.udp import PAYLOAD, Opener, on_linux, receive, view
from tests.twins.udp import MemoryNetwork, MemorySocket
from tunnel.doors.udp.plain import PlainSocket
from tunnel.doors.udp.socket import MAX_SEGMENTS, UdpSocket, open_socket
from tunnel.errors import ConfigurationError, InternalError
from tunnel.units import Address


@pytest.fixture(params=["best", "plain", "memory"])
def opener(request: pytest.FixtureRequest) -> Iterator[Opener]:
    """Opens sockets of one kind; all are closed at the end."""
    opened: list[UdpSocket] = []
    kinds: dict[str, Opener] = {"best": open_socket, "plain": PlainSocket, "memory": MemoryNetwork(seed=1).open_socket}

    def open_one(host: str, port: int = 0, **options: Any) -> UdpSocket:
        opened.append(kinds[request.param](host, port, **options))
        return opened[-1]

    yield open_one
    for udp in opened:
        udp.close()


@pytest.fixture(params=["127.0.0.1", "::1"])
def host(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# -- the same for every kind


async def test_a_batch_arrives_as_the_datagrams_it_was(opener: Opener, host: str) -> None:
    sender, receiver = opener(host), opener(host)
    assert sender.send(receiver.local_address, view(PAYLOAD), 1200)
    got, batches = await receive(receiver, 43)
    assert got == [PAYLOAD[at : at + 1200] for at in range(0, len(PAYLOAD), 1200)]
    assert {batch.remote for batch in batches} == {sender.local_address}
    assert sender.counters.sent_datagrams == receiver.counters.received_datagrams == 43
    assert sender.counters.sent_bytes == receiver.counters.received_bytes == len(PAYLOAD)
    assert not sender.counters.errors
    assert not receiver.counters.errors


async def test_datagrams_of_different_sizes_keep_their_borders(opener: Opener, host: str) -> None:
    sender, receiver = opener(host), opener(host)
    sizes = [100, 100, 40, 100, 1, 1400, 1400, 1399]
    for size in sizes:
        assert sender.send(receiver.local_address, view(b"x" * size), size)
    got, _ = await receive(receiver, len(sizes))
    assert [len(one) for one in got] == sizes


@on_linux
async def test_what_came_one_by_one_is_one_batch_per_sender_and_size(host: str) -> None:
    one, other, receiver = open_socket(host, 0), open_socket(host, 0), open_socket(host, 0)
    plan = (
        [(one, 1200)] * 5
        + [(one, 700), (one, 700), (other, 700), (one, 1400)]
        + [(one, 9)] * (MAX_SEGMENTS + 3)
        + [(one, 60_000)] * 3
    )
    for sender, size in plan:
        assert sender.send(receiver.local_address, view(b"x" * size), size)
    got, batches = await receive(receiver, len(plan))
    assert [len(each) for each in got] == [size for _, size in plan]
    shapes = [(batch.remote.port, batch.stride, len(batch.buffer)) for batch in batches]
    ours, theirs = one.local_address.port, other.local_address.port
    assert shapes == [
        (ours, 1200, 5 * 1200 + 700),
        (ours, 700, 700),
        (theirs, 700, 700),
        (ours, 1400, 1400 + 9),
        (ours, 9, 9 * MAX_SEGMENTS),
        (ours, 9, 9 * 2),
        (ours, 60_000, 60_000),
        (ours, 60_000, 60_000),
        (ours, 60_000, 60_000),
    ]
    assert receiver.counters.received_datagrams == len(plan)
    for udp in (one, other, receiver):
        udp.close()


async def test_the_largest_datagram_goes_through_on_loopback(opener: Opener, host: str) -> None:
    sender, receiver = opener(host), opener(host)
    assert sender.send(receiver.local_address, view(b"z" * 65_000), 65_507)
    got, batches = await receive(receiver, 1)
    assert got == [b"z" * 65_000]
    assert batches[0].stride == 65_000


async def test_nothing_there_is_none_and_not_an_error(opener: Opener, host: str) -> None:
    receiver = opener(host)
    assert receiver.receive() is None
    assert not receiver.counters.errors


async def test_a_waiting_reader_is_woken_by_a_datagram(opener: Opener, host: str) -> None:
    sender, receiver = opener(host), opener(host)
    async with trio.open_nursery() as nursery:
        woken = trio.Event()

        async def wait() -> None:
            await receiver.wait_readable()
            woken.set()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not woken.is_set()
        sender.send(receiver.local_address, view(b"hello"), 1200)
        with trio.fail_after(5):
            await woken.wait()


async def test_closing_wakes_whoever_waits(opener: Opener, host: str) -> None:
    receiver, other = opener(host), opener(host)

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await receiver.wait_readable()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        receiver.close()
    receiver.close()
    assert receiver.receive() is None
    assert receiver.send(other.local_address, view(b"late"), 1200)
    assert receiver.counters.errors["closed"] >= 1


async def test_a_fresh_socket_is_writable(opener: Opener, host: str) -> None:
    with trio.fail_after(5):
        await opener(host).wait_writable()


async def test_addresses_that_cannot_be_reached_are_counted_not_raised(opener: Opener, host: str) -> None:
    sender = opener(host)
    wrong_family = Address("192.0.2.1" if sender.is_ipv6 else "2001:db8::1", 9)
    for remote in (wrong_family, Address("example.net", 9), Address("fe80::1%no-such-if", 9), Address(host, 0)):
        assert sender.send(remote, view(b"lost"), 1200)
    assert sum(sender.counters.errors.values()) == 4
    assert set(sender.counters.errors) == {"family", "bad_address"} or not sender.is_ipv6
    assert sender.counters.sent_datagrams == 0


async def test_a_datagram_to_a_port_where_nobody_listens_is_just_lost(opener: Opener, host: str) -> None:
    sender, gone = opener(host), opener(host)
    gone.close()
    for _ in range(3):
        assert sender.send(gone.local_address, view(b"anyone?"), 1200)
        await trio.sleep(0.001)
        assert sender.receive() is None


@pytest.mark.parametrize(("length", "segment"), [(0, 1200), (65, 1), (65_508, 65_508), (65_508, 1200), (10, 0)])
async def test_a_batch_that_nobody_may_build_is_a_bug(opener: Opener, host: str, length: int, segment: int) -> None:
    sender = opener(host)
    with pytest.raises(InternalError):
        sender.send(opener(host).local_address, view(b"x" * length), segment)


async def test_64_segments_are_one_batch(opener: Opener, host: str) -> None:
    sender, receiver = opener(host), opener(host)
    assert sender.send(receiver.local_address, view(bytes(range(MAX_SEGMENTS))), 1)
    got, _ = await receive(receiver, MAX_SEGMENTS)
    assert b"".join(got) == bytes(range(MAX_SEGMENTS))


async def test_a_dual_stack_socket_writes_ipv4_as_ipv4(opener: Opener) -> None:
    dual, four = opener("::", dual_stack=True), opener("127.0.0.1")
    port = dual.local_address.port
    assert four.send(Address("127.0.0.1", port), view(b"to six"), 1200)
    _, batches = await receive(dual, 1)
    assert batches[0].remote == four.local_address
    assert dual.send(four.local_address, view(b"back" * 600), 1200)
    got, batches = await receive(four, 2)
    assert b"".join(got) == b"back" * 600
    assert batches[0].remote == Address("127.0.0.1", port)


async def test_a_low_ttl_still_crosses_one_hop_and_the_next_is_normal(opener: Opener, host: str) -> None:
    sender, receiver = opener(host), opener(host)
    assert sender.send(receiver.local_address, view(b"one" * 500), 500, ttl=1)
    assert sender.send(receiver.local_address, view(b"two"), 500)
    got, _ = await receive(receiver, 4)
    assert b"".join(got) == b"one" * 500 + b"two"


def test_a_port_in_use_is_a_sentence(opener: Opener, host: str) -> None:
    first = opener(host)
    with pytest.raises(ConfigurationError, match="in use"):
        opener(host, first.local_address.port)


@pytest.mark.parametrize(("where", "port"), [("example.net", 0), ("127.0.0.1", 70_000), ("1.2.3", 0), ("::g", 0)])
def test_an_impossible_address_is_a_sentence(opener: Opener, where: str, port: int) -> None:
    with pytest.raises(ConfigurationError):
        opener(where, port)


def test_receive_buffer_is_what_the_kernel_granted(opener: Opener, host: str) -> None:
    assert opener(host).receive_buffer >= 2048
    assert opener(host).overruns() == 0


# -- the memory twin only


async def test_delay_and_loss_are_drawn_from_the_seed(autojump_clock: trio.testing.MockClock) -> None:
    outcomes = []
    for seed in (7, 7, 8):
        network = MemoryNetwork(seed=seed, delay=0.05, loss=0.3)
        sender, receiver = network.open_socket("10.0.0.1", 1), network.open_socket("10.0.0.2", 2)
        sent_at = trio.current_time()
        assert sender.send(receiver.local_address, view(bytes(range(60))), 1)
        assert receiver.receive() is None
        await receiver.wait_readable()
        assert trio.current_time() - sent_at == pytest.approx(0.05)
        batch = receiver.receive()
        assert batch is not None
        assert batch.stride == 1
        assert 0 < network.lost < 60
        outcomes.append(bytes(batch.buffer))
    assert outcomes[0] == outcomes[1] != outcomes[2]


async def test_walls_hops_and_mtu_of_the_memory_network() -> None:
    network = MemoryNetwork(hops=3, mtu=1500)
    a, b = network.open_socket("10.0.0.1", 1), network.open_socket("10.0.0.2", 2)

    def crosses(source: MemorySocket, target: MemorySocket, size: int = 10, ttl: int | None = None) -> bool:
        assert source.send(target.local_address, view(b"x" * size), size, ttl=ttl)
        return target.receive() is not None

    network.block("10.0.0.1", b.local_address)
    assert (crosses(a, b), crosses(b, a)) == (False, True)
    network.unblock("10.0.0.1", b.local_address)
    assert crosses(a, b)
    assert not crosses(a, b, ttl=2)
    assert crosses(a, b, ttl=3)
    assert crosses(a, b, size=1472)
    assert not crosses(a, b, size=1473)
    assert a.counters.errors == {"EMSGSIZE": 1}


async def test_a_full_memory_socket_blocks_its_writer_and_a_full_reader_loses() -> None:
    network = MemoryNetwork()
    a, b = network.open_socket("10.0.0.1", 1), network.open_socket("10.0.0.2", 2, receive_buffer=5000)
    a.set_writable(False)
    assert not a.send(b.local_address, view(b"x"), 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.wait_writable)
        await trio.testing.wait_all_tasks_blocked()
        a.set_writable(True)
    assert a.send(b.local_address, view(b"x" * 10_000), 1000)
    got, _ = await receive(b, 3)
    assert len(got) == 3
    assert b.overruns() == 7


@pytest.mark.parametrize("opened", [open_socket, PlainSocket])
def test_nothing_goes_to_the_broadcast_address_of_a_network_of_ours(opened: Opener) -> None:
    """The core does not know the networks' masks; the kernel does, and refuses whoever has not asked for broadcasts."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.255.255.255", 0))
        listener.setblocking(False)
        udp = opened("127.0.0.1", 0)
        try:
            for ttl in (None, 5):
                udp.send(Address("127.255.255.255", listener.getsockname()[1]), view(bytes(57)), 57, ttl)
            assert udp.counters.errors["EACCES"] == 2
            with pytest.raises(BlockingIOError):
                listener.recv(100)
        finally:
            udp.close()
