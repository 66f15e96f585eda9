"""A home that is always on: many peers, the forwards to them, and what they may reach, all of which can be changed while it runs.

`async with up() as home: await home.add_forward("office", "8080:80")`.  Each change is made as a whole, or not at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from tunnel.control.server import Process, status_of
from tunnel.errors import ConfigurationError, TunnelError
from tunnel.ports.access import AccessLog
from tunnel.ports.counters import ForwardCounters
from tunnel.ports.exposing import Exposure, Resident, stay
from tunnel.ports.passed import Passed
from tunnel.ports.public_link import Link
from tunnel.ports.serve_link import serve_link
from tunnel.room.verbs import TakenRoutes
from tunnel.settings import Settings
from tunnel.setup.common import OnEvent, single_error
from tunnel.setup.machine import MACHINE
from tunnel.setup.moving import follow_place
from tunnel.shell.endpoint import EndpointDriver, KnownPeer
from tunnel.shell.events import Event, Trouble
from tunnel.shell.lasting import last
from tunnel.shell.reports import EndpointEvent, is_news
from tunnel.state.home import Home as StateHome
from tunnel.state.peers import Peer, known
from tunnel.up import edit
from tunnel.up.bond import Bond
from tunnel.up.codes import Codes
from tunnel.up.config import Wish, Wishes, grants_of, read_wishes, require_room
from tunnel.up.doors import Door, Opener, added
from tunnel.up.grants import Grants
from tunnel.up.report import details
from tunnel.up.rooms import Interfaces, Rooms
from tunnel.up.verbs import process

RETRY_INTERVAL: Final = 30.0  # seconds between two looks at whether a forward can be opened that could not


class Home:
    """A home that runs, as `up` gives it."""

    def __init__(
        self,
        path: Path | str | None,
        on_event: OnEvent | None,
        notice: Callable[[str], None] | None,
        interfaces: Interfaces | None = None,
        routes: TakenRoutes | None = None,
        passed: Passed | None = None,
    ) -> None:
        """Reads config.toml.  Raises ConfigurationError, StateError."""
        self._opener = Opener(passed)
        self.state = StateHome(path)
        self.counters = ForwardCounters()
        self.log: AccessLog | None = None
        self.wishes: Wishes = read_wishes(self.state.config())
        self._live: list[Wish] = []  # forwards that came while running
        self._dropped: set[Any] = set()  # keys of those of the file that were removed while running
        self._on_event = on_event
        self._notice = notice
        self._bonds: dict[bytes, Bond] = {}
        self.peers: list[KnownPeer] = []  # that are remembered, the one seen last first
        self._exposure: Exposure | None = None
        self._nursery: trio.Nursery | None = None
        self.changing = trio.Lock()
        self._changed = trio.Event()
        self._hearers: list[Callable[[EndpointEvent], None]] = []
        self._said: set[str] = set()  # troubles of forwards that cannot be opened, said once
        self.grants = Grants(self)
        self.after_reload: Callable[[], Awaitable[None]] | None = None  # what else goes by config.toml
        self.page: Mapping[str, Any] | None = None  # where the page is, as the event `page` says it, while there is one
        self.page_refused: Mapping[str, int] = {}  # requests that it has refused, by reason
        self.codes = Codes(self)
        self.rooms = Rooms(self, interfaces or Interfaces(), routes)
        self.process: Process = process(self)

    # --- what others see

    async def changed(self) -> None:
        """Until anything of this home changes."""
        await self._changed.wait()

    @property
    def driver(self) -> EndpointDriver:
        assert self.exposure.driver is not None
        return self.exposure.driver

    @property
    def exposure(self) -> Exposure:
        if self._exposure is None:
            raise ConfigurationError("This process is just starting: try again in a moment.")
        return self._exposure

    @property
    def links(self) -> list[Link]:
        return [] if self._exposure is None else self._exposure.links

    @property
    def doors(self) -> list[Door]:
        return [door for bond in self._bonds.values() for door in bond.doors]

    def notice(self, text: str) -> None:
        if self._notice is not None:
            self._notice(text)

    def details(self) -> dict[str, Any]:
        """The part of this process's `status` beside its links."""
        return details(self)

    def status(self) -> dict[str, Any]:
        """The `status` of docs/json.md."""
        return status_of(self.process)

    def why_absent(self, name: str) -> str | None:
        """Why there is no link to somebody whom this home knows."""
        peer = self._find(name)
        if peer is None:
            return self.rooms.why_absent(name)
        bond = self._bonds.get(peer.static)
        if bond is None or not bond.doors:
            return f"{peer.name} is not connected; nothing is forwarded to it, so it is not called."
        return bond.trouble or f"{peer.name} is not connected: it is waited for."

    def forwards(self) -> list[dict[str, Any]]:
        """As the event `forward` has each."""
        return [each for door in self.doors for each in door.told()]

    def remotes(self) -> list[dict[str, Any]]:
        """As the event `remote` has each."""
        return [each for door in self.doors for each in door.told_remotes()]

    def bond_of(self, peer: KnownPeer) -> Bond | None:
        return self._bonds.get(peer.static)

    # --- forwards

    async def add_forward(self, peer: str, spec: str, *, rate: float | None = None, saves: bool = False) -> dict[str, Any]:
        """Forward a port to the remembered peer `peer` from now on, as `--forward` has it; `saves`: in config.toml, too.

        `socks:[BIND:]PORT` opens a SOCKS door, `remote:SPEC` has the peer listen as `--remote` asks.
        Returns the peer, the spec, and its ports as the events `forward` and `remote` have them.
        Raises ConfigurationError, StateError.
        """
        async with self.changing:
            known_peer = self.peer(peer)
            wish = Wish(known_peer.name, spec, rate)
            same = next((door for door in self.doors if door.wish.key == wish.key), None)
            if same is not None and not saves:
                return added(same, was_there=True)
            require_room([*(door.wish for door in self.doors if door is not same), wish])
            door = same or self._opener.open(wish)
            try:
                if saves:
                    await self.rewrite(partial(edit.add_forward, peer=wish.peer, spec=spec))
            except BaseException:
                if door is not same:
                    door.close()
                raise
            if same is None:
                self._live.append(wish)
                self._put(known_peer, door)
            return added(door, was_there=same is not None)

    async def drop_forward(self, peer: str, spec: str) -> None:
        """End it, where it is still there."""
        with contextlib.suppress(TunnelError):
            await self.remove_forward(peer, spec)

    async def remove_forward(self, peer: str, spec: str, *, saves: bool = False) -> dict[str, Any]:
        """End a forward and what is open through it; `saves`: take it out of config.toml, too, where it stands there.

        Returns its peer and spec, and whether the file has it `again` at the next reload.  Raises ConfigurationError, StateError.
        """
        async with self.changing:
            wish = Wish(self._name(peer), spec)
            found = next((door for door in self.doors if door.wish.key[:2] == wish.key[:2]), None)
            if found is None:
                there = ", ".join(door.wish.text for door in self.doors if door.wish.key[0] == wish.key[0]) or "nothing"
                raise ConfigurationError(f"{spec} of {wish.peer} is not forwarded; forwarded to it is {there}.")
            if saves:
                await self.rewrite(partial(edit.remove_forward, peer=wish.peer, spec=found.wish.text))
            self._live = [each for each in self._live if each.key != found.wish.key]
            self._dropped.add(found.wish.key)
            self._take_away(found)
            is_in_file = found.wish.key in {each.key for each in self.wishes.forwards} and not saves
            return {"peer": wish.peer, "spec": found.wish.text, "again": is_in_file}

    # --- grants

    async def grant(self, peer: str, what: Sequence[str], *, saves: bool = False) -> dict[str, Any]:
        """Let the peer reach this, too; it is remembered with the peer, or with `saves` stands in config.toml instead.

        Returns all that it may reach now.  Raises ConfigurationError, StateError.
        """
        async with self.changing:
            return await self.grants.give(peer, what, saves=saves)

    async def revoke(self, peer: str, what: Sequence[str] = (), *, saves: bool = False) -> dict[str, Any]:
        """Take this back, or all; what is open of it ends within a second.  `saves`: it goes out of config.toml, too.

        What the file grants, and is not taken out of it, is granted again at the next reload; `again` says whether there is such.
        Raises ConfigurationError for what is not granted anyway, StateError.
        """
        async with self.changing:
            return await self.grants.take(peer, what, saves=saves)

    async def look(self) -> int:
        """Go by what is granted now; how many streams have ever ended as a grant was taken back."""
        await self.grants.look()
        return self.counters.revoked

    # --- codes

    async def invite(self, what: Sequence[str]) -> str:
        """A code for one new peer, who may reach `what` from then on.  Raises ConfigurationError, ServerUnreachableError."""
        return await self.codes.invite(what)

    async def join(self, code: str, forwards: Sequence[str] = (), *, saves: bool = False) -> str:
        """Pair by a code that another home gave, and forward ports to it; returns its name.

        Raises ConfigurationError, PairingError, ServerUnreachableError, UnreachableError; the ports are closed again then.
        """
        wishes = [Wish("", text) for text in forwards]
        require_room([*(door.wish for door in self.doors), *wishes])
        doors: list[Door] = []
        try:
            for wish in wishes:  # first: nobody gives a code away to hear that a port is taken
                doors.append(self._opener.open(wish))
            peer = await self.codes.join(code)
            await self.grants.look()  # whoever is told of the peer may ask for it
            async with self.changing:
                for door in doors:
                    door.wish = replace(door.wish, peer=peer.name)
                    if saves:
                        await self.rewrite(partial(edit.add_forward, peer=peer.name, spec=door.wish.text))
        except BaseException:
            for door in doors:
                door.close()
            raise
        for door in doors:
            self._live.append(door.wish)
            self._put(peer, door)
        return peer.name

    # --- the file

    async def reload(self) -> dict[str, int]:
        """Go by config.toml as it is now.  What did not change is not touched; what cannot be read or opened changes nothing.

        But a room that cannot be opened is told, and tried again.
        Returns how many forwards and rooms were `added` and `removed`.  Raises ConfigurationError, StateError.
        """
        async with self.changing:
            wishes = read_wishes(await trio.to_thread.run_sync(self.state.config))
            before = {wish.key for wish in self.wishes.forwards}
            live = [wish for wish in self._live if wish.key not in {each.key for each in wishes.forwards}]
            require_room([*wishes.forwards, *live])
            after = {wish.key for wish in (*wishes.forwards, *live)}
            gone = [door for door in self.doors if door.wish.key not in after]
            here = {door.wish.key for door in self.doors}
            fresh = [wish for wish in wishes.forwards if wish.key not in here and self._find(wish.peer) is not None]
            doors: list[Door] = []
            try:
                for wish in fresh:
                    doors.append(self._opener.open(wish, gone))
            except BaseException:
                for door in doors:
                    door.close()
                raise
            self.wishes, self._live = wishes, live
            self.grants.withdrawn.clear()
            self._dropped.clear()
            self._opener.keep(wishes.forwards)
            for door in gone:
                self._take_away(door)
            for door in doors:
                self._put(self.peer(door.wish.peer), door)
            self._tell_unknown()
            await self.grants.look()
            rooms = await self.rooms.set(wishes.rooms)
            if self.after_reload is not None:
                await self.after_reload()
            return {"added": len(doors) + rooms["added"], "removed": len(before - after) + rooms["removed"]}

    async def rewrite(self, change: Callable[[str], str]) -> None:
        def checked(text: str) -> str:
            changed = change(text)
            read_wishes(edit.parsed(changed, str(self.state.path / "config.toml")))
            return changed

        await trio.to_thread.run_sync(partial(self.state.rewrite_config, checked))

    # --- inside

    def peer(self, name: str) -> KnownPeer:
        """Raises ConfigurationError with the names that there are."""
        found = self._find(name)
        if found is None:
            known([Peer(name=each.name, static=each.static, psk=each.psk) for each in self.peers], name)
        assert found is not None
        return found

    @property
    def is_ready(self) -> bool:
        """Its links can be asked about."""
        return self._exposure is not None and self._exposure.driver is not None

    def _find(self, name: str) -> KnownPeer | None:
        return next((each for each in self.peers if each.name.casefold() == name.casefold()), None)

    def _name(self, name: str) -> str:
        found = self._find(name)
        return name if found is None else found.name

    def server_of(self, peer: KnownPeer) -> str:
        """Raises ConfigurationError."""
        settings = self.exposure.store.settings
        server = settings.given_server or peer.server or settings.server
        if server is None:
            raise ConfigurationError(f"No server is known at which to meet {peer.name}: set server in config.toml.")
        return server

    def hear(self, hearer: Callable[[EndpointEvent], None]) -> Callable[[], None]:
        """Have `hearer` told of whatever happens; returns what ends that."""
        self._hearers.append(hearer)
        return partial(self._hearers.remove, hearer)

    def bond(self, peer: KnownPeer) -> Bond:
        bond = self._bonds.get(peer.static)
        if bond is None:
            bond = self._bonds[peer.static] = Bond(self, peer)
        return bond

    def _put(self, peer: KnownPeer, door: Door) -> None:
        bond = self.bond(peer)
        bond.add(door)
        if not bond.is_running and self._nursery is not None:
            bond.is_running = True
            run = partial(last, self.driver.faults, "link", f"interrupted the forwards to {peer.name}", bond.run)
            self._nursery.start_soon(run)
        self.note_change()

    def _take_away(self, door: Door) -> None:
        for bond in self._bonds.values():
            if door in bond.doors:
                bond.remove(door)
        self.note_change()

    def pass_on(self, event: Event) -> None:
        """Tell it to whoever runs this home."""
        if self._on_event is not None:
            self._on_event(event)

    def note_change(self) -> None:
        """Whoever waits for a change looks again."""
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def _heard(self, event: EndpointEvent) -> None:
        if not is_news(event):
            return  # of streams and datagrams there are many
        peering = getattr(event, "peering", None)
        bond = None if peering is None else self._bonds.get(peering.peer.static)
        if bond is not None:
            bond.notify()
        for hearer in list(self._hearers):
            hearer(event)
        self.note_change()

    def _peers_changed(self, peers: Sequence[KnownPeer]) -> None:
        self.peers = list(peers)
        statics = {peer.static: peer for peer in peers}
        for static, bond in list(self._bonds.items()):
            if static in statics:
                bond.peer = statics[static]
            else:  # forgotten: its links are cut
                for door in list(bond.doors):
                    bond.remove(door)
        if self._exposure is not None:
            self._open_all()
        self.note_change()

    def _open_all(self) -> None:
        """Open the forwards that are wanted and are not open yet, as far as they can be."""
        here = {door.wish.key for door in self.doors}
        for wish in (*self.wishes.forwards, *self._live):
            peer = self._find(wish.peer)
            if peer is None or wish.key in here or wish.key in self._dropped:
                continue
            try:
                self._put(peer, self._opener.open(wish))
            except ConfigurationError as error:
                self._say(f"{wish.place} {error} It is tried again." if wish.place else f"{error} It is tried again.")

    def _tell_unknown(self) -> None:
        for name, place in self.wishes.names().items():
            if self._find(name) is None:
                self._say(f"{place} no peer called {name!r} is remembered yet: this waits until one is.")

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.notice(text)
            self.pass_on(Trouble(code="not_forwarded", message=text))

    async def _serve_link(self, link: Link) -> None:
        """A link, whoever has dialed it, as long as it lives: both sides may open streams on it."""
        bond = self.bond(link.peer)
        bond.links.append(link)
        bond.notify()
        try:
            async with trio.open_nursery() as nursery:
                if link.is_connector:
                    server = link.peering.server
                    assert server is not None
                    follow = partial(follow_place, link, self.exposure.store, self.driver, server)
                    nursery.start_soon(last, link.faults, "server", "kept a peer's server from being followed", follow)
                await serve_link(
                    link, counters=self.counters, notice=self.notice, log=self.log, remotes=bond.remotes,
                    limit_of=partial(self.grants.limit, link),
                )  # fmt: skip
                nursery.cancel_scope.cancel()
        finally:
            bond.links.remove(link)
            bond.notify()
            if not (bond.links or bond.doors or bond.is_running):
                self._bonds.pop(link.peer.static, None)

    async def _run(self) -> None:
        """Until cancelled: what could not be opened is tried again."""
        while True:
            await trio.sleep(RETRY_INTERVAL)
            self._open_all()

    def _close(self) -> None:
        for door in self.doors:
            door.close()
        self._opener.close()


@asynccontextmanager
async def up(
    home: Path | str | None = None,
    *,
    on_event: OnEvent | None = None,
    notice: Callable[[str], None] | None = None,
    log: AccessLog | None = None,
    settings: Settings | None = None,
    interfaces: Interfaces | None = None,
    routes: TakenRoutes | None = None,
    passed: Passed | None = None,
) -> AsyncIterator[Home]:
    """Run a home by its config.toml.  The block is entered when it stands ready; it goes on until the block is left.

    `on_event` is told what happens (tunnel.events), `notice` takes sentences, `log` what is opened and closed.
    `interfaces` are for rooms, `routes` is as tunnel.lan.create has it.  `passed` are sockets of a service manager.
    Raises ConfigurationError, StateError, AlreadyRunningError.
    """
    house = Home(home, on_event, notice, interfaces, routes, passed)
    house.log = log
    machine = MACHINE.get()
    resident = Resident(
        lend=lambda peer: grants_of(house.grants.lent(peer.name)), changed=house._peers_changed, heard=house._heard
    )
    with single_error():
        async with (
            house.rooms.equipped(house.wishes.interfaces),
            stay(resident, house._serve_link, home=home, on_event=on_event, settings=settings) as exposure,
            trio.open_nursery() as nursery,
        ):
            house._exposure, house._nursery = exposure, nursery
            house.codes.machine = machine
            house.rooms.start(nursery)
            try:
                await house.grants.look()
                house._peers_changed(await trio.to_thread.run_sync(exposure.store.load))
                house._tell_unknown()
                for text in house._opener.unwanted:
                    house.notice(text)
                await house.rooms.set(house.wishes.rooms)
                nursery.start_soon(last, house.driver.faults, "forward", "interrupted the opening of forwards", house._run)
                yield house
                nursery.cancel_scope.cancel()
            finally:
                house._close()
