"""tunnel.expose: let peers reach what is granted to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import trio

from tunnel.ends import read_rate
from tunnel.errors import ConfigurationError, StateError, TunnelError
from tunnel.host.machine import place_id
from tunnel.pairing.grants import GrantSet
from tunnel.ports.granting import Granted, grant, readable, require_something_to_share, told
from tunnel.ports.public_link import Link, LinkHandler
from tunnel.settings import GivenPeer, Settings
from tunnel.setup.common import OnEvent, Words, require_trio, single_error, words
from tunnel.setup.machine import MACHINE, Machine
from tunnel.setup.moving import tell_place
from tunnel.setup.nodes import NodeKeeper
from tunnel.setup.servers import Surroundings, embed, found_here, map_server, may_be_ours, reach, resolve, were_ours
from tunnel.setup.sessions import UNWRITTEN, SessionKeeper
from tunnel.setup.store import HomeStore, Lend
from tunnel.setup.ways import WayKeeper
from tunnel.shell.endpoint import EndpointDriver, KnownPeer
from tunnel.shell.events import Event, Listening, Serving, Trouble
from tunnel.shell.lasting import last
from tunnel.shell.link import CloseCode
from tunnel.shell.link import Link as DriverLink
from tunnel.shell.reports import EndpointEvent, ExposerPairing, Troubled, to_event, to_exception
from tunnel.shell.servers import Lookup


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A process that stays whatever comes of its peers and codes, and needs nothing to share at its start."""

    lend: Lend  # what a peer may reach besides what is remembered of it
    changed: Callable[[Sequence[KnownPeer]], None]  # told the remembered peers each time that they have changed
    heard: Callable[[EndpointEvent], None]  # told whatever happens


class Exposure:
    """A running `expose`."""

    def __init__(
        self, nursery: trio.Nursery, store: HomeStore, handler: LinkHandler, on_event: OnEvent | None, around: Surroundings,
        resident: Resident | None = None,
    ) -> None:  # fmt: skip
        self.store = store
        self._resident = resident
        self.server: str | None = None  # host:port as the other side must name it; None: remembered peers only
        self.is_embedded = False
        self.public_server: str | None = None  # host:port of the embedded server as other networks reach it
        self.driver: EndpointDriver | None = None
        self._flow: ExposerPairing | None = None
        self._nursery = nursery
        self._store = store
        self._handler = handler
        self._on_event = on_event
        self._around = around
        self.places: set[str] = set()  # where the embedded server is and was, as peers may know it
        self.find: Callable[[str], Lookup] | None = None  # the embedded server, by each of these words
        self._greeted: set[str] = set()  # servers at which we wait, or will as soon as they answer
        self._where: str | None = None  # once it was told
        self._served: dict[bytes, tuple[dict[str, Any], ...]] | None = None  # by static key: what each may reach, as told last
        self._problem: TunnelError | None = None
        self._changed = trio.Event()

    @property
    def links(self) -> list[Link]:
        """The live ones."""
        links = self.driver.links.values() if self.driver is not None else ()
        return [link for link in links if isinstance(link, Link)]

    async def run(self) -> None:
        """Serve until cancelled.  Raises what cannot be healed."""
        while self._problem is None:
            await self._changed.wait()
        raise self._problem

    async def wait_link(self) -> Link:
        """The first live link.  Raises what cannot be healed."""
        while not self.links:
            if self._problem is not None:
                raise self._problem
            await self._changed.wait()
        return self.links[0]

    async def grant(self, names: str | Sequence[str], *grants: str | int, only: bool = False) -> list[Granted]:
        """Let these remembered peers reach more from now on, or with `only` this and nothing else.  All of them or none.

        Raises ConfigurationError, StateError; nothing has changed then.
        """
        parsed = GrantSet.parse(*words(grants))
        granted = await trio.to_thread.run_sync(partial(grant, self._store.home, words(names), parsed, only=only))
        with suppress(StateError):  # it is done, and will be seen as soon as it can be read
            await self.look()
        return granted

    async def look(self) -> None:
        """Go by what is remembered now; else that is seen within half a second.  Raises StateError."""
        self._set_peers(await trio.to_thread.run_sync(self._store.load))

    def _set_peers(self, peers: Iterable[KnownPeer]) -> None:
        """Apply changed grants: streams that are not granted any more end, and the new grants are told."""
        peers = list(peers)
        if self._resident is not None:
            self._resident.changed(peers)
        if self.driver is not None:
            self.driver.set_peers(peers)
            self._greet(peer.server for peer in peers)
        if self._served is not None:
            self._tell_served(peers, self._served)

    def _greet(self, servers: Iterable[str | None]) -> None:
        """Wait for peers at these too: whoever is paired by another process may be met elsewhere."""
        for server in sorted({server for server in servers if server is not None} - self._greeted):
            self._greeted.add(server)
            if self.driver is not None:
                lookup = self.find(server) if self.find is not None and server in self.places else None
                self._nursery.start_soon(resolve, self.driver, server, self._tell, self._around, lookup)

    def _set_place(self, where: str) -> None:
        """The embedded server is reached there now, as this machine has other addresses."""
        self.server = where
        self.places.add(where)
        self._tell_listening(where)
        for link in self.links:
            link.notify()

    def _tell_all_served(self, peers: Iterable[KnownPeer]) -> None:
        """Tell who may reach what, at the start."""
        self._tell_served(peers, {})

    def _tell_served(self, peers: Iterable[KnownPeer], before: Mapping[bytes, tuple[dict[str, Any], ...]]) -> None:
        self._served = {peer.static: peer.reach for peer in peers}
        for peer in peers:
            if before.get(peer.static, ()) != peer.reach:
                self._tell(Serving(peer=peer.name, grants=told(readable(peer.grants).union(readable(peer.lent)))))

    async def settle_server(self, machine: Machine) -> str:
        """The server for a code, which answers: that of this exposure, or where it has none, one that is started here now.

        Raises ConfigurationError, ServerUnreachableError.
        """
        assert self.driver is not None
        lookup: Lookup | None = None
        if self.server is None:
            self.server = await embed(self._nursery, machine, ())
            assert self.server is not None  # with no former one there is always a port for it
            self.is_embedded = True
            self.places.add(self.server)
            self._greeted.add(self.server)
            self.find = lambda server: found_here(server, machine, lambda _where: None)
            lookup = found_here(self.server, machine, self._set_place)
            if machine.has_router and self._store.settings.wants_port_mapping:
                await map_server(self._nursery, self._set_public, self.server, self._store.faults)
            self._tell_listening(self.server)
        await reach(self.driver, self.server, self._around, lookup, waits=False)
        return self.server

    def new_code(self) -> None:
        """One more code, now: it arrives as a CodeReady event.  Raises ConfigurationError."""
        if self._flow is None or self.driver is None:
            raise ConfigurationError("There is nothing to pair for: name what to expose.")
        self.driver.renew_code(self._flow)

    def _tell_listening(self, where: str) -> None:
        """Where others reach us; again each time that this changes."""
        self._where = where
        self._tell(Listening(bind=where, embedded=self.is_embedded, public=self.public_server))

    def _set_public(self, public: str | None) -> None:
        """The router forwards a port to the embedded server, or no longer."""
        self.public_server = public
        if self._where is not None:
            self._tell_listening(self._where)

    def _tell(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)

    def _handle_link(self, link: DriverLink) -> None:
        assert isinstance(link, Link)  # the only sort that our driver makes
        self._nursery.start_soon(self._store.note_seen, link.peer)
        self._nursery.start_soon(self._serve, link)
        if self.is_embedded:
            tell = partial(tell_place, link, self._store, self)
            self._nursery.start_soon(last, link.faults, "server", f"kept {link.peer_name} from hearing of our server", tell)
        self._notify()

    def _handle_event(self, event: EndpointEvent) -> None:
        if self._resident is not None:
            self._resident.heard(event)
        elif isinstance(event, Troubled) and event.is_final and self._problem is None:
            self._problem = to_exception(event)
            self._notify()
        if self._on_event is not None and self.driver is not None:
            report = to_event(event, self.driver.clock())
            if report is not None:
                self._on_event(report)

    async def _serve(self, link: Link) -> None:
        """One peer's trouble is not the others'."""
        with link.faults.wall("link", f"ended the link to {link.peer_name}") as wall:
            try:
                running: object = self._handler(link)
                if not isinstance(running, Awaitable):
                    raise ConfigurationError("A handler is an async function: write async def handler(link).")
                await running
            except TunnelError as error:
                self._tell(Trouble(code="peer_lost", message=str(error)))
        if wall.error is not None:
            link.close("a fault in ptunnel on the other side", CloseCode.INTERNAL)

    def _notify(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()


def _forwards(rate: float | None) -> LinkHandler:
    """Carry forwards as the grants allow, at `rate` bytes per second at most for each peer."""
    from tunnel.ports.rate import PeerLimits
    from tunnel.ports.serve_link import serve_link

    return partial(serve_link, limits=None if rate is None else PeerLimits(rate))


@asynccontextmanager
async def expose(
    grants: Words = (),
    *,
    home: Path | str | None = None,
    keep: bool = False,
    to: str | Sequence[str] = (),
    only: bool = False,
    on_event: OnEvent | None = None,
    handler: LinkHandler | None = None,
    pair: bool | None = None,
    waits: bool = False,
    rate: str | float | None = None,
    settings: Settings | None = None,
    **given: Unpack[GivenPeer],
) -> AsyncIterator[Exposure]:
    """Let peers reach `grants` (22, or ["22", "53/udp", "nas=192.168.1.5:445"]) of this machine.

    With grants and without `to`, a code is made (CodeReady event) for one new peer; with `keep`, a fresh one after each.
    `to` grants them to remembered peers instead, with `only` in the place of what these had.  That is the last thing that is
    done before the block is entered: what fails has granted nothing.  Without grants the saved ones are served.  Remembered
    peers are always served.
    With no server configured one is embedded for our own codes only; the Listening event carries its address.
    `handler(link)` runs for each link as long as it lives; None means: carry forwards as the grants allow.  What it raises ends
    that link, and is told (Trouble, `internal`); what `on_event` raises is logged.
    `rate`: bytes a second each way for each peer (10_000_000 or "10M"), where `handler` is None.
    `pair`: whether a code is made; None: where there are grants.  A `handler` of your own needs no grant.
    `waits`: for a network and somebody who knows names (Trouble, `no_network` and `still_trying`), where a code needs its server.
    `on_event` is told what happens (tunnel.events), without awaiting.  `qlog`: a folder for a trace of each connection.
    `portmap`: ask the router to forward a port while this runs, and one to the embedded server.
    `tls`: how servers are reached where UDP is blocked, unless their word says.
    What is left out, or None, is as the environment and config.toml say; `settings` stands for all of these once resolved.
    Raises ConfigurationError, StateError, AlreadyRunningError, ServerUnreachableError.
    """
    settled = _expose(
        grants, home=home, keep=keep, to=to, only=only, on_event=on_event, handler=handler, pair=pair, waits=waits, rate=rate,
        settings=settings, given=given,
    )  # fmt: skip
    async with settled as exposure:
        yield exposure


@asynccontextmanager
async def stay(
    resident: Resident,
    handler: LinkHandler,
    *,
    home: Path | str | None,
    on_event: OnEvent | None,
    settings: Settings | None = None,
) -> AsyncIterator[Exposure]:
    """The same for a process that stays: remembered peers are served, and it makes codes and dials by itself."""
    async with _expose(
        home=home, on_event=on_event, handler=handler, pair=False, waits=True, settings=settings, resident=resident
    ) as exposure:
        yield exposure


@asynccontextmanager
async def _expose(
    grants: Words = (), *, home: Path | str | None, keep: bool = False, to: str | Sequence[str] = (), only: bool = False,
    on_event: OnEvent | None, handler: LinkHandler | None, pair: bool | None, waits: bool, rate: str | float | None = None,
    settings: Settings | None, given: GivenPeer | None = None, resident: Resident | None = None,
) -> AsyncIterator[Exposure]:  # fmt: skip
    require_trio()
    grants, to = words(grants), words(to)
    wanted = GrantSet.parse(*grants)
    serve = handler or _forwards(None if rate is None else read_rate(str(rate)))

    def not_saved(text: str) -> None:
        if on_event is not None:
            on_event(Trouble(code="not_saved", message=text))

    lend = None if resident is None else resident.lend
    store = HomeStore(home, not_saved, settings=settings, given=given, lend=lend)
    settings, machine = store.settings, MACHINE.get()
    maps_ports = machine.has_router and settings.wants_port_mapping
    wants_code = (bool(len(wanted)) if pair is None else pair) and not to
    if to and not len(wanted):
        raise ConfigurationError("Say what to expose to them: for example 'ptunnel expose 22 --to NAME'.")
    if only and not to:
        raise ConfigurationError("Say to whom: only goes with to.")
    for each in to:
        store.choose(each)
    peers = store.load()
    if resident is None and not wants_code and not to and (handler is None or not peers):
        require_something_to_share(store.home.peers())
    ways = WayKeeper(store.home)
    around = Surroundings(on_event, machine)
    lock = store.home.lock_expose(is_resident=resident is not None)
    if lock.trouble:
        not_saved(lock.trouble)
    sessions = None if lock.trouble else SessionKeeper(store.home, store.home.sessions)
    driver: EndpointDriver | None = None
    try:
        with single_error():
            async with trio.open_nursery() as nursery:
                exposure = Exposure(nursery, store, serve, on_event, around, resident)
                rendezvous = settings.server
                if waits and rendezvous is None and not wants_code and any(map(may_be_ours, (peer.server for peer in peers))):
                    await around.wait_network()
                ours = were_ours((peer.server for peer in peers), machine)
                if rendezvous is None and (wants_code or ours):
                    rendezvous = await embed(nursery, machine, ours)
                    exposure.is_embedded = rendezvous is not None
                    if rendezvous is None and wants_code:
                        rendezvous = ours[0]
                exposure.server = rendezvous
                if exposure.is_embedded and maps_ports and rendezvous is not None:
                    await map_server(nursery, exposure._set_public, rendezvous, store.faults)
                driver = exposure.driver = EndpointDriver(
                    static_key=store.home.identity(),
                    name=store.name(),
                    peers=peers,
                    store=store,
                    settings=settings,
                    on_event=exposure._handle_event,
                    on_link=exposure._handle_link,
                    traces=store.traces(),
                    port_mapping=maps_ports,
                    memory=ways,
                    nodes=NodeKeeper(store.home),
                    faults=store.faults,
                    place=lambda: place_id(store.home.path),
                    link_type=Link,
                    **machine.options(),
                )
                driver.servers.sessions = sessions
                try:
                    await nursery.start(driver.run)
                    driver.listen()
                    others = {peer.server for peer in peers if peer.server} - {rendezvous}
                    if rendezvous is not None:
                        exposure._greeted.add(rendezvous)
                        if exposure.is_embedded:
                            exposure.places.add(rendezvous)
                            exposure.find = lambda server: found_here(server, machine, lambda _where: None)
                        lookup = found_here(rendezvous, machine, exposure._set_place) if exposure.is_embedded else None
                        if wants_code:
                            nursery.start_soon(around.speak_of_silence, driver, rendezvous)
                            await reach(driver, rendezvous, around, lookup, waits=waits and not exposure.is_embedded)
                        else:  # one that only remembered peers use may come later
                            nursery.start_soon(resolve, driver, rendezvous, exposure._tell, around, lookup)
                    exposure._greet(others)
                    nursery.start_soon(store.watch, exposure._set_peers)
                    nursery.start_soon(last, driver.faults, "state", "kept what led to peers from being remembered", ways.run)
                    if sessions is not None:
                        nursery.start_soon(last, driver.faults, "state", UNWRITTEN, sessions.run)
                    where = rendezvous or ", ".join(sorted(others)) or "nowhere"
                    if to:
                        await exposure.grant(to, *grants, only=only)
                        with suppress(StateError):
                            peers = store.load()
                    exposure._tell_listening(where)
                    exposure._tell_all_served(peers)
                    if wants_code and rendezvous is not None:
                        exposure._flow = driver.offer_code(rendezvous, grants=tuple(wanted.to_dicts()), keep=keep)
                    yield exposure
                finally:
                    driver.close("the exposing side has ended")
                    nursery.cancel_scope.cancel()
    finally:
        if driver is not None:
            driver.release()
            ways.close()
            if sessions is not None:
                sessions.close()
            store.finish()
        lock.release()
