"""Our NAT's patience: how many mappings it makes for us, and how fast, watched while we make them.

A carrier that has had enough says nothing: what is over its limit vanishes.  So every few mappings a socket that the server has
not seen asks it where it is seen.  An answer confirms all mappings made before.  No more than some are ever made beyond the last
confirmed one, and the pace follows what is confirmed.  When some answers stay away the pace falls.  When all do, nothing new is
made until one comes back; then it goes on at half the pace, and when none does it is over.  The first sign of a limit is the
only one: all agents of the process remember it (Borne) and stay below.  No pace is faster than the meeting needs (ranges.py).

Many carriers use one port for mappings towards several destinations, as Linux does; then a block of ports does not limit the
mappings.  Until that is seen (one port shown to two addresses of the server, by two sockets), we take half of the block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tunnel.units import Address, Instant, Seconds

FIRST_RATE: Final = 150.0  # new mappings a second at first, ...
MOST_RATE: Final = 600.0  # ... growing to this as they are confirmed
LEAST_RATE: Final = 50.0  # below that an attempt ends before it has a chance
MOST_MAPPINGS: Final = 8_000  # in one attempt: half of what the smallest Linux router keeps (16,384)
BLOCK_SHARE: Final = 0.5  # of the block, until one port is seen to serve two mappings
UNCONFIRMED: Final = 96  # mappings made and not confirmed, at most: five questions' worth, and a round trip's
ASK_EVERY: Final = 4  # mappings, from one question to the next, until one port is seen to serve two mappings; ...
ASK_EVERY_LATER: Final = 24  # ... and from then on, at a pace of twelve questions a second or more
QUESTIONS_RATE: Final = 12.0  # a second, at a slower pace
ASKS: Final = 3  # times that the last question is put, before the limit is believed, ...
ASK_AGAIN: Final = Seconds(0.25)  # ... so long after one another, or 1.5 round trips
LOOK_BACK: Final = 10  # questions, of which no more than ...
MOST_MISSING: Final = 3  # ... may have no answer; a link that loses 5 % each way takes one of ten
SLOWER: Final = 0.7  # of the pace, when more have none: the NAT makes fewer a second
REUSE_WITHIN: Final = Seconds(5.0)  # of one another two socket's views prove that; shorter than any mapping lives
REMEMBERED: Final = Seconds(3600.0)  # what a NAT was found to bear; carriers change it seldom
RESTS: Final = Seconds(300.0)  # a NAT that has had enough: until its mappings have ended (RFC 4787 REQ-5)
SHARE_AGAIN: Final = 0.75  # of what a NAT bore before its first refusal: the rest of the home has mappings too
MAX_NETWORKS: Final = 16  # remembered; the one longest unused goes


@dataclass(slots=True)
class Borne:
    """Limits of one NAT, as far as they were met."""

    most: int = MOST_MAPPINGS  # in one attempt
    rate: float = MOST_RATE  # new mappings a second
    until: Instant | None = None  # from then on it is to be found anew; None: no limit was met
    rests_until: Instant | None = None

    def is_resting(self, now: Instant) -> bool:
        return self.rests_until is not None and now < self.rests_until


class Limits:
    """Share one among all agents of a process: they are behind the same NAT."""

    def __init__(self) -> None:
        self._borne: dict[frozenset[str], Borne] = {}

    def of(self, now: Instant, hosts: Iterable[str]) -> Borne:
        """The NAT that shows us to the world at these addresses; a new one bears everything."""
        key = frozenset(hosts)
        borne = self._borne.pop(key, None)
        if borne is None or (borne.until is not None and now >= borne.until):
            borne = Borne()
        self._borne[key] = borne
        if len(self._borne) > MAX_NETWORKS:
            del self._borne[next(iter(self._borne))]
        return borne


class Quota:
    """Of one attempt."""

    def __init__(self, now: Instant, borne: Borne | None = None) -> None:
        self._borne = borne or Borne()
        self.made = 0
        self.is_over = False  # it has had enough
        self.signs = 0  # times that answers stayed away
        self.is_reusing = False  # one port for mappings towards several destinations
        self.asks = True  # questions are put meanwhile
        self.block: int | None = None  # ports of our NAT that are ours, once that is known
        self._confirmed = 0
        self._most_rate = self._borne.rate
        self._next_at = now
        self._asked_at = 0  # mappings made then
        self._pending: tuple[int, Instant, int] | None = None  # the newest question: mappings made then, when put, times
        self._asked: dict[int, Instant] = {}  # questions without an answer yet
        self._lately: deque[bool] = deque(maxlen=LOOK_BACK)  # whether questions had an answer, the newest last
        self._round_trip = Seconds(0.0)
        self._seen: dict[Address, tuple[object, Instant]] = {}

    # --- mappings

    @property
    def most(self) -> int:
        """Mappings in all."""
        if self.is_reusing or self.block is None:
            return self._borne.most
        return min(self._borne.most, int(self.block * BLOCK_SHARE))

    @property
    def rate(self) -> float:
        """New mappings a second."""
        return min(self._most_rate, max(FIRST_RATE, float(self._confirmed)))

    def need(self, rate: float) -> None:
        """No faster pace is of use."""
        self._most_rate = min(self._most_rate, max(LEAST_RATE, rate))

    @property
    def is_spent(self) -> bool:
        return self.is_over or self.made >= self.most

    @property
    def is_held(self) -> bool:
        most = 5 * self._ask_every + 1.5 * self._round_trip * self.rate
        return self.made - self._confirmed >= (min(UNCONFIRMED, most) if self.asks else UNCONFIRMED)

    def ready_at(self) -> Instant | None:
        """When the next mapping may be made; None: not before an answer comes, or never."""
        return None if self.is_spent or self.is_held else self._next_at

    def make(self, now: Instant) -> None:
        """One is made.  A late timer is made up for, but not by a burst."""
        self.made += 1
        pace = 1.0 / self.rate
        self._next_at = Instant(max(self._next_at + pace, now - 4 * pace))

    # --- questions

    @property
    def wants_question(self) -> bool:
        """From a socket and to an address of the server that make a mapping of their own."""
        return self.made - self._asked_at >= self._ask_every

    @property
    def _ask_every(self) -> int:
        if not self.is_reusing and self.block is not None:
            return ASK_EVERY
        return min(ASK_EVERY_LATER, int(self.rate / QUESTIONS_RATE))

    def asked(self, now: Instant) -> int:
        """Such a question is put; returns its mark for `answered`."""
        self.make(now)
        self._asked_at = self.made
        self._pending = (self.made, now, 1)
        self._asked[self.made] = now
        return self.made

    def answered(self, now: Instant, mark: int) -> None:
        self._confirmed = max(self._confirmed, mark)
        self._look_back(now, mark)
        if self._pending is None or mark < self._pending[0]:
            return
        _, asked_at, times = self._pending
        self._pending = None
        if times == 1:
            self._round_trip = max(self._round_trip, Seconds(now - asked_at))
        else:
            self._most_rate = self.rate / 2
            self.is_over = self.is_over or self._most_rate < LEAST_RATE
            self._remember(now)

    def _look_back(self, now: Instant, mark: int) -> None:
        """Slow down when too many questions had no answer, though others had."""
        if self._asked.pop(mark, None) is not None:
            self._lately.append(True)
        while self._asked and now - next(iter(self._asked.values())) > self._patience:
            del self._asked[next(iter(self._asked))]
            self._lately.append(False)
        if self._lately.count(False) > MOST_MISSING:
            self.signs += 1
            self._lately.clear()
            self._most_rate = max(LEAST_RATE, SLOWER * self.rate)
            self._remember(now)

    def _remember(self, now: Instant) -> None:
        """So many a second were too many."""
        self._borne.rate = max(LEAST_RATE, self._most_rate)
        self._borne.until = Instant(now + REMEMBERED)

    @property
    def _patience(self) -> Seconds:
        return Seconds(max(ASK_AGAIN, 1.5 * self._round_trip))

    def repeat_at(self) -> Instant | None:
        """When the newest question is to be put again, because nothing else can go on."""
        if self._pending is None or not self.is_held or self.is_over:
            return None
        return Instant(self._pending[1] + self._patience)

    def repeat(self, now: Instant) -> bool:
        """Whether to put it again now; else it is over."""
        assert self._pending is not None
        mark, _, times = self._pending
        self.signs += times == 1
        if times >= ASKS:
            self.is_over = True
            self._borne.most = min(self._borne.most, int(SHARE_AGAIN * self._confirmed))
            self._borne.rests_until = Instant(now + RESTS)
            self._borne.until = Instant(now + REMEMBERED)
            return False
        self._pending = (mark, now, times + 1)
        return True

    def saw(self, now: Instant, address: Address, place: object) -> None:
        """A view of one of our sockets; `place`: which socket, and which address of the server saw it."""
        before = self._seen.get(address)
        if before is not None and before[0] != place and now - before[1] <= REUSE_WITHIN:
            self.is_reusing = True
        self._seen[address] = (place, now)
