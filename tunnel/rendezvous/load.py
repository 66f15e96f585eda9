"""Load control of a server: each source is charged the processor time that it costs.

While all that comes is done at once nobody is held to anything.  When the server is behind, whatever takes most of its time is
held back: relayed pairs by their ceiling (pacing.py), addresses that have proven themselves by a level of processor time that
each may use, and all prefixes around it some times as much, and what needs no proof by a budget for all of it.  So who asks for
little is served first, whoever has a session here before strangers, and a flood of one kind takes nothing from the others.  What
is left out is dropped unread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import IntEnum
from math import exp
from typing import Final, TypeAlias

from tunnel.core.prefixes import Prefixes, around, prefixes
from tunnel.rendezvous.admission import Buckets, address_key
from tunnel.rendezvous.pacing import FALL, INTERVAL, RISE, Ceiling
from tunnel.units import Instant, Seconds

BUSY: Final = 0.9  # of a look's time spent at work, and the server counts as behind whatever its queues say
DECAY: Final = Seconds(8.0)  # after which what an address has cost is forgotten but for a third; so much may be had at a stretch
GENERATION: Final = Seconds(64.0)  # after which what was charged before is forgotten, or in one more
MAX_CHARGED: Final = 32_768  # addresses and prefixes in a generation; more than that, and it ends early
LEAST_WORK: Final = 0.00004  # seconds of processor time a second that an address may always use: in DECAY to pair once
MOST_WORK: Final = 0.25  # ... and from where on it is held no more
LEVEL_FALL: Final = 0.7  # of that level is left after a look: those that cost alike all come back at the same moment
FREE_FALL: Final = 0.25  # of it is left while nobody reaches it yet
WIDER: Final = 8.0  # times as much for each wider prefix around an address
RELATED: Final = 2.0  # times as much for who waits, is paired or relays
LEAST_FOR_STRANGERS: Final = 0.2  # of the processor's time that remains for each kind of theirs
STRANGER_RATE: Final = 0.5  # datagrams a second of one address that come first among those of strangers, and ...
STRANGER_BURST: Final = 8  # ... so many at once
STRANGER_SLOTS: Final = 131_072  # in which that is counted; of 4,000 floods' addresses one honest in thirty shares one
STRANGER_DEPTH: Final = Seconds(0.1)  # of that budget at a stretch, for those that come first; the others wait until none is used
KNOWN_DEPTH: Final = Seconds(0.2)  # the same for an address with a session: strangers leave it something
MOST_AT_ONCE: Final = Seconds(0.0005)  # charged for one datagram: what is beyond it the machine did meanwhile
TYPICAL: Final = Seconds(0.00003)  # charged for a request at once, until the whole batch has been measured
BURST: Final = Seconds(0.00001)  # that a relayed burst costs
BLAMED: Final = 0.25  # of what the heaviest kind took, and a kind is held back like it
FADING: Final = 0.8  # of what a kind took is left after a look


class Kind(IntEnum):
    """The kind of a batch; of several in one batch the highest."""

    DROPPED = 0  # what was left out, and junk
    UNPROVEN = 1  # requests without a proof
    QUESTION = 2  # of anybody: STUN, the open directory, lost channels
    RELAYED = 3
    PROVEN = 4  # requests of who has proven its address
    KNOWN = 5  # those of clients at rest, which nothing is cheaper than


Cost: TypeAlias = tuple[str, int, Kind, float]  # whose datagrams, how many, and seconds that were charged already
STRANGERS: Final = (Kind.UNPROVEN, Kind.QUESTION)


class Load:
    """Driven by look(), like the ceiling for pairs, which it drives in turn."""

    def __init__(self, ceiling: Ceiling, salt: bytes, sessions: Callable[[Prefixes], int]) -> None:
        """`sessions`: how many an address has here (an IPv4 address, or an IPv6 /64)."""
        self.is_low = False  # who has proven itself is held to a level
        self.bursts = 0  # relayed since the last look
        self._ceiling = ceiling
        self._sessions = sessions
        self._look_at = Instant(0.0)
        self._looked_at = Instant(0.0)
        self._was_behind = False
        self._has_left_out = False  # somebody for whom the level was too low, since the last look
        self._lately = dict.fromkeys(Kind, 0.0)  # seconds that each took since the last look
        self._faded = dict.fromkeys(Kind, 0.0)
        self._level = MOST_WORK
        self._budgets = dict.fromkeys(STRANGERS, 1.0)
        self._due = dict.fromkeys(STRANGERS, Instant(0.0))
        self._seldom = Buckets(STRANGER_RATE, STRANGER_BURST, salt, slots=STRANGER_SLOTS)
        # What each address and prefix has cost.  A second that is charged later weighs more, so that older ones need no touch.
        self._recent: dict[str, float] = {}
        self._earlier: dict[str, float] = {}  # of the generation before, ...
        self._fraction = 0.0  # ... of whose weight so much is one of now
        self._weight = 1.0
        self._began = Instant(0.0)

    def look(self, now: Instant, is_behind: bool) -> None:
        """Call often; `is_behind`: more comes than is done."""
        self._was_behind = self._was_behind or is_behind
        if now < self._look_at:
            return
        self._age(now)
        self._lately[Kind.RELAYED], self.bursts = self.bursts * BURST, 0
        is_behind = self._was_behind or sum(self._lately.values()) > BUSY * (now - self._looked_at)
        self._look_at, self._looked_at, self._was_behind = Instant(now + INTERVAL), now, False
        for kind, seconds in self._lately.items():
            self._faded[kind] = FADING * self._faded[kind] + seconds
            self._lately[kind] = 0.0
        falls = self._heaviest() if is_behind else frozenset()
        self._ceiling.look(now, is_behind, is_blamed=Kind.RELAYED in falls)
        if not is_behind or Kind.PROVEN in falls:
            fall = LEVEL_FALL if self._has_left_out else FREE_FALL
            self._level = min(MOST_WORK, max(LEAST_WORK, self._level * (fall if is_behind else RISE)))
        self._has_left_out = False
        for kind in STRANGERS:
            if not is_behind or kind in falls:
                self._budgets[kind] = min(1.0, max(LEAST_FOR_STRANGERS, self._budgets[kind] * (FALL if is_behind else RISE)))
        self.is_low = self._level < MOST_WORK

    def _heaviest(self) -> frozenset[Kind]:
        """The kinds that took most, and those that took a good part of as much: that the others get less is no help."""
        least = BLAMED * max(self._faded.values())
        return frozenset(kind for kind, seconds in self._faded.items() if seconds >= least)

    def admits(self, host: str, is_related: bool) -> bool:
        """Whether that address may ask for something now: it has cost less than the level, and so have all prefixes around it.

        Charges nothing, so nobody who speaks in another's name changes what that one may do.
        """
        if not self.is_low:
            return True
        allowed = self._level * DECAY * self._weight * (RELATED if is_related else 1.0)
        for key in around(host):
            if self._recent.get(key, 0.0) + self._earlier.get(key, 0.0) * self._fraction > allowed:
                self._has_left_out = True
                return False
            allowed *= WIDER
        return True

    def admits_stranger(self, now: Instant, kind: Kind, host: str) -> bool:
        """Whether one more of that kind is answered, by an address that may be forged.

        Those that ask seldom come first, of these the ones with a session before the others, and nobody is shut out for ever.
        """
        if self._budgets[kind] >= 1.0:
            return True
        key, depth = address_key(host), 0.0
        if self._seldom.take(now, (kind, key)):
            depth = KNOWN_DEPTH if self._sessions(prefixes(host)) else STRANGER_DEPTH
        return self._due[kind] - now <= depth

    def charge_all(self, now: Instant, costs: Iterable[Cost], each: float) -> None:
        """Charge datagrams that came at once: `each` of them has taken so many seconds."""
        each = min(each, MOST_AT_ONCE)
        for host, count, kind, charged in costs:
            rest = each * count - charged
            if rest > 0.0:
                self.charge(now, kind, host, rest)

    def charge(self, now: Instant, kind: Kind, host: str, seconds: float) -> None:
        """Charge the time that a batch took; `host` is proven where the kind is PROVEN."""
        self._lately[kind] += seconds
        if kind is Kind.PROVEN:
            seconds *= self._weight
            recent = self._recent
            for key in around(host):
                recent[key] = recent.get(key, 0.0) + seconds
        elif kind in STRANGERS:
            self._due[kind] = Instant(max(self._due[kind], now) + seconds / self._budgets[kind])

    def _age(self, now: Instant) -> None:
        elapsed = now - self._began
        if elapsed < GENERATION and len(self._recent) < MAX_CHARGED:
            self._weight = exp(elapsed / DECAY)
        else:
            self._earlier, self._recent = (self._recent if elapsed < 2 * GENERATION else {}), {}
            self._fraction, self._weight, self._began = exp(-min(elapsed, GENERATION) / DECAY), 1.0, now
