"""Port blocks: two NATs that make a new mapping for every destination meet all the same where the ports of one are few.

Each side learns from which range its NAT draws: two measured ports far apart say that there is no block; else more sockets ask
the server.  Each tells the other; then both try ports of the other's range, each try a mapping of its own, until one of ours and
one of theirs are the same pair of ports (ranges.py).  What our NAT bears is watched meanwhile (quota.py).

A NAT that allocates in steps needs no block: what it will use next is a short range.  It is measured just before it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from itertools import pairwise
from math import gcd
from typing import TYPE_CHECKING, Final

from tunnel.core.timers import earliest
from tunnel.nat import ranges
from tunnel.nat.behaviour import Mapping
from tunnel.nat.budget import POOL_SOCKETS
from tunnel.nat.candidate import is_allowed
from tunnel.nat.checklist import Check
from tunnel.nat.hints import MAX_STEP, PortRange
from tunnel.nat.prediction import ATTEMPTS, SOCKETS_AN_ATTEMPT
from tunnel.nat.quota import ASK_EVERY, Borne, Limits, Quota
from tunnel.nat.technique import Measure, PoolSocket, Scene
from tunnel.units import Address, Instant, Seconds, SocketId

if TYPE_CHECKING:
    import random

    from tunnel.nat.prediction import Prediction

FIRST_SOCKET: Final = ATTEMPTS * SOCKETS_AN_ATTEMPT  # of the pool; those before belong to the prediction
OBSERVERS: Final = 48  # sockets that ask the server
OBSERVED_WITHIN: Final = Seconds(1.0)  # the answers that come later are not waited for
SILENT_SHARE: Final = 0.25  # of these questions without an answer: our NAT has had enough already
SEARCH_SECONDS: Final = Seconds(14.0)  # from the first try on
LOOKS: Final = 3  # ports measured anew before steps are believed
STEPS: Final = 64  # mappings of a NAT that allocates in steps, and ...
SLACK: Final = 8  # ... ports that others in the home may take in between
TELLS_AFTER: Final = Seconds(1.5)  # from the start of a round, and from our word to the peer's; then nothing will come of it


class Phase(Enum):
    OFF = auto()
    WAITING = auto()  # until the port prediction knows whether ports come in steps
    OBSERVING = auto()
    TOLD = auto()  # our range; theirs is still to come
    STEPPING = auto()  # the next port is being measured
    SEARCHING = auto()
    OVER = auto()


class Blocks:
    """Ours and theirs.  The owner counts what it sends against a budget."""

    def __init__(
        self, rng: random.Random, prediction: Prediction, allowance: Callable[[Instant, str], int], limits: Limits
    ) -> None:
        """`allowance`: tries that the budget has for a host; `limits`: what our NATs were found to bear."""
        self._limits = limits
        self._rng = rng
        self._prediction = prediction
        self._allowance = allowance
        self._no_block: frozenset[str] = frozenset()  # where the world saw us when our ports came from no block
        self._reset()

    def _reset(self) -> None:
        self.phase = Phase.OFF
        self.hint: PortRange | None = None  # to tell the peer
        self.ends_at: Instant | None = None  # of the search
        self._scene: Scene | None = None
        self._begun: Instant | None = None
        self._told_at: Instant | None = None
        self._observed_at: Instant | None = None
        self._sockets: tuple[PoolSocket, ...] = ()
        self._ports: dict[SocketId, int] = {}  # where the world sees us
        self._questions: list[Measure] = []  # to be put
        self._marks: dict[Measure, int] = {}  # of those without an answer
        self._answered = 0
        self._next_question = self._observers = 0  # each socket asks once or twice; those below have asked once
        self._has_second = False  # address of the server that answers
        self._spread = 1.0  # mappings for each that is at the address which the peer knows: of a pool not all are
        self._ours: PortRange | None = None
        self._theirs: PortRange | None = None
        self._quota: Quota | None = None
        self._tries = self._wanted = self._place = self._stride = 0

    # --- verbs

    @staticmethod
    def fits(scene: Scene) -> bool:
        """Whether nothing else helps.  A side whose mapping varies by address alone opens a pool."""
        both = scene.ours, scene.theirs
        is_hard = all(each.is_hard and each is not Mapping.ADDRESS_DEPENDENT for each in both)
        return is_hard and scene.target is not None and bool(scene.sockets)

    @property
    def is_on(self) -> bool:
        return self.phase not in (Phase.OFF, Phase.OVER)

    @property
    def is_searching(self) -> bool:
        return self.phase is Phase.SEARCHING

    @property
    def is_busy(self) -> bool:
        """A new round should leave it alone."""
        return self.phase in (Phase.OBSERVING, Phase.STEPPING, Phase.SEARCHING)

    def start(self, now: Instant, scene: Scene) -> None:
        """A round began.  The peer need not have begun anew, so its word holds."""
        theirs = self._theirs
        self._reset()
        self._theirs = theirs
        self.update(now, scene)

    def update(self, now: Instant, scene: Scene) -> None:
        self._scene = scene
        if self.phase is Phase.OFF and self.fits(scene):
            self.phase = Phase.WAITING
            self._begun = now

    def _has_no_block(self, scene: Scene) -> bool:
        """Whether that is known from an earlier round."""
        return bool(self._no_block) and scene.own_hosts == self._no_block

    def stop(self) -> None:
        self._reset()

    def end(self) -> None:
        """Nothing came of it."""
        self.phase = Phase.OVER
        self.ends_at = None
        self._sockets = ()
        self._questions.clear()

    def handle_hint(self, now: Instant, hint: PortRange) -> None:
        """The peer's range.  Told again it changes nothing once we search."""
        if self.phase is not Phase.SEARCHING:
            self._theirs = hint
            self._consider(now)

    def sockets_opened(self, now: Instant, sockets: tuple[PoolSocket, ...]) -> None:
        if not self.is_on:
            return
        self._sockets = sockets
        if self.phase is Phase.OBSERVING and self._quota is None:
            self._observe(now)
        elif self.phase is Phase.STEPPING and self._quota is None:
            self._look(now)

    def measured(self, now: Instant, measure: Measure, address: Address) -> None:
        scene, quota = self._scene, self._quota
        if scene is None or not self.is_on or measure.elsewhere:
            return
        mark = self._marks.pop(measure, None)
        if mark is not None and quota is not None:
            quota.answered(now, mark)
            quota.saw(now, address, measure)
            self._has_second = self._has_second or measure.second
            self._answered += not measure.second
        if address.host in scene.own_hosts and not measure.second:
            self._ports[measure.socket_id] = address.port
            if self.phase is Phase.STEPPING and mark is not None and not self._marks and not self._questions:
                self._count_on(now)
        if self.phase is Phase.OBSERVING and self._answered >= OBSERVERS:
            self._learn(now)

    # --- outputs

    @property
    def wanted_sockets(self) -> int:
        match self.phase:
            case Phase.OFF | Phase.OVER:
                return 0
            case Phase.WAITING:
                return FIRST_SOCKET if self._sockets else 0  # the prediction opens them
            case Phase.STEPPING:
                return FIRST_SOCKET
            case Phase.OBSERVING | Phase.TOLD:
                is_observer = self.phase is Phase.OBSERVING or self._quota is not None
                return FIRST_SOCKET + OBSERVERS if is_observer else FIRST_SOCKET
        assert self._theirs is not None
        searching = self._wanted // self._theirs.ports + 1
        asking = OBSERVERS + self._wanted // (2 * ASK_EVERY) // 2
        return min(POOL_SOCKETS, FIRST_SOCKET + max(searching, asking))

    def poll(self, now: Instant) -> None:
        """Let time do its work."""
        if self.phase is Phase.WAITING and self._prediction.is_settled and self._prediction.step is None:
            seen, borne = list(self._ports.values()), self._borne(now)
            if borne.is_resting(now) or borne.most < 2 * OBSERVERS:
                self._tell(now, ranges.every_port(0))
                self.end()
            elif (self._scene is not None and self._has_no_block(self._scene)) or (len(seen) > 1 and ranges.is_scattered(seen)):
                self._no_block = self._scene.own_hosts if self._scene is not None else frozenset()
                self._tell(now, ranges.every_port(borne.most))
            else:
                self._begin_to_observe(now)
        elif self.phase is Phase.WAITING:
            self._consider(now)
        elif self.phase is Phase.OBSERVING and self._observed_at is not None and now >= self._observed_at:
            self._learn(now)
        elif self.phase is Phase.STEPPING and self._observed_at is not None and now >= self._observed_at:
            self._begin_to_observe(now)
        elif self.phase is Phase.SEARCHING:
            if self.ends_at is not None and now >= self.ends_at:
                self.end()
                return
            quota = self._quota
            at = quota.repeat_at() if quota is not None else None
            if quota is not None and at is not None and now >= at and quota.repeat(now) and self._marks:
                self._questions.append(next(reversed(self._marks)))

    def poll_measure(self, now: Instant) -> Measure | None:
        quota = self._quota
        if quota is None or not self._questions:
            return None
        if self._questions[0] not in self._marks:  # else it is put again
            at = quota.ready_at()
            if at is None or at > now:
                return None
            self._marks[self._questions[0]] = quota.asked(now)
        return self._questions.pop(0)

    def poll_check(self, now: Instant) -> Check | None:
        quota, theirs, scene = self._quota, self._theirs, self._scene
        if self.phase is not Phase.SEARCHING or self._questions or self._tries >= self._wanted or not self._sockets:
            return None
        assert quota is not None
        assert theirs is not None
        target = scene.target if scene is not None else None
        at = quota.ready_at()
        if target is None:
            self.end()
        if at is None or at > now or target is None:
            return None
        if quota.asks and quota.wants_question and self._ask():
            return None
        for _ in range(theirs.ports):
            number, place = divmod(self._tries, theirs.ports)
            self._tries += 1
            address = Address(target.host, theirs.first + (self._place + place * self._stride) % theirs.ports)
            if is_allowed(address):
                quota.make(now)
                return Check(self._sockets[(FIRST_SOCKET + number) % len(self._sockets)].socket_id, address)
        return None

    def poll_timeout(self) -> Instant | None:
        quota, due = self._quota, None
        if quota is not None and self.is_on:
            if self._questions or (self.phase is Phase.SEARCHING and self._tries < self._wanted):
                due = quota.ready_at()
            if self.phase is Phase.SEARCHING:
                due = earliest(due, quota.repeat_at())
        observed = self._observed_at if self.phase in (Phase.OBSERVING, Phase.STEPPING) else None
        return earliest(due, observed, self.ends_at)

    @property
    def hopeless_at(self) -> Instant | None:
        """From when on nothing is to be expected of it; None: something is."""
        if self._begun is None:
            return None
        soonest = Instant(self._begun + TELLS_AFTER)
        match self.phase:
            case Phase.OVER:
                return soonest
            case Phase.TOLD if self._told_at is not None:
                return max(soonest, Instant(self._told_at + TELLS_AFTER))
            case Phase.WAITING if self._prediction.is_settled:
                return soonest
        return None

    # --- inside

    def _borne(self, now: Instant) -> Borne:
        return self._limits.of(now, self._scene.own_hosts if self._scene is not None else ())

    def _begin_to_observe(self, now: Instant) -> None:
        self.phase = Phase.OBSERVING
        self._observed_at = Instant(now + OBSERVED_WITHIN)
        self._quota = None
        if len(self._sockets) > FIRST_SOCKET:
            self._observe(now)

    def _observe(self, now: Instant) -> None:
        """Ask where the world sees sockets that have spoken to nobody."""
        observers = self._sockets[FIRST_SOCKET : FIRST_SOCKET + OBSERVERS]
        self._quota = Quota(now, self._borne(now))
        self._observed_at = Instant(now + OBSERVED_WITHIN)
        self._questions = [Measure(each.socket_id) for each in observers]
        self._questions.insert(1, Measure(observers[0].socket_id, second=True))  # has it a second address?
        self._next_question, self._observers = 2 * FIRST_SOCKET + 3, FIRST_SOCKET + len(observers)

    def _learn(self, now: Instant) -> None:
        ports = list(self._ports.values())
        silent = sum(not each.second for each in self._marks)
        if self._quota is None or len(ports) < ranges.MIN_OBSERVED or silent > SILENT_SHARE * (silent + self._answered):
            self._tell(now, ranges.every_port(0))
            self.end()
            return
        ours = ranges.estimate(ports, max(0, self._borne(now).most - self._quota.made))
        if ours.ports < ranges.LEAST_BLOCK:
            ours = ranges.every_port(0)
        self._spread = max(1.0, self._answered / len(ports))
        self._quota.block = int(ours.ports * self._spread) if ranges.is_block(ours) else None
        if self._scene is not None and not ranges.is_block(ours):
            self._no_block = self._scene.own_hosts
        self._tell(now, ours)

    def _tell(self, now: Instant, ours: PortRange) -> None:
        self.phase = Phase.TOLD
        self._ours = self.hint = ours
        self._told_at = now
        self._consider(now)

    def _consider(self, now: Instant) -> None:
        """Begin, once both ranges are known and small enough."""
        theirs, ours, scene = self._theirs, self._ours, self._scene
        target = scene.target if scene is not None else None
        if theirs is None or target is None or self.phase not in (Phase.WAITING, Phase.TOLD):
            return
        if ours is None:
            if self._prediction.step is not None:
                self._begin_to_step(now, theirs)
            return
        wanted = int(ranges.tries_wanted(ours, theirs) * self._spread)
        self._wanted = min(wanted, ours.tries, self._allowance(now, target.host))
        if ranges.chance(ours, theirs, self._wanted) < ranges.LEAST_CHANCE:
            self.end()
            return
        self.phase = Phase.SEARCHING
        if self._quota is None:
            self._quota, self._next_question = Quota(now, self._borne(now)), 2 * FIRST_SOCKET
            self._questions = [Measure(each.socket_id, second=True) for each in self._sockets[-1:]]  # has it a second address?
        if self._quota.asks:  # else the next ports are wanted before others in the home take them
            self._quota.need(ranges.pace(ours, theirs) * self._spread)
        self._place, self._tries = self._rng.randrange(theirs.ports), 0
        self._stride = _coprime(self._rng.randrange(theirs.ports) + 1, theirs.ports)
        self.ends_at = Instant(now + SEARCH_SECONDS)

    def _begin_to_step(self, now: Instant, theirs: PortRange) -> None:
        """Our NAT seems to allocate in steps: measure where it is, from sockets that nobody has heard of.

        Two ports of one small block may look like it too.
        """
        if not self._prediction.step or not ranges.is_block(theirs):
            self.end()
            return
        self.phase = Phase.STEPPING
        self._prediction.stop()
        self._observed_at = Instant(now + OBSERVED_WITHIN)
        if self._sockets:
            self._look(now)

    def _look(self, now: Instant) -> None:
        self._quota = Quota(now, self._borne(now))
        self._questions = [Measure(each.socket_id) for each in self._sockets[FIRST_SOCKET - LOOKS : FIRST_SOCKET]]

    def _count_on(self, now: Instant) -> None:
        step = self._prediction.step or 0
        ports = [self._ports.get(each.socket_id) for each in self._sockets[FIRST_SOCKET - LOOKS : FIRST_SOCKET]]
        known = [port for port in ports if port is not None]
        steps = [after - before for before, after in pairwise(known)]
        if len(known) < LOOKS or any(each * step <= 0 or abs(each) > MAX_STEP for each in steps):
            self._begin_to_observe(now)
            return
        ours = ranges.next_ports(known[-1], step, STEPS + SLACK, STEPS)
        if ours is None:
            self.end()
            return
        if self._quota is not None:
            self._quota.asks = False  # each question would take a port
        self._tell(now, ours)

    def _ask(self) -> bool:
        """Whether there is a socket that can ask the server something new."""
        while (number := self._next_question) < 2 * len(self._sockets):
            self._next_question += 1
            socket, is_second = self._sockets[number // 2], bool(number % 2)
            if self._has_second if is_second else number // 2 >= self._observers:
                self._questions.append(Measure(socket.socket_id, second=is_second))
                return True
        return False


def _coprime(number: int, count: int) -> int:
    """The next number from this one on, around `count`, that shares no factor with it."""
    while gcd(number, count) != 1:
        number = number % count + 1
    return number
