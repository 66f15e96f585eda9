"""When the searches for direct paths begin, where many peers are met at once: a few now, the others one after the other.

A search costs both sides far more than the meeting itself.  Whoever is met has a relayed path meanwhile, and what worked before
is tried at once all the same: that costs three datagrams.
"""

from __future__ import annotations

from typing import Final

from tunnel.units import Instant, Seconds

AT_ONCE: Final = 3  # searches that begin without waiting ...
TURN: Final = Seconds(0.15)  # ... and from there on one each so long; the 64 of the largest room have begun after 9 s


class Turns:
    """Of all peers of a process."""

    def __init__(self) -> None:
        self._next_at = Instant(float("-inf"))

    def take(self, now: Instant) -> Instant:
        """When the search that asks may begin."""
        at = max(self._next_at, Instant(now - (AT_ONCE - 1) * TURN))
        self._next_at = Instant(at + TURN)
        return max(at, now)
