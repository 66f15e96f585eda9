"""One peer of a home: its forwards go over one link, whichever side has dialed it.

A link that the peer has dialed serves as well as one of ours, as soon as the peer has said over it what it shares: then it
answers our streams.  Where both sides have dialed at once, both come to prefer the link that the home with the smaller static key
has dialed.  The other one gives way once nothing is open on it, and stays a while longer for what the other side begins there.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio

from tunnel.errors import ConfigurationError, TunnelError
from tunnel.ports.counters import Notices
from tunnel.ports.remote import Remote, Remotes, keep_remotes
from tunnel.shell.link import CloseCode
from tunnel.up.doors import Door

if TYPE_CHECKING:
    from tunnel.ports.access import AccessLog
    from tunnel.ports.public_link import Link
    from tunnel.shell.endpoint import EndpointDriver, KnownPeer

FIRST_PAUSE: Final = 1.0  # seconds before a peer whose link has ended is dialed again, doubling ...
LONGEST_PAUSE: Final = 60.0  # ... up to this
PROOF: Final = 1.0  # seconds for a link to answer, where another one to the same peer has come ...
AWAKE_PROOF: Final = 0.3  # ... and once more, when that one has answered
LOOK: Final = 0.1  # seconds between two looks at it meanwhile: a process that stood still hears what has come before it judges
SETTLE_INTERVAL: Final = 1.0  # seconds between two looks at whether a link that is one too many has nothing open
LINGER: Final = 3.0  # seconds without anything open until such a link ends: by then the other side has turned to the better one


class Around(Protocol):
    """The part of a home that a bond uses."""

    log: AccessLog | None

    @property
    def driver(self) -> EndpointDriver: ...

    def notice(self, text: str) -> None: ...

    def server_of(self, peer: KnownPeer) -> str:
        """Raises ConfigurationError: none is known."""


class Bond:
    """All that is wanted of one peer."""

    def __init__(self, around: Around, peer: KnownPeer) -> None:
        self.peer = peer
        self.doors: list[Door] = []
        self.links: list[Link] = []  # the live ones; the newest last
        self.link: Link | None = None  # that carries the doors
        self.trouble = ""  # why there is none, where that is known
        self.is_running = False
        self.remotes = Remotes()  # where the peer listens for us
        self._around = around
        self._dialed: Any = None  # the peering that we have asked for
        self._pause = FIRST_PAUSE
        self._idle_since: dict[Link, float] = {}  # links that we have dialed, and that carry nothing
        self._nursery: trio.Nursery | None = None  # while `link` serves
        self._changed = trio.Event()

    # --- told by the home

    def notify(self) -> None:
        """Something that it goes by has changed."""
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def add(self, door: Door) -> None:
        self.doors.append(door)
        self.remotes.add(door.remotes, door.limit)
        if self._nursery is not None and self.link is not None:
            self._nursery.start_soon(self._serve, door, self.link)
        self.notify()

    def remove(self, door: Door) -> None:
        self.doors.remove(door)
        self.remotes.drop(door.remotes)
        door.close()
        self.notify()

    # --- the task

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._carry(await self._meet())

    async def _meet(self) -> Link:
        """A link for the doors, when there are some: one that is there, or one that we dial."""
        while True:
            changed = self._changed
            if not self.doors:
                await self._let_go(changed)
                continue
            candidates = self._candidates()
            if candidates:
                self._forget_dial()
                self._pause, self.trouble = FIRST_PAUSE, ""
                return candidates[-1]
            if self._dialed is None:
                await self._dial()
            elif self._dialed.is_closed:
                self._dialed = None
                with trio.move_on_after(self._pause):
                    await changed.wait()
                self._pause = min(2 * self._pause, LONGEST_PAUSE)
                continue
            await changed.wait()

    def _candidates(self) -> list[Link]:
        """Links that can carry the doors, the preferred one last."""
        live = [link for link in self.links if link.close_reason is None]
        ours = [link for link in live if link.is_connector][-1:]
        theirs = [link for link in live if not link.is_connector and link.shared is not None]
        is_smaller = self._around.driver.core.static_public < self.peer.static
        return [*theirs, *ours] if is_smaller else [*ours, *theirs]

    async def _dial(self) -> None:
        driver = self._around.driver
        try:
            server = self._around.server_of(self.peer)
        except ConfigurationError as error:
            self.trouble = str(error)
            return
        changed = self._changed
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def look() -> None:  # a link may come by itself, and the wish may end
                    await changed.wait()
                    scope.cancel()

                nursery.start_soon(look)
                await driver.servers.wait_added(server)
                nursery.cancel_scope.cancel()
        if not changed.is_set():
            self._dialed = driver.dial(self.peer, server)

    def _forget_dial(self) -> None:
        """A link is there: one that we still ask for would be another."""
        if self._dialed is not None and not any(link.peering is self._dialed for link in self.links):
            if not self._dialed.is_closed:
                driver = self._around.driver
                self._dialed.close(driver.clock(), CloseCode.NO_ERROR, "another link is there")
                driver.flush()
            self._dialed = None

    async def _let_go(self, changed: trio.Event) -> None:
        """Nothing is wanted: what we have dialed ends as soon as the peer uses it for nothing either."""
        self._forget_dial()
        self._dialed = None
        is_watched = self._thin_out(None, "nothing is forwarded any more")
        with trio.move_on_after(SETTLE_INTERVAL if is_watched else float("inf")):
            await changed.wait()

    def _thin_out(self, kept: Link | None, why: str) -> bool:
        """End what we have dialed and nobody has used for a while, but for `kept`; whether there is any that may end later."""
        now = trio.current_time()
        ours = [each for each in self.links if each.is_connector and each is not kept]
        self._idle_since = {each: self._idle_since.get(each, now) for each in ours if each.is_idle}
        for each, since in self._idle_since.items():
            if now - since >= LINGER:
                each.close(why)
        return bool(ours)

    async def _carry(self, link: Link) -> None:
        """Until the link ends, nothing is wanted, or another link is better."""
        self.link = link
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for door in self.doors:
                    nursery.start_soon(self._serve, door, link)
                await self._stay(link)
                nursery.cancel_scope.cancel()
        finally:
            self.link = self._nursery = None

    async def _serve(self, door: Door, link: Link) -> None:
        def ready(remote: Remote) -> None:
            door.there[remote] = None

        with trio.CancelScope() as door.scope:
            if not door.remotes:
                await door.listeners.serve(link, notice=self._around.notice, log=self._around.log, limit=door.limit)
                return
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(keep_remotes, link, door.remotes, ready, Notices(self._around.notice))
                    await link.closed()
                    nursery.cancel_scope.cancel()
            finally:
                door.there.clear()

    async def _stay(self, link: Link) -> None:
        while True:
            changed = self._changed
            if not self.doors or link not in self.links:
                return
            candidates = self._candidates()
            if len(candidates) > 1 and await self._is_beaten(link, candidates[-1]):
                return
            is_watched = self._thin_out(link, "one link is enough")
            with trio.move_on_after(SETTLE_INTERVAL if is_watched or len(candidates) > 1 else float("inf")):
                await changed.wait()

    async def _is_beaten(self, link: Link, best: Link) -> bool:
        """Whether the doors shall move from `link` to another one now, at a moment when nothing is lost by that."""
        if await self._has_died(link):
            link.close("another link has taken its place")
            return True
        if best is link or not await _answers(best):
            return False
        return link.is_idle and not any(door.listeners.counters.tcp_active for door in self.doors)

    async def _has_died(self, link: Link) -> bool:
        """Whether the process at its other end is gone: another link to the same peer answers, and this one does not.

        Where the peer stood still, both kept silent; so this one is asked once more when the other one has answered.
        """
        if await _answers(link):
            return False
        others = [each for each in self._candidates() if each is not link]
        if not others or not await _answers(others[-1]):
            return False
        return not link.peering.is_reachable or not await _answers(link, AWAKE_PROOF)


async def _answers(link: Link, within: float = PROOF) -> bool:
    """Whether it does within so many seconds, and has a path until then."""
    has_answered = False

    async def ask() -> None:
        nonlocal has_answered
        with contextlib.suppress(TunnelError):
            await link.ping()
            has_answered = True
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        for _ in range(round(within / LOOK)):
            await trio.sleep(LOOK)
            if not link.peering.is_reachable:
                break
        nursery.cancel_scope.cancel()
    return has_answered
