"""The queue of a slow TCP connection.  A datagram that would be late is better lost: then its sender slows down."""

from __future__ import annotations

from collections import Counter, deque
from typing import Final

from tunnel.units import Instant, Seconds

MAX_WAIT: Final = Seconds(0.050)  # in our queue; the kernel's own is kept short by TCP_NOTSENT_LOWAT
MAX_BYTES: Final = 4 << 20  # of all that waits: 50 ms at 670 Mbit/s; a burst of bursts must not grow our memory meanwhile
MAX_BYTES_IN_ALL: Final = 64 << 20  # that wait in all queues of a server
PART_OF_FREE: Final = 4  # a queue may hold a quarter of what is left of that: so something is left for the next one


class Budget:
    """The bytes that all queues of a process hold together."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int = MAX_BYTES_IN_ALL) -> None:
        self.limit = limit
        self.used = 0

    @property
    def share(self) -> int:
        """That one queue may hold just now."""
        return min(MAX_BYTES, (self.limit - self.used) // PART_OF_FREE)


class SendQueue:
    """Framed bursts in order.  Frames that have waited longer than MAX_WAIT are dropped, the oldest first, and counted."""

    __slots__ = ("_budget", "_bursts", "_head_at", "drops", "size")

    def __init__(self, drops: Counter[str], budget: Budget | None = None) -> None:
        """`drops` counts frames by reason: `late`, `queue_full`."""
        self._budget = Budget() if budget is None else budget
        self._bursts: deque[tuple[Instant, memoryview, int]] = deque()
        self._head_at = 0  # bytes of the first burst that were taken
        self.size = 0  # bytes that wait
        self.drops = drops

    def put(self, now: Instant, framed: bytes, frame_size: int) -> None:
        """`framed` is frames of `frame_size` bytes, of which the last may be shorter."""
        self.drop_late(now)
        if self.size + len(framed) > self._budget.share:
            self.drops["queue_full"] += -(-len(framed) // frame_size)
            return
        self._bursts.append((now, memoryview(framed), frame_size))
        self._hold(len(framed))

    def take(self, now: Instant, most: int) -> memoryview | None:
        """The next whole frames, as many as fit into `most` bytes but at least one.  None when nothing waits."""
        self.drop_late(now)
        if not self._bursts:
            return None
        _, framed, frame_size = self._bursts[0]
        at = self._head_at
        end = min(len(framed), at + max(1, most // frame_size) * frame_size)
        if end == len(framed):
            self._bursts.popleft()
            self._head_at = 0
        else:
            self._head_at = end
        self._hold(at - end)
        return framed[at:end]

    def clear(self) -> None:
        self._bursts.clear()
        self._head_at = 0
        self._hold(-self.size)

    def _hold(self, change: int) -> None:
        self.size += change
        self._budget.used += change

    def drop_late(self, now: Instant) -> None:
        """Nothing is held longer than MAX_WAIT, if this is called in time."""
        while self._bursts and now - self._bursts[0][0] > MAX_WAIT:
            _, framed, frame_size = self._bursts.popleft()
            left = len(framed) - self._head_at
            self._head_at = 0
            self._hold(-left)
            self.drops["late"] += -(-left // frame_size)
