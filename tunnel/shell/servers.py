"""The servers of a driver: their names are looked up, and again for as long as nobody answers where they led before."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeAlias

import trio

from tunnel.errors import ServerUnreachableError
from tunnel.node.endpoint import Endpoint
from tunnel.server_spec import DHT, parse_server
from tunnel.shell.dht_door import DhtDoor
from tunnel.shell.places import resolve_server
from tunnel.units import Address, Instant

NO_NODES: Final = (
    "No node of the DHT answers: this network blocks UDP, or those that are asked first are gone (dht_bootstrap in config.toml "
    "names others)."
)
FIRST_LOOK: Final = 2.0  # seconds after which the name of a server that does not answer is looked up again, doubled each time ...
#: Where a server is now.  Raises ServerUnreachableError.
Lookup: TypeAlias = Callable[[], Awaitable[list[Address]]]
LONGEST_LOOK: Final = 60.0  # ... up to this, as long as the names of homes are commonly kept by others


class Servers:
    """Adds servers to the core by name, and moves them when their names lead elsewhere."""

    def __init__(
        self,
        core: Endpoint,
        *,
        clock: Callable[[], Instant],
        flush: Callable[[], None],
        access_token: bytes,
        has_route: Callable[[str], bool],
        moved: Callable[[str], None],
        trouble: Callable[[str], str | None],
        dht: DhtDoor,
    ) -> None:
        """`has_route`: a server may be reached by another route than UDP; `trouble` says why it is not.

        `moved` hears of a name that leads elsewhere.
        """
        self._core = core
        self._clock = clock
        self._flush = flush
        self._access_token = access_token
        self._has_route = has_route
        self._moved = moved
        self._trouble = trouble
        self._dht = dht
        self._where: dict[str, list[Address]] = {}
        self._lookups: dict[str, Lookup] = {}
        self._added = trio.Event()
        self._changed = trio.Event()
        self._network = 0  # how often it has changed

    def changed(self) -> None:
        """A server has answered, or fallen silent."""
        self._changed.set()
        self._changed = trio.Event()

    def network_changed(self) -> None:
        """Names may lead elsewhere from here."""
        self._network += 1
        self.changed()

    async def add(self, name: str, lookup: Lookup | None = None) -> None:
        """Resolve and greet a rendezvous server; `lookup` finds it where its name does not.

        Raises ConfigurationError, ServerUnreachableError (unknown name).
        """
        if self._core.has_server(name):
            return
        if name == DHT:
            await self._dht.open()
            self._note_added()
            return
        if lookup is None:
            lookup = partial(resolve_server, name)
            if not _is_address(parse_server(name, "server")[0]):
                self._lookups[name] = lookup
        else:
            self._lookups[name] = lookup
        addresses = await lookup()
        if not self._core.has_server(name):
            has_fallback = self._has_route(name)
            self._core.add_server(self._clock(), name, addresses, self._access_token, has_fallback=has_fallback)
            self._where[name] = addresses
            self._note_added()
        self._flush()

    def _note_added(self) -> None:
        self._added.set()
        self._added = trio.Event()

    async def wait_added(self, name: str) -> None:
        """Until somebody's `add` of it has come about."""
        while not self._core.has_server(name):
            await self._added.wait()

    def move(self, name: str, addresses: list[Address]) -> None:
        """The server is reached there from now on, whatever its name says."""
        if self._core.has_server(name):
            self._lookups.pop(name, None)
            self._where[name] = addresses
            self._core.move_server(self._clock(), name, addresses)
            self._flush()

    async def wait_reached(self, name: str, patience: float = math.inf) -> None:
        """Until the server has answered.  Raises ServerUnreachableError after `patience` seconds."""
        with trio.move_on_after(patience):
            while not self._core.is_reached(name):
                await self._changed.wait()
            return
        if name == DHT:
            raise ServerUnreachableError(NO_NODES)
        host, port = parse_server(name, "server")
        text = f"No ptunnel server answers at {host}, UDP port {port}: is 'ptunnel serve' running there, or a firewall between?"
        trouble = self._trouble(name)
        raise ServerUnreachableError(text if trouble is None else f"{text} Nor {trouble}")

    async def run(self) -> None:
        """Until cancelled."""
        followed: set[str] = set()
        async with trio.open_nursery() as nursery:
            self._dht.nursery = nursery
            while True:
                for name in (self._where.keys() & self._lookups.keys()) - followed:
                    followed.add(name)
                    nursery.start_soon(self._follow, name)
                await self._added.wait()

    async def _follow(self, name: str) -> None:
        pause, look_at, network = FIRST_LOOK, math.inf, self._network
        while True:
            now = trio.current_time()
            if self._core.is_reached(name):
                pause, look_at = FIRST_LOOK, math.inf
            elif self._network != network:
                pause, look_at = FIRST_LOOK, now
            elif look_at == math.inf:
                look_at = now + pause
            network = self._network
            if now >= look_at:
                await self._look(name)
                look_at = trio.current_time() + pause
                pause = min(2 * pause, LONGEST_LOOK)
            with trio.CancelScope(deadline=look_at):
                await self._changed.wait()

    async def _look(self, name: str) -> None:
        try:
            addresses = await self._lookups[name]()
        except ServerUnreachableError:
            return  # what we know may still be right
        if set(addresses) != set(self._where[name]):
            self._where[name] = addresses
            self._core.move_server(self._clock(), name, addresses)
            self._moved(name)
            self._flush()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
