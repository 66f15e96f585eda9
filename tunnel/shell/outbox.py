"""From the core's bursts to the sockets: in as few calls as the kernel takes, and what would block is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import trio

from tunnel.doors.udp.socket import MAX_BATCH, MAX_SEGMENTS, UdpSocket
from tunnel.units import SocketId, Transmit

#: Bytes that the core fills at once, two calls' worth: it halves what a burst costs besides its datagrams.  Four cost as much as
#: they saved, as buffers of a quarter of a megabyte each way no longer fit the caches of small machines.
ROOM: Final = 2 * 65_536


class Outbox:
    """At most one burst is kept: while `is_blocked`, nothing more is to be put."""

    def __init__(self, sockets: Mapping[SocketId, UdpSocket]) -> None:
        self.room = bytearray(ROOM)
        self._sockets = sockets
        self._left: Transmit | None = None
        self._blocks = trio.Event()

    @property
    def is_blocked(self) -> bool:
        """Whether a burst waits for its socket."""
        return self._left is not None

    def forget(self) -> None:
        """Drop what waits to be sent."""
        self._left = None

    def put(self, burst: Transmit) -> None:
        """Send it; what is for a socket that is gone (of the pool) is lost like any datagram."""
        socket = self._sockets.get(burst.socket_id)
        if socket is None:
            return
        _, remote, size, buffer, ttl, ecn = burst
        step = length = len(buffer)
        if length > size:
            datagrams = -(-length // size)
            calls = -(-datagrams // min(MAX_SEGMENTS, max(1, MAX_BATCH // size)))
            step = size * -(-datagrams // calls)  # equal calls: see records.py
        for at in range(0, length, step):
            if not socket.send(remote, buffer[at : at + step], size, ttl, ecn):
                self._left = burst._replace(buffer=buffer[at:])
                self._blocks.set()
                return

    async def run(self, flush: Callable[[], None]) -> None:
        """Until cancelled.  Waits where a socket would block; all stands still meanwhile, as the kernel's queue is full."""
        while True:
            left = self._left
            if left is None:
                self._blocks = trio.Event()
                await self._blocks.wait()
                continue
            socket = self._sockets.get(left.socket_id)
            if socket is not None:
                try:
                    await socket.wait_writable()
                except trio.ClosedResourceError:
                    continue
            if self._left is left:
                self._left = None
                self.put(left)
            if self._left is None:
                flush()
