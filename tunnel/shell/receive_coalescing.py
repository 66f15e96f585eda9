"""Full datagrams that come one by one, thousands a second: some are let gather, as a network card's interrupt moderation does.

A wake of the task costs about as much as ten datagrams in one batch.  At 100 Mbit/s over a real link, which delivers a datagram
every 0.12 ms, a core was half busy with waking up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from tunnel.node.peering import Peering
from tunnel.units import Instant, Seconds

DRIZZLE_PAUSE: Final = Seconds(0.001)  # added to a round trip at most, twice that where sleeps are coarse; on long paths ...
PAUSES_A_ROUND: Final = 16  # ... a part of the round trip: ACKs come no more often (recovery/acks.py)
LONGEST_PAUSE: Final = Seconds(0.004)  # with what a wake takes still within MAX_ACK_DELAY
PAUSES: Final = 64  # after so many the round trip is asked for again: a nearer peer may have come
WAKES: Final = 16  # in a row that have to look like drizzle: a burst of an interactive stream is shorter
SPACING: Final = Seconds(0.000_5)  # from wake to wake, at most: 2,000 a second
FULL: Final = 1_000  # bytes of a datagram, on average; ACKs and keystrokes are not held up
SMALL_WAKE: Final = 16 * 1024  # bytes: who brings more in a wake wakes rarely enough
LARGE_WAKE: Final = 64 * 1024  # bytes gathered in a pause: an ordinary user's socket buffer holds 212,992


def nearest(peerings: Iterable[Peering]) -> Seconds:
    """The shortest round trip to any of them."""
    connections = (each.connection for each in peerings)
    return min((each.current_path.smoothed_rtt for each in connections if each is not None), default=Seconds(0.0))


class Drizzle:
    """Watches the wakes of one socket."""

    __slots__ = ("_at", "_paused", "_round_trip", "_seen", "pause")

    def __init__(self, round_trip: Callable[[], Seconds]) -> None:
        """`round_trip`: the shortest one of those who send to this socket."""
        self._round_trip = round_trip
        self._seen = 0
        self._paused = 0  # times since the round trip was asked for
        self._at = Instant(float("-inf"))
        self.pause = DRIZZLE_PAUSE  # how long the next one is

    def is_on(self, now: Instant, size: int, datagrams: int) -> bool:
        """A wake ended that brought `datagrams` of `size` bytes in all; True to pause before the next one."""
        spacing, self._at = now - self._at, now
        if not datagrams or size < FULL * datagrams:
            self._seen = 0
        elif self._seen >= WAKES:  # pausing already: as long as something gathers, and not too much
            if datagrams < 2:
                self._seen = 0
            elif size > LARGE_WAKE:
                if self.pause == DRIZZLE_PAUSE:
                    self._seen = 0
                self.pause = max(DRIZZLE_PAUSE, Seconds(self.pause / 2))
        elif spacing <= SPACING and size <= SMALL_WAKE:
            self._seen += 1
            self._paused = 0
        else:
            self._seen = 0
        if self._seen < WAKES:
            return False
        if self._paused % PAUSES == 0:
            self.pause = min(max(DRIZZLE_PAUSE, Seconds(self._round_trip() / PAUSES_A_ROUND)), LONGEST_PAUSE)
        self._paused += 1
        return True
