"""The sockets of a driver: those that it begins with, and those that punching asks for.

The latter are opened together on free ports, one task each, and closed as soon as the core says so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeAlias

import trio

from tunnel.doors.udp.socket import MAX_BATCH, UdpSocket, open_socket
from tunnel.errors import ConfigurationError
from tunnel.nat.technique import PoolSocket
from tunnel.node.pool import CloseSockets, OpenSockets
from tunnel.units import SocketId

LARGE_BATCH: Final = 2 * MAX_BATCH  # bytes received at once: see outbox.py
OpenSocket: TypeAlias = Callable[[str, int], UdpSocket]  # on a host and port
FIRST_ID: Final = 1_000  # of a pool socket; none is ever given twice
ANY_PORT: Final = 0


def open_large(host: str, port: int) -> UdpSocket:
    """A socket that receives much at once.  Raises ConfigurationError."""
    return open_socket(host, port, batch=LARGE_BATCH)


def open_all(bind: Iterable[str], opener: OpenSocket) -> list[UdpSocket]:
    """One for each address; a family that the machine lacks is left out.  Raises ConfigurationError where there is none."""
    found: list[UdpSocket] = []
    problem: ConfigurationError | None = None
    for host in bind:
        try:
            found.append(opener(host, 0))
        except ConfigurationError as error:
            problem = problem or error
    if not found:
        raise problem or ConfigurationError("There is no address to send from.")
    return found


def drops_of(socket: UdpSocket) -> dict[str, int]:
    """Return the socket's losses by reason, with those of the kernel."""
    drops = dict(socket.counters.errors)
    overruns = socket.overruns()
    if overruns:
        drops["overrun"] = drops.get("overrun", 0) + overruns
    return drops


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
