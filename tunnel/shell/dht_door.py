"""The DHT in the place of a server, under trio: entry nodes are looked up, and slow hashes computed beside everything else."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, cast

import trio

from tunnel.dht import checks, krpc
from tunnel.dht.route import DhtRoute
from tunnel.dht.stretch import Stretch, secret_of
from tunnel.doors.udp.socket import UdpSocket
from tunnel.faults import Faults
from tunnel.host.clock import unix_time
from tunnel.node.endpoint import Endpoint
from tunnel.server_spec import DHT
from tunnel.shell.dht import find_entry
from tunnel.units import Instant, SocketId

NOTICE: Final = "Meeting over the DHT: strangers' machines are asked, and see the address of this one."
MAX_HASHES: Final = 1  # slow hashes at a time: each takes 128 MB


class DhtDoor:
    """One for each driver that meets over the DHT."""

    def __init__(
        self,
        core: Endpoint,
        sockets: dict[SocketId, UdpSocket],
        bootstrap: str,
        *,
        clock: Callable[[], Instant],
        flush: Callable[[], None],
        faults: Faults,
        stretch: Callable[[Stretch], bytes] = secret_of,
    ) -> None:
        self._core = core
        self._sockets = sockets
        self._bootstrap = bootstrap
        self._clock = clock
        self._flush = flush
        self._faults = faults
        self._secret_of = stretch
        self._route: DhtRoute | None = None
        self._limit = trio.CapacityLimiter(MAX_HASHES)
        self.nursery: trio.Nursery | None = None  # while the driver runs

    async def open(self) -> None:
        """Enter the DHT.  Raises ConfigurationError, OfflineError, ServerUnreachableError."""
        entry = await find_entry(self._bootstrap)
        if self._core.has_server(DHT):
            return
        now = self._clock()
        self._route = DhtRoute(
            sockets={socket_id: socket.is_ipv6 for socket_id, socket in self._sockets.items()},
            entry=entry,
            now=now,
            entropy=os.urandom,
            unix_time=unix_time,
            order=self._begin,
        )
        self._core.add_client(now, DHT, cast("Any", self._route), (krpc.FIRST_BYTE, checks.FIRST_BYTE), NOTICE)
        self._flush()

    def _begin(self, order: Stretch) -> None:
        if self.nursery is not None:
            self.nursery.start_soon(self._stretch, order)

    async def _stretch(self, order: Stretch) -> None:
        with self._faults.wall("dht", "ended the meeting by a code"):
            secret = await trio.to_thread.run_sync(self._secret_of, order, limiter=self._limit, abandon_on_cancel=True)
            now = self._clock()
            if self._route is not None:
                self._route.stretched(now, order, secret)
                self._core.touch(now)
                self._flush()
