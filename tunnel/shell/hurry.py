"""Short turns for a moment: beside bulk, what makes a new stream takes several turns of the loop, one after the other.

A turn that receives or sends a megabyte takes milliseconds, and a stream needs some eight turns on both sides until its first
byte is there and back.  Short ones cost bulk a flush and a pass of the loop for each burst, so they do not last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tunnel.units import Instant, Seconds

LASTS: Final = Seconds(0.03)  # after a stream was opened: the peer's local program has answered by then
BURSTS_IN_A_HURRY: Final = 2  # sends before others get their turn
BYTES_IN_A_HURRY: Final = 48 * 1024  # received before others do: one receive of bulk, many of short connections


class Hurry:
    """Of one driver.  Whoever opens a stream calls it."""

    __slots__ = ("_clock", "until")

    def __init__(self, clock: Callable[[], Instant]) -> None:
        self._clock = clock
        self.until = Instant(float("-inf"))

    def __call__(self) -> None:
        self.until = Instant(self._clock() + LASTS)
