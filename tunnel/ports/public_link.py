"""A link as programs use it: beside streams of their own, the ports that the peer shares."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Final, Literal, TypeAlias

import trio

from tunnel.ends import read_rate
from tunnel.errors import ConfigurationError, MalformedPacket, UnreachableError
from tunnel.ports.link import Notice
from tunnel.ports.open import LENGTH_SIZE, Open, Reach, decode_open, decode_opened, encode, read_message
from tunnel.ports.rate import Limit, Rates
from tunnel.ports.refusals import refusal_error
from tunnel.ports.remote import Remote, parse_remotes
from tunnel.ports.serve import Listeners, Ready
from tunnel.ports.serve_link import serve_nothing
from tunnel.ports.spec import Forward, parse_door, parse_forwards, parse_target
from tunnel.ports.tcp import refuse
from tunnel.setup.common import single_error, words
from tunnel.shell.link import Link as DriverLink
from tunnel.shell.stream import StreamCode, StreamResetError, StreamStoppedError, TunnelStream

MAX_UNREAD: Final = 1_024  # datagrams of one flow that nobody has read yet; further ones are lost


@dataclass(frozen=True, slots=True)
class Forwarding:
    """A forward that runs: `addresses` on this machine ("127.0.0.1:2222") lead to the peer; `forwards` says where each does."""

    addresses: tuple[str, ...]
    forwards: tuple[Ready, ...]


class UdpFlow:
    """Datagrams to and from one UDP port of the peer, as one client of it.  A datagram may be lost, or overtaken by another."""

    def __init__(self, link: DriverLink, number: int) -> None:
        self.lost = 0  # datagrams that came while MAX_UNREAD were unread
        self._link = link
        self._number = number
        self._stream: TunnelStream | None = None
        self._arrived, self._unread = trio.open_memory_channel[bytes](MAX_UNREAD)

    async def send(self, data: bytes) -> None:
        """Up to 65,507 bytes.  Raises UnreachableError when the flow has ended; one that cannot leave just now is lost."""
        if self._stream is None:
            raise UnreachableError(f"The flow to {self._link.peer_name} has ended.")
        await trio.lowlevel.checkpoint()
        self._link.flows.send(self._number, [data])
        self._link.flows.flush()

    async def receive(self) -> bytes:
        """The next one.  Raises UnreachableError when the flow has ended: the other side ends one that is idle for minutes."""
        try:
            return await self._unread.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise UnreachableError(f"The flow to {self._link.peer_name} has ended.") from None

    async def aclose(self) -> None:
        """Give it up on both sides."""
        self._end()
        await trio.lowlevel.checkpoint()

    async def __aenter__(self) -> UdpFlow:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    def _take(self, batch: list[bytes]) -> None:
        for data in batch:
            try:
                self._arrived.send_nowait(data)
            except trio.WouldBlock:
                self.lost += 1

    def _end(self) -> None:
        stream, self._stream = self._stream, None
        self._link.flows.unregister(self._number)
        self._arrived.close()
        if stream is not None:
            stream.on_abort = None
            refuse(stream, StreamCode.CANCELLED)


class Link(DriverLink):
    """A link to one peer.  It heals by itself; `closed()` tells when it has ended for good."""

    async def open_tcp(self, target: int | str) -> TunnelStream:
        """A connection to a tcp port of the peer, or to what it exposes under a NAME ("nas", "nas:445").

        Waits while the peer is away: time-outs belong to the caller.  Raises RefusedError (nothing listens there),
        PermissionDeniedError (not shared with us), UnreachableError (the link has ended), ConfigurationError (no such target).
        """
        return await self._open("tcp", target)

    async def open_udp(self, target: int | str) -> UdpFlow:
        """The same for a udp port: a flow of datagrams, to be closed after use.  Raises as open_tcp."""
        flow = UdpFlow(self, self.flows.allocate())
        self.flows.register(flow._number, flow._take)
        try:
            stream = await self._open("udp", target, flow._number)
        except BaseException:
            flow._end()
            raise
        stream.on_abort = lambda _code: flow._end()
        flow._stream = stream
        return flow

    async def reach(self, host: str, port: int) -> TunnelStream:
        """A connection to a machine in a network that the peer shares: `host` is an address, or a name that is looked up there.

        Raises as open_tcp.
        """
        try:
            message = encode(Reach("tcp", host, port))
            decode_open(message[LENGTH_SIZE:])
        except MalformedPacket:
            raise ConfigurationError(f"{host[:80]!r} and port {port} are no place that can be reached.") from None
        return await self._opened(message, "tcp", f"{host}:{port}")

    @asynccontextmanager
    async def socks(self, spec: str, on_notice: Notice | None = None) -> AsyncIterator[Forwarding]:
        """While the block runs, a SOCKS 5 door leads to what the peer shares of its networks.

        `spec`: "1080", "0" for any free port, "unix:/PATH".  Raises ConfigurationError.
        """
        async with self._listening(parse_door(spec), on_notice, Rates()) as forwarding:
            yield forwarding

    @asynccontextmanager
    async def remote(
        self, *specs: str | int, on_notice: Notice | None = None, rate: str | float | None = None
    ) -> AsyncIterator[None]:
        """While the block runs, the peer listens for programs here, as `--remote` has it: "8080:3000".

        It is entered when the peer listens at all of them; where it refuses, `on_notice` is told why, and it is asked again.  The
        streams that the peer opens are answered meanwhile.  `rate`: as forward has it.
        Raises ConfigurationError, UnreachableError (the link has ended).
        """
        self._raise_if_closed()
        remotes = parse_remotes(words(specs))
        limit = None if rate is None else Limit(read_rate(str(rate)))
        left, is_ready = set(remotes), trio.Event()

        def ready(remote: Remote) -> None:
            left.discard(remote)
            if not left:
                is_ready.set()

        async def serve() -> None:
            await serve_nothing(self, remotes, ready=ready, notice=on_notice, limit=limit)
            if not is_ready.is_set():
                self._raise_if_closed()

        with single_error():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                await is_ready.wait()
                yield
                nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def forward(
        self, *specs: str | int, on_notice: Notice | None = None, rate: str | float | None = None
    ) -> AsyncIterator[Forwarding]:
        """While the block runs, local ports lead to the peer, as `--forward` has them: "2222:22", "0:53/udp", "1445:nas".

        A LOCAL of 0 is any free port.  `on_notice` is told, in a sentence each, what local programs could not be given.
        `rate`: bytes a second each way, of all of them together (10_000_000 or "10M").
        Raises ConfigurationError (no such forward, or the port is taken), UnreachableError (the link has ended).
        """
        rates = Rates(None if rate is None else read_rate(str(rate)))
        async with self._listening(parse_forwards(words(specs)), on_notice, rates) as forwarding:
            yield forwarding

    @asynccontextmanager
    async def _listening(self, forwards: list[Forward], on_notice: Notice | None, rates: Rates) -> AsyncIterator[Forwarding]:
        self._raise_if_closed()
        with Listeners(forwards) as listeners, single_error():
            ready = tuple(listeners.ready)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(listeners.serve, self, notice=on_notice, rates=rates))
                yield Forwarding(tuple(bind for each in ready for bind in each.binds), ready)
                nursery.cancel_scope.cancel()

    async def _open(self, kind: Literal["tcp", "udp"], target: int | str, flow: int = 0) -> TunnelStream:
        if not isinstance(target, int | str):
            raise ConfigurationError(f"{target!r} is neither a port nor a name: write 22, or the NAME that the peer exposes.")
        checked = parse_target(str(target))
        return await self._opened(encode(Open(kind, checked, flow)), kind, checked)

    async def _opened(self, message: bytes, kind: str, target: int | str) -> TunnelStream:
        stream = await self.open_stream(message)
        try:
            body, rest = await read_message(stream)
            decode_opened(body)
        except (StreamResetError, StreamStoppedError) as error:
            refuse(stream, StreamCode.CANCELLED)
            raise refusal_error(self.peer_name, kind, target, error.code) from None
        except BaseException:
            refuse(stream, StreamCode.CANCELLED)
            raise
        if rest:
            stream.push_back(b"".join(rest))
        return stream


LinkHandler: TypeAlias = Callable[[Link], Awaitable[None]]
