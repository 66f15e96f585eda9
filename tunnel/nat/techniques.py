"""The costlier ways to meet, in the order of their price: predicted ports, the birthday technique, port blocks; one budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.core.timers import earliest
from tunnel.nat import birthday
from tunnel.nat.blocks import Blocks
from tunnel.nat.budget import Budget
from tunnel.nat.candidate import is_allowed
from tunnel.nat.checklist import Check
from tunnel.nat.hints import Hint, OpenPool, PortRange, PredictedPorts
from tunnel.nat.memory import Remembered
from tunnel.nat.prediction import Prediction
from tunnel.nat.technique import Measure, PoolSocket, Scene, TechniqueStats
from tunnel.units import Address, Instant, Seconds

if TYPE_CHECKING:
    import random

#: An attempt begins only with that much left: the openers of two passes, and as many probes as find a port in 99 of 100 cases.
MIN_OPENERS: Final = 512
MIN_PROBES: Final = 1_200
MAX_ATTEMPTS: Final = 3  # to open the pool: in the first round and in the retries that follow it
OPEN_AGAIN: Final = Seconds(30.0)  # from the end of an attempt to the next one of this agent; Linux forgets the ports meanwhile


class Techniques:
    """Those of an agent with IPv4, which asks them when the plain checks have nothing due.

    They may use sockets of their own, which the owner opens when `wanted_sockets` says so, and closes when it says 0 again.
    """

    def __init__(self, *, rng: random.Random, budget: Budget | None = None, remembered: Remembered | None = None) -> None:
        """`remembered`: what worked last time between these two from this network."""
        self._remembered = remembered
        self._budget = budget or Budget()
        self._prediction = Prediction()
        self._pool = birthday.Pool()
        self._spray = birthday.Spray(rng)
        self._blocks = Blocks(rng, self._prediction, self._allowance, self._budget.limits)
        self._scene: Scene | None = None
        self._begun: Instant | None = None
        self._attempts_left = 0
        self._not_before: Instant | None = None  # the pool: another attempt has just been, or a prediction is on its way
        self._sockets: tuple[PoolSocket, ...] = ()
        self._hints: list[Hint] = []
        self._probes = self._openers = 0
        self._seconds = 0.0
        self._since: Instant | None = None
        self.used = ""  # the technique under way, or the last one
        self.is_hopeless = False  # nothing is to be expected any more in this round

    # --- the agent's verbs

    def start(self, now: Instant, scene: Scene, *, fresh: bool) -> None:
        """A round began; not `fresh` is one of the slow retries."""
        if self._pool.is_open or self._spray.is_on or self._blocks.is_busy:
            self.update(now, scene)
            return
        self._scene = scene
        self._begun = now
        if fresh:
            self._attempts_left = MAX_ATTEMPTS
        self._prediction.start(now, scene, at_once=self._needed_before(scene))
        self._blocks.start(now, scene)

    def update(self, now: Instant, scene: Scene) -> None:
        self._scene = scene
        self._prediction.update(now, scene)
        self._blocks.update(now, scene)

    def stop(self, now: Instant) -> None:
        """A path was found, or the round is over."""
        self._prediction.stop()
        self._blocks.stop()
        self.is_hopeless = False
        self._close_pool(now)
        self._end_spray(now)
        self._begun = None
        self._hints.clear()
        self._sockets = ()

    def handle_hint(self, now: Instant, hint: Hint) -> None:
        scene = self._scene
        if scene is None:
            return
        match hint:
            case PredictedPorts():
                self.used = "prediction"
                self._prediction.handle_hint(now, hint)
            case OpenPool():
                target = scene.target
                if target is None or not scene.sockets or not hint.sockets or not is_allowed(target):
                    return
                is_few = hint.sockets <= birthday.FEW_SOCKETS
                left = self._budget.host_probes_left(now, target.host, few=is_few)
                if not self._spray.is_on and min(left, self._budget.probes.left(now)) < MIN_PROBES:
                    return
                self.used = "birthday"
                self._spray.begin(now, scene.sockets[0], target.host, hint.sockets, left)
                self._since = self._since if self._since is not None else now
            case PortRange():
                self._blocks.handle_hint(now, hint)

    def poll_hint(self) -> Hint | None:
        if self._prediction.hint is not None:
            hint, self._prediction.hint = self._prediction.hint, None
            return hint
        if self._blocks.hint is not None:
            ports, self._blocks.hint = self._blocks.hint, None
            return ports
        return self._hints.pop(0) if self._hints else None

    def poll_check(self, now: Instant) -> Check | None:
        self._turn(now)
        budget = self._budget
        for source in (self._prediction, self._pool, self._spray, self._blocks):
            check = source.poll_check(now)
            if check is None:
                continue
            if check.ttl is None and budget.take_host_probe(now, check.remote.host) and budget.probes.take(now):
                self._probes += 1
                return check
            if check.ttl is not None and budget.openers.take(now):
                self._openers += 1
                return check
            if source is self._spray:
                self._end_spray(now)
            elif source is self._blocks:
                self._blocks.end()
            elif source is self._pool:
                self._close_pool(now)
            else:
                self._prediction.stop()
        return None

    def poll_timeout(self) -> Instant | None:
        sources = self._prediction, self._pool, self._spray, self._blocks
        due = earliest(*(source.poll_timeout() for source in sources), None if self.is_hopeless else self._blocks.hopeless_at)
        return earliest(due, self._opens_at())

    @property
    def busy_until(self) -> Instant | None:
        """The round should last that long."""
        ends = [at for at in (self._pool.ends_at, self._spray.ends_at, self._blocks.ends_at, self._opens_at()) if at is not None]
        return max(ends, default=None)

    # --- the owner's verbs

    @property
    def wanted_sockets(self) -> int:
        return max(self._prediction.wanted_sockets, self._pool.wanted_sockets, self._blocks.wanted_sockets)

    def sockets_opened(self, now: Instant, sockets: tuple[PoolSocket, ...]) -> None:
        """All that there are, also those from before; fewer than wanted is all that can be had."""
        self._sockets = sockets
        self._prediction.sockets_opened(now, sockets)
        self._pool.sockets_opened(now, sockets)
        self._blocks.sockets_opened(now, sockets)
        if self._pool.hint is not None:
            self._hints.append(self._pool.hint)
            self._pool.hint = None

    def poll_measure(self, now: Instant) -> Measure | None:
        measure = self._prediction.poll_measure(now)
        if measure is not None and not self._budget.openers.take(now):
            self._prediction.stop()
            return None
        if measure is None:
            measure = self._pool.poll_measure(now)
            if measure is not None and not self._budget.openers.take(now):
                self._close_pool(now)
                return None
        if measure is None:
            measure = self._blocks.poll_measure(now)
            if measure is not None and not self._budget.openers.take(now):
                self._blocks.end()
                return None
        return measure

    def measured(self, now: Instant, measure: Measure, address: Address) -> None:
        self._prediction.measured(now, measure, address)
        self._pool.measured(measure)
        self._blocks.measured(now, measure, address)

    @property
    def differs_elsewhere(self) -> bool | None:
        """Whether the server's other address saw another mapping of one socket; None: not known."""
        return self._prediction.elsewhere

    @property
    def port_step(self) -> int | None:
        """Of our NAT: 0 keeps the port, None is random or not known."""
        return self._prediction.step

    def stats(self, now: Instant) -> TechniqueStats:
        seconds = self._seconds + (now - self._since if self._since is not None else 0.0)
        active = "birthday" if self._pool.is_open or self._spray.is_on else "blocks" if self._blocks.is_busy else ""
        if not active and not self._prediction.is_settled:
            active = "prediction"
        return TechniqueStats(
            active,
            len(self._sockets),
            self._probes,
            self._openers,
            seconds,
            self._budget.probes.left(now),
            self._budget.openers.left(now),
        )

    # --- inside

    def _allowance(self, now: Instant, host: str) -> int:
        """Tries at random ports of a host that the budget has."""
        return min(self._budget.host_probes_left(now, host, few=True), self._budget.probes.left(now))

    def _opens_at(self) -> Instant | None:
        scene = self._scene
        if self._begun is None or scene is None or not self._attempts_left or self._pool.is_open:
            return None
        after = birthday.opens_after(scene)
        if after is None:
            return None
        if self._needed_before(scene) and self._remembered is not None and self._remembered.opened:
            after = Seconds(0.0)
        at = Instant(self._begun + after)
        return at if self._not_before is None else max(at, self._not_before)

    def _needed_before(self, scene: Scene) -> bool:
        """Whether a technique led to the peer last time, and the peer is where it was."""
        remembered = self._remembered
        return remembered is not None and bool(remembered.technique) and remembered.fits(scene)

    def _turn(self, now: Instant) -> None:
        self._prediction.poll(now)
        self._blocks.poll(now)
        hopeless_at = self._blocks.hopeless_at
        self.is_hopeless = hopeless_at is not None and now >= hopeless_at
        if self._blocks.is_searching:
            self.used = "blocks"
            self._since = self._since if self._since is not None else now
        elif self.used == "blocks":
            self._count(now)
        if self._pool.ends_at is not None and now >= self._pool.ends_at:
            self._close_pool(now)
        at, scene = self._opens_at(), self._scene
        if at is None or scene is None or now < at:
            return
        if not self._prediction.is_idle:
            self._not_before = Instant(now + 0.05)
            return
        is_guess = not scene.ours.is_hard and not scene.theirs.is_hard  # most often it is a firewall
        self._attempts_left = 0 if is_guess else self._attempts_left - 1
        target = scene.target
        if target is not None and self._budget.openers.left(now) >= MIN_OPENERS:
            self.used = "birthday"
            self._since = self._since if self._since is not None else now
            self._pool.open(now, target)

    def _close_pool(self, now: Instant) -> None:
        if self._pool.is_open:
            self._pool.close()
            self._not_before = Instant(now + OPEN_AGAIN)
            self._sockets = ()
        self._count(now)

    def _end_spray(self, now: Instant) -> None:
        self._spray.end()
        self._count(now)

    def _count(self, now: Instant) -> None:
        if self._since is not None and not self._pool.is_open and not self._spray.is_on and not self._blocks.is_searching:
            self._seconds += now - self._since
            self._since = None
