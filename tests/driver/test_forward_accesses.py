"""Both sides of a forward tell what was opened, for how long, and how much it has carried."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from tests.driver.core_link import CoreLinks
from tunnel.ports.access import AccessLog, ConnectionReport, Report
from tunnel.ports.serve import Exposed, Listeners
from tunnel.ports.spec import parse_forwards
from tunnel.ports.stdio import run_stdio

SIZE = 300_000


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


@dataclass
class Sides:
    link: Any
    bind: tuple[str, int]
    near: list[Report] = field(default_factory=list)
    far: list[Report] = field(default_factory=list)
    near_log: AccessLog = field(init=False)

    async def both_closed(self) -> tuple[ConnectionReport, ConnectionReport]:
        with trio.fail_after(20):
            await until(lambda: len(self.near) >= 2 <= len(self.far))
        found = []
        for first, last in (self.near, self.far):
            assert isinstance(first, ConnectionReport)
            assert isinstance(last, ConnectionReport)
            assert first.duration_s is None
            assert last.duration_s is not None
            assert (first.number, first.target, first.peer) == (last.number, last.target, last.peer)
            found.append(last)
        return found[0], found[1]


@asynccontextmanager
async def joined(kind: str, port: int) -> AsyncIterator[Sides]:
    links = CoreLinks()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(links.run)
        with Listeners(parse_forwards([f"127.0.0.1:0:{port}/{kind}"])) as listeners:
            host, _, number = listeners.ready[0].bind.rpartition(":")
            sides = Sides(links.near, (host, int(number)))
            sides.near_log = AccessLog(sides.near.append)
            exposed = Exposed(links.far, lambda _kind, _target: ("127.0.0.1", port), log=AccessLog(sides.far.append))
            nursery.start_soon(links.far.serve_streams, exposed.handle)
            nursery.start_soon(lambda: listeners.serve(links.near, log=sides.near_log))
            with trio.fail_after(60):
                yield sides
            nursery.cancel_scope.cancel()


async def answer(stream: trio.SocketStream) -> None:
    """Twice what came, once that has ended."""
    data = b"".join([bytes(chunk) async for chunk in stream])
    await stream.send_all(data * 2)
    await stream.aclose()


async def ask(bind: tuple[str, int]) -> None:
    client = await trio.open_tcp_stream(*bind)
    async with client:
        await client.send_all(bytes(SIZE))
        await client.send_eof()
        assert sum([len(chunk) async for chunk in client]) == 2 * SIZE


@asynccontextmanager
async def serving(handler: Callable[[trio.SocketStream], Any]) -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, handler, [listener])
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def test_a_connection_is_told_with_its_bytes_on_both_sides() -> None:
    async with serving(answer) as port, joined("tcp", port) as sides:
        await ask(sides.bind)
        near, far = await sides.both_closed()
        assert near.target == far.target == f"tcp/{port}"
        assert (near.sent_bytes, near.received_bytes) == (SIZE, 2 * SIZE)
        assert (far.sent_bytes, far.received_bytes) == (2 * SIZE, SIZE)


async def test_one_for_standard_input_and_output_is_told_as_well() -> None:
    async with serving(answer) as port, joined("tcp", port) as sides:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(b"hello")
            theirs.shutdown(socket.SHUT_WR)
            access = sides.near_log.access("home", f"tcp/{port}")
            await run_stdio(sides.link, port, stdin=ours.fileno(), stdout=ours.fileno(), access=access)
            assert theirs.recv(100) == b"hellohello"
        near, far = await sides.both_closed()
        assert (near.sent_bytes, near.received_bytes) == (far.received_bytes, far.sent_bytes) == (5, 10)


async def test_a_connection_that_is_refused_is_not_told_as_one_that_opened() -> None:
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        port = placeholder.getsockname()[1]
    async with joined("tcp", port) as sides:
        async with await trio.open_tcp_stream(*sides.bind) as client:
            with pytest.raises(trio.BrokenResourceError):
                await client.receive_some()
        assert (sides.near, sides.far) == ([], [])


async def test_a_flow_of_datagrams_is_told_with_its_bytes_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunnel.ports import udp
    from tunnel.units import Seconds

    monkeypatch.setattr(udp, "idle_of", lambda _target: Seconds(0.4))
    with trio.socket.socket(type=socket.SOCK_DGRAM) as server, trio.socket.socket(type=socket.SOCK_DGRAM) as client:
        await server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        async with joined("udp", port) as sides:
            await client.sendto(os.urandom(700), sides.bind)
            data, address = await server.recvfrom(2_000)
            assert len(data) == 700
            for _ in range(2):
                await server.sendto(bytes(900), address)
                assert len(await client.recv(2_000)) == 900
            near, far = await sides.both_closed()
            assert near.target == far.target == f"udp/{port}"
            assert (near.sent_bytes, near.received_bytes) == (far.received_bytes, far.sent_bytes) == (700, 1_800)
