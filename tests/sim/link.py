"""A simulated link: delay, random and bursty loss, reordering, duplication, and a rate with a drop-tail queue.  All seeded."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final

from tunnel.units import Instant, Seconds

DELAY: Final = Seconds(0.010)  # one way
REORDER_BY: Final = Seconds(0.005)
NO_JITTER: Final = Seconds(0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bursts:
    """Gilbert and Elliott's loss: per datagram the chance to enter and to leave the bad state, and the loss inside it."""

    enter: float
    leave: float
    loss: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What one direction of a link does to a datagram.  Probabilities are per datagram."""

    delay: Seconds = DELAY
    jitter: Seconds = NO_JITTER  # uniform, added to the delay; order is kept
    loss: float = 0.0
    bursts: Bursts | None = None
    reorder: float = 0.0  # overtaken by what follows: held back by `reorder_by`
    reorder_by: Seconds = REORDER_BY
    duplicate: float = 0.0
    rate: float | None = None  # bytes a second
    queue: int = 100_000  # bytes that wait for the rate; what does not fit is dropped
    mtu: int | None = None  # bytes of UDP payload; longer ones are dropped


@dataclass(slots=True)
class PipeCounters:
    sent: int = 0
    lost: int = 0  # by chance
    overflowed: int = 0  # by a full queue
    too_big: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Pipe:
    """One direction of a Link in use.  `link` may be replaced at any time."""

    link: Link
    rng: random.Random
    counters: PipeCounters = field(default_factory=PipeCounters)
    _free_at: float = 0.0  # when the sender's line is idle again
    _latest: float = 0.0  # arrival of the last one in order
    _in_burst: bool = False

    def send(self, now: Instant, size: int) -> tuple[Instant, ...]:
        """When a datagram of `size` bytes that enters now comes out: once, twice or never."""
        link, rng, counters = self.link, self.rng, self.counters
        counters.sent += 1
        if link.mtu is not None and size > link.mtu:
            counters.too_big += 1
            return ()
        departs: float = now
        if link.rate is not None:
            begins = max(departs, self._free_at)
            if (begins - departs) * link.rate + size > link.queue:
                counters.overflowed += 1
                return ()
            departs = self._free_at = begins + size / link.rate
        if self._is_lost(link, rng):
            counters.lost += 1
            return ()
        counters.bytes += size
        arrives = departs + link.delay
        if link.jitter:
            arrives += rng.random() * link.jitter
        if link.reorder and rng.random() < link.reorder:
            arrives += link.reorder_by
        else:
            arrives = self._latest = max(arrives, self._latest)
        if link.duplicate and rng.random() < link.duplicate:
            return Instant(arrives), Instant(arrives + 0.001 * rng.random())
        return (Instant(arrives),)

    def _is_lost(self, link: Link, rng: random.Random) -> bool:
        if link.bursts is not None:
            if rng.random() < (link.bursts.leave if self._in_burst else link.bursts.enter):
                self._in_burst = not self._in_burst
            if self._in_burst and rng.random() < link.bursts.loss:
                return True
        return link.loss > 0.0 and rng.random() < link.loss
