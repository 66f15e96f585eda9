"""Events of a Room for its owner.  All frozen; match on all of them."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from tunnel.room.core.addresses import MAX_MEMBERS
from tunnel.room.core.messages import Reason
from tunnel.room.core.roster import Member, Roster


class Entered(Struct, frozen=True):
    """We are a member now: the first roster that has us in it."""

    roster: Roster


class RosterChanged(Struct, frozen=True):
    """A newer roster counts: save the room, then send what it has to say.  Follows the events that tell what is different."""

    roster: Roster


class MemberJoined(Struct, frozen=True):
    """Somebody else is in the roster."""

    member: Member


class MemberRemoved(Struct, frozen=True):
    """Somebody is no longer in the roster: has left for good, or was sent away."""

    member: Member


class MemberOnline(Struct, frozen=True):
    """We have a connection to this member."""

    member: Member


class MemberOffline(Struct, frozen=True):
    """The connection to this member is gone."""

    member: Member


class Renumbered(Struct, frozen=True):
    """The room's IPv4 subnet or IPv6 prefix is another one; host numbers stay."""

    roster: Roster


class YouWereRemoved(Struct, frozen=True):
    """The creator has sent us away: the room is over for us."""


class JoinRefused(Struct, frozen=True):
    """The creator does not take us in."""

    reason: Reason | int


class EntryUnanswered(Struct, frozen=True):
    """Whoever we connected to has let us into no room: it may have none, or has not heard us."""


class RoomFull(Struct, frozen=True):
    """To the creator: somebody wanted in, and there is no place.

    `held_by`: whose ptunnel knows rooms of `most` only, where that is why; the one who wanted in may be among them.
    """

    name: str
    most: int = MAX_MEMBERS
    held_by: tuple[str, ...] = ()


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
