"""What the costlier techniques may spend, over all peers of one process: whatever a peer says, no more than that leaves."""

from __future__ import annotations

from typing import Final

from tunnel.units import Instant

#: Probes to ports that nobody named, in one go: with 256 sockets on the other side 1,159 find one in 99 of 100 cases, and a
#: carrier's quota of 64 mappings, not all of which are free, makes it five times as many.
PROBE_BURST: Final = 8_500
PROBE_RATE: Final = 15.0  # a second after that: enough for another attempt where there is no quota in 80 s
#: Openers with a low TTL: four passes of the pool.
OPENER_BURST: Final = 1_200
OPENER_RATE: Final = 10.0
POOL_SOCKETS: Final = 256


class Bucket:
    """Tokens that come back with time."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, burst: int, rate: float) -> None:
        self._burst = float(burst)
        self._rate = rate
        self._tokens = float(burst)
        self._at: Instant | None = None

    def left(self, now: Instant) -> int:
        if self._at is not None and now > self._at:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now if self._at is None else max(self._at, now)
        return int(self._tokens + 1e-6)

    @property
    def whole(self) -> int:
        """As of the last look."""
        return int(self._tokens + 1e-6)

    def ready_at(self, now: Instant) -> Instant:
        """When there is one, as of the last look; `now` if that is already so."""
        if self._at is None or self._tokens >= 1.0 - 1e-6:
            return now
        return Instant(self._at + (1.0 - self._tokens) / self._rate)

    def take(self, now: Instant) -> bool:
        if not self.left(now):
            return False
        self._tokens -= 1.0
        return True


class Budget:
    """Share one among all agents of a process."""

    def __init__(self) -> None:
        self.probes = Bucket(PROBE_BURST, PROBE_RATE)
        self.openers = Bucket(OPENER_BURST, OPENER_RATE)
