"""IP packets of one link: bursts from the connection's sealer to the socket, past the endpoint's queue; received runs to a sink.

There is no queue here.  A socket that would block keeps its burst, and whoever reads the interface waits meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio

from tunnel.doors.udp.socket import UdpSocket
from tunnel.faults import Faults
from tunnel.transport.connection.packets import PACKET_ROOM, PacketBurst, PacketRun, PacketSealer, PacketSink
from tunnel.transport.packet.frames import PACKET_PARTIAL
from tunnel.units import SocketId, Transmit

__all__ = ["PACKET_PARTIAL", "PACKET_ROOM", "PacketBurst", "PacketDoor", "PacketRun", "PacketSealer", "PacketSink"]


class PacketDoor:
    """Shared by all links of a driver: its sockets, for bursts that are sealed already."""

    def __init__(self, sockets: Mapping[SocketId, UdpSocket], flush: Callable[[], None], faults: Faults | None = None) -> None:
        self._sockets = sockets
        self._faults = Faults() if faults is None else faults
        self.flush = flush  # what connections have to send besides, such as a PING; mostly that is nothing
        self.after_receive: Callable[[], None] | None = None
        self._ports: set[int] = set()
        self._ports_of = 0  # sockets that `_ports` was made of

    def emptied(self) -> None:
        """A socket was read until nothing was left."""
        if self.after_receive is not None:
            try:
                self.after_receive()
            except Exception as error:
                self._faults.note("interface", "kept a packet from the interface", error)

    def is_ours(self, port: int) -> bool:
        """Whether one of our sockets has this local UDP port: a datagram from it is a tunnel's own."""
        if len(self._sockets) != self._ports_of:
            self._ports_of = len(self._sockets)
            self._ports = {socket.local_address.port for socket in self._sockets.values()}
        return port in self._ports

    def send(self, burst: Transmit) -> bool:
        """False when the socket would block: wait_writable, then call again with the same burst."""
        socket = self._sockets.get(burst.socket_id)
        if socket is None:
            return True  # of the pool, and closed meanwhile: lost like any datagram
        return socket.send(burst.remote, burst.buffer, burst.segment_size, burst.ttl, burst.ecn)

    async def wait_writable(self, burst: Transmit) -> None:
        socket = self._sockets.get(burst.socket_id)
        if socket is not None:
            try:
                await socket.wait_writable()
            except trio.ClosedResourceError:
                return
