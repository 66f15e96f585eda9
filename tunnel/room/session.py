"""A room that this process is in.  LanRoom is its owner: it makes the parts, hands events to them, and tells its caller.

Each fact has one place.  Who is a member: core/room.py (Room).  Which connection is a member's, and when it is dialed again:
core/membership.py (Membership); its Link is the driver's.  Which link packets to an address take: members.py (LanTable).  What
the interface looks like: interface.py (Plane).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, assert_never

import trio

from tunnel.errors import PairingError, PermissionDeniedError, TunnelError
from tunnel.node.events import PeeringClosed, PeeringEvent, Problem
from tunnel.ports.serve_link import serve_nothing
from tunnel.room.core.addresses import MAX_MEMBERS, Prefix
from tunnel.room.core.events import (
    Entered,
    EntryUnanswered,
    JoinRefused,
    MemberJoined,
    MemberOffline,
    MemberOnline,
    MemberRemoved,
    Renumbered,
    RoomEvent,
    RoomFull,
    RosterChanged,
    YouWereRemoved,
)
from tunnel.room.core.membership import Membership, NewcomerStore
from tunnel.room.core.messages import Reason
from tunnel.room.core.roster import Member, Roster
from tunnel.room.interface import LanInterface, Plane
from tunnel.setup.common import OnEvent
from tunnel.shell.endpoint import EndpointDriver
from tunnel.shell.events import Closed, Event, Listening, MemberReport, Paired, PathReport, Trouble
from tunnel.shell.link import Link
from tunnel.shell.reports import EndpointEvent, PeerBack, Troubled, to_event, to_exception

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tunnel.room.core.room import Room
    from tunnel.room.core.roster import RoomState

#: What is said of one peer where that is the only one; a room says that a member is away.
PROBLEMS_OF_PEERS: Final = frozenset((Problem.PEER_ABSENT, Problem.PEER_LOST, Problem.PEER_SILENT))
GOODBYE: Final = 0.5  # seconds at most
TICK: Final = 0.5  # seconds between two looks at what is due: a room's own deadlines are seconds

NOT_LET_IN: Final = (
    "The other side let this machine into no room within half a minute: does 'ptunnel lan create' run there? Try again."
)
_REFUSALS: Final[dict[int, tuple[type[TunnelError], str]]] = {
    Reason.FULL: (PermissionDeniedError, f"The room is full: it has {MAX_MEMBERS} members, and its creator can remove some."),
    Reason.HELD_SMALL: (
        PermissionDeniedError,
        "A member has an older ptunnel, which knows no larger room than this one: join again when that is updated or gone.",
    ),
    Reason.OTHER_ROOM: (PairingError, "The room that was kept is over, its creator has another one now: join that by a code."),
    Reason.BUSY: (
        PermissionDeniedError,
        "So many come and go in this room that nobody is taken in for a moment: join again soon.",
    ),
    Reason.UNKNOWN: (PairingError, "The creator does not know this machine (any more): ask for a code, and join by that."),
}


class LanMember(NamedTuple):
    """Somebody in the room, as of now."""

    name: str
    address: str  # IPv4, in the room
    ipv6: str  # in the room
    is_online: bool
    is_me: bool
    is_creator: bool
    link: Link | None  # None for ourselves, and for whoever is away

    def to_dict(self) -> dict[str, Any]:
        """As `ptunnel status --json` has it, with the figures of the link where there is one."""
        found: dict[str, Any] = {
            "peer": self.name,
            "address": self.address,
            "ipv6": self.ipv6,
            "online": self.is_online,
            "self": self.is_me,
            "creator": self.is_creator,
        }
        return found if self.link is None else {**self.link.status().to_dict(), **found}


class LanRoom:
    """A running room: `members()` tells who is in it, `run()` waits until it ends for us, and raises why.

    `server` is host:port as others must name it; `is_embedded`: that server runs in this process, and `public_server` is where
    other networks reach it, if the router forwards a port to it.
    """

    def __init__(
        self,
        driver: EndpointDriver,
        room: Room,
        newcomers: NewcomerStore,
        interface: LanInterface,
        nursery: trio.Nursery,
        on_event: OnEvent | None,
        *,
        server: str,
        is_embedded: bool,
        any_subnet: bool,
        carries: bool,
        save: Callable[[RoomState], None],
        forget: Callable[[], None],
    ) -> None:
        """`newcomers` is the store that the driver was made with.  `forget` is called when the room is worth nothing any more."""
        self.driver = driver
        self.room = room
        self.server = server  # host:port as others must name it
        self.is_embedded = is_embedded
        self.public_server: str | None = None  # host:port of the embedded server as other networks reach it
        self.entered = trio.Event()
        self.membership = Membership(
            driver.core, room, newcomers, server=server, now=driver.clock(), save=save, carries=carries
        )  # fmt: skip
        self.plane = Plane(interface, driver.clock, self._warn, driver.faults, any_subnet=any_subnet)
        self._nursery = nursery
        self._on_event = on_event
        self._forget = forget
        self._paths: dict[bytes, PathReport] = {}
        self._told: dict[bytes, tuple[str | None, str]] = {}  # kind and reason of the paths, as last said of members online
        self._problem: TunnelError | None = None
        self._over = trio.Event()
        self._is_told = False  # where we listen
        driver.on_event = self._handle_event
        driver.on_link = self._handle_link
        driver.after_events = self.pump

    # --- what is known

    @property
    def roster(self) -> Roster:
        """Raises AttributeError before the room was entered: see wait_entered."""
        if self.room.roster is None:
            raise AttributeError("the room was not entered yet")
        return self.room.roster

    @property
    def name(self) -> str:
        """The room's."""
        return self.room.roster.name if self.room.roster is not None else "room"

    @property
    def is_creator(self) -> bool:
        """The room is ours: we let others in, and may remove them."""
        return self.room.is_creator

    @property
    def links(self) -> list[Link]:
        """Those of members that are there."""
        return [member.link for member in self.members() if member.link is not None]

    def members(self) -> list[LanMember]:
        """All, ourselves included, in the order in which they joined; nobody before the room was entered."""
        roster = self.room.roster
        if roster is None:
            return []
        return [
            LanMember(
                name=member.name,
                address=roster.ipv4(member),
                ipv6=roster.ipv6(member),
                is_online=self._is_there(member),
                is_me=member.static == self.room.static,
                is_creator=member is roster.creator,
                link=self._link(member.static),
            )
            for member in roster.members
        ]

    def _link(self, static: bytes) -> Link | None:
        """The link of a member that is there."""
        peering = self.membership.peering(static)
        return None if peering is None else self.driver.links.get(peering)

    def _is_there(self, member: Member) -> bool:
        return member.static == self.room.static or self.membership.peering(member.static) is not None

    def status(self) -> dict[str, Any]:
        """For `status`: everything but the links themselves."""
        roster = self.room.roster
        found: dict[str, Any] = {"room": self.name, "creator": self.is_creator, "server": self.server, "interface": ""}
        if roster is not None:
            found |= {"version": roster.version, "subnet": f"{roster.ipv4(roster.creator).rpartition('.')[0]}.0/24"}
            found["members"] = [member._replace(link=None).to_dict() for member in self.members()]
        found["interface"], found["mtu"] = self.plane.interface.name, None if roster is None else self.plane.forward.mtu
        if self.membership.detours.carries:
            found["carried"] = self.driver.core.carrying.to_dict()
        found["drops"] = {"room": dict(self.room.drops), **self.plane.counters(), **self.driver.counters()}
        return found

    # --- verbs

    async def wait_entered(self) -> None:
        """Until we are a member and the interface has its addresses.  Raises what keeps us out."""
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await self._over.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            await self.entered.wait()
            await self.plane.is_ready.wait()
            nursery.cancel_scope.cancel()
        if self._problem is not None:
            raise self._problem

    async def run(self) -> None:
        """Be there until cancelled.  Raises what ends the room for us: removed by its creator, or refused."""
        await self._over.wait()
        assert self._problem is not None
        raise self._problem

    def remove(self, name: str) -> str:
        """Send a member away, for a creator.  Returns its name.  Raises ConfigurationError."""
        removed = self.membership.remove(self.driver.clock(), name)
        self.pump()
        self.driver.flush()
        return removed.name

    async def leave(self) -> None:
        """Say goodbye.  A member that will not come back waits a moment until the creator has let it go."""
        roster = self.room.roster
        link = self._link(roster.creator.static) if roster is not None else None
        says_so = self.membership.leave(self.driver.clock())
        self.driver.flush()
        if says_so and link is not None:
            with trio.move_on_after(GOODBYE, shield=True):
                await link.closed()

    # --- told from elsewhere

    async def _tick(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(TICK)
            self.pump()
            self.driver.flush()

    def _set_public(self, public: str | None) -> None:
        """The router forwards a port to the embedded server, or no longer."""
        self.public_server = public
        if self._is_told:
            self._tell_listening()

    def _set_place(self, where: str) -> None:
        """The embedded server is reached there now, as this machine has other addresses."""
        self.server = where
        self._tell_listening()

    def _tell_listening(self) -> None:
        self._is_told = True
        self.tell(Listening(bind=self.server, embedded=self.is_embedded, public=self.public_server))

    def tell(self, event: Event) -> None:
        """Pass it on to whoever listens."""
        if self._on_event is not None:
            self._on_event(event)

    def _warn(self, text: str) -> None:
        self.tell(Trouble(code="interface", message=text))

    def _set_routes(self, routes: Iterable[Prefix]) -> None:
        """The IPv4 networks of this machine that the room must stay clear of."""
        self.room.set_routes(self.driver.clock(), routes)
        self.pump()
        self.driver.flush()

    def pump(self) -> None:
        """Act on what the room has to say."""
        try:
            events = self.membership.pump(self.driver.clock())
        except TunnelError as problem:  # somebody else of this home is in the room
            self._end(problem)
            return
        for event in events:
            with self.driver.faults.wall("room", "left a change of the room undone"):
                self._on_room(event)

    # --- events

    def _handle_link(self, link: Link) -> None:
        self.plane.forward.set_link(link.peer.static, link)
        self._nursery.start_soon(serve_nothing, link)  # a member may measure, and reach no port

    def _handle_event(self, event: EndpointEvent) -> None:
        try:
            self.membership.handle_event(self.driver.clock(), event)
        except Exception as error:  # what a member said ends its own link
            link = self.driver.links.get(event.peering) if isinstance(event, PeeringEvent) else None
            if link is None:
                raise
            link.fail(error)
        if isinstance(event, PeeringClosed):
            static = event.peering.peer.static
            link = self.plane.forward.table.links.get(static)
            if link is not None and link.close_reason is not None:
                self.plane.forward.set_link(static, None)
                self._paths.pop(static, None)
            return
        if isinstance(event, Troubled):
            self._on_trouble(event)
            return
        if isinstance(event, PeerBack):
            return  # that a member is online again is told
        report = to_event(event, self.driver.clock())
        if isinstance(report, PathReport):
            self._on_path(event, report)
        elif report is not None and not isinstance(report, Paired | Closed):
            self.tell(report)

    def _on_trouble(self, event: Troubled) -> None:
        """Pass on one member's trouble, which does not end the room; it ends a joiner that is not in yet."""
        if event.is_final and self.room.roster is None:
            self._end(to_exception(event))
        elif event.problem is Problem.PEER_ABSENT and self.room.roster is None:
            text = "The creator does not answer: does 'ptunnel lan create --to' run there, for this machine? Waiting."
            self.tell(Trouble(code=event.problem.value, message=text))
        elif event.problem not in PROBLEMS_OF_PEERS:
            self.tell(Trouble(code=event.problem.value, message=event.text))

    def _on_path(self, event: Any, report: PathReport) -> None:
        static = event.peering.peer.static
        self._paths[static] = report
        member = None if self.room.roster is None else self.room.roster.member(static)
        if member is not None:  # a newcomer has no name yet
            self.tell(replace(report, peer=member.name))
        is_news = self._told.get(static, (report.kind, report.why)) != (report.kind, report.why)
        if is_news and member is not None and self._is_there(member):
            self._report(member, "online")

    def _report(self, member: Member, state: str) -> None:
        roster = self.roster
        self._told.pop(member.static, None)
        kind, why = None, ""
        if state == "online":
            link = self._link(member.static)
            path = self._paths.get(member.static) or (None if link is None else link.status())
            if path is not None:
                kind, why = path.kind, path.why
            self._told[member.static] = (kind, why)
        self.tell(
            MemberReport(
                peer=member.name,
                address=roster.ipv4(member),
                ipv6=roster.ipv6(member),
                state=state,
                kind=kind,
                why=why,
                is_me=member.static == self.room.static,
            )
        )

    def _on_room(self, event: RoomEvent) -> None:
        room = self.room
        match event:
            case Entered(roster=roster):
                if room.me is not None:
                    self._report(room.me, "online")
                for member in roster.members:
                    if member.static != room.static:
                        self._report(member, "offline")
                self.entered.set()
            case RosterChanged(roster=roster):
                if room.me is not None:
                    self.plane.set_roster(roster, room.me)
            case MemberJoined(member=member) | MemberOffline(member=member):
                self._report(member, "offline")
            case MemberOnline(member=member):
                self._report(member, "online")
            case MemberRemoved(member=member):
                self._report(member, "removed")
            case Renumbered():
                for member in self.roster.members:
                    self._report(member, "online" if self._is_there(member) else "offline")
            case RoomFull():
                self.tell(Trouble(code="room_full", message=_why_full(event)))
            case YouWereRemoved():
                self._forget()
                self._end(PermissionDeniedError(f"You were removed from the room '{self.name}' by its creator."))
            case EntryUnanswered():
                self._end(PairingError(NOT_LET_IN))
            case JoinRefused(reason=reason):
                kind, text = _REFUSALS.get(int(reason), (PermissionDeniedError, "The creator of the room does not take us in."))
                self._end(kind(text))
            case _:
                assert_never(event)

    def _end(self, problem: TunnelError) -> None:
        if self._problem is None:
            self._problem = problem
            self.tell(Closed(reason=str(problem), peer=self.name))
            self._over.set()


def _why_full(event: RoomFull) -> str:
    """For the creator."""
    if not event.held_by:
        return f"{event.name} wants to join, and the room is full: 'ptunnel lan remove MEMBER' makes place."
    whose = ", ".join(event.held_by)
    return (
        f"{event.name} wants to join, and this ptunnel is too old for a room of more than {event.most}: {whose}. "
        "Update it there, or 'ptunnel lan remove' makes place."
    )
