"""Routes to servers beside UDP, for as long as the core wants them: opened, verified, and opened again when they end.

A kind of route is one line in ROUTES.  Where there are several, they are tried in turn.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from tunnel.doors.udp.socket import UdpSocket
from tunnel.errors import ServerUnreachableError
from tunnel.faults import Faults, Wall
from tunnel.node.pool import CloseRoute, OpenRoute
from tunnel.server_spec import TlsOptions, members, parse_server
from tunnel.units import Address, SocketId

if TYPE_CHECKING:
    from tunnel.doors.tls.client import TlsSocket

FIRST_ID: Final = 100  # socket ids; each is given to one server at a time
MAX_ROUTES: Final = 800  # servers at once, so that the ids stay below those of the pool
FIRST_PAUSE: Final = 0.5  # seconds before an attempt that failed is repeated, doubled each time ...
LONGEST_PAUSE: Final = 20.0  # ... up to this
STEADY: Final = 5.0  # seconds that a connection has to last before it counts as good


class Route(NamedTuple):
    """A kind.  `dial` connects to the host of a server; it raises ServerUnreachableError with a sentence."""

    key: str  # in the name of its counters, before the address
    words: str  # for a person: everything goes over ...
    is_allowed: Callable[[TlsOptions], bool]  # by what is said of the server
    dial: Callable[[str, TlsOptions], Awaitable[TlsSocket]]


async def _dial_tls(host: str, options: TlsOptions) -> TlsSocket:
    from tunnel.doors.tls.client import dial  # here, as few need it

    assert options.port is not None
    return await dial(host, options.port, options.fingerprint)


ROUTES: Final = (Route("tls", "TLS on TCP", lambda options: options.port is not None, _dial_tls),)


class _Open:
    """One order to open, until it is taken back."""

    def __init__(self, name: str, socket_id: SocketId) -> None:
        self.name = name
        self.socket_id = socket_id
        self.scope = trio.CancelScope()
        self.attempt = trio.CancelScope()
        self.is_good = False  # the last connection: then the next one is of the same kind


class Routes:
    """One connection a server.  Everything the core has to hear goes through `up` and `down`."""

    def __init__(
        self,
        sockets: dict[SocketId, UdpSocket],
        *,
        options: Callable[[str], TlsOptions],
        serve: Callable[[SocketId], Awaitable[None]],
        up: Callable[[str, SocketId, Address, str], None],
        down: Callable[[SocketId], None],
        faults: Faults,
        kinds: Sequence[Route] = ROUTES,
    ) -> None:
        """`sockets` is the driver's own table; `serve` receives from one of them until it is closed."""
        self._kinds = kinds
        self._sockets = sockets
        self._options = options
        self._serve = serve
        self._up = up
        self._down = down
        self._faults = faults
        self._doors: dict[SocketId, _Open] = {}
        self._names: dict[SocketId, str] = {}  # of those that stand
        self.nursery: trio.Nursery | None = None  # while the driver runs
        #: Why the last attempt failed, as `over TLS on TCP: ...`, by server; nothing while there is a connection.
        self.troubles: dict[str, str] = {}

    def allows(self, server: str) -> bool:
        """Whether there is any to that server."""
        return bool(self._ways(server))

    def _ways(self, server: str) -> list[tuple[Route, str]]:
        """All kinds of routes, and of several servers to each."""
        several = members(server, "server")
        return [(kind, each) for each in several for kind in self._kinds if kind.is_allowed(self._options(each))]

    def name_of(self, socket_id: SocketId) -> str | None:
        """How its counters are called."""
        return self._names.get(socket_id)

    def fulfil(self, order: OpenRoute | CloseRoute) -> None:
        if isinstance(order, CloseRoute):
            for door in self._doors.values():
                if door.name == order.server:
                    door.scope.cancel()
        elif self.nursery is not None and len(self._doors) < MAX_ROUTES:
            socket_id = next(SocketId(id_) for id_ in range(FIRST_ID, FIRST_ID + MAX_ROUTES) if id_ not in self._doors)
            door = self._doors[socket_id] = _Open(order.server, socket_id)
            self.nursery.start_soon(self._run, door)

    def network_changed(self) -> None:
        """Connect anew at once: a connection may hang on an address that is gone."""
        for door in self._doors.values():
            door.attempt.cancel()

    def server_moved(self, name: str) -> None:
        """Its name leads elsewhere now, and where it led nobody answers."""
        for door in self._doors.values():
            if door.name == name:
                door.attempt.cancel()

    async def _run(self, door: _Open) -> None:
        pause, number = FIRST_PAUSE, 0
        try:
            with door.scope:
                while True:
                    begun = trio.current_time()
                    ways = self._ways(door.name)
                    door.is_good = False
                    with trio.CancelScope() as door.attempt, self._wall(door):
                        if ways:
                            await self._connect(door, *ways[number % len(ways)])
                    if door.attempt.cancelled_caught or trio.current_time() - begun >= STEADY:
                        pause = FIRST_PAUSE
                    if door.attempt.cancelled_caught:
                        continue
                    if not door.is_good:
                        number += 1
                        if ways and number % len(ways):
                            continue
                    with trio.CancelScope() as door.attempt:
                        await trio.sleep(pause)
                    pause = FIRST_PAUSE if door.attempt.cancelled_caught else min(2 * pause, LONGEST_PAUSE)
        finally:
            del self._doors[door.socket_id]
            self.troubles.pop(door.name, None)

    def _wall(self, door: _Open) -> Wall:
        return self._faults.wall("tls", f"ended a TLS connection to the server {parse_server(door.name)[0]}")

    async def _connect(self, door: _Open, kind: Route, server: str) -> None:
        """One connection from its beginning to its end."""
        try:
            socket = await kind.dial(parse_server(server)[0], self._options(server))
        except ServerUnreachableError as error:
            self.troubles[door.name] = f"over {kind.words}: {error}"
            return
        self.troubles.pop(door.name, None)
        await self._use(door, kind, socket)

    async def _use(self, door: _Open, kind: Route, socket: TlsSocket) -> None:
        stands = trio.current_time()
        self._sockets[door.socket_id] = socket
        self._names[door.socket_id] = f"{kind.key} {socket.remote}"
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(socket.run_writer)
                self._up(door.name, door.socket_id, socket.remote, kind.words)
                await self._serve(door.socket_id)
                nursery.cancel_scope.cancel()
        finally:
            door.is_good = trio.current_time() - stands >= STEADY
            if self._sockets.get(door.socket_id) is socket:
                del self._sockets[door.socket_id]
                del self._names[door.socket_id]
            socket.close()
            self._down(door.socket_id)
