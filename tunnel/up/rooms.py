"""The rooms of config.toml: each that is remembered is entered, and entered again once it can be; none keeps another one waiting.

Interfaces are opened before anything else is done, as many as there are rooms, and then this process gives up its privileges:
a thread that runs by then would keep them.  One that a room has left is used by the next.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from tunnel.errors import ConfigurationError, TunnelError, command_word
from tunnel.room import verbs as lan
from tunnel.room.interface import LanInterface, OpenInterface, give_up_privileges, interface_config, open_on_host
from tunnel.room.session import LanRoom
from tunnel.room.verbs import TakenRoutes
from tunnel.shell.events import Closed, CodeReady, Event, Listening, MemberReport, PathReport, Trouble
from tunnel.shell.lasting import last
from tunnel.shell.link import Link
from tunnel.state.rooms import Rooms as KeptRooms
from tunnel.up.config import RoomWish

if TYPE_CHECKING:
    from tunnel.up.home import Home

FIRST_PAUSE: Final = 2.0  # seconds until a room is tried again; doubled each time that it cannot be entered ...
LONGEST_PAUSE: Final = 60.0  # ... up to this: a try reads a small file

NO_INTERFACE: Final = (
    "'ptunnel up' has no interface left, as it has given up what makes one: start it anew"
    " ('systemctl restart ptunnel', where it is a service)."
)
MUST_KEEP: Final = (
    "This process may not give up the privilege that rooms need (capset(2) is refused): 'sudo ptunnel service install --system'"
    " writes a unit that lets it."
)
PRIVILEGED: Final = "{count} threads of this process keep their privileges: start it anew."


class Interfaces:
    """Interfaces that are open, and are lent to rooms."""

    def __init__(self, open_one: OpenInterface | None = None) -> None:
        """`open_one(config)`; None: interfaces of this machine, for which this process gives up its privileges in the end."""
        self._open = open_one
        self._spare: list[LanInterface] = []
        self._lent: list[LanInterface] = []
        self._is_plain = False  # privileges are given up
        self._why = NO_INTERFACE  # there is none

    async def prepare(self, count: int) -> int:
        """See that there are as many, as far as there can be; after this, none is made where it needs privilege.

        Returns how many threads of this process have kept theirs.  Raises ConfigurationError where it may not give up its own.
        """
        left = 0
        try:
            while len(self._spare) + len(self._lent) < count:
                blank = interface_config(None, None)
                self._spare.append(await (self._open(blank) if self._open is not None else open_on_host(blank, drop=False)))
        except (ConfigurationError, OSError) as error:
            why = f"No interface can be opened: {error.strerror}." if isinstance(error, OSError) else str(error)
            self._why = NO_INTERFACE if self._spare or self._lent else why
        finally:
            if self._open is None and not self._is_plain and (self._spare or self._lent):
                self._is_plain = True
                try:
                    left = await give_up_privileges()
                except OSError:
                    raise ConfigurationError(MUST_KEEP) from None
        return left

    def require(self) -> None:
        """That one is spare.  Raises ConfigurationError."""
        if not self._spare:
            raise ConfigurationError(self._why)

    async def take(self, config: Any) -> LanInterface:
        """One with these addresses.  Raises ConfigurationError."""
        self.require()
        interface = self._spare.pop()
        self._lent.append(interface)
        try:
            facts = await interface.renumber(config)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._back(interface)
            raise
        return Lent(interface, facts, self._back)

    async def _back(self, interface: LanInterface) -> None:
        """It is spare from now on; one that has been deleted, or whose keeper has ended, is of no use."""
        self._lent.remove(interface)
        try:
            await interface.set_names({})
            await interface.renumber(interface_config(None, None))
        except ConfigurationError:
            self._why = NO_INTERFACE
            await interface.close()
        else:
            self._spare.append(interface)

    async def close(self) -> None:
        """Those that nobody has.  Brief, and not cut short by a cancellation."""
        with trio.CancelScope(shield=True):
            while self._spare:
                await self._spare.pop().close()


class Lent:
    """An interface in the hands of one room: closing it gives it back."""

    def __init__(self, interface: LanInterface, facts: list[str], back: Any) -> None:
        self._interface = interface
        self._back = back
        self.facts = facts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._interface, name)

    async def close(self) -> None:
        await self._back(self._interface)


class OneRoom:
    """A room of the file, whether it is open or not."""

    def __init__(self, wish: RoomWish) -> None:
        self.wish = wish
        self.name = wish.name
        self.label = lan.label(wish.name)
        self.room: LanRoom | None = None
        self.why = "It is being entered."  # it is not open
        self.said = ""  # of that, last
        self.code = ""  # by which others join, while it is open and ours
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.ended.set()

    def status(self) -> dict[str, Any]:
        """As `rooms` of `status` has it."""
        if self.room is None:
            return {"room": self.label, "why": self.why, "links": [], "members": []}
        links = [link.status().to_dict() for link in self.room.links]
        return {"members": [], **self.room.status(), "room": self.label, "why": "", "links": links}


class Rooms:
    """All of a home."""

    def __init__(self, home: Home, interfaces: Interfaces, routes: TakenRoutes | None) -> None:
        """`routes` as tunnel.lan.create takes it."""
        self._home = home
        self._interfaces = interfaces
        self._routes = routes
        self._rooms: dict[str, OneRoom] = {}
        self._nursery: trio.Nursery | None = None

    @property
    def links(self) -> list[Link]:
        """Those to members that are there."""
        return [link for each in self._rooms.values() if each.room is not None for link in each.room.links]

    def find(self, name: str) -> LanRoom | None:
        """The room of that name, while it is open."""
        one = self._rooms.get(name)
        return None if one is None else one.room

    def status(self) -> list[dict[str, Any]]:
        return [each.status() for each in self._rooms.values()]

    async def prepare(self, count: int) -> None:
        """Open the interfaces of so many rooms, as far as this process may."""
        if left := await self._interfaces.prepare(count):
            self._home.notice(PRIVILEGED.format(count=left))

    @asynccontextmanager
    async def equipped(self, count: int) -> AsyncIterator[None]:
        """Interfaces for so many rooms are open as long as the block runs, as far as this process may have them."""
        await self.prepare(count)
        try:
            yield
        finally:
            await self._interfaces.close()

    def start(self, nursery: trio.Nursery) -> None:
        """Rooms live in this nursery, as soon as set() wants them."""
        self._nursery = nursery

    async def set(self, wishes: Sequence[RoomWish]) -> dict[str, int]:
        """Have these rooms open and no other ones; those that stay are not touched, those that are not open are tried at once.

        Returns how many were added and removed.
        """
        assert self._nursery is not None
        wanted = {lan.label(wish.name): wish for wish in wishes}
        gone = [each for label, each in self._rooms.items() if label not in wanted or wanted[label][1:] != each.wish[1:]]
        for each in gone:
            each.scope.cancel()
        for each in gone:
            await each.ended.wait()  # its interface is free
            self._rooms.pop(each.label, None)
        await self.prepare(sum(wish.has_interface for wish in wanted.values()))
        fresh = [label for label in wanted if label not in self._rooms]
        for label, wish in wanted.items():
            waiting = self._rooms.get(label)
            if waiting is not None and waiting.room is None:
                waiting.scope.cancel()
                await waiting.ended.wait()
                waiting.scope = trio.CancelScope()
            if waiting is None:
                waiting = self._rooms[label] = OneRoom(wish)
            if waiting.ended.is_set():
                waiting.ended = trio.Event()
                self._nursery.start_soon(self._run, waiting)
        self._rooms = {label: self._rooms[label] for label in wanted}  # in the order of the file
        self._home.note_change()
        return {"added": len(fresh), "removed": len(gone)}

    def remove(self, member: str, name: str | None) -> tuple[str, str] | None:
        """Send a member away, as `lan remove` asks: the room and the member.  Raises ConfigurationError."""
        ours = {each.label: each.room for each in self._rooms.values() if each.room is not None and each.room.is_creator}
        found = {label: room for label, room in ours.items() if name in (None, label, room.name)}
        if len(found) > 1:
            raise ConfigurationError(f"Several rooms that you have created run here: name one of {', '.join(found)} with --room.")
        return next(((label, room.remove(member)) for label, room in found.items()), None)

    def code(self, name: str) -> dict[str, Any]:
        """By which others join that room, as the event `code` has it.  Raises ConfigurationError."""
        one = self._rooms.get(lan.label(name))
        if one is None:
            there = f"rooms are {', '.join(self._rooms)}" if self._rooms else "it has none"
            raise ConfigurationError(f"'ptunnel up' is in no room called {name!r}: {there}.")
        if one.room is None:
            raise ConfigurationError(f"The room {one.label} is not open. {one.why}")
        if not one.room.is_creator:
            raise ConfigurationError(f"The room {one.label} was created by somebody else: its code is there.")
        if not one.code:
            raise ConfigurationError(f"The room {one.label} has no code yet, as its server has not answered: try again.")
        return {"code": one.code, "expires_s": None, "server": one.room.server}

    def why_absent(self, name: str) -> str | None:
        """Why there is no link to a member of this name."""
        for each in self._rooms.values():
            for member in each.room.members() if each.room is not None else ():
                if member.name == name:
                    return f"{name} is this machine." if member.is_me else f"{name} is not in the room {each.label} now."
        return None

    async def _run(self, one: OneRoom) -> None:
        try:
            with one.scope:
                what = f"interrupted the room {one.label}"
                await last(self._home.driver.faults, "room", what, partial(self._keep, one))
        finally:
            one.ended.set()

    async def _keep(self, one: OneRoom) -> None:
        """Until cancelled: in the room, or waiting for the next try."""
        pause = FIRST_PAUSE
        while True:
            was_open = False
            try:
                async with self._enter(await trio.to_thread.run_sync(self._way, one), one) as room:
                    one.room, was_open = room, True
                    self._home.note_change()
                    await room.run()
            except TunnelError as problem:
                one.why = str(problem)
            finally:
                one.room, one.code = None, ""
                self._home.note_change()
            if one.why != one.said:
                one.said = one.why
                text = f"The room {one.label} is not open. {one.why} It is tried again."
                self._home.notice(text)
                self._home.pass_on(Trouble(code="not_entered", message=text))
            pause = FIRST_PAUSE if was_open else min(2 * pause, LONGEST_PAUSE)
            await trio.sleep(pause)

    def _way(self, one: OneRoom) -> bool:
        """Whether it is ours.  Raises ConfigurationError, StateError."""
        if one.wish.has_interface:
            self._interfaces.require()
        saved = KeptRooms(self._home.state).find(one.label)
        if saved is None:
            word = command_word(one.label)
            raise ConfigurationError(
                f"No room called {one.label!r} is remembered in {self._home.state.path}: with this PTUNNEL_HOME,"
                f" 'ptunnel lan create {word} --keep' makes it, or 'ptunnel lan join --keep' joins by its code."
            )
        return saved.is_creator

    def _enter(self, is_ours: bool, one: OneRoom) -> Any:
        more: Mapping[str, Any] = {
            "home": self._home.state.path,
            "on_event": partial(self._heard, one.label),
            "interface": self._interfaces.take if one.wish.has_interface else lan.no_interface,
            "routes": self._routes if one.wish.has_interface else lan.no_routes,
            "relay": one.wish.relays,
            "waits": True,
            "settings": self._home.exposure.store.settings,
        }
        return lan.create(one.label, **more) if is_ours else lan.join(room=one.label, **more)

    def _heard(self, room: str, event: Event) -> None:
        """Members that come and go are news; where the others meet and how they are reached is seen in `status`."""
        if isinstance(event, CodeReady) and (one := self._rooms.get(room)) is not None:
            one.code = event.code
        is_told = not isinstance(event, CodeReady | PathReport | Closed) and not (
            isinstance(event, Listening) and not event.embedded
        )
        if is_told:
            self._home.pass_on(replace(event, room=room) if isinstance(event, MemberReport) else event)
        self._home.note_change()
