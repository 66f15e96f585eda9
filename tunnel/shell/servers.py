"""The servers of a driver: their names are looked up, and again for as long as nobody answers where they led before."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol, TypeAlias

import trio

from tunnel.errors import ConfigurationError, ServerUnreachableError
from tunnel.node.endpoint import Endpoint
from tunnel.node.pool import CloseRoute, OpenRoute
from tunnel.server_spec import DHT, alternatives, members, parse_server
from tunnel.shell.dht_door import DhtDoor
from tunnel.shell.places import Names
from tunnel.shell.routes import Routes
from tunnel.units import Address, Instant

NO_NODES: Final = (
    "No node of the DHT answers: this network blocks UDP, or those that are asked first are gone (dht_bootstrap in config.toml "
    "names others)."
)
FIRST_LOOK: Final = 2.0  # seconds after which the name of a server that does not answer is looked up again, doubled each time ...
#: Where a server is now.  Raises ServerUnreachableError.
Lookup: TypeAlias = Callable[[], Awaitable[list[Address]]]
LONGEST_LOOK: Final = 60.0  # ... up to this, as long as the names of homes are commonly kept by others


class SessionMemory(Protocol):
    """Where it is kept by which sessions servers know this process."""

    def former(self, server: str) -> Sequence[bytes]:
        """Those of earlier processes, which died."""

    def note(self, server: str, session: bytes) -> None:
        """Remember ours.  Must not wait for a disk."""


class Servers:
    """Adds servers to the core by name, and moves them when their names lead elsewhere."""

    def __init__(
        self,
        core: Endpoint,
        *,
        clock: Callable[[], Instant],
        flush: Callable[[], None],
        access_token: bytes,
        routes: Routes,
        dht: DhtDoor,
    ) -> None:
        """`routes`: those to servers beside UDP."""
        self._core = core
        self._clock = clock
        self._flush = flush
        self._access_token = access_token
        self._routes = routes
        self.dht = dht
        self.sessions: SessionMemory | None = None  # given before the first server is added
        self._where: dict[str, list[Address]] = {}
        self._lookups: dict[str, Lookup] = {}
        self._lists: dict[str, Names] = {}  # of several servers
        self._added = trio.Event()
        self._runs = trio.Event()
        self._changed = trio.Event()
        self._network = 0  # how often it has changed
        self._nursery: trio.Nursery | None = None  # while the driver runs
        self._troubles: dict[str, str] = {}  # why one of several that go by one name could not be added so far

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
            await self.dht.open()
            self._note_added()
            return
        first, *others = alternatives(name)
        if others:
            await self._runs.wait()
            self._core.add_alternatives(self._clock(), name, (first, DHT))
            self._add_later(first)
            self._note_added()
            return
        if lookup is None:
            names = Names(name)
            lookup = names.look
            if names.are_several:
                self._lists[name] = names
            if not all(_is_address(parse_server(each, "server")[0]) for each in members(name)):
                self._lookups[name] = lookup
        else:
            self._lookups[name] = lookup
        addresses = await lookup()
        if not self._core.has_server(name):
            has_fallback = self._routes.allows(name)
            former = () if self.sessions is None else self.sessions.former(name)
            self._core.add_server(
                self._clock(), name, addresses, self._access_token, has_fallback=has_fallback, former=former
            )  # fmt: skip
            if self.sessions is not None:
                self.sessions.note(name, self._core.session(name))
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

    def fulfil(self, order: OpenRoute | CloseRoute) -> None:
        """Another route to a server is wanted, or no longer; where the DHT stands beside the server, that is the route."""
        if DHT in alternatives(order.server):
            self._add_later(DHT)
        else:
            self._routes.fulfil(order)

    def _add_later(self, name: str) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(self._insist, name)

    async def _insist(self, name: str) -> None:
        """Add one of several that go by one name, as soon as it can be found; the others are used meanwhile."""
        pause = FIRST_LOOK
        while not self._core.has_server(name):
            try:
                await self.add(name)
            except (ServerUnreachableError, ConfigurationError) as error:
                self._troubles[name] = str(error)
                if isinstance(error, ConfigurationError):  # it will not be mended by waiting
                    return
                await trio.sleep(pause)
                pause = min(2 * pause, LONGEST_LOOK)

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
        first, *others = alternatives(name)
        texts = [self._silence_of(first), *(NO_NODES for each in others if self._core.has_server(each))]
        raise ServerUnreachableError(" ".join(texts))

    def _silence_of(self, name: str) -> str:
        if name == DHT:
            return NO_NODES
        if not self._core.has_server(name) and name in self._troubles:
            return self._troubles[name]
        places = (parse_server(each, "server") for each in members(name))
        where = " or ".join(f"{host}, UDP port {port}" for host, port in places)
        text = f"No ptunnel server answers at {where}: is 'ptunnel serve' running there, or a firewall between?"
        trouble = self._routes.troubles.get(name)
        return text if trouble is None else f"{text} Nor {trouble}"

    async def run(self) -> None:
        """Until cancelled."""
        followed: set[str] = set()
        async with trio.open_nursery() as nursery:
            self.dht.start(nursery)
            self._nursery = nursery
            self._runs.set()
            while True:
                for name in (self._where.keys() & self._lookups.keys()) - followed:
                    followed.add(name)
                    nursery.start_soon(self._follow, name)
                await self._added.wait()

    async def _follow(self, name: str) -> None:
        pause, rest, look_at, network = FIRST_LOOK, LONGEST_LOOK, math.inf, self._network
        while True:
            now = trio.current_time()
            if self._core.is_reached(name):
                pause, rest = FIRST_LOOK, self._next_look(name)
                look_at = min(look_at, now + rest) if rest < math.inf else math.inf
            elif self._network != network:
                pause, look_at = FIRST_LOOK, now
            elif look_at > now + pause:
                look_at = now + pause
            network = self._network
            if now >= look_at:
                await self._look(name)
                look_at = trio.current_time() + (rest if self._core.is_reached(name) else pause)
                pause = min(2 * pause, LONGEST_LOOK)
            with trio.CancelScope(deadline=look_at):
                await self._changed.wait()

    def _next_look(self, name: str) -> float:
        """Seconds until a name that leads to a server which answers is looked up again: of several, another may have moved."""
        names = self._lists.get(name)
        return math.inf if names is None else LONGEST_LOOK if names.are_known else FIRST_LOOK

    async def _look(self, name: str) -> None:
        try:
            addresses = await self._lookups[name]()
        except ServerUnreachableError:
            return  # what we know may still be right
        if set(addresses) != set(self._where[name]):
            self._where[name] = addresses
            self._core.move_server(self._clock(), name, addresses)
            self._routes.server_moved(name)
            self._flush()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
