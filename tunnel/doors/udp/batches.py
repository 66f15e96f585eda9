"""Sockets from the point of view of whoever hears from thousands: all that has come at once, and all answers at once.

Where the system has no calls for that (see many.py), a socket that moves one batch a call does the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeAlias, cast

from tunnel.doors.udp.socket import LocalTeller, ReceivedBatch, UdpSocket
from tunnel.units import Address, Buffer, SocketId

Letter: TypeAlias = tuple[SocketId, Address, bytes]  # one datagram; which socket it is for has been looked at


class BatchSocket(Protocol):
    """One bound UDP socket, for the loop of a server."""

    @property
    def local_address(self) -> Address: ...

    def receive_many(self) -> list[ReceivedBatch]:
        """All that has come, of any senders; empty when there is nothing.  The buffers are good until the next call."""

    @property
    def is_drained(self) -> bool:
        """Whether nothing was left when that was received."""

    def post(self, remote: Address, buffer: Buffer, segment_size: int, ecn: int = 0, source: str = "") -> bool:
        """Take it for the next deliver(), or send it at once; `buffer` may change then.  False: would block, see deliver().

        `source` as in LocalTeller.send.
        """

    def post_all(self, letters: Iterable[Letter], source: str = "") -> int:
        """Post each of them; returns how many it has no place for."""

    def deliver(self) -> bool:
        """Send what was posted.  False: would block; wait_writable, and call again, or give_up."""

    def give_up(self) -> int:
        """Forget what was posted and has not left; how many datagrams that was."""

    async def wait_readable(self) -> None: ...

    async def wait_writable(self) -> None: ...


class OneByOne:
    """Any other socket, used like one of these."""

    is_drained = False

    def __init__(self, udp: UdpSocket) -> None:
        self._udp = udp

    @property
    def local_address(self) -> Address:
        return self._udp.local_address

    def receive_many(self) -> list[ReceivedBatch]:
        batch = self._udp.receive()
        self.is_drained = batch is None
        return [] if batch is None else [batch]

    def post(self, remote: Address, buffer: Buffer, segment_size: int, ecn: int = 0, source: str = "") -> bool:
        """It leaves at once.  `source`: only from a socket that tells such addresses."""
        if source:
            return cast(LocalTeller, self._udp).send(remote, memoryview(buffer), segment_size, None, ecn, source)
        return self._udp.send(remote, memoryview(buffer), segment_size, None, ecn)

    def post_all(self, letters: Iterable[Letter], source: str = "") -> int:
        return sum([not self.post(remote, data, len(data), 0, source) for _, remote, data in letters])

    def deliver(self) -> bool:
        return True

    def give_up(self) -> int:
        return 0

    async def wait_readable(self) -> None:
        await self._udp.wait_readable()

    async def wait_writable(self) -> None:
        await self._udp.wait_writable()


def by_batches(udp: UdpSocket) -> BatchSocket:
    """That socket, or one around it that does the same with one call a datagram."""
    return cast(BatchSocket, udp) if hasattr(udp, "receive_many") else OneByOne(udp)
