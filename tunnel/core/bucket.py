"""A token bucket: so many in a row, and then so many a second."""

from __future__ import annotations

from tunnel.units import Instant

_SLACK = 1e-6  # tokens that the rounding of many small sums may have lost


class Bucket:
    """Tokens that come back with time.  It is whole at first; a clock that steps back gives nothing."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, burst: float, rate: float) -> None:
        """`burst` tokens at most, `rate` of them a second."""
        self._burst = float(burst)
        self._rate = rate
        self._tokens = float(burst)
        self._at: Instant | None = None

    def left(self, now: Instant) -> int:
        return int(self.level(now) + _SLACK)

    def level(self, now: Instant) -> float:
        """Tokens with their fraction; below 0 after `spend`."""
        if self._at is not None and now > self._at:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now if self._at is None else max(self._at, now)
        return self._tokens

    @property
    def whole(self) -> int:
        """As of the last look."""
        return int(self._tokens + _SLACK)

    def ready_at(self, now: Instant) -> Instant:
        """When there is one, as of the last look; `now` if that is already so."""
        if self._at is None or self._tokens >= 1.0 - _SLACK:
            return now
        return Instant(self._at + (1.0 - self._tokens) / self._rate)

    def has(self, now: Instant, amount: float) -> bool:
        """Whether there are so many."""
        return self.level(now) + _SLACK >= amount

    def take(self, now: Instant, amount: float = 1.0) -> bool:
        """Whether there are so many; then they are gone."""
        if self.level(now) + _SLACK < amount:
            return False
        self._tokens -= amount
        return True

    def spend(self, now: Instant) -> None:
        """One is gone, whether there is one or not."""
        self.level(now)
        self._tokens -= 1.0
