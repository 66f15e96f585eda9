"""The creator's verbs: admit, remove, choose another subnet.  Creator makes rosters, its room signs them."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import Final, NamedTuple, Self

import msgspec

from tunnel.core.timers import earliest
from tunnel.core.trace import Drops
from tunnel.errors import ConfigurationError, MalformedPacket
from tunnel.room.core import addresses
from tunnel.room.core.addresses import MAX_MEMBERS, MEMBERS_UNSAID, HostNumbers, Prefix
from tunnel.room.core.events import RoomFull, RosterChanged
from tunnel.room.core.messages import Hello, Reason, Refused, unpack_routes
from tunnel.room.core.records import Allowances, MemberLink, MemberPeer
from tunnel.room.core.room import HAVE_INTERVAL, Room
from tunnel.room.core.roster import (
    Member,
    RoomState,
    Roster,
    commit,
    free_label,
    make_label,
    public_key,
    sign_roster,
)
from tunnel.units import KEY_SIZE, Hex, Instant, Seconds

JOIN_PATIENCE: Final = Seconds(30.0)  # from a pairing to the joiner's Hello
MAX_JOINING: Final = MAX_MEMBERS  # paired ones whose Hello has not come
RENUMBER_INTERVAL: Final = Seconds(5.0)  # between two searches for a subnet, whatever members say of their routes
MAX_RENUMBERS: Final = 4  # subnets that one member's routes may cost all others in a row; a laptop roams from home to a train
RENUMBER_REFILL: Final = Seconds(600.0)  # after which it may cost one more
MEMBER_CHANGES: Final = 8  # rosters that the comings and goings of one key may cost all others in a row; ...
MEMBER_REFILL: Final = Seconds(120.0)  # ... after which it may cost one more
ROOM_CHANGES: Final = 3 * MAX_MEMBERS  # rosters that all others together may cost in a row: all come, go, and come again; ...
ROOM_REFILL: Final = Seconds(15.0)  # ... after which they may cost one more

ROOM: Final = b""  # stands for all members where each key has an allowance
TOO_OFTEN: Final = "came and went too often"


class Expected(NamedTuple):
    """Somebody who may join by saying Hello; `until` is None for the invited."""

    psk: bytes
    until: Instant | None


class Change(NamedTuple):
    """The next roster, and the secret of its epoch where that is a new one."""

    roster: Roster
    secret: bytes | None = None


class Creator:
    """The creator's part of a Room."""

    def __init__(
        self, private_key: bytes, entropy: Callable[[int], bytes], drops: Drops, numbers: HostNumbers | None = None
    ) -> None:
        self.private_key = private_key
        self.numbers = numbers if numbers is not None else HostNumbers()
        self.expected: dict[bytes, Expected] = {}
        self.routes: dict[bytes, tuple[Prefix, ...]] = {}  # of everybody, ourselves included
        self.narrow: set[bytes] = set()  # members that know no spare subnets
        self.sizes: dict[bytes, int] = {}  # members of the largest room that a member knows; who is missing knows MEMBERS_UNSAID
        self._entropy = entropy
        self._drops = drops
        self._passing: set[bytes] = set()  # members that will not come back once they have ended
        self._leaving: dict[bytes, Instant] = {}  # of those, who said so too often: when they are let go
        self._renumbers = Allowances(MAX_RENUMBERS, RENUMBER_REFILL)
        self._comings = Allowances(MEMBER_CHANGES, MEMBER_REFILL)
        self._changes = Allowances(ROOM_CHANGES, ROOM_REFILL)  # of the room: one key
        self._renumber_at: Instant | None = None  # a clash is known, and it is too early to act
        self._renumber_from = Instant(0.0)  # when it is not

    def expect(self, now: Instant, static: bytes, psk: bytes, *, invited: bool) -> None:
        until = None if invited else Instant(now + JOIN_PATIENCE)
        passing = [key for key, each in self.expected.items() if each.until is not None]
        if until is not None and static not in self.expected and len(passing) >= MAX_JOINING:
            del self.expected[passing[0]]
            self._drops["joiners that said nothing"] += 1
        self.expected[static] = Expected(psk, until)

    def turn_away(self) -> None:
        """Whoever has paired and said nothing yet: somebody was sent away, and it may be that one by another key."""
        for static in [key for key, each in self.expected.items() if each.until is not None]:
            del self.expected[static]
            self._drops["joiners turned away by a removal"] += 1

    def admit(
        self, now: Instant, roster: Roster, static: bytes, hello: Hello, present: Container[bytes]
    ) -> list[Change] | Reason:
        """Return the changes of admitting a member, none for one that is back.  `present`: members with a connection."""
        member = roster.member(static)
        changes: list[Change] = []
        if member is None:
            if static not in self.expected:
                return Reason.UNKNOWN
            if self._is_out_of_reach(roster.creator.static, roster.subnet, knows_spare=hello.knows_spare):
                self._drops["joiners whose ptunnel is too old"] += 1
                return Reason.TOO_OLD
            if self._may_change_at(now, static) > now:
                self._drops[TOO_OFTEN] += 1
                return Reason.BUSY
            most = self.most(roster, hello.most)
            if len(roster.members) >= most:
                idle = next((each for each in roster.members[1:] if self._is_gone(each, present)), None)
                if idle is None or len(roster.members) > most:
                    return Reason.FULL if most in (MAX_MEMBERS, hello.most) else Reason.HELD_SMALL
                changes.append(self.drop(roster, idle))
                roster = changes[-1].roster
                self._changes.note(now, ROOM)
            self._has_changed(now, static)
            host = self.numbers.take(static, {each.host for each in roster.members})
            name = free_label(make_label(hello.name), {each.name for each in roster.members})
            changes.append(Change(_next(roster, members=(*roster.members, Member(static, name, host)))))
        (self._passing.discard if hello.keeps else self._passing.add)(static)
        self._leaving.pop(static, None)
        return changes

    def most(self, roster: Roster, asked: int) -> int:
        """How many the room may have with these members and one who knows rooms of `asked`."""
        return min(MAX_MEMBERS, asked, *(self._size(member) for member in roster.members[1:]))

    def held_by(self, roster: Roster, most: int) -> tuple[str, ...]:
        """The members who know no larger room than one of `most`."""
        return tuple(member.name for member in roster.members[1:] if self._size(member) <= most < MAX_MEMBERS)

    def _size(self, member: Member) -> int:
        return self.sizes.get(member.static, MEMBERS_UNSAID)

    def leave(self, now: Instant, roster: Roster, member: Member) -> Change | None:
        """It will not come back.  None: it has said so too often, and is let go later, unless it says Hello before."""
        at = self._may_change_at(now, member.static)
        if at > now:
            self._drops[TOO_OFTEN] += 1
            self._passing.add(member.static)
            self._leaving[member.static] = at
            return None
        self._has_changed(now, member.static)
        return self.drop(roster, member)

    def let_go(self, now: Instant, roster: Roster) -> Change | None:
        """Without one of those that had left too often to be let go at once, once it is time."""
        due = next((static for static, at in self._leaving.items() if now >= at), None)
        member = roster.member(due) if due is not None else None
        return self.leave(now, roster, member) if member is not None else None

    def _may_change_at(self, now: Instant, static: bytes) -> Instant:
        """When this one's coming or going may cost the others a roster."""
        return max(self._comings.ready_at(now, static), self._changes.ready_at(now, ROOM))

    def _has_changed(self, now: Instant, static: bytes) -> None:
        self._comings.note(now, static)
        self._changes.note(now, ROOM)

    def _is_gone(self, member: Member, present: Container[bytes]) -> bool:
        """Away, and has said that it would not come back: it gives up its place to somebody who is here."""
        return member.static in self._passing and member.static not in present

    def drop(self, roster: Roster, member: Member, *, is_sent_away: bool = False) -> Change:
        """Without that member, who must not know the next secret.  Who was invited and left by itself stays invited."""
        if is_sent_away:
            self.expected.pop(member.static, None)
        self.routes.pop(member.static, None)
        self.narrow.discard(member.static)
        self.sizes.pop(member.static, None)
        self._passing.discard(member.static)
        self._leaving.pop(member.static, None)
        self.numbers.give_back(member.static, member.host)
        secret = self._entropy(KEY_SIZE)
        members = tuple(each for each in roster.members if each.static != member.static)
        return Change(_next(roster, members=members, epoch=roster.epoch + 1, commitment=commit(secret)), secret)

    def renumber(self, now: Instant, roster: Roster) -> Change | None:
        """Another subnet for all, where this one clashes with what a member has, if one suits more, and not too often."""
        clashing = self._clashing(roster.subnet)
        creator = roster.creator.static
        may = [static for static in clashing if static == creator or self._renumbers.ready_at(now, static) <= now]
        if len(may) < len(clashing):
            self._drops["routes of a member that clash too often"] += 1
        if not may:
            self._renumber_at = None
            return None
        earliest_at = self._renumber_from
        if creator not in may:
            earliest_at = max(earliest_at, self._changes.ready_at(now, ROOM))
        if now < earliest_at:
            self._renumber_at = earliest_at
            return None
        self._renumber_at = None
        self._renumber_from = Instant(now + RENUMBER_INTERVAL)  # whatever is found: the search is work already
        subnet = self._choose(now, creator)
        if subnet is None or self._cost(creator, subnet) >= self._cost(creator, roster.subnet):
            return None
        self._changes.note(now, ROOM)
        for static in may:
            self._renumbers.note(now, static)
        return Change(_next(roster, subnet=subnet))

    def _clashing(self, subnet: bytes) -> list[bytes]:
        """Return the members that the subnet does not suit."""
        lost = self.narrow if addresses.is_spare(subnet) else ()
        return [static for static, routes in self.routes.items() if static in lost or addresses.clashes(subnet, routes)]

    def _cost(self, creator: bytes, subnet: bytes) -> tuple[bool, int, int]:
        """Whether it leaves ourselves without IPv4, how many without a roster that they understand, and how many without IPv4."""
        clashing = self._clashing(subnet)
        return creator in clashing, len(self.narrow) if addresses.is_spare(subnet) else 0, len(clashing)

    def _is_out_of_reach(self, creator: bytes, subnet: bytes, *, knows_spare: bool) -> bool:
        """Whether a newcomer would understand no roster that we can make."""
        if knows_spare or not addresses.is_spare(subnet):
            return False
        return addresses.choose_subnet(self._entropy, self.routes.get(creator, ()), may_be_spare=False) is None

    def _choose(self, now: Instant, creator: bytes) -> bytes | None:
        """A subnet that clashes with nobody's routes; those of one that says it has all there is count for nothing."""
        routes: list[Prefix] = []
        subnet = None
        for static in sorted(self.routes, key=lambda each: (each != creator, self._renumbers.spent(now, each))):
            wanted = [*routes, *self.routes[static]]
            candidate = addresses.choose_subnet(self._entropy, wanted, may_be_spare=not self.narrow)
            if candidate is None:
                self._drops["no subnet without a clash"] += 1
            else:
                subnet = candidate
                routes += self.routes[static]
        return subnet

    def poll_timeout(self) -> Instant | None:
        return earliest(self._renumber_at, *self._leaving.values(), *(each.until for each in self.expected.values()))

    def handle_timeout(self, now: Instant) -> bool:
        """True when it is time to renumber."""
        for static in [key for key, each in self.expected.items() if each.until is not None and now >= each.until]:
            del self.expected[static]
            self._drops["joiners that said nothing"] += 1
        return self._renumber_at is not None and now >= self._renumber_at


def _next(roster: Roster, **changes: object) -> Roster:
    return msgspec.structs.replace(roster, version=roster.version + 1, **changes)


class CreatorRoom(Room):
    """The room of whoever made it: make one by create or restore."""

    is_creator = True
    _office: Creator

    @classmethod
    def create(
        cls,
        *,
        now: Instant,
        static: bytes,
        member_name: str,
        room_name: str,
        routes: Iterable[Prefix] = (),
        keeps: bool = False,
        entropy: Callable[[int], bytes],
    ) -> CreatorRoom:
        """A new room with ourselves in it.  `room_name` is a label.  Raises ConfigurationError when no subnet is left."""
        room = cls(static=static, member_name=member_name, keeps=keeps, entropy=entropy)
        room._office = Creator(entropy(KEY_SIZE), entropy, room.drops)
        room._room = public_key(room._office.private_key)
        room._creator = static
        room._routes = room._office.routes[static] = tuple(routes)
        subnet = addresses.choose_subnet(entropy, room._routes)
        if subnet is None:
            raise ConfigurationError("Every private IPv4 network is in use here: take away a route, then create the room.")
        room._secret = entropy(KEY_SIZE)
        roster = Roster(
            room=room._room,
            version=1,
            epoch=1,
            name=room_name,
            subnet=subnet,
            ula=addresses.choose_ula(entropy),
            commitment=commit(room._secret),
            members=(Member(static, make_label(member_name), addresses.CREATOR_HOST),),
        )
        room._sign(now, Change(roster))
        room._have_at = Instant(now + HAVE_INTERVAL)
        return room

    @classmethod
    def restore(
        cls, state: RoomState, *, now: Instant, static: bytes, routes: Iterable[Prefix] = (), entropy: Callable[[int], bytes]
    ) -> Self:
        """A creator whose routes clash now renumbers.  Raises MalformedPacket."""
        room = super().restore(state, now=now, static=static, routes=routes, entropy=entropy)
        if state.private_key is None or public_key(state.private_key) != state.room:
            raise MalformedPacket("room state: its parts do not fit together")
        highest = max(state.highest, *(member.host for member in room._signed.members))
        room._office = Creator(state.private_key, entropy, room.drops, HostNumbers(state.former, highest))
        room._office.sizes = {static: size for static, size in state.sizes.items() if room._signed.member(static) is not None}
        room._office.routes[static] = room._routes
        room._renumber(now)
        return room

    @property
    def _signed(self) -> Roster:
        assert self.roster is not None
        return self.roster

    def state(self) -> RoomState:
        numbers = self._office.numbers
        return msgspec.structs.replace(
            super().state(),
            private_key=self._office.private_key,
            former=numbers.former,
            highest=numbers.highest,
            sizes={Hex(static): size for static, size in self._office.sizes.items()},
        )

    def peers(self) -> list[MemberPeer]:
        found = {peer.static: peer for peer in super().peers()}
        for static, expected in self._office.expected.items() if not self.is_over else ():
            name = found[static].name if static in found else "newcomer"
            found[static] = MemberPeer(static, name, expected.psk)
        return list(found.values())

    def _psk(self, static: bytes) -> bytes | None:
        return self._psks.get(static)

    def dials(self, static: bytes) -> bool:
        return False

    # --- what a person wants

    def expect(self, now: Instant, static: bytes, psk: bytes, *, invited: bool = False) -> None:
        self._office.expect(now, static, psk, invited=invited)

    def remove(self, now: Instant, name: str) -> Member:
        roster, member = self._signed, self._signed.named(name)
        if member is None:
            names = ", ".join(each.name for each in roster.members[1:])
            raise ConfigurationError(f"No member is called {name!r}: {f'there are {names}.' if names else 'you are alone.'}")
        if member.static == self.static:
            raise ConfigurationError("You cannot remove yourself: end the room with Ctrl-C, and others play on.")
        self._office.turn_away()
        self._sign(now, self._office.drop(roster, member, is_sent_away=True))
        return member

    def leave(self) -> bool:
        return False

    def _use_routes(self, now: Instant) -> None:
        self._office.routes[self.static] = self._routes
        self._renumber(now)

    # --- what members say, and time

    def poll_timeout(self) -> Instant | None:
        return None if self.is_over else earliest(super().poll_timeout(), self._office.poll_timeout())

    def handle_timeout(self, now: Instant) -> None:
        super().handle_timeout(now)
        self._sign(now, self._office.let_go(now, self._signed))
        if self._office.handle_timeout(now):
            self._renumber(now)

    def _on_hello(self, now: Instant, static: bytes, link: MemberLink, hello: Hello) -> None:
        """Whoever says it is a member then, or is told why not."""
        office, routes = self._office, unpack_routes(hello.routes)
        outcome: list[Change] | Reason = Reason.OTHER_ROOM
        if hello.room in (b"", self._room):
            outcome = office.admit(now, self._signed, static, hello, self._links)
        if isinstance(outcome, Reason):
            if outcome in (Reason.FULL, Reason.HELD_SMALL):
                self._events.append(self._full(hello))
            self.say(static, Refused(outcome))
            return
        (office.narrow.discard if hello.knows_spare else office.narrow.add)(static)
        office.sizes[static] = min(hello.most, addresses.LAST_HOST)
        expected = office.expected.get(static)
        if expected is not None:
            self._psks[static] = expected.psk
            if expected.until is not None:
                del office.expected[static]
        office.routes[static] = routes
        for change in outcome:
            self._sign(now, change)
        if expected is not None and not outcome:
            self._events.append(RosterChanged(self._signed))  # paired anew: the same roster, another psk
        self._renumber(now)
        super()._on_hello(now, static, link, hello)

    def _full(self, hello: Hello) -> RoomFull:
        most, name = self._office.most(self._signed, hello.most), make_label(hello.name)
        if most == MAX_MEMBERS:
            return RoomFull(name)
        held_by = self._office.held_by(self._signed, most)
        return RoomFull(name, most, held_by if hello.most > most else (name, *held_by))

    def _on_routes(self, now: Instant, static: bytes, routes: tuple[Prefix, ...]) -> None:
        if self._signed.member(static) is not None:
            self._office.routes[static] = routes
            self._renumber(now)

    def _on_leave(self, now: Instant, static: bytes) -> None:
        member = self._signed.member(static)
        if member is not None:
            self._sign(now, self._office.leave(now, self._signed, member))

    # --- the roster

    def _pass_on(self, now: Instant, static: bytes, link: MemberLink, roster: Roster) -> None:
        self._tell_state(now, static, link)

    def _sign(self, now: Instant, change: Change | None) -> None:
        if change is None:
            return
        if change.secret is not None:
            self._secret = change.secret
        self._blob = sign_roster(change.roster, self._office.private_key)
        self._accept(now, change.roster)

    def _renumber(self, now: Instant) -> None:
        self._sign(now, self._office.renumber(now, self._signed))
