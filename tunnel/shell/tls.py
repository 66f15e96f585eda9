"""TLS connections to servers, for as long as the core wants them: opened, verified, and opened again when they end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from tunnel.doors.tls.client import TlsSocket, dial
from tunnel.doors.udp.socket import UdpSocket
from tunnel.errors import ServerUnreachableError
from tunnel.faults import Faults, Wall
from tunnel.node import CloseTls, OpenTls
from tunnel.server_spec import TlsOptions, parse_server
from tunnel.units import Address, SocketId

FIRST_ID: Final = 100  # socket ids; each is given to one server at a time
MAX_DOORS: Final = 800  # servers at once, so that the ids stay below those of the pool
FIRST_PAUSE: Final = 0.5  # seconds before an attempt that failed is repeated, doubled each time ...
LONGEST_PAUSE: Final = 20.0  # ... up to this
STEADY: Final = 5.0  # seconds that a connection has to last before it counts as good


class _Door:
    """One order to open, until it is taken back."""

    def __init__(self, name: str, socket_id: SocketId) -> None:
        self.name = name
        self.socket_id = socket_id
        self.scope = trio.CancelScope()
        self.attempt = trio.CancelScope()


class TlsDoors:
    """One connection a server.  Everything the core has to hear goes through `up` and `down`."""

    def __init__(
        self,
        sockets: dict[SocketId, UdpSocket],
        *,
        options: Callable[[str], TlsOptions],
        serve: Callable[[SocketId], Awaitable[None]],
        up: Callable[[str, SocketId, Address], None],
        down: Callable[[SocketId], None],
        faults: Faults,
    ) -> None:
        """`sockets` is the driver's own table; `serve` receives from one of them until it is closed."""
        self._sockets = sockets
        self._options = options
        self._serve = serve
        self._up = up
        self._down = down
        self._faults = faults
        self._doors: dict[SocketId, _Door] = {}
        self.nursery: trio.Nursery | None = None  # while the driver runs
        #: Why the last attempt failed, in a sentence, by server; nothing while there is a connection.
        self.troubles: dict[str, str] = {}

    def fulfil(self, order: OpenTls | CloseTls) -> None:
        if isinstance(order, CloseTls):
            for door in self._doors.values():
                if door.name == order.server:
                    door.scope.cancel()
        elif self.nursery is not None and len(self._doors) < MAX_DOORS:
            socket_id = next(SocketId(id_) for id_ in range(FIRST_ID, FIRST_ID + MAX_DOORS) if id_ not in self._doors)
            door = self._doors[socket_id] = _Door(order.server, socket_id)
            self.nursery.start_soon(self._run, door)

    def network_changed(self) -> None:
        """What stands may hang on an address that is gone: connect anew, at once."""
        for door in self._doors.values():
            door.attempt.cancel()

    def server_moved(self, name: str) -> None:
        """Its name leads elsewhere now, and where it led nobody answers."""
        for door in self._doors.values():
            if door.name == name:
                door.attempt.cancel()

    async def _run(self, door: _Door) -> None:
        pause = FIRST_PAUSE
        try:
            with door.scope:
                while True:
                    begun = trio.current_time()
                    with trio.CancelScope() as door.attempt, self._wall(door):
                        await self._connect(door)
                    if door.attempt.cancelled_caught or trio.current_time() - begun >= STEADY:
                        pause = FIRST_PAUSE
                    if door.attempt.cancelled_caught:
                        continue
                    with trio.CancelScope() as door.attempt:
                        await trio.sleep(pause)
                    pause = FIRST_PAUSE if door.attempt.cancelled_caught else min(2 * pause, LONGEST_PAUSE)
        finally:
            del self._doors[door.socket_id]
            self.troubles.pop(door.name, None)

    def _wall(self, door: _Door) -> Wall:
        return self._faults.wall("tls", f"ended a TLS connection to the server {parse_server(door.name)[0]}")

    async def _connect(self, door: _Door) -> None:
        """One connection from its beginning to its end."""
        options = self._options(door.name)
        try:
            if options.port is None:
                return
            socket = await dial(parse_server(door.name)[0], options.port, options.fingerprint)
        except ServerUnreachableError as error:
            self.troubles[door.name] = str(error)
            return
        self.troubles.pop(door.name, None)
        await self._use(door, socket)

    async def _use(self, door: _Door, socket: TlsSocket) -> None:
        self._sockets[door.socket_id] = socket
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(socket.run_writer)
                self._up(door.name, door.socket_id, socket.remote)
                await self._serve(door.socket_id)
                nursery.cancel_scope.cancel()
        finally:
            if self._sockets.get(door.socket_id) is socket:
                del self._sockets[door.socket_id]
            socket.close()
            self._down(door.socket_id)
