"""A page over memory and its browser: what the tests of the page share."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing

from tests.twins.home import TwinHome, offer
from tunnel.faults import Faults
from tunnel.page.gate import Gate, token_of
from tunnel.page.place import read_place
from tunnel.page.server import Page

PLACE = read_place("127.0.0.1:24580")
HOST = b"Host: 127.0.0.1:24580\r\n"
TOKEN = token_of(b"a secret of this home, of 32 bytes")
KEY = b"Authorization: Bearer " + TOKEN.encode() + b"\r\n"
EVENTS = b"GET /events HTTP/1.1\r\n" + HOST + KEY + b"\r\n"


def page_of(home: TwinHome | None = None) -> Page:
    return Page(home or TwinHome(), offer, Gate(PLACE, TOKEN), Faults())


def do(action: Any, *, head: bytes = HOST + KEY) -> bytes:
    body = action if isinstance(action, bytes) else json.dumps(action).encode()
    fields = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    return b"POST /do HTTP/1.1\r\n" + head + fields + body


def get(path: str, *, head: bytes = HOST) -> bytes:
    return f"GET {path} HTTP/1.1\r\n".encode() + head + b"\r\n"


class Browser:
    """The client's end of a connection."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.data = b""

    async def take(self, count: int) -> bytes:
        while len(self.data) < count:
            more = await self.stream.receive_some(65536)
            assert more, f"closed after {self.data!r}"
            self.data += more
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    async def take_until(self, mark: bytes) -> bytes:
        while mark not in self.data:
            more = await self.stream.receive_some(65536)
            assert more, f"closed after {self.data!r}"
            self.data += more
        return await self.take(self.data.index(mark) + len(mark))

    async def answer(self) -> tuple[int, str, bytes]:
        """Status, head, body."""
        head = (await self.take_until(b"\r\n\r\n")).decode()
        found = re.search(r"^content-length: (\d+)", head, re.MULTILINE | re.IGNORECASE)
        return int(head.split()[1]), head, await self.take(int(found[1])) if found else b""

    async def ask(self, request: bytes) -> tuple[int, str, bytes]:
        await self.stream.send_all(request)
        return await self.answer()

    async def state(self) -> dict[str, Any]:
        """The next event of the stream."""
        await self.take_until(b"data: ")
        found: dict[str, Any] = json.loads(await self.take_until(b"\n\n"))
        return found

    async def wait_closed(self) -> None:
        try:
            while await self.stream.receive_some(65536):
                pass
        except trio.BrokenResourceError:
            pass


def browse(page: Page, nursery: trio.Nursery, *, lockstep: bool = False) -> Browser:
    """A connection over memory, so that the clock can be the test's."""
    near, far = trio.testing.lockstep_stream_pair() if lockstep else trio.testing.memory_stream_pair()
    guest = page.admit()
    assert guest is not None
    nursery.start_soon(page.serve, far, guest)
    return Browser(near)


@asynccontextmanager
async def running(page: Page) -> AsyncIterator[trio.Nursery]:
    """With whatever keeps streams up to date, until the block ends."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(page.look)
        with trio.fail_after(600):  # of the test's clock, or a generous while of the real one
            yield nursery
        nursery.cancel_scope.cancel()
