"""Events of a Room for its owner.  All frozen; match on all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from tunnel.room.core.messages import Reason
from tunnel.room.core.roster import Member, Roster


@dataclass(frozen=True, slots=True)
class Entered:
    """We are a member now: the first roster that has us in it."""

    roster: Roster


@dataclass(frozen=True, slots=True)
class RosterChanged:
    """A newer roster counts: save the room, then send what it has to say.  Follows the events that tell what is different."""

    roster: Roster


@dataclass(frozen=True, slots=True)
class MemberJoined:
    """Somebody else is in the roster."""

    member: Member


@dataclass(frozen=True, slots=True)
class MemberRemoved:
    """Somebody is no longer in the roster: has left for good, or was sent away."""

    member: Member


@dataclass(frozen=True, slots=True)
class MemberOnline:
    """We have a connection to this member."""

    member: Member


@dataclass(frozen=True, slots=True)
class MemberOffline:
    """The connection to this member is gone."""

    member: Member


@dataclass(frozen=True, slots=True)
class Renumbered:
    """The room's IPv4 subnet or IPv6 prefix is another one; host numbers stay."""

    roster: Roster


@dataclass(frozen=True, slots=True)
class YouWereRemoved:
    """The creator has sent us away: the room is over for us."""


@dataclass(frozen=True, slots=True)
class JoinRefused:
    """The creator does not take us in."""

    reason: Reason | int


@dataclass(frozen=True, slots=True)
class EntryUnanswered:
    """Whoever we connected to has let us into no room: it may have none, or has not heard us."""


@dataclass(frozen=True, slots=True)
class RoomFull:
    """To the creator: somebody wanted in, and there is no place."""

    name: str


RoomEvent: TypeAlias = (
    Entered
    | RosterChanged
    | MemberJoined
    | MemberRemoved
    | MemberOnline
    | MemberOffline
    | Renumbered
    | YouWereRemoved
    | JoinRefused
    | EntryUnanswered
    | RoomFull
)
