"""Ways between two members by a third one, which reaches both directly: who asks whom, and what becomes of it.

Of a pair the one that dials asks.  It asks when the other one is not reached at all, or by a relay that is clearly slower; and it
asks whoever is nearest to both, by the sum of the two round trips: its own, and what that member says of its own.  The third one
hands a channel to both, and passes on what comes with it (node/carrying.py), sealed by the two for each other: it sees whose that
is, how much and when.  To the two it is a relayed path like any other, which counts once it has answered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.node.carrying import MAX_CARRIED
from tunnel.room.core.messages import Carried, Carry, DetourMessage, Reach
from tunnel.transport.connection.events import PathKind
from tunnel.transport.connection.paths import is_nearer
from tunnel.units import CHANNEL_SIZE, Instant, PathKey, Seconds

if TYPE_CHECKING:
    from tunnel.node.carrying import Carrying
    from tunnel.node.peering import Peering
    from tunnel.room.core.room import Room
    from tunnel.room.core.roster import Member, Roster
    from tunnel.transport.connection.connection import Connection

LOOK_INTERVAL: Final = Seconds(1.0)  # between two looks at who is not reached, while somebody carries
REACH_INTERVAL: Final = Seconds(5.0)  # between two lists of whom we reach, to one member
MISSING_FOR: Final = Seconds(4.0)  # that a member is not reached, before another one is asked: the server has its chance first
MISSED_FOR: Final = Seconds(12.0)  # the same for whoever of the two does not dial: the other one reaches it, it seems
RELAYED_FOR: Final = Seconds(15.0)  # that a server relays, before another way is looked for: a direct one has its chance first
ANSWER_PATIENCE: Final = Seconds(4.0)  # for the answer of whoever was asked
WORKS_WITHIN: Final = Seconds(12.0)  # of a channel, until the other member is reached by it
AVOIDED_FOR: Final = Seconds(60.0)  # who refused, or did not answer
SLOWER_FOR: Final = Seconds(600.0)  # by whom the way was no better than the server's
RELEASED_AFTER: Final = Seconds(60.0)  # of a direct path, in which case nobody needs to carry
PAIRS_OF_ONE: Final = MAX_CARRIED // 4  # pairs of one member that we carry for, so that it leaves some to others
TOLD_AGAIN: Final = 0.25  # part by which a round trip has to differ, to be told anew ...
TOLD_AGAIN_MS: Final = 5  # ... and milliseconds
LONGEST_MS: Final = 0xFFFF


class Way(NamedTuple):
    """By whom another member is reached, or is to be."""

    helper: bytes
    key: PathKey
    since: Instant


@dataclass(slots=True)
class Other:
    """How one other member is reached."""

    since: Instant  # so
    kind: PathKind | None = None  # None: not at all
    way: Way | None = None
    asked: tuple[bytes, Instant] | None = None  # whom for a way, and when
    was_lost: bool = False  # there was a way, until whoever carried left


@dataclass(slots=True)
class Told:
    """The list of whom we reach, as a member was told it last."""

    at: Instant
    links: dict[int, int] = field(default_factory=dict)


class Detours:
    """One member's part, whether it carries for others (`carries`) or not."""

    def __init__(
        self,
        room: Room,
        carrying: Carrying,
        *,
        carries: bool,
        reached: Callable[[bytes], Peering | None],
        known: Callable[[bytes], Peering | None],
        dialing: Callable[[bytes], Peering | None],
    ) -> None:
        """`reached` gives the connection of a member that works, `known` that or one that has lost its paths, and `dialing` the
        one that is on its way.
        """
        self.carries = carries
        self._room = room
        self._carrying = carrying
        self._reached = reached
        self._known = known
        self._dialing = dialing
        self._reach: dict[bytes, dict[int, int]] = {}  # whom the members reach that carry, by host number, in milliseconds
        self._others: dict[bytes, Other] = {}  # by static key
        self._avoided: dict[tuple[bytes, bytes], Instant] = {}  # (to whom, by whom), and until when
        self._told: dict[bytes, Told] = {}
        self._look_at: Instant | None = None
        carrying.find = reached
        room.on_detour = self._on_message

    @property
    def _roster(self) -> Roster | None:
        return None if self._room.is_over else self._room.roster

    @property
    def _is_idle(self) -> bool:
        """Nobody carries, as far as we know."""
        return not (self.carries or self._reach or self._others)

    def _member(self, host: int) -> Member | None:
        roster = self._roster
        return None if roster is None else next((each for each in roster.members if each.host == host), None)

    def _near(self, static: bytes) -> Connection | None:
        """The connection to a member, if its path is direct."""
        peering = self._reached(static)
        connection = None if peering is None else peering.connection
        return None if connection is None or connection.direct_path is None else connection

    # --- inputs

    def changed(self, now: Instant, static: bytes = b"") -> None:
        """That member was reached, or is not any more; empty: the roster is another one."""
        self._told.pop(static, None)
        if not self._is_idle:
            self._look_at = now

    def _on_message(self, now: Instant, static: bytes, message: DetourMessage) -> None:
        match message:
            case Reach(links=links):
                self._reach[static] = dict(links)
                self._look_at = now
            case Carry(host=host, is_wanted=is_wanted):
                self._on_carry(now, static, host, is_wanted=is_wanted)
            case Carried(host=host, channel=channel):
                self._on_carried(now, static, host, channel)

    # --- who carries

    def _on_carry(self, now: Instant, static: bytes, host: int, *, is_wanted: bool) -> None:
        asker = None if self._roster is None else self._roster.member(static)
        other = self._member(host)
        if asker is None or other is None:
            return
        pair = self._carrying.of(static, other.static)
        if not is_wanted:
            if pair is not None:
                self._carrying.close(pair)
                self._room.say(other.static, Carried(asker.host, b""))
            return
        count = sum(static in each.ends for each in self._carrying.pairs.values())
        may = self.carries and other.static not in (static, self._room.static) and self._room.knows_detours(other.static)
        if may and pair is None and count < PAIRS_OF_ONE and self._near(static) and self._near(other.static):
            pair = self._carrying.open(now, static, other.static)
        if pair is None:
            self._room.drops["members that we do not carry for"] += 1
            self._room.say(static, Carried(host, b""))
            return
        self._room.say(other.static, Carried(asker.host, pair.channel))
        self._room.say(static, Carried(host, pair.channel))

    def _tell_reach(self, now: Instant, roster: Roster) -> None:
        """Whoever understands it: whom else we reach, where that is different."""
        near: dict[int, int] = {}
        for member in roster.members:
            connection = self._near(member.static)
            if connection is not None:
                near[member.host] = min(LONGEST_MS, round(connection.current_path.smoothed_rtt * 1000))
        for member in roster.members:
            if not self._room.knows_detours(member.static):
                continue
            told = self._told.get(member.static)
            links = {host: rtt for host, rtt in near.items() if host != member.host} if member.host in near else {}
            is_news = bool(links) if told is None else now >= told.at + REACH_INTERVAL and _is_news(told.links, links)
            if is_news:
                self._told[member.static] = Told(now, links)
                self._room.say(member.static, Reach(tuple(links.items())))

    def _end_pairs(self, now: Instant, roster: Roster) -> None:
        """Of members that are not reached directly any more, or have nothing to say to each other."""
        for pair in list(self._carrying.pairs.values()):
            one, other = pair.ends
            if self._near(one) is not None and self._near(other) is not None and not pair.is_idle(now):
                continue
            self._carrying.close(pair)
            for static, gone in ((one, other), (other, one)):
                member = roster.member(gone)
                if member is not None:
                    self._room.say(static, Carried(member.host, b""))

    # --- who is carried for

    def _on_carried(self, now: Instant, helper: bytes, host: int, channel: bytes) -> None:
        member = self._member(host)
        if member is None or member.static in (helper, self._room.static):
            return
        other = self._others.setdefault(member.static, Other(now))
        was_asked = other.asked is not None and other.asked[0] == helper
        self._look_at = now
        if was_asked:
            other.asked = None
        if len(channel) != CHANNEL_SIZE:
            if other.way is not None and other.way.helper == helper:
                other.was_lost = True
                self._drop(now, member.static, other)
            if was_asked:
                self._avoided[member.static, helper] = Instant(now + AVOIDED_FOR)
            return
        way = other.way
        is_wanted = was_asked or self._reached(member.static) is None or (way is not None and way.helper == helper)
        if self._room.dials(member.static) and not is_wanted:
            self._room.drops["channel that nobody asked for"] += 1
            return
        near = self._near(helper)
        if near is not None and near.direct_path is not None:
            self._use(now, member.static, other, Way(helper, near.direct_path._replace(prefix=channel), now))

    def _use(self, now: Instant, static: bytes, other: Other, way: Way) -> None:
        before, other.way, other.was_lost = other.way, way, False
        helper = None if self._roster is None else self._roster.member(way.helper)
        if before is not None:
            self._carrying.names.pop(before.key.prefix, None)
        self._carrying.names[way.key.prefix] = "" if helper is None else helper.name
        peering = self._known(static)
        connection = None if peering is None or peering.is_closed else peering.connection
        if peering is not None and connection is not None and not connection.is_path(way.key):
            is_over = before is not None and not connection.is_path(before.key)
            connection.add_relay(now, way.key, instead_of=before.key if before is not None and is_over else way.key)
            peering.pump(now)
        self._dial(now, static, way)

    def _dial(self, now: Instant, static: bytes, way: Way) -> None:
        """By that way as well, if it is we who dial and nothing stands yet."""
        peering = self._dialing(static)
        if peering is not None and peering.connection is None and not peering.is_closed:
            handshake = peering.handshake
            if handshake is None or not handshake.uses(way.key):
                peering.begin_handshake(now, way.key)
                peering.pump(now)

    def _drop(self, now: Instant, static: bytes, other: Other) -> None:
        """Its way is none any more."""
        way, other.way = other.way, None
        assert way is not None
        self._carrying.names.pop(way.key.prefix, None)
        peering = self._known(static)
        if peering is not None and peering.connection is not None and not peering.is_closed:
            peering.connection.drop_path(now, way.key)
            peering.drain(now)

    def _release(self, now: Instant, member: Member, other: Other) -> None:
        """Nobody needs to carry."""
        assert other.way is not None
        if self._room.dials(member.static):
            self._room.say(other.way.helper, Carry(member.host, False))
        self._drop(now, member.static, other)

    # --- time

    def poll_timeout(self) -> Instant | None:
        return None if self._roster is None else self._look_at

    def handle_timeout(self, now: Instant) -> None:
        """Look at who is not reached, once it is time."""
        roster = self._roster
        if self._look_at is None or now < self._look_at or roster is None:
            return
        self._reach = {static: links for static, links in self._reach.items() if links and self._reached(static) is not None}
        self._avoided = {pair: until for pair, until in self._avoided.items() if now < until}
        if self.carries:
            self._tell_reach(now, roster)
            self._end_pairs(now, roster)
        for static in [static for static in self._others if roster.member(static) is None]:
            other = self._others.pop(static)
            if other.way is not None:
                self._drop(now, static, other)
        for member in roster.members:
            if member.static != self._room.static:
                self._look(now, member)
        if not self._reach and not any(other.way for other in self._others.values()):
            self._others.clear()
        self._look_at = None if self._is_idle else Instant(now + LOOK_INTERVAL)

    def _look(self, now: Instant, member: Member) -> None:
        static, peering = member.static, self._reached(member.static)
        view = None if peering is None or peering.connection is None else peering.connection.current_path
        kind = None if view is None else view.kind
        other = self._others.setdefault(static, Other(now))
        if other.kind is not kind:
            other.kind, other.since = kind, now
        if other.way is not None:
            self._follow(now, member, other, other.way)
        way = other.way
        dials = self._room.dials(static)
        if kind is PathKind.DIRECT or self._is_asking(now, static, other):
            return
        if peering is None or view is None:
            patience = MISSING_FOR if dials else MISSED_FOR
            due, limit = Instant(other.since + (0.0 if other.was_lost and dials else patience)), Seconds(float("inf"))
        elif way is not None or not dials or peering.policy == "direct":
            return
        else:
            other.was_lost = False
            due, limit = Instant(other.since + RELAYED_FOR), view.smoothed_rtt
        if now < due or (way is not None and now < way.since + WORKS_WITHIN):
            return
        best = self._best(member, limit, None if way is None else way.helper)
        if best is not None:
            other.asked = best, now
            self._room.say(best, Carry(member.host, True))

    def _follow(self, now: Instant, member: Member, other: Other, way: Way) -> None:
        """See to a way that there is."""
        near = self._near(way.helper)
        if near is None or near.direct_path is None:
            other.was_lost = True
            self._drop(now, member.static, other)
            return
        key = near.direct_path._replace(prefix=way.key.prefix)
        if key != way.key:
            self._use(now, member.static, other, way._replace(key=key))
        elif other.kind is None:
            self._dial(now, member.static, way)
        elif other.kind is PathKind.DIRECT:
            if now >= other.since + RELEASED_AFTER:
                self._release(now, member, other)
        elif now >= way.since + WORKS_WITHIN and self._room.dials(member.static) and not self._is_current(member.static, key):
            self._avoided[member.static, way.helper] = Instant(now + SLOWER_FOR)
            self._release(now, member, other)

    def _is_current(self, static: bytes, key: PathKey) -> bool:
        peering = self._reached(static)
        return peering is not None and peering.connection is not None and peering.connection.current_path.key == key

    def _is_asking(self, now: Instant, static: bytes, other: Other) -> bool:
        if other.asked is None:
            return False
        if now < other.asked[1] + ANSWER_PATIENCE:
            return True
        self._avoided[static, other.asked[0]] = Instant(now + AVOIDED_FOR)
        other.asked = None
        return False

    def _best(self, member: Member, limit: Seconds, besides: bytes | None) -> bytes | None:
        """Return who carries with the smallest sum of the two round trips, if that is clearly below `limit`."""
        best, least = None, float("inf")
        for helper, links in self._reach.items():
            theirs, near = links.get(member.host), self._near(helper)
            if theirs is None or near is None or helper == besides or (member.static, helper) in self._avoided:
                continue
            total = near.current_path.smoothed_rtt + theirs / 1000
            if total < least and is_nearer(Seconds(total), limit):
                best, least = helper, total
        return best


def _is_news(before: dict[int, int], after: dict[int, int]) -> bool:
    """Whether somebody would choose another way by it."""
    return before.keys() != after.keys() or any(
        abs(after[host] - rtt) > max(TOLD_AGAIN_MS, TOLD_AGAIN * rtt) for host, rtt in before.items()
    )
