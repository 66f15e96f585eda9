"""Rates of relayed pairs while the server cannot keep up: the fastest lose first, and a slow pair loses nothing.

While all that comes is read at once nobody is held to anything.  When the queue of a socket has not been empty for a while, a
ceiling for every pair comes down until it is, at most to what the configuration leaves to each; then it goes up again.
"""

from __future__ import annotations

from typing import Final

from tunnel.rendezvous.limits import ServerConfig
from tunnel.units import Instant, Seconds

INTERVAL: Final = Seconds(0.05)  # between two looks
HIGHEST: Final = 1_000.0  # times the least; nobody is held any more
FALL: Final = 0.5  # of the ceiling is left after a look at which the server was behind: ten looks from the highest to the least
RISE: Final = 1.2  # of the ceiling after one at which it was not
DEPTH: Final = Seconds(0.1)  # of what the ceiling allows, at a stretch
FADING: Final = 0.95  # of the count of others is left after a look: it says how many come in a second
ADDRESS_TIMES: Final = 4.0  # what a pair may have, for all that comes from one address; ...
PREFIX_TIMES: Final = 16.0  # ... and for each wider prefix around it: half of what a core relays
ALONE: Final = 5.0  # others a second; the two clients of a pair ask something every few seconds themselves


class Ceiling:
    """One for all pairs.  What a burst costs is what is dearer of its bytes and of the two kernel calls that it takes."""

    __slots__ = ("_burst_time", "_byte_time", "_lately", "_look_at", "_scale", "is_low", "others")

    def __init__(self, config: ServerConfig) -> None:
        self._byte_time = 1.0 / config.pair_rate
        self._burst_time = 1.0 / config.pair_bursts
        self._look_at = Instant(0.0)
        self._scale = HIGHEST
        self._lately = 0.0
        self.is_low = False
        self.others = 0  # since the last look: requests, and bursts of another pair than the burst before

    def look(self, now: Instant, is_behind: bool, *, is_blamed: bool = True) -> None:
        """Call often; `is_behind`: more comes than is read.  Not `is_blamed`: something else is why, so it stays as it is."""
        if now < self._look_at:
            return
        self._look_at = Instant(now + INTERVAL)
        self._lately = FADING * self._lately + self.others
        self.others = 0
        if is_behind and self._lately >= ALONE:  # a pair alone has nobody to make room for
            self._scale = max(1.0, self._scale * FALL) if is_blamed else self._scale
        else:
            self._scale = min(HIGHEST, self._scale * RISE)
        self.is_low = self._scale < HIGHEST

    def admits(self, now: Instant, due: Instant, size: int, times: float = 1.0) -> Instant | None:
        """For a burst of who is `due` again then: when it is due after that one, or None if it is too early.

        `times` as much as a pair may be had.
        """
        due = max(due, now)
        if due - now > DEPTH:
            return None
        return Instant(due + max(size * self._byte_time, self._burst_time) / (self._scale * times))
