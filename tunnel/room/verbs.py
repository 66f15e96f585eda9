"""tunnel.lan: rooms of many, each member with an interface in one subnet.

async with tunnel.lan.create("game", server="rv.example.net", on_event=print) as room: ...
async with tunnel.lan.join("731-garden-violin-zoo", server="rv.example.net") as room: ...
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Unpack

import trio
from msgspec.structs import replace

from tunnel.errors import ConfigurationError, MalformedPacket, StateError
from tunnel.pairing.code import Purpose, parse_code, require_purpose
from tunnel.room.core.addresses import MAX_MEMBERS, Prefix, subnet_prefix
from tunnel.room.core.creator import CreatorRoom
from tunnel.room.core.membership import NewcomerStore
from tunnel.room.core.room import Room
from tunnel.room.core.roster import RoomState, Roster, decode_roster, invited_psk, make_label
from tunnel.room.interface import (
    LanInterface,
    OpenInterface,
    interface_config,
    lacks_privilege,
    open_on_host,
    require_host_interface,
)
from tunnel.room.session import LanMember, LanRoom
from tunnel.room.without import no_interface
from tunnel.settings import Given, Settings
from tunnel.setup.common import OnEvent, require_trio, single_error, words
from tunnel.setup.machine import MACHINE, Machine
from tunnel.setup.nodes import NodeKeeper
from tunnel.setup.servers import Surroundings, embed, found_here, map_server, may_be_ours, reach, resolve, were_ours
from tunnel.setup.sessions import UNWRITTEN, SessionKeeper
from tunnel.setup.store import HomeStore
from tunnel.shell.endpoint import EndpointDriver, KnownPeer
from tunnel.shell.events import Trouble
from tunnel.shell.lasting import last
from tunnel.state.home import Home
from tunnel.state.rooms import RoomLock, Rooms, SavedRoom

__all__ = [
    "LanInterface",
    "LanMember",
    "LanRoom",
    "create",
    "forget",
    "join",
    "kept",
    "label",
    "no_interface",
    "no_routes",
    "open_on_host",
    "lacks_privilege",
    "require_host_interface",
]

NO_SERVER: Final = (
    "No server is configured: name the one that 'ptunnel lan create' printed, with --server HOST:PORT (in a program server=)."
)
ROUTES_INTERVAL: Final = 10.0  # seconds between two looks at this machine's routes

TakenRoutes = Callable[[str], list[str]]


def _host_routes(any_subnet: bool) -> TakenRoutes:
    """Private IPv4 networks that this machine has or (unless `any_subnet`) may have, but for that interface's.

    Whom somebody here speaks with is looked at once: what a program connects to later is no news for the room.
    """
    from tunnel.doors.tun.routes import spoken_with, surroundings, taken_prefixes

    spoken = spoken_with()

    def taken(interface: str) -> list[str]:
        around = set() if any_subnet else surroundings(interface)
        return taken_prefixes(interface, besides=spoken | around)

    return taken


def no_routes(_interface: str) -> list[str]:
    """Of a network that has nothing but the room."""
    return []


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """How to get into a room: by making it, by what was kept, by a code, or invited by a remembered peer."""

    room_name: str = "lan"
    makes: bool = False
    saved: SavedRoom | None = None
    code: str | None = None
    peer: KnownPeer | None = None
    to: Sequence[KnownPeer] = ()
    keep: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The common arguments of create and join."""

    home: Path | str | None
    member_name: str | None
    on_event: OnEvent | None
    interface: OpenInterface | None
    routes: TakenRoutes | None
    any_subnet: bool
    relay: bool
    waits: bool
    settings: Settings | None
    given: Given
    machine: Machine


@asynccontextmanager
async def create(
    name: str = "lan",
    *,
    keep: bool = False,
    to: str | Sequence[str] = (),
    home: Path | str | None = None,
    member_name: str | None = None,
    on_event: OnEvent | None = None,
    interface: OpenInterface | None = None,
    routes: TakenRoutes | None = None,
    any_subnet: bool = False,
    relay: bool = False,
    waits: bool = False,
    settings: Settings | None = None,
    **given: Unpack[Given],
) -> AsyncIterator[LanRoom]:
    """Make the room `name` (or open the one of that name that was kept) and let others in by a code: a CodeReady event.

    `keep`: the room and its members are remembered.  `to`: remembered peers that may join without a code.
    With no server configured one is embedded; the Listening event carries its address.  `member_name`: how we are called in it.
    `waits`: for a network and somebody who knows names (Trouble, `no_network` and `still_trying`), where a code needs its server.
    `interface(config)` opens the interface; None means one on this machine, which needs privilege, and `no_interface` opens none.
    `routes(interface)` gives the IPv4 networks that the room must stay clear of; None: those that this machine has, and those
    around it unless `any_subnet`.  `relay`: pass on what two others have for each other that meet in no other way.
    `on_event` is told what happens (tunnel.events), without awaiting.  `qlog`: a folder for a trace of each connection.
    Raises ConfigurationError, StateError, AlreadyRunningError, ServerUnreachableError.
    """
    require_trio()
    options = Options(
        home=home, member_name=member_name, on_event=on_event, interface=interface, routes=routes, any_subnet=any_subnet,
        relay=relay, waits=waits, settings=settings, given=given, machine=MACHINE.get(),
    )  # fmt: skip
    store = _open_store(options)
    room_name = label(name)
    saved = Rooms(store.home).find(room_name)
    if saved is not None and not saved.is_creator:
        raise ConfigurationError(
            f"You are a member of a room {room_name}: join it with 'ptunnel lan join {room_name}', or choose another name."
        )
    entry = Entry(
        room_name=room_name,
        makes=True,
        saved=saved,
        keep=keep or saved is not None,
        to=[store.choose(peer) for peer in words(to)],
    )
    async with _run(store, entry, options) as room:
        yield room


@asynccontextmanager
async def join(
    code: str | None = None,
    *,
    room: str | None = None,
    peer: str | None = None,
    keep: bool = False,
    home: Path | str | None = None,
    member_name: str | None = None,
    on_event: OnEvent | None = None,
    interface: OpenInterface | None = None,
    routes: TakenRoutes | None = None,
    any_subnet: bool = False,
    relay: bool = False,
    waits: bool = False,
    settings: Settings | None = None,
    **given: Unpack[Given],
) -> AsyncIterator[LanRoom]:
    """Join by a code, or the room `room` that was kept, or the one to which the remembered peer `peer` has invited us.

    The block is entered when we are a member and the interface has its addresses; time-outs belong to the caller, around it.
    See create for the rest.  Raises ConfigurationError, StateError, AlreadyRunningError, PairingError, PermissionDeniedError,
    ServerUnreachableError.
    """
    require_trio()
    if sum(each is not None for each in (code, room, peer)) != 1:
        raise ConfigurationError("Join by a code, a room that was kept, or a peer that has invited you: name one of the three.")
    options = Options(
        home=home, member_name=member_name, on_event=on_event, interface=interface, routes=routes, any_subnet=any_subnet,
        relay=relay, waits=waits, settings=settings, given=given, machine=MACHINE.get(),
    )  # fmt: skip
    store = _open_store(options)
    saved: SavedRoom | None = None
    inviter: KnownPeer | None = None
    if code is not None:
        require_purpose(parse_code(code), Purpose.ROOM, store.settings.server or "HOST")
    elif room is not None:
        saved = Rooms(store.home).room(make_label(room))
        if saved.is_creator:
            raise ConfigurationError(f"The room {saved.name} is yours: open it with 'ptunnel lan create --name {saved.name}'.")
    else:
        inviter = store.choose(peer)
    async with _run(store, Entry(saved=saved, code=code, peer=inviter, keep=keep or saved is not None), options) as running:
        await running.wait_entered()
        yield running


def kept(home: Path | str | None = None) -> list[dict[str, Any]]:
    """The rooms that are remembered: `room`, `role` (creator or member), `members`, `server`, `subnet`.  Raises StateError."""
    found = []
    for saved in Rooms(Home(home)).all():
        try:
            roster = decode_roster(saved.roster)
        except MalformedPacket:
            raise StateError(f"The room {saved.name} that was kept is damaged: 'ptunnel lan forget {saved.name}'.") from None
        found.append(
            {
                "room": saved.name,
                "role": "creator" if saved.is_creator else "member",
                "members": [member.name for member in roster.members],
                "server": saved.server,
                "subnet": str(subnet_prefix(roster.subnet)),
            }
        )
    return found


def label(name: str) -> str:
    """The name under which a room that is called so is kept."""
    return make_label(name, "lan")


def forget(name: str, home: Path | str | None = None) -> None:
    """Raises ConfigurationError, StateError, and AlreadyRunningError while a process is in the room."""
    rooms = Rooms(Home(home))
    with suppress(StateError):  # one that cannot be read goes as well
        rooms.hold(rooms.room(name).room).release()
    rooms.forget(name)


def _open_store(options: Options) -> HomeStore:
    def not_saved(text: str) -> None:
        if options.on_event is not None:
            options.on_event(Trouble(code="not_saved", message=text))

    return HomeStore(options.home, not_saved, settings=options.settings, given=options.given, name=options.member_name)


@asynccontextmanager
async def _run(store: HomeStore, entry: Entry, options: Options) -> AsyncIterator[LanRoom]:
    machine, settings = options.machine, store.settings
    maps_ports = machine.has_router and settings.wants_port_mapping
    newcomers = NewcomerStore()
    member_name = store.name(entry.saved.member_name if entry.saved is not None else None)
    driver = EndpointDriver(
        static_key=store.home.identity(),
        name=member_name,
        peers=(),
        store=newcomers,
        settings=settings,
        traces=store.traces(),
        port_mapping=maps_ports,
        nodes=NodeKeeper(store.home),
        faults=store.faults,
        **machine.options(),
    )
    around = Surroundings(options.on_event, machine)
    keeper = _Keeper(store, entry)
    interface: LanInterface | None = None
    try:
        is_bare = options.interface is no_interface
        taken = options.routes or (no_routes if is_bare else _host_routes(options.any_subnet))
        prefixes = _prefixes(taken(""))
        room = _make_room(entry, driver, member_name, prefixes)
        if room.roster is not None:
            keeper.hold(room.state().room)
            driver.servers.sessions = keeper.sessions
        # Before a word is said to anybody: it may be refused, and gives up this process's privileges.
        interface = await (options.interface or open_on_host)(
            interface_config(room.roster, room.me, any_subnet=options.any_subnet)
        )
        with single_error():
            async with trio.open_nursery() as nursery:
                rendezvous, is_embedded = await _find_server(nursery, store, entry, options, around)
                keeper.server = rendezvous
                running = LanRoom(
                    driver, room, newcomers, interface, nursery, options.on_event, server=rendezvous, is_embedded=is_embedded,
                    any_subnet=options.any_subnet, carries=options.relay, save=keeper.save, forget=keeper.forget,
                )  # fmt: skip
                if is_embedded and maps_ports:
                    await map_server(nursery, running._set_public, rendezvous, driver.faults)
                try:
                    await nursery.start(driver.run)
                    nursery.start_soon(running.plane.run)
                    watch = partial(_watch_routes, running, taken, prefixes)
                    for what, task in (
                        ("interrupted the clock of the room", running._tick),
                        ("kept the networks of this machine from being watched", watch),
                    ):
                        nursery.start_soon(last, driver.faults, "room", what, task)
                    if keeper.sessions is not None:
                        nursery.start_soon(last, driver.faults, "state", UNWRITTEN, keeper.sessions.run)
                    lookup = found_here(rendezvous, machine, running._set_place) if is_embedded else None
                    is_needed = is_embedded or (entry.saved is None and entry.peer is None)
                    if is_needed:
                        nursery.start_soon(around.speak_of_silence, driver, rendezvous)
                        await reach(driver, rendezvous, around, lookup, waits=options.waits and not is_embedded)
                    if room.me is not None and room.roster is not None:
                        running.plane.set_roster(room.roster, room.me)
                        running.entered.set()
                    running._tell_listening()
                    _begin(running, entry)
                    if is_needed:
                        _ask(running, entry)
                    else:  # at boot the network may not be up yet
                        nursery.start_soon(_ask_later, running, entry, around)
                    running.pump()
                    yield running
                finally:
                    await running.leave()
                    driver.close("left the room")
                    nursery.cancel_scope.cancel()
    finally:
        driver.release()
        if interface is not None:
            with trio.CancelScope(shield=True):
                await interface.close()
        keeper.release()
        store.finish()


def _make_room(entry: Entry, driver: EndpointDriver, member_name: str, routes: Iterable[Prefix]) -> Room:
    """Raises ConfigurationError, StateError."""
    static, now = driver.core.static_public, driver.clock()
    if entry.saved is not None:
        saved, state = entry.saved, replace(entry.saved, member_name=member_name)
        kind = CreatorRoom if saved.is_creator else Room
        try:
            return kind.restore(state, now=now, static=static, routes=routes, entropy=os.urandom)
        except MalformedPacket:
            raise StateError(
                f"The room {saved.name} does not fit this machine's identity: 'ptunnel lan forget {saved.name}', and join anew."
            ) from None
    if entry.makes:
        return CreatorRoom.create(
            now=now, static=static, member_name=member_name, room_name=entry.room_name, routes=routes, keeps=entry.keep,
            entropy=os.urandom,
        )  # fmt: skip
    return Room.join(static=static, member_name=member_name, keeps=entry.keep, routes=routes, entropy=os.urandom)


def _begin(running: LanRoom, entry: Entry) -> None:
    """Begin to wait for the members."""
    now, peers = running.driver.clock(), entry.to if entry.makes else () if entry.peer is None else (entry.peer,)
    for peer in peers:
        running.membership.meet(now, peer.static, invited_psk(peer.psk), invited=True)
    running.driver.flush()


def _ask(running: LanRoom, entry: Entry) -> None:
    """Ask the server, which is known by now."""
    driver = running.driver
    if entry.makes:
        running.membership.offer_code(driver.clock())
    elif entry.code is not None:
        running.membership.claim_code(driver.clock(), entry.code)
    driver.flush()


async def _ask_later(running: LanRoom, entry: Entry, around: Surroundings) -> None:
    await resolve(running.driver, running.server, running.tell, around)
    if running.driver.core.has_server(running.server):
        _ask(running, entry)


async def _find_server(
    nursery: trio.Nursery, store: HomeStore, entry: Entry, options: Options, around: Surroundings
) -> tuple[str, bool]:
    """host:port, and whether it is embedded here.  Raises ConfigurationError."""
    settings = store.settings
    known = entry.saved.server if entry.saved is not None else entry.peer.server if entry.peer is not None else None
    if not entry.makes:
        found = settings.given_server or known or settings.server
        if found is None:
            raise ConfigurationError(NO_SERVER)
        return found, False
    if options.waits and settings.given_server is None and may_be_ours(known):
        await around.wait_network()
    ours = were_ours([known], options.machine)
    found = settings.given_server or (known if not ours else None) or settings.server
    if found is not None:
        return found, False
    embedded = await embed(nursery, options.machine, ours, guests=MAX_MEMBERS)
    return (embedded, True) if embedded is not None else (ours[0], False)


async def _watch_routes(running: LanRoom, taken: TakenRoutes, before: Iterable[Prefix]) -> None:
    """A network that this machine joins later may clash with the room's.  It is ours again at once; the creator may choose
    another one for the room.  And one that has gone may be the room's."""
    before = tuple(before)
    while True:
        await trio.sleep(ROUTES_INTERVAL)
        prefixes = _prefixes(await trio.to_thread.run_sync(taken, running.plane.interface.name))
        if prefixes != before:
            before = prefixes
            running.plane.look_again()
        running._set_routes(prefixes)


def _prefixes(texts: Iterable[str]) -> tuple[Prefix, ...]:
    return tuple(Prefix.parse(text) for text in texts)


class _Keeper:
    """Remembers the room where that is wanted, and sees to it that this home is in it once."""

    def __init__(self, store: HomeStore, entry: Entry) -> None:
        self.server = ""
        self._rooms = Rooms(store.home)
        self._store = store
        self._keep = entry.keep
        self._name = entry.saved.name if entry.saved is not None else None
        self._lock: RoomLock | None = None
        self.sessions: SessionKeeper | None = None  # of a room that was kept before, from the time when it is held

    def hold(self, room: bytes) -> None:
        """Raises AlreadyRunningError."""
        if self._lock is None:
            self._lock = self._rooms.hold(room)
            if self._lock.trouble:
                self._store.not_saved(self._lock.trouble)
            elif self._name is not None:
                self.sessions = SessionKeeper(self._store.home, partial(self._rooms.sessions, room))

    def save(self, state: RoomState) -> None:
        roster = decode_roster(state.roster)
        self.hold(state.room)
        if not self._keep:
            return
        try:
            self._name = self._store.disk.ask(partial(self._write, state, roster, self._name, time.time()), also_late=True)
        except (StateError, ConfigurationError) as error:
            self._store.not_saved(f"The room cannot be remembered. {error}")

    def _write(self, state: RoomState, roster: Roster, name: str | None, now: float) -> str:
        """The name that it is kept under.  Raises StateError, ConfigurationError."""
        name = name or self._rooms.free_name(roster.name, state.room)
        self._rooms.save(SavedRoom.of(state, name=name, server=self.server, saved_at=now))
        return name

    def forget(self) -> None:
        """We were removed."""
        if self._name is not None:
            self._store.disk.ask(partial(self._rooms.forget, self._name), also_late=True)

    def release(self) -> None:
        if self.sessions is not None:
            self.sessions.close()
        if self._lock is not None:
            self._lock.release()
