"""The share of what we send that does not arrive, as the peer's ACKs tell: of all packets, those that nobody waits for too.

Loss detection (loss.py) looks at packets in flight only, and at each by itself.  Here every number of the current path counts
that was sealed since, IP packets included, since an ACK names all that came.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from typing import Final

from tunnel.units import Instant, Seconds

LOOK: Final = Seconds(0.020)  # between two looks at the ACKs: what is missing at the second one after it was sent is lost
MEMORY: Final = Seconds(5.0)  # after so long a packet counts for 1/e of one
MOST_LEFT_OUT: Final = 256  # numbers remembered that do not count: probes of sizes and of other paths


class LossMeter:
    """Feed it every ACK; `share` is 0 to 1."""

    __slots__ = ("_at", "_first", "_largest", "_left_out", "lost", "total")

    def __init__(self) -> None:
        self.lost = self.total = 0.0  # packets, of late
        self._first = 0  # the lowest number that was not judged yet
        self._largest = -1  # that the peer had at the last look
        self._at: Instant | None = None
        self._left_out: list[int] = []  # rising

    @property
    def share(self) -> float:
        """Of the packets of late that were lost."""
        return self.lost / self.total if self.total > 0 else 0.0

    def restart(self, number: int) -> None:
        """From `number` on, packets take another path."""
        self.lost = self.total = 0.0
        self._first, self._largest = number, number - 1

    def leave_out(self, number: int) -> None:
        """This one may well be lost, and that tells nothing of the path."""
        self._left_out.append(number)
        del self._left_out[:-MOST_LEFT_OUT]

    def on_ack(self, ranges: list[tuple[int, int]], skipped: list[int], now: Instant) -> bool:
        """Whether something was judged.  `ranges` (low, high inclusive) highest first; `skipped` numbers, rising, were not sent.

        What was sent before the last look is judged by this ACK; below its lowest range it says nothing.
        """
        if self._at is not None and now < self._at + LOOK:
            return False
        elapsed = 0.0 if self._at is None else now - self._at
        first, last = max(self._first, ranges[-1][0]), min(self._largest, ranges[0][1])
        self._at, self._largest = now, max(self._largest, ranges[0][1])
        if elapsed > 0:
            fade = math.exp(-elapsed / MEMORY)
            self.lost *= fade
            self.total *= fade
        if last < first:
            return False
        self._first = last + 1
        sent = last - first + 1 - (bisect_right(skipped, last) - bisect_left(skipped, first))
        arrived = sum(min(high, last) - max(low, first) + 1 for low, high in ranges if low <= last and high >= first)
        left_out = self._left_out
        for number in left_out[bisect_left(left_out, first) : bisect_right(left_out, last)]:
            sent -= 1
            arrived -= any(low <= number <= high for low, high in ranges)
        self.total += sent
        self.lost += max(0, sent - arrived)
        return True
