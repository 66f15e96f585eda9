"""Port prediction: a NAT that allocates ports one after the other gives away which one comes next.

The next port is measured last, just before it is used, from sockets that have spoken to nobody, since our own probes move it.
Two ways to use it.  Towards a peer whose mapping does not vary we open one port ourselves at once, and the peer tries those just
behind the measured one.  Where both sides allocate in steps, both try each other's next ports in order, so that the n-th probe
of one leaves from the port that the n-th probe of the other goes to; a stray allocation in between spoils that: then again.
"""

from __future__ import annotations

from typing import Final

from tunnel.core.timers import earliest
from tunnel.nat.candidate import is_allowed
from tunnel.nat.checklist import Check
from tunnel.nat.hints import MAX_PREDICTED, MAX_STEP, PredictedPorts
from tunnel.nat.technique import Measure, PoolSocket, Scene
from tunnel.units import Address, Instant, Seconds, SocketId

#: From the start of a round: at once where we know that our mapping varies, later where only the peer's does.
AFTER_HARD: Final = Seconds(0.08)
AFTER_SOFT: Final = Seconds(0.3)
AFTER_EASY: Final = Seconds(0.45)
ATTEMPTS: Final = 4
SOFT_ATTEMPTS: Final = 2  # where the peer's mapping does not vary: the birthday technique works there too
SOCKETS_AN_ATTEMPT: Final = 3  # two that measure, one that goes to the peer
ANSWER_PATIENCE: Final = Seconds(0.5)  # for the server
MEASURE_AGAIN: Final = Seconds(0.2)
PROBE_PACE: Final = Seconds(0.002)
OPENER_TTLS: Final = (3, 5)
#: When the whole range is tried after the hint, by a peer whose own port is known.
PASSES: Final = (Seconds(0.0), Seconds(0.12), Seconds(0.4))
#: The same where both predict: the first with a low TTL, so that neither NAT sees a stranger.
BOTH_PASSES: Final = ((Seconds(0.0), 3), (Seconds(0.1), None), (Seconds(0.35), None), (Seconds(0.8), None))
ATTEMPT: Final = Seconds(1.3)  # and then measure again
SOFT_ATTEMPT: Final = Seconds(0.8)


class Prediction:
    """Ours and theirs.  The owner counts what it sends against a budget."""

    def __init__(self) -> None:
        self.elsewhere: bool | None = None  # another address of the server saw another mapping
        self.step: int | None = None  # between two ports; 0: kept from inside; None: random or not known
        self.is_settled = True  # nothing more to find out
        self.hint: PredictedPorts | None = None  # to tell the peer
        self._scene: Scene | None = None
        self._begun: Instant | None = None
        self._begins: Instant | None = None
        self._gives_up: Instant | None = None
        self._sockets: tuple[PoolSocket, ...] = ()
        self._attempt = 0
        self._at_once = False
        self._measures: list[tuple[Instant, Measure]] = []
        self._seen: dict[SocketId, Address] = {}
        self._range: PredictedPorts | None = None  # ours, measured in this attempt
        self._is_range_fresh = False
        self._theirs: PredictedPorts | None = None
        self._plan: list[tuple[Instant, Check]] = []  # by time

    # --- verbs

    def start(self, now: Instant, scene: Scene, *, at_once: bool = False) -> None:
        """`at_once`: a costlier technique was needed last time."""
        self.stop()
        self._at_once = at_once
        self._scene = scene
        self.is_settled = False
        self._begins = self._when(now, scene)
        self._begun = now

    def update(self, now: Instant, scene: Scene) -> None:
        if self._begun is not None and self._begins is not None and self._attempt == 0:
            self._begins = max(now, self._when(self._begun, scene))
        self._scene = scene

    def stop(self) -> None:
        self._begins = self._gives_up = None
        self._sockets = ()
        self._attempt = 0
        self._measures.clear()
        self._plan.clear()
        self._range = self._theirs = self.hint = None
        self._is_range_fresh = False
        self.is_settled = True

    @property
    def is_idle(self) -> bool:
        """Nothing on its way that another technique would disturb."""
        return self.is_settled and not self._plan

    @property
    def wanted_sockets(self) -> int:
        if self._scene is None or self._attempt == 0 or self.is_settled:
            return 0
        return ATTEMPTS * SOCKETS_AN_ATTEMPT if self._scene.ours.is_hard else 1

    def sockets_opened(self, now: Instant, sockets: tuple[PoolSocket, ...]) -> None:
        if self._attempt == 1 and not self._sockets and not self.is_settled:
            self._sockets = sockets
            self._measure(now)

    def handle_hint(self, now: Instant, hint: PredictedPorts) -> None:
        """The peer's next ports.  Whatever it says, we try at most MAX_PREDICTED ports of an address that may be tried."""
        scene = self._scene
        if scene is None or not is_allowed(Address(hint.host, hint.first)):
            return
        if not scene.ours.is_hard:
            addresses = [address for address in hint.addresses() if is_allowed(address)]
            self._plan = [
                (Instant(now + begin + number * PROBE_PACE), Check(socket_id, address))
                for begin in PASSES
                for number, (socket_id, address) in enumerate((s, a) for a in addresses for s in scene.sockets[:1])
            ]
            return
        self._theirs = hint
        if self._range is not None and not self._is_range_fresh:
            self._again(now)  # ours is spent: the peer has begun anew
        self._go(now)

    def measured(self, now: Instant, measure: Measure, address: Address) -> None:
        if measure.elsewhere:
            seen = self._seen.get(measure.socket_id)
            if seen is not None:
                self.elsewhere = address != seen
                if self._scene is not None and not self._scene.ours.is_hard:
                    self._settle()
            return
        current = self._of_attempt()
        if not any(measure.socket_id == socket.socket_id for socket in current[:2]):
            return
        self._seen[measure.socket_id] = address
        self._measures = [(at, each) for at, each in self._measures if each.socket_id != measure.socket_id or each.elsewhere]
        scene = self._scene
        if measure.socket_id == current[0].socket_id and self.elsewhere is None and scene is not None and not scene.ours.is_hard:
            self._measures.insert(0, (now, Measure(measure.socket_id, elsewhere=True)))
        if len(current) >= 2 and all(socket.socket_id in self._seen for socket in current[:2]) and self._range is None:
            self._predict(now, current)

    # --- outputs

    def poll(self, now: Instant) -> None:
        """Let time do its work."""
        if self._begins is not None and now >= self._begins and self._attempt == 0:
            self._begins = None
            scene = self._scene
            if scene is None or not scene.sockets or (scene.target is None and scene.ours.is_hard):
                self._settle()
                return
            self._attempt = 1
            self._gives_up = Instant(now + ANSWER_PATIENCE)
        if self._gives_up is not None and now >= self._gives_up:
            scene = self._scene
            is_ours = scene is not None and scene.ours.is_hard and bool(self._sockets)
            attempts = ATTEMPTS if self._range is None or (scene is not None and scene.theirs.is_hard) else SOFT_ATTEMPTS
            if is_ours and self._attempt < attempts:
                self._again(now)
            else:
                self._settle()

    def poll_measure(self, now: Instant) -> Measure | None:
        if not self._measures or self._measures[0][0] > now:
            return None
        _, measure = self._measures.pop(0)
        if not measure.elsewhere:
            self._measures.append((Instant(now + MEASURE_AGAIN), measure))
        return measure

    def poll_check(self, now: Instant) -> Check | None:
        if not self._plan or self._plan[0][0] > now:
            return None
        return self._plan.pop(0)[1]

    def poll_timeout(self) -> Instant | None:
        begins = self._begins if self._attempt == 0 else None
        plan = self._plan[0][0] if self._plan else None
        measure = self._measures[0][0] if self._measures else None
        return earliest(begins, plan, measure, self._gives_up)

    # --- inside

    def _when(self, begun: Instant, scene: Scene) -> Instant:
        if self._at_once:
            return begun
        if scene.ours.is_hard:
            return Instant(begun + AFTER_HARD)
        return Instant(begun + (AFTER_SOFT if scene.theirs.is_hard else AFTER_EASY))

    def _of_attempt(self) -> tuple[PoolSocket, ...]:
        at = (self._attempt - 1) * SOCKETS_AN_ATTEMPT
        return self._sockets[at : at + SOCKETS_AN_ATTEMPT] if self._attempt else ()

    def _settle(self) -> None:
        self.is_settled = True
        self._gives_up = None
        self._measures.clear()

    def _again(self, now: Instant) -> None:
        if self._attempt >= ATTEMPTS:
            self._settle()
            return
        self._attempt += 1
        self._plan.clear()
        self._range = None
        self._is_range_fresh = False
        self._measure(now)

    def _measure(self, now: Instant) -> None:
        scene, sockets = self._scene, self._of_attempt()
        assert scene is not None
        wanted = 2 if scene.ours.is_hard else 1
        if len(sockets) < wanted:
            self._settle()
            return
        self._gives_up = Instant(now + ANSWER_PATIENCE)
        self._measures = [(now, Measure(socket.socket_id)) for socket in sockets[:wanted]]
        target = scene.target
        if scene.ours.is_hard and not scene.theirs.is_hard and target is not None and len(sockets) > 2:
            self._plan = [
                (Instant(now + 0.03 * number), Check(sockets[2].socket_id, target, ttl)) for number, ttl in enumerate(OPENER_TTLS)
            ]

    def _predict(self, now: Instant, sockets: tuple[PoolSocket, ...]) -> None:
        scene = self._scene
        assert scene is not None
        one, two = (self._seen[socket.socket_id] for socket in sockets[:2])
        delta = two.port - one.port
        if len(sockets) < SOCKETS_AN_ATTEMPT or one.host != two.host:
            self._plan.clear()
            self._settle()
            return
        if (one.port, two.port) == (sockets[0].port, sockets[1].port):
            self.step = 0
            self._range = PredictedPorts(one.host, sockets[2].port, 1, 1)
        elif 0 < abs(delta) <= MAX_STEP:
            self.step = delta
            step = delta if scene.theirs.is_hard else (1 if delta > 0 else -1)
            # Nothing before the measured ports: a plain check of ours left from there, and a Linux router that saw it first gives
            # its host another port for whoever answers, and for all that it sends from then on.
            first = two.port if scene.theirs.is_hard else one.port
            if not 0 < first + step <= 0xFFFF:
                self._settle()
                return
            self._range = PredictedPorts(one.host, first + step, step, MAX_PREDICTED)
        else:
            self.step = None
            self._plan.clear()
            self._settle()
            return
        self._is_range_fresh = True
        self.hint = self._range
        self._gives_up = Instant(now + (ATTEMPT if scene.theirs.is_hard else SOFT_ATTEMPT))
        self._go(now)

    def _go(self, now: Instant) -> None:
        """Where both predict, and both predictions are fresh: probe in order, from a socket that nobody has heard of."""
        theirs, sockets = self._theirs, self._of_attempt()
        if theirs is None or not self._is_range_fresh or len(sockets) < 3:
            return
        self._theirs = None
        self._is_range_fresh = False
        source = sockets[2].socket_id
        addresses = [address for address in theirs.addresses() if is_allowed(address)]
        self._plan = [
            (Instant(now + begin + number * PROBE_PACE), Check(source, address, ttl))
            for begin, ttl in BOTH_PASSES
            for number, address in enumerate(addresses)
        ]
        self._gives_up = Instant(now + ATTEMPT)
