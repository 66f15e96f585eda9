"""Answers Prometheus over HTTP/1.1: GET /metrics, one answer a connection, all of it within limits.

Whoever connects costs one of a few connections for a few seconds.  When all are taken, the one that has waited longest without a
whole request gives way, so that nobody keeps Prometheus out.  Figures are made at most once in a moment, however many ask.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import h11
import trio

from tunnel.errors import ConfigurationError
from tunnel.faults import Faults
from tunnel.telemetry.metrics import CONTENT_TYPE, Exposition, Source
from tunnel.units import Address

PATH: Final = b"/metrics"
MAX_SCRAPERS: Final = 16  # connections at once; then the one that has waited longest for its request gives way
MAX_HEAD: Final = 8 * 1024  # bytes of a request's head
REQUEST_PATIENCE: Final = 10.0  # seconds for a whole request
ANSWER_PATIENCE: Final = 10.0  # seconds in which an answer has to be taken
FRESH: Final = 0.5  # seconds for which figures are given again: they cost some milliseconds of the loop that carries everything
SHED_PAUSE: Final = 0.2  # seconds of rest when no descriptor is left
BACKLOG: Final = 32  # connections that the kernel accepts before we do
READ_BYTES: Final = 4_096

HINT: Final = b"ptunnel: the figures are at /metrics.\n"
NOT_HERE: Final = b"ptunnel: this name is not mine. Ask for an address of this machine, or for localhost.\n"


def notice(addresses: Sequence[Address]) -> str:
    """A sentence for an operator whose figures others can read, or ""."""
    public = [each for each in addresses if not _is_loopback(each.host)]
    if not public:
        return ""
    return (
        f"Whoever reaches {public[0]} over TCP can read the figures: let your Prometheus alone through the firewall, or use "
        f"--metrics 127.0.0.1:{public[0].port}."
    )


async def open_scrapes(place: tuple[str, int], status: Source, faults: Faults) -> Scrapes:
    """Listen there, and give the figures of `status`, with those of the scrapes.  Raises ConfigurationError."""

    def with_scrapes() -> Mapping[str, Any]:
        found = status()
        ours = {f"scrape_{name}": count for name, count in scrapes.counts.items()}
        return {**found, "counters": {**found.get("counters", {}), **ours}}

    scrapes = Scrapes(Exposition(with_scrapes).text, faults)
    await scrapes.open(*place)
    return scrapes


class Scrapes:
    """The listening sockets and all connections to them."""

    def __init__(
        self,
        text: Callable[[], bytes],
        faults: Faults | None = None,
        *,
        request_patience: float = REQUEST_PATIENCE,
        answer_patience: float = ANSWER_PATIENCE,
    ) -> None:
        """`text` gives the figures as they are now."""
        self.addresses: list[Address] = []
        #: Scrapes that were answered, and reasons why others were not.
        self.counts: Counter[str] = Counter()
        self._text = text
        self._request_patience = request_patience
        self._answer_patience = answer_patience
        self._faults = Faults() if faults is None else faults
        self._listeners: list[trio.SocketListener] = []
        self._waiting: dict[trio.CancelScope, None] = {}  # for their request, who came first stands first
        self._connections = 0
        self._made: tuple[float, bytes] | None = None  # when, and what

    async def open(self, host: str, port: int) -> None:
        """Listen there.  Raises ConfigurationError."""
        try:
            self._listeners = await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
        except OSError as error:
            raise ConfigurationError(_sentence(host, port, error)) from None
        names = (each.socket.getsockname() for each in self._listeners)
        self.addresses = [Address(str(name[0]), int(name[1])) for name in names]

    async def close(self) -> None:
        """Of one that does not serve."""
        for each in self._listeners:
            await each.aclose()

    async def serve(self) -> None:
        """Until cancelled.  What goes wrong here ends one connection."""
        async with trio.open_nursery() as nursery:
            for listener in self._listeners:
                nursery.start_soon(self._accept, listener)

    async def _accept(self, listener: trio.SocketListener) -> None:
        async with listener, trio.open_nursery() as nursery:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as error:
                    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                        self.counts["descriptors"] += 1
                        self._displace()
                        await trio.sleep(SHED_PAUSE)
                    continue
                nursery.start_soon(self._run, stream)

    async def _run(self, stream: trio.SocketStream) -> None:
        try:
            with self._faults.wall("metrics", "ended a request for metrics"):
                if self._connections >= MAX_SCRAPERS and not self._displace():
                    self.counts["refused"] += 1
                    return
                self._connections += 1
                try:
                    await self._converse(stream)
                except trio.BrokenResourceError:
                    self.counts["gone"] += 1
                finally:
                    self._connections -= 1
        finally:
            await trio.aclose_forcefully(stream)

    def _displace(self) -> bool:
        """Whether somebody gave way."""
        oldest = next(iter(self._waiting), None)
        if oldest is None:
            return False
        del self._waiting[oldest]
        self.counts["displaced"] += 1
        oldest.cancel()
        return True

    async def _converse(self, stream: trio.SocketStream) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        scope = trio.CancelScope(deadline=trio.current_time() + self._request_patience)
        self._waiting[scope] = None
        answer = b""
        try:
            with scope:
                answer = self._answer(http, await _read(stream, http))
            self.counts["slow"] += scope.cancelled_caught and scope in self._waiting  # else it gave way
        finally:
            self._waiting.pop(scope, None)
        if answer:
            with trio.move_on_after(self._answer_patience) as patience:
                await stream.send_all(answer)
                await stream.send_eof()
            self.counts["untaken"] += patience.cancelled_caught

    def _answer(self, http: h11.Connection, asked: h11.Request | int | None) -> bytes:
        """The whole answer to a request, or to what is none (its status)."""
        if asked is None:
            self.counts["gone"] += 1
            return b""
        more: list[tuple[str, str]] = []
        if isinstance(asked, int):
            status, kind, body = asked, "text/plain", b""
        elif asked.method not in (b"GET", b"HEAD"):
            status, kind, body = 405, "text/plain", HINT
            more.append(("Allow", "GET, HEAD"))
        elif not self._is_ours(asked):
            status, kind, body = 421, "text/plain", NOT_HERE
        elif (path := asked.target.partition(b"?")[0]) == PATH:
            status, kind, body = 200, CONTENT_TYPE, self._figures()
        else:
            status, kind, body = 200 if path == b"/" else 404, "text/plain", HINT
        self.counts[f"status_{status}"] += 1
        fixed = [
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Connection", "close"),
        ]
        head = http.send(h11.Response(status_code=status, headers=fixed + more)) or b""
        is_bare = isinstance(asked, h11.Request) and asked.method == b"HEAD"
        return head if is_bare else head + body

    def _figures(self) -> bytes:
        now = trio.current_time()
        if self._made is None or now - self._made[0] >= FRESH:
            self._made = now, self._text()
        return self._made[1]

    def _is_ours(self, asked: h11.Request) -> bool:
        """A web page cannot read what is for this machine alone by giving its own name our address (DNS rebinding)."""
        if not all(_is_loopback(each.host) for each in self.addresses):
            return True
        named = next((value for name, value in asked.headers if name == b"host"), b"localhost").decode("latin-1")
        host = named.rpartition(":")[0] if ":" in named.rpartition("]")[2] else named
        return host == "localhost" or _is_address(host.strip("[]"))


async def _read(stream: trio.SocketStream, http: h11.Connection) -> h11.Request | int | None:
    """The head of a request; the status for what is none; None where nothing comes any more."""
    try:
        while True:
            event = http.next_event()
            if isinstance(event, h11.Request):
                return event
            if event is not h11.NEED_DATA:
                return None
            http.receive_data(await stream.receive_some(READ_BYTES))
    except h11.RemoteProtocolError as error:
        return int(error.error_status_hint)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def _sentence(host: str, port: int, error: OSError) -> str:
    where = Address(host, port)
    if isinstance(error, socket.gaierror):
        return f"--metrics: {host} is no known name: give an address of this machine."
    match error.errno:
        case errno.EADDRINUSE:
            return f"TCP port {port} of {host} is in use already: stop that program or choose another port for --metrics."
        case errno.EACCES | errno.EPERM:
            return f"You may not listen on TCP {where} as an ordinary user: choose a port above 1023 for --metrics."
        case errno.EADDRNOTAVAIL:
            return f"--metrics: {host} is not an address of this machine."
        case errno.EAFNOSUPPORT:
            return f"--metrics: this machine has no {'IPv6' if where.is_ipv6 else 'IPv4'}."
    return f"Cannot listen on TCP {where} for --metrics: {os.strerror(error.errno or 0)}."
