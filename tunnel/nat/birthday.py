"""The birthday technique: one side opens many ports towards the other, which tries ports at random until it meets one.

With 256 sockets on the side whose mapping cannot be foretold, 175 random ports find one of them in half of all cases, and 1,159
in 99 of 100.  The sockets open with a low TTL, so that a Linux router on the other side sees no stranger before its own host.

Carriers grant a home 64 to 128 mappings, and whatever is over that vanishes without a word.  So the sockets come in stages, and
the last of each stage asks the server where it is seen: unless it is told, it has no mapping, and more sockets would only take
the home's last ones.  The other side hears how many there are, and tries more ports, faster, the fewer they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.core.timers import earliest
from tunnel.nat.behaviour import Mapping
from tunnel.nat.budget import POOL_SOCKETS
from tunnel.nat.candidate import MIN_PORT, REFLECTOR_PORTS
from tunnel.nat.checklist import Check
from tunnel.nat.hints import OpenPool
from tunnel.nat.technique import Measure, PoolSocket, Scene
from tunnel.units import Address, Instant, Seconds, SocketId

if TYPE_CHECKING:
    import random

FIRST_PORT: Final = MIN_PORT
LAST_PORT: Final = 65_535
PORTS: Final = LAST_PORT + 1 - FIRST_PORT
#: Between two ports tried, coprime to PORTS, so that none comes twice.  The NAT draws its ports at random, so any order will do;
#: a wide stride spreads over NATs that hand out blocks.
STRIDES: Final = (10_007, 20_011, 30_011, 40_009)
POOL_STAGES: Final = (64, 128, POOL_SOCKETS)  # sockets that are open; the next stage begins when the last of one has a mapping
ASKS: Final = 3  # times that the last one asks, ...
ASK_AGAIN: Final = Seconds(0.25)  # ... so long after one another
POOL_PASSES: Final = ((Seconds(0.0), 3), (Seconds(0.7), 5), (Seconds(5.0), 5), (Seconds(10.0), 5))  # when, TTL
POOL_PACE: Final = Seconds(0.001)  # between two openers
POOL_SECONDS: Final = Seconds(15.0)
SPRAY_PACE: Final = Seconds(1 / 300)  # between two random ports
SPRAY_SECONDS: Final = Seconds(14.0)
SPRAY_PROBES: Final = 2_400  # one of 256 sockets is missed once in 14,000 times
FEW_SOCKETS: Final = 128  # up to so many, 99 % within 15 s take more: 5,300 probes at 56, which is what a quota of 64 leaves
FEW_PACE: Final = Seconds(1 / 600)
FEW_AFTER: Final = Seconds(0.6)  # from the hint on: most often the next stage follows it
FEW_PROBES: Final = 8_000

#: From the start of a round, where our mapping makes plain checks hopeless; where it looks as if they should work, but do not (an
#: address-dependent mapping looks endpoint-independent to a server with one address); and where that may be the peer's case.
AFTER_HARD: Final = Seconds(0.6)
AFTER_DOUBT: Final = Seconds(0.8)  # the peer may still find out that it is the one that should open
AFTER_SUSPECT: Final = Seconds(1.7)
AFTER_THEM: Final = Seconds(7.0)


def opens_after(scene: Scene) -> Seconds | None:
    """When in a round our side should open the pool; None: it should not.

    The side that opens is the one whose mapping varies by port; but one that varies by address alone opens towards any peer,
    for its NAT lets in all ports of that address.
    """
    if scene.target is None or not scene.sockets:
        return None
    ours, theirs = scene.ours, scene.theirs
    if ours is Mapping.ADDRESS_DEPENDENT:
        both = theirs is Mapping.ADDRESS_DEPENDENT
        return None if both and not scene.controlling else AFTER_HARD
    if ours.is_hard:
        if theirs.is_hard:
            return None
        return AFTER_HARD if scene.theirs_confirmed else AFTER_DOUBT
    if scene.ours_confirmed:
        return None
    if not theirs.is_hard:
        return AFTER_SUSPECT
    return None if theirs is Mapping.ADDRESS_DEPENDENT else AFTER_THEM


class Pool:
    """Our many sockets, each with openers towards one address of the peer."""

    def __init__(self) -> None:
        self.hint: OpenPool | None = None  # to tell the peer
        self.ends_at: Instant | None = None
        self._target: Address | None = None
        self._stage = 0
        self._known: set[SocketId] = set()
        self._plan: list[tuple[Instant, Check]] = []  # by time
        self._asked: SocketId | None = None
        self._ask_at: Instant | None = None
        self._asks_left = 0

    def open(self, now: Instant, target: Address) -> None:
        """The sockets are still to come."""
        self.close()
        self._target = target
        self.ends_at = Instant(now + POOL_SECONDS)

    def sockets_opened(self, now: Instant, sockets: tuple[PoolSocket, ...]) -> None:
        """All that there are; those that are new begin to open."""
        target = self._target
        fresh = [socket for socket in sockets if socket.socket_id not in self._known]
        if target is None or (self._known and not fresh):
            return
        if not sockets:
            self.close()
            return
        self._known.update(socket.socket_id for socket in fresh)
        self.hint = OpenPool(len(self._known))
        for begin, ttl in POOL_PASSES:
            for number, socket in enumerate(fresh):
                self._plan.append((Instant(now + begin + number * POOL_PACE), Check(socket.socket_id, target, ttl)))
        self._plan.sort(key=lambda each: each[0])
        if self._stage + 1 < len(POOL_STAGES) and len(self._known) >= POOL_STAGES[self._stage]:
            self._asked, self._asks_left = fresh[-1].socket_id, ASKS
            self._ask_at = Instant(now + len(fresh) * POOL_PACE)

    def close(self) -> None:
        self._target = self.ends_at = self.hint = None
        self._asked = self._ask_at = None
        self._stage = 0
        self._known.clear()
        self._plan.clear()

    @property
    def is_open(self) -> bool:
        return self._target is not None

    @property
    def wanted_sockets(self) -> int:
        return POOL_STAGES[self._stage] if self._target is not None else 0

    def poll_measure(self, now: Instant) -> Measure | None:
        """Has the last one a mapping?"""
        if self._asked is None or self._ask_at is None or now < self._ask_at:
            return None
        self._asks_left -= 1
        self._ask_at = Instant(now + ASK_AGAIN) if self._asks_left else None
        return Measure(self._asked)

    def measured(self, measure: Measure) -> None:
        """It has."""
        if measure.socket_id == self._asked and not measure.elsewhere:
            self._asked = self._ask_at = None
            self._stage += 1

    def poll_check(self, now: Instant) -> Check | None:
        if not self._plan or self._plan[0][0] > now:
            return None
        return self._plan.pop(0)[1]

    def poll_timeout(self) -> Instant | None:
        return earliest(self._plan[0][0] if self._plan else None, self._ask_at, self.ends_at)


class Spray:
    """Random ports of one host, each once, from the socket that the host sends its openers to."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.ends_at: Instant | None = None
        self._host = ""
        self._socket = SocketId(0)
        self._place = self._stride = self._left = 0
        self._faster_at: Instant | None = None
        self._next_at: Instant | None = None

    def begin(self, now: Instant, socket_id: SocketId, host: str, sockets: int, most: int = FEW_PROBES) -> None:
        """Try random ports of `host`, `most` of them at the most.

        `sockets` are open on the other side; said again, it changes the pace, and never adds to what is left.
        """
        is_few = sockets <= FEW_SOCKETS
        self._faster_at = Instant(now + FEW_AFTER) if is_few else None
        if self._next_at is not None and self._host == host:
            self._left = min(self._left, max(0, most), FEW_PROBES if is_few else SPRAY_PROBES)
            return
        self._socket, self._host = socket_id, host
        self._place, self._stride = self._rng.randrange(PORTS), self._rng.choice(STRIDES)
        self._left = min(most, FEW_PROBES if is_few else SPRAY_PROBES)
        self._next_at = now
        self.ends_at = Instant(now + SPRAY_SECONDS)

    def end(self) -> None:
        self._next_at = self.ends_at = None

    @property
    def is_on(self) -> bool:
        return self._next_at is not None

    def poll_check(self, now: Instant) -> Check | None:
        if self._next_at is None or now < self._next_at:
            return None
        if not self._left or (self.ends_at is not None and now >= self.ends_at):
            self.end()
            return None
        # A late timer is made up for, but not by a burst.
        pace = FEW_PACE if self._faster_at is not None and now >= self._faster_at else SPRAY_PACE
        self._next_at = Instant(max(self._next_at + pace, now - 8 * pace))
        self._left -= 1
        self._place = (self._place + self._stride) % PORTS
        while FIRST_PORT + self._place in REFLECTOR_PORTS:
            self._place = (self._place + self._stride) % PORTS
        return Check(self._socket, Address(self._host, FIRST_PORT + self._place))

    def poll_timeout(self) -> Instant | None:
        return self._next_at
