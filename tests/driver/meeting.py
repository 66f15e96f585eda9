"""What the tests of connect and expose share: a server, homes, events, and an echo behind every stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import trio

from tests.twins.udp import MemoryNetwork
from tunnel.setup.machine import MACHINE, Machine
from tunnel.setup.store import HomeStore
from tunnel.shell.endpoint import EndpointDriver
from tunnel.shell.events import CodeReady, Event
from tunnel.shell.link import Link
from tunnel.shell.serve import RunningServer, serve
from tunnel.shell.stream import TunnelStream

Entered = TypeVar("Entered")


class on(AbstractAsyncContextManager[Entered]):  # reads as `async with on(machine, tunnel.connect(...))`
    """A verb of the library that stands on another machine than this one."""

    def __init__(self, machine: Machine, verb: AbstractAsyncContextManager[Entered]) -> None:
        self._machine = machine
        self._verb = verb

    async def __aenter__(self) -> Entered:
        before = MACHINE.set(self._machine)
        try:
            return await self._verb.__aenter__()
        finally:
            MACHINE.reset(before)

    async def __aexit__(self, *problem: Any) -> bool | None:
        return await self._verb.__aexit__(*problem)


class Heard(list[Event]):
    """An on_event that remembers, and that can be waited on."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    async def wait(self, wanted: Callable[[Event], bool], *, after: int = 0) -> Event:
        while True:
            for event in self[after:]:
                if wanted(event):
                    return event
            await trio.sleep(0.01)

    async def code(self, *, after: int = 0) -> str:
        event = await self.wait(lambda event: isinstance(event, CodeReady), after=after)
        assert isinstance(event, CodeReady)
        return event.code


async def echo(link: Link) -> None:
    async def handle(stream: TunnelStream) -> None:
        while chunks := await stream.receive_chunks():
            for chunk in chunks:
                await stream.send_all(chunk)
        await stream.send_eof()

    await link.serve_streams(handle)


async def shout(link: Link, data: bytes) -> bytes:
    """What comes back for `data`."""
    answer = bytearray()
    async with trio.open_nursery() as nursery:
        stream = await link.open_stream(b"")

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        nursery.start_soon(send)
        while chunks := await stream.receive_chunks():
            for chunk in chunks:
                answer += chunk
    return bytes(answer)


@asynccontextmanager
async def a_server(**options: Any) -> AsyncIterator[str]:
    """host:port of a rendezvous server on loopback."""
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[RunningServer]) -> None:
            await serve([("127.0.0.1", 0)], task_status=task_status, **options)

        running: RunningServer = await nursery.start(run)
        yield str(running.addresses[0])
        nursery.cancel_scope.cancel()


def lone_driver(tmp_path: Path) -> EndpointDriver:
    """With a socket in memory, and nobody to talk to; the caller releases it."""
    network = MemoryNetwork(seed=1)
    return EndpointDriver(
        static_key=bytes(range(32)),
        name="home",
        peers=[],
        store=HomeStore(tmp_path, print),
        opener=lambda host, port: network.open_socket("198.18.0.1", port),
        bind=("0.0.0.0",),
        hosts=list,
    )


def homes(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "exposer", tmp_path / "connector"
