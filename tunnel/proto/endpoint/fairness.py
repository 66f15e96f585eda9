"""Who has to give way when datagrams come faster than we open them: whoever sends more than its share, and nobody else.

All peers share the kernel's queue of one socket.  When it overflows, the kernel drops whatever comes, so a flood from one peer
would cost the others theirs.  Opening is what costs time; so a growing part of what the heavy ones sent is dropped unopened,
until the queue no longer overflows.  The idea is that of a fair AQM: PIE's probability (RFC 8033 §4.2), by sender.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.units import Instant, Seconds

if TYPE_CHECKING:
    import random
    from collections.abc import Hashable

WINDOW: Final = Seconds(0.05)  # in which bytes are counted; what counts is this one and the one before
STEP_UP: Final = 0.15  # of the probability, for each look that finds new overflow
STEP_DOWN: Final = 0.02  # for each window without
MOST: Final = 0.98  # always a few: a flood that ends is noticed, and keys are not forgotten
MAX_SENDERS: Final = 1_024  # counted in one window; an endpoint has fewer peerings


class FairShare:
    """Counts bytes by sender, and says what may be opened."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._level = 0.0
        self._until = Instant(0.0)
        self._now: dict[Hashable, int] = {}
        self._before: dict[Hashable, int] = {}
        self._total = 0
        self._total_before = 0
        self._overflowed = False

    @property
    def level(self) -> float:
        """Which part of what heavy senders send is dropped."""
        return self._level

    def overflowed(self) -> None:
        """The kernel's queue has dropped something since the last look."""
        self._overflowed = True
        self._level = min(MOST, self._level + STEP_UP)

    def admits(self, now: Instant, sender: Hashable, size: int) -> bool:
        """Count `size` bytes of `sender`; False when they are to be dropped unopened."""
        if now >= self._until:
            self._turn(now)
        counts = self._now
        if sender in counts:
            counts[sender] += size
        elif len(counts) < MAX_SENDERS:
            counts[sender] = size
        self._total += size
        if not self._level:
            return True
        active = len(counts.keys() | self._before.keys())
        mine = counts.get(sender, 0) + self._before.get(sender, 0)
        if active < 2 or mine * active <= self._total + self._total_before:
            return True
        return self._rng.random() >= self._level

    def _turn(self, now: Instant) -> None:
        is_next = now < self._until + WINDOW
        self._before, self._now = (self._now if is_next else {}), {}
        self._total_before, self._total = (self._total if is_next else 0), 0
        self._until = Instant(now + WINDOW)
        if not self._overflowed:
            self._level = max(0.0, self._level - STEP_DOWN) if is_next else 0.0
        self._overflowed = False
