"""The sockets that punching asks for: opened together on free ports, one task each, closed as soon as the core says so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from tunnel.doors.udp.socket import UdpSocket
from tunnel.errors import ConfigurationError
from tunnel.nat.technique import PoolSocket
from tunnel.node.pool import CloseSockets, OpenSockets
from tunnel.units import SocketId

FIRST_ID: Final = 1_000  # of a pool socket; none is ever given twice
ANY_PORT: Final = 0


class PoolSockets:
    """Adds to and takes from the driver's own table of sockets."""

    def __init__(self, sockets: dict[SocketId, UdpSocket], opener: Callable[[str, int], UdpSocket], host: str | None) -> None:
        """`host` is the IPv4 address to bind; None: there is no IPv4 here, and no pool."""
        self._sockets = sockets
        self._opener = opener
        self._host = host
        self._next = FIRST_ID
        self.opened = 0  # so far
        self.nursery: trio.Nursery | None = None  # while the driver runs

    @staticmethod
    def owns(socket_id: SocketId) -> bool:
        return socket_id >= FIRST_ID

    def fulfil(self, order: OpenSockets | CloseSockets, serve: Callable[[SocketId], Awaitable[None]]) -> list[PoolSocket] | None:
        """Do what the core ordered; returns the new sockets of OpenSockets, perhaps fewer than asked for."""
        match order:
            case OpenSockets(count):
                return self._open(count, serve)
            case CloseSockets(socket_ids):
                for socket_id in socket_ids:
                    socket = self._sockets.pop(socket_id, None)
                    if socket is not None:
                        socket.close()
        return None

    def _open(self, count: int, serve: Callable[[SocketId], Awaitable[None]]) -> list[PoolSocket]:
        found: list[PoolSocket] = []
        if self._host is None or self.nursery is None:
            return found
        for _ in range(count):
            try:
                socket = self._opener(self._host, ANY_PORT)
            except ConfigurationError:  # no descriptor is left: what there is has to do
                break
            socket_id = SocketId(self._next)
            self._next += 1
            self._sockets[socket_id] = socket
            found.append(PoolSocket(socket_id, socket.local_address.port))
            self.nursery.start_soon(serve, socket_id)
        self.opened += len(found)
        return found
