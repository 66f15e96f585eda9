"""The birthday technique: one side opens many ports towards the other, which tries ports at random until it meets one.

With 256 sockets on the side whose mapping cannot be foretold, 175 random ports find one of them in half of all cases, and 1,159
in 99 of 100.  The sockets open with a low TTL, so that a Linux router on the other side sees no stranger before its own host.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from tunnel.proto.nat.behaviour import Mapping
from tunnel.proto.nat.budget import POOL_SOCKETS
from tunnel.proto.nat.checklist import Check
from tunnel.proto.nat.hints import OpenPool
from tunnel.proto.nat.technique import PoolSocket, Scene
from tunnel.proto.timers import earliest
from tunnel.units import Address, Instant, Seconds, SocketId

if TYPE_CHECKING:
    import random

FIRST_PORT: Final = 1024  # NATs give ports below only to those who come from there
LAST_PORT: Final = 65_535
PORTS: Final = LAST_PORT + 1 - FIRST_PORT
#: Between two ports tried, coprime to PORTS, so that none comes twice.  The NAT draws its ports at random, so any order will do;
#: a wide stride spreads over NATs that hand out blocks.
STRIDES: Final = (10_007, 20_011, 30_011, 40_009)
POOL_PASSES: Final = ((Seconds(0.0), 3), (Seconds(0.7), 5), (Seconds(5.0), 5), (Seconds(10.0), 5))  # when, TTL
POOL_PACE: Final = Seconds(0.001)  # between two openers
POOL_SECONDS: Final = Seconds(15.0)
SPRAY_PACE: Final = Seconds(1 / 300)  # between two random ports
SPRAY_SECONDS: Final = Seconds(14.5)
SPRAY_PROBES: Final = 4_200

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


def is_hopeless(scene: Scene) -> bool:
    """Both mappings vary by port and neither by address alone: some 54,000 probes a side within one mapping's life."""
    return scene.ours.is_hard and scene.theirs.is_hard and Mapping.ADDRESS_DEPENDENT not in (scene.ours, scene.theirs)


class Pool:
    """Our many sockets, each with openers towards one address of the peer."""

    def __init__(self) -> None:
        self.hint: OpenPool | None = None
        self.ends_at: Instant | None = None
        self._target: Address | None = None
        self._plan: deque[tuple[Instant, Check]] = deque()

    def open(self, now: Instant, target: Address) -> None:
        """The sockets are still to come."""
        self._target = target
        self.ends_at = Instant(now + POOL_SECONDS)

    def sockets_opened(self, now: Instant, sockets: tuple[PoolSocket, ...]) -> None:
        if self._target is None or self.hint is not None or self._plan:
            return
        if not sockets:
            self.close()
            return
        self.hint = OpenPool(len(sockets))
        for begin, ttl in POOL_PASSES:
            for number, socket in enumerate(sockets):
                self._plan.append((Instant(now + begin + number * POOL_PACE), Check(socket.socket_id, self._target, ttl)))

    def close(self) -> None:
        self._target = self.ends_at = self.hint = None
        self._plan.clear()

    @property
    def is_open(self) -> bool:
        return self._target is not None

    @property
    def wanted_sockets(self) -> int:
        return POOL_SOCKETS if self._target is not None else 0

    def poll_check(self, now: Instant) -> Check | None:
        if not self._plan or self._plan[0][0] > now:
            return None
        return self._plan.popleft()[1]

    def poll_timeout(self) -> Instant | None:
        return earliest(self._plan[0][0] if self._plan else None, self.ends_at)


class Spray:
    """Random ports of one host, each once, from the socket that the host sends its openers to."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.ends_at: Instant | None = None
        self._host = ""
        self._socket = SocketId(0)
        self._place = self._stride = self._left = 0
        self._next_at: Instant | None = None

    def begin(self, now: Instant, socket_id: SocketId, host: str) -> None:
        if self._next_at is not None and self._host == host:
            return
        self._socket, self._host = socket_id, host
        self._place, self._stride, self._left = self._rng.randrange(PORTS), self._rng.choice(STRIDES), SPRAY_PROBES
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
        self._next_at = Instant(max(self._next_at + SPRAY_PACE, now - 8 * SPRAY_PACE))
        self._left -= 1
        self._place = (self._place + self._stride) % PORTS
        return Check(self._socket, Address(self._host, FIRST_PORT + self._place))

    def poll_timeout(self) -> Instant | None:
        return self._next_at
