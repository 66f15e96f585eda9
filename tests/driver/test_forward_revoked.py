"""A grant that is taken back ends what was opened by it and nothing else, over the twin and over the core's own connection."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from typing import Any

import pytest
import trio

from tests.driver.core_link import CoreLinks
from tests.driver.fake_link import linked_pair
from tunnel.ports.serve import Exposed, Listeners
from tunnel.ports.spec import parse_forwards

PATIENCE = 1.0  # seconds for what was taken back to end


class Bench:
    """Two TCP echoes (tcp/1, tcp/2) and a UDP one (udp/3) behind forwards; `places` is what is granted."""

    def __init__(self, listeners: Listeners, exposed: Exposed, places: dict[Any, tuple[str, int]], notices: list[str]) -> None:
        self.ports = [int(ready.bind.rpartition(":")[2]) for ready in listeners.ready]
        self.exposed = exposed
        self.places = places
        self.notices = notices
        self._sockets: list[trio.socket.SocketType] = []

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()

    async def talk(self, index: int) -> trio.SocketStream:
        """A connection through a TCP forward that has carried something."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.ports[index])
        self._sockets.append(stream.socket)
        await self.echoed(stream)
        return stream

    async def echoed(self, stream: trio.SocketStream) -> None:
        await stream.send_all(b"hello")
        got = b""
        while len(got) < 5:
            got += await stream.receive_some()
        assert got == b"hello"

    async def ask(self, index: int = 2) -> trio.socket.SocketType:
        client = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sockets.append(client)
        await client.connect(("127.0.0.1", self.ports[index]))
        await client.send(b"hello")
        assert await client.recv(100) == b"hello"
        return client


@asynccontextmanager
async def forwarded(is_core: bool) -> AsyncIterator[Bench]:
    near: Any
    far: Any
    notices: list[str] = []
    said: list[str] = []
    async with trio.open_nursery() as nursery:
        if is_core:
            links = CoreLinks()
            near, far = links.near, links.far
            nursery.start_soon(links.run)
        else:
            near, far = linked_pair()

        async def echo(stream: trio.SocketStream) -> None:
            with suppress(trio.BrokenResourceError):
                async for data in stream:
                    await stream.send_all(data)

        async def echo_datagrams(sock: trio.socket.SocketType) -> None:
            while True:
                data, client = await sock.recvfrom(65_535)
                await sock.sendto(data, client)

        places: dict[Any, tuple[str, int]] = {}
        for target in (1, 2):
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            places["tcp", target] = listener.socket.getsockname()
            nursery.start_soon(trio.serve_listeners, echo, [listener])
        udp = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        await udp.bind(("127.0.0.1", 0))
        places["udp", 3] = udp.getsockname()
        nursery.start_soon(echo_datagrams, udp)
        exposed = Exposed(far, lambda protocol, target: places.get((protocol, target)), notice=notices.append)
        nursery.start_soon(far.serve_streams, exposed.handle)
        forwards = parse_forwards(["127.0.0.1:0:1", "127.0.0.1:0:2", "127.0.0.1:0:3/udp"])
        with Listeners(forwards) as listeners, udp, trio.fail_after(20):
            nursery.start_soon(lambda: listeners.serve(near, notice=said.append))
            bench = Bench(listeners, exposed, places, notices)
            with closing(bench):
                yield bench
        nursery.cancel_scope.cancel()


@pytest.fixture(params=["twin", "core"])
def is_core(request: pytest.FixtureRequest) -> bool:
    return str(request.param) == "core"


async def test_a_tcp_stream_whose_grant_is_gone_is_reset_and_others_go_on(is_core: bool) -> None:
    async with forwarded(is_core) as bench:
        cut, kept = await bench.talk(0), await bench.talk(1)
        client = await bench.ask()
        del bench.places["tcp", 1]
        bench.exposed.look_again()
        with trio.fail_after(PATIENCE), pytest.raises(trio.BrokenResourceError):
            await cut.receive_some()
        await bench.echoed(kept)
        await client.send(b"still")
        assert await client.recv(100) == b"still"
        assert (bench.exposed.counters.revoked, bench.exposed.counters.tcp_active) == (1, 1)
        assert bench.notices == ["An open connection of friend ended, as the grant was taken back."]


async def test_a_udp_flow_whose_grant_is_gone_carries_nothing_more(is_core: bool) -> None:
    async with forwarded(is_core) as bench:
        kept, client = await bench.talk(0), await bench.ask()
        del bench.places["udp", 3]
        bench.exposed.look_again()
        with trio.move_on_after(PATIENCE):
            while True:
                await client.send(b"again")
                with trio.move_on_after(0.05):
                    assert await client.recv(100) != b"again"
        await bench.echoed(kept)
        assert (bench.exposed.counters.revoked, bench.exposed.counters.udp_flows_active) == (1, 0)


async def test_a_stream_that_leads_elsewhere_by_now_ends(is_core: bool) -> None:
    async with forwarded(is_core) as bench:
        moved = await bench.talk(0)
        bench.places["tcp", 1] = bench.places["tcp", 2]
        bench.exposed.look_again()
        with trio.fail_after(PATIENCE), pytest.raises(trio.BrokenResourceError):
            await moved.receive_some()
        assert bench.exposed.counters.revoked == 1


async def test_looking_again_at_the_same_grants_ends_nothing(is_core: bool) -> None:
    async with forwarded(is_core) as bench:
        streams = [await bench.talk(0), await bench.talk(1)]
        for _ in range(3):
            bench.exposed.look_again()
        for stream in streams:
            await bench.echoed(stream)
        assert (bench.exposed.counters.revoked, bench.notices) == (0, [])
