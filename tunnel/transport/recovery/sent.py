"""Packets sent and not yet settled: one record per burst, and the ring that finds it by packet number."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final, TypeAlias

from tunnel.units import Instant

_COMPACT_AT: Final = 256  # dead records at the front before the lists are cut


class SentBurst:
    """A run of `count` consecutive packets sent at one instant on one path.

    All packets are `size` sealed bytes but the last, which is `last_size`.  Bit i of a mask is packet `first` + i.
    `outstanding` has the packets neither acknowledged nor declared lost; `lost` those declared lost (cleared again
    when their acknowledgement turns up after all).  `content` belongs to the caller; recovery only hands it back.
    Not frozen and not a dataclass: several are made every millisecond.
    """

    __slots__ = (
        "ack_eliciting",
        "app_limited",
        "content",
        "count",
        "delivered",
        "delivered_at",
        "event",
        "first",
        "first_sent_at",
        "flight",
        "in_flight",
        "last_size",
        "lost",
        "lost_before",
        "ordinal",
        "outstanding",
        "path",
        "sent_at",
        "size",
        "total",
    )

    def __init__(
        self,
        first: int,
        count: int,
        size: int,
        last_size: int,
        sent_at: Instant,
        content: object = None,
        ack_eliciting: bool = True,
        in_flight: bool = True,
        path: int = 0,
    ) -> None:
        self.first = first
        self.count = count
        self.outstanding = (1 << count) - 1
        self.lost = 0
        self.size = size
        self.last_size = last_size
        self.total = size * (count - 1) + last_size  # bytes of the whole burst
        self.sent_at = sent_at
        self.content = content
        self.ack_eliciting = ack_eliciting
        self.in_flight = in_flight
        self.path = path
        # Filled in by Recovery.on_sent:
        self.ordinal = 0  # how many packets this path had sent before: packet numbers are shared by all paths
        self.event = 0  # the congestion event in which packets of it were lost last
        self.delivered = 0  # snapshots for rate sampling
        self.delivered_at = sent_at
        self.first_sent_at = sent_at
        self.lost_before = 0
        self.flight = 0  # bytes in flight when it had left, itself included
        self.app_limited = False

    def __repr__(self) -> str:
        return f"SentBurst({self.first}+{self.count}, outstanding={self.outstanding:#x}, lost={self.lost:#x})"

    def mask(self, low: int, high: int) -> int:
        """The bits of the packets from `low` to `high` inclusive; bits outside the burst are left out."""
        start = low - self.first
        stop = high - self.first + 1
        if stop > self.count:
            stop = self.count
        if start <= 0:
            return (1 << stop) - 1 if stop > 0 else 0
        return ((1 << stop) - 1) >> start << start if stop > start else 0

    def bytes_of(self, mask: int) -> int:
        """How many sealed bytes the packets of `mask` had."""
        size = mask.bit_count() * self.size
        return size + self.last_size - self.size if mask >> (self.count - 1) & 1 else size


Marked: TypeAlias = tuple[SentBurst, int]  # a burst and the mask of the packets meant


class SentRing:
    """Bursts in the order sent; packet numbers strictly increase and may have gaps.

    `bursts[head:base]` are settled and remembered only so that a late acknowledgement is recognised;
    `bursts[base:]` begins with the oldest burst that has something outstanding.  Appending and reclaiming are O(1)
    (amortised), looking up is O(log n).
    """

    __slots__ = ("base", "bursts", "firsts", "head")

    def __init__(self) -> None:
        self.bursts: list[SentBurst] = []
        self.firsts: list[int] = []  # bursts[i].first, for bisect
        self.head = 0
        self.base = 0

    def __len__(self) -> int:
        """How many bursts are kept, settled ones included."""
        return len(self.bursts) - self.head

    def __iter__(self) -> Iterator[SentBurst]:
        """The bursts that have something outstanding, oldest first."""
        bursts = self.bursts
        for index in range(self.base, len(bursts)):
            if bursts[index].outstanding:
                yield bursts[index]

    def append(self, burst: SentBurst) -> None:
        self.bursts.append(burst)
        self.firsts.append(burst.first)

    def index_from(self, number: int) -> int:
        """The index of the first kept burst that has `number` or a higher packet number."""
        index = bisect_right(self.firsts, number, self.head)
        if index > self.head:
            before = self.bursts[index - 1]
            if number < before.first + before.count:
                return index - 1
        return index

    def find(self, number: int) -> SentBurst | None:
        """The kept burst with that packet number, or None."""
        index = self.index_from(number)
        if index < len(self.bursts) and self.firsts[index] <= number:
            return self.bursts[index]
        return None

    def settle(self) -> None:
        """Move `base` past everything that has nothing outstanding any more."""
        bursts, base = self.bursts, self.base
        length = len(bursts)
        while base < length and not bursts[base].outstanding:
            base += 1
        self.base = base

    def reclaim(self, sent_before: Instant, keep: int) -> None:
        """Forget settled bursts at the front: without losses, sent before that instant, or more than `keep` of them."""
        bursts, head, base = self.bursts, self.head, self.base
        while head < base:
            burst = bursts[head]
            if burst.lost and burst.sent_at >= sent_before and base - head <= keep:
                break
            head += 1
        if head >= _COMPACT_AT and head * 2 >= len(bursts):
            del bursts[:head], self.firsts[:head]
            self.base -= head
            head = 0
        elif head == len(bursts):
            bursts.clear()
            self.firsts.clear()
            self.base = head = 0
        self.head = head

    def clear(self) -> None:
        self.bursts.clear()
        self.firsts.clear()
        self.head = self.base = 0
