"""The DHT in the place of a server, under trio: entry nodes are looked up, and slow hashes computed beside everything else.

Every driver has a door, and few open it: what stands behind it is imported when they do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import trio

from tunnel.doors.udp.socket import UdpSocket
from tunnel.errors import ServerUnreachableError
from tunnel.faults import Faults
from tunnel.host.clock import unix_time
from tunnel.node.endpoint import Endpoint
from tunnel.server_spec import DHT
from tunnel.units import Address, Instant, SocketId

if TYPE_CHECKING:
    from tunnel.dht.route import DhtRoute
    from tunnel.dht.stretch import Stretch

NOTICE: Final = "Meeting over the DHT: strangers' machines are asked, and see the address of this one."
MAX_HASHES: Final = 1  # slow hashes at a time: each takes 128 MB
FIRST_SAVE: Final = 10.0  # seconds after the DHT was entered, before the nodes that answer are kept for the next start ...
SAVE_INTERVAL: Final = 3_600.0  # ... and then so often, and at the end


class NodeMemory(Protocol):
    """Where it is kept which nodes have answered."""

    def load(self) -> list[Address]:
        """Return those that answered in earlier runs."""

    def save(self, nodes: Sequence[Address]) -> None:
        """Remember those that answer now.  Must not wait for a disk for long."""


class DhtDoor:
    """One for each driver that meets over the DHT."""

    def __init__(
        self,
        core: Endpoint,
        sockets: dict[SocketId, UdpSocket],
        bootstrap: str,
        memory: NodeMemory | None = None,
        *,
        clock: Callable[[], Instant],
        flush: Callable[[], None],
        faults: Faults,
        stretch: Callable[[Stretch], bytes] | None = None,
    ) -> None:
        """`stretch` computes in the place of `dht.stretch.secret_of`."""
        self._core = core
        self._sockets = sockets
        self._bootstrap = bootstrap
        self._clock = clock
        self._flush = flush
        self._faults = faults
        self._memory = memory
        self._mapped: Mapping[SocketId, Address] = {}
        self._secret_of = stretch
        self._route: DhtRoute | None = None
        self._limit = trio.CapacityLimiter(MAX_HASHES)
        self._nursery: trio.Nursery | None = None  # while the driver runs
        self._runs = trio.Event()

    def start(self, nursery: trio.Nursery) -> None:
        """Everything that takes time goes on there."""
        self._nursery = nursery
        self._runs.set()

    async def open(self) -> None:
        """Enter the DHT; by nodes of an earlier run at once, and then by those that everybody begins at too.

        Raises ConfigurationError, OfflineError, ServerUnreachableError.
        """
        from tunnel.dht import checks, krpc
        from tunnel.dht.route import DhtRoute
        from tunnel.shell.dht import find_entry

        await self._runs.wait()
        saved: list[Address] = []
        if self._memory is not None:
            with self._faults.wall("state", "kept the nodes of the DHT from being read"):
                saved = self._memory.load()
        entry = [] if saved else await find_entry(self._bootstrap)
        if self._core.has_server(DHT):
            return
        now = self._clock()
        self._route = DhtRoute(
            sockets={socket_id: socket.is_ipv6 for socket_id, socket in self._sockets.items()},
            entry=entry,
            saved=saved,
            now=now,
            entropy=os.urandom,
            unix_time=unix_time,
            order=self._begin,
        )
        self._route.set_mapped(self._mapped)
        self._core.add_client(now, DHT, cast("Any", self._route), (krpc.FIRST_BYTE, checks.FIRST_BYTE), NOTICE)
        self._flush()
        assert self._nursery is not None
        if saved:
            self._nursery.start_soon(self._enter)
        self._nursery.start_soon(self._keep)

    def close(self) -> None:
        """The nodes that answer are kept for the next start."""
        nodes = self._nodes()
        if nodes and self._memory is not None:
            with self._faults.wall("state", "kept the nodes of the DHT from being remembered"):
                self._memory.save(nodes)

    def set_mapped(self, mapped: Mapping[SocketId, Address]) -> None:
        """Ports that the router maps to our sockets."""
        self._mapped = mapped
        if self._route is not None:
            self._route.set_mapped(mapped)

    async def _enter(self) -> None:
        """By the nodes that are set, as soon as their names are known; where none is, those of an earlier run have to do."""
        from tunnel.shell.dht import find_entry

        with self._faults.wall("dht", "kept the DHT from being entered by the nodes that are set"):
            try:
                entry = await find_entry(self._bootstrap)
            except ServerUnreachableError:
                return
            if self._route is not None:
                self._route.enter(self._clock(), entry)
                self._core.touch(self._clock())
                self._flush()

    async def _keep(self) -> None:
        """A process that is killed has kept what it knew."""
        pause = FIRST_SAVE
        while self._memory is not None:
            await trio.sleep(pause)
            pause = SAVE_INTERVAL
            nodes = self._nodes()
            with self._faults.wall("state", "kept the nodes of the DHT from being remembered"):
                if nodes:
                    await trio.to_thread.run_sync(self._memory.save, nodes, abandon_on_cancel=True)

    def _nodes(self) -> list[Address]:
        if self._route is None:
            return []
        from tunnel.dht.client import MAX_SAVED

        return self._route.nodes(MAX_SAVED)

    def _begin(self, order: Stretch) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(self._stretch, order)

    async def _stretch(self, order: Stretch) -> None:
        from tunnel.dht.stretch import secret_of

        compute = secret_of if self._secret_of is None else self._secret_of
        with self._faults.wall("dht", "ended the meeting by a code"):
            secret = await trio.to_thread.run_sync(compute, order, limiter=self._limit, abandon_on_cancel=True)
            now = self._clock()
            if self._route is not None:
                self._route.stretched(now, order, secret)
                self._core.touch(now)
                self._flush()
