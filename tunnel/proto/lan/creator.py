"""What only a room's creator does: take in, send away, choose another subnet.  Makes the next roster; the Room signs it."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Final, NamedTuple

import msgspec

from tunnel.proto.lan import addresses
from tunnel.proto.lan.addresses import HostNumbers, Prefix
from tunnel.proto.lan.messages import Hello, Reason
from tunnel.proto.lan.roster import KEY_SIZE, MAX_MEMBERS, Member, Roster, commit, free_label, make_label
from tunnel.proto.timers import earliest
from tunnel.proto.trace import Drops
from tunnel.units import Instant, Seconds

JOIN_PATIENCE: Final = Seconds(30.0)  # from a pairing to the joiner's Hello
MAX_JOINING: Final = 16  # paired ones whose Hello has not come
RENUMBER_INTERVAL: Final = Seconds(5.0)  # between two subnets, whatever members say of their routes
MAX_RENUMBERS: Final = 4  # subnets that one member's routes may cost all others in a row; a laptop roams from home to a train
RENUMBER_REFILL: Final = Seconds(600.0)  # after which it may cost one more


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
        self._entropy = entropy
        self._drops = drops
        self._passing: set[bytes] = set()  # members that will not come back once they have ended
        self._spent: dict[bytes, tuple[float, Instant]] = {}  # of MAX_RENUMBERS by each member, and as of when
        self._renumber_at: Instant | None = None  # a clash is known, and it is too early to act
        self._renumber_from: Instant | None = None  # when it is not

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

    def admit(self, roster: Roster, static: bytes, hello: Hello, present: Container[bytes]) -> list[Change] | Reason:
        """What taking this one in changes: nothing for a member that is only back.  `present`: who has a connection."""
        member = roster.member(static)
        changes: list[Change] = []
        if member is None:
            if static not in self.expected:
                return Reason.UNKNOWN
            if len(roster.members) >= MAX_MEMBERS:
                idle = next((each for each in roster.members[1:] if self._is_gone(each, present)), None)
                if idle is None:
                    return Reason.FULL
                changes.append(self.drop(roster, idle))
                roster = changes[-1].roster
            host = self.numbers.take(static, {each.host for each in roster.members})
            name = free_label(make_label(hello.name), {each.name for each in roster.members})
            changes.append(Change(_next(roster, members=(*roster.members, Member(static, name, host)))))
        (self._passing.discard if hello.keeps else self._passing.add)(static)
        return changes

    def _is_gone(self, member: Member, present: Container[bytes]) -> bool:
        """Away, and has said that it would not come back: it gives up its place to somebody who is here."""
        return member.static in self._passing and member.static not in present

    def drop(self, roster: Roster, member: Member, *, is_sent_away: bool = False) -> Change:
        """Without that member, who must not know the next secret.  Who was invited and left by itself stays invited."""
        if is_sent_away:
            self.expected.pop(member.static, None)
        self.routes.pop(member.static, None)
        self._passing.discard(member.static)
        self._spent.pop(member.static, None)
        self.numbers.give_back(member.static, member.host)
        secret = self._entropy(KEY_SIZE)
        members = tuple(each for each in roster.members if each.static != member.static)
        return Change(_next(roster, members=members, epoch=roster.epoch + 1, commitment=commit(secret)), secret)

    def renumber(self, now: Instant, roster: Roster) -> Change | None:
        """Another subnet for all, where this one clashes with what a member has, and not too often."""
        clashing = [static for static, routes in self.routes.items() if addresses.clashes(roster.subnet, routes)]
        creator = roster.creator.static
        may = [static for static in clashing if static == creator or self._spent_by(now, static) <= MAX_RENUMBERS - 1]
        if len(may) < len(clashing):
            self._drops["routes of a member that clash too often"] += 1
        if not may:
            self._renumber_at = None
            return None
        if self._renumber_from is not None and now < self._renumber_from:
            self._renumber_at = self._renumber_from
            return None
        self._renumber_at = None
        self._renumber_from = Instant(now + RENUMBER_INTERVAL)
        for static in may:
            self._spent[static] = (self._spent_by(now, static) + 1.0, now)
        subnet = self._choose(creator)
        return Change(_next(roster, subnet=subnet)) if subnet is not None else None

    def _choose(self, creator: bytes) -> bytes | None:
        """A subnet that clashes with nobody's routes; those of one that says it has all there is count for nothing."""
        routes: list[Prefix] = []
        subnet = None
        for static in sorted(self.routes, key=lambda each: (each != creator, self._spent.get(each, (0.0,))[0])):
            candidate = addresses.choose_subnet(self._entropy, [*routes, *self.routes[static]])
            if candidate is None:
                self._drops["no subnet without a clash"] += 1
            else:
                subnet = candidate
                routes += self.routes[static]
        return subnet

    def _spent_by(self, now: Instant, static: bytes) -> float:
        """Subnets that this member has cost, less what came back since."""
        spent, at = self._spent.get(static, (0.0, now))
        return max(0.0, spent - (now - at) / RENUMBER_REFILL)

    def poll_timeout(self) -> Instant | None:
        return earliest(self._renumber_at, *(each.until for each in self.expected.values()))

    def handle_timeout(self, now: Instant) -> bool:
        """True when it is time to renumber."""
        for static in [key for key, each in self.expected.items() if each.until is not None and now >= each.until]:
            del self.expected[static]
            self._drops["joiners that said nothing"] += 1
        return self._renumber_at is not None and now >= self._renumber_at


def _next(roster: Roster, **changes: object) -> Roster:
    return msgspec.structs.replace(roster, version=roster.version + 1, **changes)
