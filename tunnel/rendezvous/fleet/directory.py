"""The directory that servers of a fleet share: orders out, news in, never waited for.

It has hashes with an expiry, and channels.  Whoever owns the store takes a batch of orders, carries them out one after the other
and says what came of it, or that nothing came in time.  After a few batches in a row of which nothing came the directory counts
as broken: orders come to nothing at once, until one that asks whether it is back is answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from tunnel.core.timers import earliest
from tunnel.units import Instant, Seconds

BATCH: Final = 256  # orders that the store is given at once
PATIENCE: Final = Seconds(1.0)  # for a batch, then it has failed
MISSES: Final = 3  # batches in a row that failed, and the directory counts as broken
PROBE_INTERVAL: Final = Seconds(1.0)  # between two questions whether it is back
MAX_ORDERS: Final = 65_536  # orders that wait; further ones fail at once, and are given again later


class Put(NamedTuple):
    """Set a field of a hash, let the hash expire no sooner than that, and say what is in it then."""

    key: bytes
    field: bytes
    value: bytes
    lifetime: Seconds


class Drop(NamedTuple):
    """Remove a field of a hash."""

    key: bytes
    field: bytes


class Look(NamedTuple):
    """Say what is in a hash."""

    key: bytes


class Tell(NamedTuple):
    """Send that to whoever listens on a channel."""

    channel: bytes
    data: bytes


Order: TypeAlias = Put | Drop | Look | Tell
Entries: TypeAlias = Mapping[bytes, bytes]  # of a hash; empty for an order that asks for none
Then: TypeAlias = Callable[[Instant, Entries | None], None]  # hears what came of an order; None: nothing


class Directory:
    """The orders of one server."""

    __slots__ = ("_back", "_flying", "_misses", "_probe_at", "_waiting", "failed", "is_broken", "on_back")

    def __init__(self) -> None:
        self._waiting: deque[tuple[Order, Then]] = deque()
        self._flying: list[tuple[Order, Then]] = []  # the batch that the store has
        self._misses = 0
        self._probe_at: Instant | None = None
        self.is_broken = False
        self.failed = 0  # orders that came to nothing
        self.on_back: Callable[[Instant], None] = lambda now: None  # it answers, after it did not

    def order(self, now: Instant, order: Order, then: Then) -> None:
        """`then` hears what came of it, maybe at once."""
        if self.is_broken or len(self._waiting) >= MAX_ORDERS:
            self.failed += 1
            then(now, None)
        else:
            self._waiting.append((order, then))

    def probe(self, now: Instant, order: Order, then: Then) -> None:
        """The one order that is also tried while the directory is broken."""
        if not self.is_broken:
            self.order(now, order, then)
        elif not self._waiting:
            self._waiting.append((order, then))

    @property
    def free(self) -> int:
        """Orders that may be added before others have been carried out: what is not urgent waits for its turn elsewhere."""
        return 0 if self.is_broken else max(0, 2 * BATCH - len(self._waiting))

    @property
    def has_orders(self) -> bool:
        """Whether poll_orders gives some now."""
        return bool(self._waiting) and not self._flying

    def poll_orders(self) -> list[Order]:
        """The next batch; finish() says what came of it.  Empty while the last one is being carried out."""
        if self._flying:
            return []
        while self._waiting and len(self._flying) < BATCH:
            self._flying.append(self._waiting.popleft())
        return [order for order, _ in self._flying]

    def finish(self, now: Instant, results: Sequence[Entries] | None) -> None:
        """Hear what came of the batch, in its order; None: it failed, or nothing came in PATIENCE."""
        flying, self._flying = self._flying, []
        if not flying:
            return
        if results is None:
            self._misses += 1
            self.failed += len(flying)
            if self._misses >= MISSES:
                self._break(now)
        else:
            was_away, self._misses, self.is_broken, self._probe_at = bool(self._misses), 0, False, None
            if was_away:
                self.on_back(now)
        for number, (_, then) in enumerate(flying):
            then(now, None if results is None else results[number])

    def _break(self, now: Instant) -> None:
        self.is_broken = True
        self._probe_at = Instant(now + PROBE_INTERVAL)
        waiting, self._waiting = self._waiting, deque()
        self.failed += len(waiting)
        for _, then in waiting:
            then(now, None)

    def wants_probe(self, now: Instant) -> bool:
        """Whether it is time to ask whether the store is back."""
        if self._probe_at is None or now < self._probe_at or self._flying:
            return False
        self._probe_at = Instant(now + PROBE_INTERVAL)
        return True

    def poll_timeout(self) -> Instant | None:
        return earliest(None if self._flying else self._probe_at)
