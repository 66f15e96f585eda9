"""A TCP server that is forwarded, over the twin of a link and over the core's own connection."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing

from tests.driver.core_link import CoreLinks
from tests.driver.fake_link import linked_pair
from tunnel.ports.serve import Exposed, Listeners
from tunnel.ports.spec import parse_forwards
from tunnel.ports.tcp import LINGER_RST

Handler = Callable[[trio.SocketStream], Awaitable[None]]


IS_CORE = {"core": False}  # which of the two carries, set for each test by the fixture


@pytest.fixture(autouse=True, params=["twin", "core"])
def carrier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(IS_CORE, "core", request.param == "core")
    return str(request.param)


class Bench:
    """A forwarded server: `connect()` reaches it through both sides of the forward."""

    def __init__(self, listeners: Listeners, exposed: Exposed, near: Any, notices: list[str]) -> None:
        self.listeners = listeners
        self.exposed = exposed
        self.near = near
        self.notices = notices
        self.port = int(listeners.ready[0].bind.rpartition(":")[2])

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)


@asynccontextmanager
async def forwarded(handler: Handler | None, *, granted: bool = True, target: int | str = 80) -> AsyncIterator[Bench]:
    """`handler` None: nothing listens at the granted port."""
    near: Any
    far: Any
    notices: list[str] = []
    async with trio.open_nursery() as nursery:
        if IS_CORE["core"]:
            links = CoreLinks()
            near, far = links.near, links.far
            nursery.start_soon(links.run)
        else:
            near, far = linked_pair()
        if handler is None:
            with socket.create_server(("127.0.0.1", 0)) as placeholder:
                port = placeholder.getsockname()[1]
        else:
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listener.socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, handler, [listener])
        exposed = Exposed(far, lambda _protocol, _target: ("127.0.0.1", port) if granted else None)
        nursery.start_soon(far.serve_streams, exposed.handle)
        with Listeners(parse_forwards([f"127.0.0.1:0:{target}"])) as listeners:
            bench = Bench(listeners, exposed, near, notices)

            async def serve() -> None:
                await listeners.serve(near, notice=notices.append)

            nursery.start_soon(serve)
            with trio.fail_after(20):
                yield bench
            nursery.cancel_scope.cancel()


async def read_until_reset(stream: trio.SocketStream) -> bytes:
    data = bytearray()
    try:
        async for chunk in stream:
            data += chunk
    except trio.BrokenResourceError:
        return bytes(data)
    raise AssertionError("this was an end of file")


async def echo(stream: trio.SocketStream) -> None:
    async with stream:
        async for chunk in stream:
            await stream.send_all(chunk)


async def until(condition: Callable[..., bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


def reset(stream: trio.SocketStream) -> None:
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RST)
    stream.socket.close()
