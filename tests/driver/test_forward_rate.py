"""Limits of rate: held each way, by TCP that waits and UDP that drops, and felt by nobody else.  Virtual time."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from tests.driver.core_link import CoreLinks
from tests.driver.fake_link import linked_pair
from tunnel.ends import MAX_RATE, MIN_RATE, read_rate
from tunnel.errors import ConfigurationError
from tunnel.ports.counters import ForwardCounters
from tunnel.ports.rate import MAX_LIMITED, MIN_BURST, Limit, Pace, PeerLimits, Rates
from tunnel.ports.serve import Exposed, Listeners
from tunnel.ports.spec import parse_forwards

RATE = 100_000.0  # bytes per second


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10M", 10e6),
        ("500k", 5e5),
        ("1.5M", 1.5e6),
        ("80Mbit", 10e6),
        ("10MB/s", 10e6),
        ("8 mbit/s", 1e6),
        ("1000", 1e3),
        ("1G", 1e9),
    ],
)
def test_a_rate_means(text: str, rate: float) -> None:
    assert read_rate(text) == rate


@pytest.mark.parametrize("text", ["", "fast", "10X", "-1M", "1e6", "999", "0", "1,5M", "9999T", "٣M", "nan", "x" * 10_000])
def test_what_is_no_rate_gets_one_sentence(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_rate(text)
    assert str(caught.value).endswith(".")
    assert len(str(caught.value)) < 300


def test_the_ends_of_what_may_be_said() -> None:
    assert (read_rate(str(MIN_RATE)), read_rate(f"{MAX_RATE:.0f}")) == (MIN_RATE, MAX_RATE)


def test_a_rate_of_one_forward_is_said_by_its_end_here() -> None:
    forwards = parse_forwards(["8080:80", "8081:81", "unix:/tmp/x:22"])
    assert Rates.parse(["10M", "8080=1M", "unix:/tmp/x=2M"], forwards).of_one == {"8080": 1e6, "/tmp/x": 2e6}
    with pytest.raises(ConfigurationError, match="there is no --forward with 80 as its end here"):
        Rates.parse(["80=1M"], forwards)


async def test_of_one_and_of_all_both_count(autojump_clock: trio.testing.MockClock) -> None:
    first, second = Rates(RATE, {"1": RATE / 4}).limits(parse_forwards(["1", "2"]))
    assert first is not None
    assert first.beyond is second is not None

    async def spend(limit: Limit, seconds: float) -> int:
        spent = 0
        with trio.move_on_after(seconds):
            while True:
                spent += await limit.take_up(100_000)
        return spent

    await spend(second, 1.0)  # the bursts
    await spend(first, 5.0)
    assert await spend(first, 10.0) == pytest.approx(10 * RATE / 4, rel=0.05)
    await spend(second, 1.0)
    found: dict[str, int] = {}
    async with trio.open_nursery() as nursery:
        for name, limit in (("first", first), ("second", second)):

            async def count(name: str = name, limit: Limit = limit) -> None:
                found[name] = await spend(limit, 10.0)

            nursery.start_soon(count)
    assert sum(found.values()) == pytest.approx(10 * RATE, rel=0.05)
    assert found["first"] == pytest.approx(10 * RATE / 4, rel=0.2)


async def test_whoever_waits_is_served_in_turn(autojump_clock: trio.testing.MockClock) -> None:
    pace, shares = Pace(RATE), [0] * 5

    async def spend(index: int) -> None:
        while True:
            shares[index] += await pace.take(1_000_000)

    with trio.move_on_after(20.0):
        async with trio.open_nursery() as nursery:
            for index in range(5):
                nursery.start_soon(spend, index)
    assert min(shares) > 0.9 * max(shares)


async def test_what_is_given_back_is_not_counted(autojump_clock: trio.testing.MockClock) -> None:
    pace = Pace(RATE)
    began = trio.current_time()
    for _ in range(1_000):
        pace.give_back(await pace.take(16_384))
    assert trio.current_time() == began


async def test_a_datagram_that_is_too_much_is_dropped_and_counted_each_way(autojump_clock: trio.testing.MockClock) -> None:
    limit, counters = Limit(RATE), ForwardCounters()
    largest = [bytes(65_507)] * 3
    assert len(largest[0]) <= MIN_BURST
    assert len(limit.admitted_up(largest, counters)) == len(limit.admitted_down(largest, counters)) == 1
    assert counters.udp_rate_dropped == 4
    await trio.sleep(1.0)
    assert len(limit.admitted_up(largest, counters)) == 1
    for _ in range(100):
        await trio.sleep(0.1)
        limit.admitted_down([bytes(1_000)] * 20, counters)
    assert counters.udp_rate_dropped - 6 == pytest.approx(1_000, rel=0.1)


async def test_the_limits_of_so_many_peers_are_remembered(autojump_clock: trio.testing.MockClock) -> None:
    limits = PeerLimits(RATE)
    first = limits.of("first")
    assert limits.of("first") is first
    for number in range(MAX_LIMITED):
        limits.of(str(number))
    assert limits.of("first") is not first
    assert len(limits._of) == MAX_LIMITED


# -- whole forwards, by the real clock, with nothing asserted of it but how long something takes at least


async def discard(stream: trio.SocketStream) -> None:
    async for _ in stream:
        pass
    await stream.send_all(b"all")
    await stream.aclose()


async def pour(stream: trio.SocketStream) -> None:
    await stream.send_all(bytes(SIZE))
    await stream.aclose()


SIZE = 400_000
SLOW = 400_000.0  # bytes per second: SIZE takes 0.8 s, as MIN_BURST goes at once


@asynccontextmanager
async def forwarded(handler: Any, rates: Rates | None, limit: Limit | None, is_core: bool) -> AsyncIterator[int]:
    """Its port here."""
    near: Any
    far: Any
    async with trio.open_nursery() as nursery:
        if is_core:
            links = CoreLinks()
            near, far = links.near, links.far
            nursery.start_soon(links.run)
        else:
            near, far = linked_pair()
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, handler, [listener])
        exposed = Exposed(far, lambda _kind, _target: ("127.0.0.1", port), limit=limit)
        nursery.start_soon(far.serve_streams, exposed.handle)
        with Listeners(parse_forwards(["127.0.0.1:0:80"])) as listeners:

            async def serve() -> None:
                await listeners.serve(near, rates=rates)

            nursery.start_soon(serve)
            with trio.fail_after(60):
                yield int(listeners.ready[0].bind.rpartition(":")[2])
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("is_core", [False, True])
@pytest.mark.parametrize("side", ["connect", "expose"])
@pytest.mark.parametrize("way", ["up", "down"])
async def test_tcp_is_as_slow_as_it_was_told_and_loses_nothing(way: str, side: str, is_core: bool) -> None:
    rates, limit = (Rates(SLOW), None) if side == "connect" else (None, Limit(SLOW))
    async with forwarded(discard if way == "up" else pour, rates, limit, is_core) as port:
        began = time.monotonic()
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        if way == "up":
            await stream.send_all(bytes(SIZE))
            await stream.send_eof()
        received = 0
        async for chunk in stream:
            received += len(chunk)
        await stream.aclose()
        assert received == (3 if way == "up" else SIZE)
        assert time.monotonic() - began > 0.95 * (SIZE - MIN_BURST) / SLOW


@pytest.mark.parametrize("way", ["up", "down"])
async def test_another_forward_of_the_link_does_not_wait_for_a_slow_one(way: str) -> None:
    """More waits for the slow one than a stream's window; then as much goes by the other, and the slow one is not done."""
    forwards = ["127.0.0.1:0:80", "127.0.0.1:0:81"]
    rates = Rates(2_000.0)
    near: Any
    far: Any
    async with trio.open_nursery() as nursery:
        links = CoreLinks()
        near, far = links.near, links.far
        nursery.start_soon(links.run)
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, discard if way == "up" else pour, [listener])
        exposed = Exposed(far, lambda _kind, _target: ("127.0.0.1", port))
        nursery.start_soon(far.serve_streams, exposed.handle)
        with Listeners(parse_forwards(forwards[:1])) as slow, Listeners(parse_forwards(forwards[1:])) as quick:
            for listeners, limits in ((slow, rates), (quick, None)):

                async def serve(listeners: Listeners = listeners, limits: Rates | None = limits) -> None:
                    await listeners.serve(near, rates=limits)

                nursery.start_soon(serve)
            streams = [
                await trio.open_tcp_stream("127.0.0.1", int(each.ready[0].bind.rpartition(":")[2])) for each in (slow, quick)
            ]
            done = trio.Event()

            async def use(stream: trio.SocketStream, event: trio.Event) -> None:
                if way == "up":
                    await stream.send_all(bytes(SIZE))
                    await stream.send_eof()
                async for _ in stream:
                    pass
                event.set()

            slow_done = trio.Event()
            with trio.fail_after(60):
                nursery.start_soon(use, streams[0], slow_done)
                await trio.sleep(0.2)
                nursery.start_soon(use, streams[1], done)
                await done.wait()
            assert not slow_done.is_set()  # it takes minutes
            nursery.cancel_scope.cancel()
    for stream in streams:
        stream.socket.close()


async def test_a_udp_forward_drops_what_is_too_much_and_says_so() -> None:
    near, far = linked_pair()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
        program.bind(("127.0.0.1", 0))
        program.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
        exposed = Exposed(far, lambda _kind, _target: program.getsockname())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(far.serve_streams, exposed.handle)
            with Listeners(parse_forwards(["127.0.0.1:0:53/udp"])) as listeners:

                async def serve() -> None:
                    await listeners.serve(near, rates=Rates(float(MIN_RATE)))

                nursery.start_soon(serve)
                port = int(listeners.ready[0].bind.rpartition(":")[2])
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client, trio.fail_after(30):
                    for _ in range(100):
                        client.sendto(bytes(1_000), ("127.0.0.1", port))
                        await trio.lowlevel.checkpoint()
                    while listeners.counters.udp_datagrams_in < 100:
                        await trio.lowlevel.checkpoint()
                    assert 30 <= listeners.counters.udp_rate_dropped <= 40
            nursery.cancel_scope.cancel()
