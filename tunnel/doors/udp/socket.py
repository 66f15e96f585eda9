"""The interface of every UDP socket, whatever the system; `open_socket` picks the best kind there is.

The unit of work is a batch: one address, one buffer, equal segments of which the last may be shorter.
"""

from __future__ import annotations

import sys
from typing import Protocol

from tunnel.units import Address, ReceivedBatch, UdpCounters

__all__ = ["MAX_BATCH", "LocalTeller", "MAX_SEGMENTS", "ReceivedBatch", "UdpCounters", "UdpSocket", "open_socket"]

#: Segments of one send: what every kernel with UDP_SEGMENT takes (UDP_MAX_SEGMENTS before Linux 6.9).
MAX_SEGMENTS = 64
#: Bytes of one send, whether one datagram or many: 65,535 less the IPv4 and UDP headers.
MAX_BATCH = 65_507


class UdpSocket(Protocol):
    """One bound, non-blocking UDP socket."""

    @property
    def local_address(self) -> Address:
        """Where it is bound; the port is the real one, the host may be a wildcard."""

    @property
    def is_ipv6(self) -> bool:
        """Whether it speaks IPv6 (a dual-stack one speaks both)."""

    @property
    def receive_buffer(self) -> int:
        """Bytes of payload the kernel holds for us while we are busy, as granted (not as asked for)."""

    @property
    def counters(self) -> UdpCounters: ...

    def fileno(self) -> int: ...

    def send(self, remote: Address, buffer: memoryview, segment_size: int, ttl: int | None = None, ecn: int = 0) -> bool:
        """Send `buffer` as datagrams of `segment_size` bytes; at most MAX_SEGMENTS and MAX_BATCH bytes.

        False means: would block; wait_writable, then call again with the same arguments (what an incomplete
        call already sent is remembered and left out).  True means sent, or dropped and counted: UDP promises no more.
        """

    def receive(self) -> ReceivedBatch | None:
        """The next batch, or None when there is none now: call until None, then wait_readable."""

    def overruns(self) -> int:
        """Datagrams that the system threw away because our receive buffer was full."""

    async def wait_readable(self) -> None: ...

    async def wait_writable(self) -> None: ...

    def close(self) -> None:
        """Close now; a task that waits on the socket gets trio.ClosedResourceError."""


class LocalTeller(UdpSocket, Protocol):
    """A socket whose batches say which address of ours was asked (ReceivedBatch.local), and that can answer from there."""

    def send(
        self, remote: Address, buffer: memoryview, segment_size: int, ttl: int | None = None, ecn: int = 0, source: str = ""
    ) -> bool:
        """As UdpSocket.send; `source` is the address of ours to send from, empty where the system shall choose."""


def open_socket(
    host: str,
    port: int,
    *,
    reuse: bool = False,
    dual_stack: bool = False,
    batch: int = MAX_BATCH,
    tells_local: bool = False,
    many: bool = False,
) -> UdpSocket:
    """Bind a socket to a numeric host and a port (0: any free one).

    `reuse` lets several processes share the port (SO_REUSEPORT); `dual_stack` lets an IPv6 socket speak IPv4 too.
    `batch` is how many bytes one receive may bring (fewer, where the system has no batches): whoever sends on what it received in
    one call leaves it at MAX_BATCH.  `tells_local`: a socket bound to a wildcard says in ReceivedBatch.local which address was
    asked, so that the answer can leave from there; Linux only.  `many`: for whoever hears from thousands, see many.py.
    Raises ConfigurationError with a sentence when the address cannot be bound.
    """
    if sys.platform == "linux" and many:
        from tunnel.doors.udp.many import ManySocket
        from tunnel.doors.udp.mmsg import IS_THERE

        if IS_THERE:
            return ManySocket(host, port, reuse=reuse, tells_local=tells_local)
    if sys.platform == "linux":
        from tunnel.doors.udp.linux import LinuxSocket

        return LinuxSocket(host, port, reuse=reuse, dual_stack=dual_stack, batch=batch, tells_local=tells_local)
    from tunnel.doors.udp.plain import PlainSocket

    return PlainSocket(host, port, reuse=reuse, dual_stack=dual_stack)
