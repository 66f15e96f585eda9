"""Full datagrams that come one by one, thousands a second: some are let gather, as a network card's interrupt moderation does.

A wake of the task costs about as much as ten datagrams in one batch.  At 100 Mbit/s over a real link, which delivers a datagram
every 0.12 ms, a core was half busy with waking up.
"""

from __future__ import annotations

from typing import Final

from tunnel.units import Instant, Seconds

DRIZZLE_PAUSE: Final = Seconds(0.001)  # added to a round trip at most, and twice that where sleeps are coarse
WAKES: Final = 16  # in a row that have to look like drizzle: a burst of an interactive stream is shorter
SPACING: Final = Seconds(0.000_5)  # from wake to wake, at most: 2,000 a second
FULL: Final = 1_000  # bytes of a datagram, on average; ACKs and keystrokes are not held up
SMALL_WAKE: Final = 16 * 1024  # bytes: who brings more in a wake wakes rarely enough
LARGE_WAKE: Final = 64 * 1024  # bytes gathered in a pause: an ordinary user's socket buffer holds 212,992


class Drizzle:
    """Watches the wakes of one socket."""

    __slots__ = ("_at", "_seen")

    def __init__(self) -> None:
        self._seen = 0
        self._at = Instant(float("-inf"))

    def is_on(self, now: Instant, size: int, datagrams: int) -> bool:
        """A wake ended that brought `datagrams` of `size` bytes in all; True to pause before the next one."""
        spacing, self._at = now - self._at, now
        if not datagrams or size < FULL * datagrams:
            self._seen = 0
        elif self._seen >= WAKES:  # pausing already: as long as something gathers, and not too much
            if datagrams < 2 or size > LARGE_WAKE:
                self._seen = 0
        elif spacing <= SPACING and size <= SMALL_WAKE:
            self._seen += 1
        else:
            self._seen = 0
        return self._seen >= WAKES
