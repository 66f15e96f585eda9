"""The part of a connection to one peer that a forward uses; `tunnel.shell` has it, and so has the twin in the tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from tunnel.faults import Faults
from tunnel.shell.stream import StreamSink, StreamSource
from tunnel.units import Buffer

#: (protocol, target) -> where that is on the exposer's side, or None when it is not granted.  Asked for each stream and flow.
Allow: TypeAlias = Callable[[str, "int | str"], "tuple[str, int] | None"]

#: Takes one sentence for a person.
Notice: TypeAlias = Callable[[str], None]


class Stream(Protocol):
    """Reliable bytes both ways; each half ends by itself, in order (FIN) or not (RESET, STOP_SENDING)."""

    #: Called once, at once, when the peer resets or stops the stream or the connection closes; the code is a StreamCode.
    on_abort: Callable[[int], None] | None

    @property
    def before_flush(self) -> Callable[[Callable[[], None]], None]:
        """Has something called back once, before the next datagram leaves: for a sink, which must not send by itself."""

    async def wait_send_space(self) -> memoryview:
        """Room in the send buffer, never empty; valid until the next await."""

    async def pull(self, source: StreamSource) -> bool:
        """Send what `source` puts into the room it is given, until that is less than all; False, at once: that is of no use."""

    def send_space(self) -> memoryview:
        """The same at once; empty where wait_send_space would wait or raise."""

    def commit(self, count: int) -> None:
        """`count` bytes were written at the start of what wait_send_space gave."""

    async def receive_chunks(self, max_chunks: int = ..., sink: StreamSink | None = None) -> list[bytes]:
        """Return what arrived, in order; [] at the peer's FIN.  `sink` may take what arrives meanwhile; the rest is returned.

        What arrived before the peer's reset, or before the connection closed, comes before the error that says so.
        """

    async def send_all(self, data: Buffer) -> None: ...

    def finish(self) -> None:
        """FIN behind what was committed; the other direction goes on."""

    async def wait_acked(self) -> None:
        """Until the peer has acknowledged everything committed so far."""

    def reset(self, code: int) -> None:
        """Give up sending; nothing happens when the half has ended already."""

    def stop(self, code: int) -> None:
        """Give up receiving; nothing happens when the half has ended already."""

    async def aclose(self) -> None: ...


class Flows(Protocol):
    """Unreliable datagrams of up to 65,507 bytes, told apart by a 32-bit flow number."""

    def allocate(self) -> int:
        """A flow number that neither side uses."""

    def send(self, flow: int, batch: list[bytes]) -> int:
        """Queue them, to leave with the next `flush`.  How many were: none when the connection is gone."""

    def flush(self) -> None:
        """Send what was queued: once for a batch, so that it leaves as a burst."""

    @property
    def backlog(self) -> int:
        """Datagrams queued and not yet sent."""

    def register(self, flow: int, callback: Callable[[list[bytes]], None]) -> None:
        """`callback` gets what arrives of `flow`, as many at once as came at once."""

    def unregister(self, flow: int) -> None: ...


class Link(Protocol):
    """One connection to one peer."""

    @property
    def peer_name(self) -> str: ...

    @property
    def direct_remote(self) -> tuple[str, int] | None:
        """From where the peer's datagrams come, host and port; None over a relay, which does not tell."""

    @property
    def flows(self) -> Flows: ...

    @property
    def faults(self) -> Faults:
        """The fault walls around each connection and flow."""

    @property
    def hurry(self) -> Callable[[], None]:
        """Has turns be short for a moment, as somebody waits for the first bytes of a stream."""

    @property
    def can_open(self) -> bool:
        """Whether open_stream would wait for nothing."""

    async def open_stream(self, open_message: bytes) -> Stream:
        """A new stream with `open_message` as its first bytes; waits while the peer's stream limit is reached."""

    @property
    def close_reason(self) -> object:
        """Why the connection has ended; None while it has not."""

    async def closed(self) -> object:
        """Until the connection has ended."""
