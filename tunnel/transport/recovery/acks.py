"""Received packet numbers, and the acknowledgement owed for them.  One per connection: its paths share the numbers."""

from __future__ import annotations

from itertools import islice
from typing import Final

from tunnel.core.ranges import RangeSet
from tunnel.units import Instant, Seconds

MAX_ACK_DELAY: Final = Seconds(0.005)  # how long a lone ack-eliciting packet may wait for company
ACK_ELICITING_THRESHOLD: Final = 2  # ack-eliciting packets that earn an ACK at once (RFC 9000 §13.2.2)
ACK_SPACING: Final = Seconds(0.001)  # between ACKs, about, where packets come faster than two in that time; on long paths as much
ACKS_A_ROUND: Final = 16  # as this many in a round trip take: one is needed (RFC 8961), and each wakes both ends
MAX_ACK_SPACING: Final = Seconds(0.004)  # with what a wake takes still within MAX_ACK_DELAY
ACK_ELICITING_MOST: Final = (
    128  # packets that wait for an ACK even then: a fifth of a megabyte, of the megabyte in flight at most
)
MAX_ACK_RANGES: Final = 32  # in one ACK frame
MAX_TRACKED_RANGES: Final = 256  # kept here; the oldest are forgotten beyond
_UNKNOWN: Final = Seconds(0.0)  # a round trip
MANY_RANGES: Final = 2  # kept, which cost both ends in every ACK: worth asking the peer to acknowledge ours, so as to forget
ASK_AFTER: Final = 1_024  # packets from one such question to the next


class AckTracker:
    """The packets received and the ACK owed.

    Duplicates never come here: the replay window threw them away.  Call `on_packets` per run of consecutive packets
    of a batch, then ask `due` once when the batch ends.
    While packets come in order and fast, an ACK covers those of about `_spacing`: each costs as much as thirty packets.
    """

    __slots__ = (
        "_asked",
        "_deadline",
        "_eliciting",
        "_largest",
        "_largest_at",
        "_max_ack_delay",
        "_most",
        "_received",
        "_sent_at",
        "_spacing",
        "_threshold",
        "_urgent",
    )

    def __init__(self, max_ack_delay: Seconds = MAX_ACK_DELAY, most: int = ACK_ELICITING_MOST) -> None:
        """`most` packets may wait for an ACK at any rate: a small part of what our socket holds, and so of what is in flight."""
        self._most = max(most, ACK_ELICITING_THRESHOLD)
        self._spacing = ACK_SPACING
        self._threshold = ACK_ELICITING_THRESHOLD  # ack-eliciting packets that earn an ACK at once, by the rate of late
        self._sent_at = Instant(float("-inf"))  # the last ACK that was earned
        self._received = RangeSet()
        self._largest = -1
        self._asked = -ASK_AFTER  # the largest when the last ACK left that the peer will acknowledge
        self._largest_at = Instant(0.0)
        self._eliciting = 0
        self._urgent = False
        self._deadline: Instant | None = None
        self._max_ack_delay = max_ack_delay

    @property
    def largest(self) -> int:
        """The highest packet number received; -1 before the first."""
        return self._largest

    @property
    def owes(self) -> bool:
        """An ack-eliciting packet arrived since the last ACK: one is worth adding to whatever leaves next."""
        return self._eliciting > 0

    @property
    def wants_pruning(self) -> bool:
        """Many ranges are kept: an ack-eliciting PING beside the next ACK lets `prune` shorten the ones after."""
        return len(self._received) > MANY_RANGES and self._largest - self._asked >= ASK_AFTER

    def on_asked(self) -> None:
        """An ACK leaves in a packet that the peer will acknowledge."""
        self._asked = self._largest

    def on_packets(self, first: int, count: int, ack_eliciting: bool, now: Instant) -> None:
        """Packets `first` .. `first` + `count` - 1 arrived; `ack_eliciting` when any of them was (count as if all were)."""
        received, largest = self._received, self._largest
        received.add(first, first + count)
        if first > largest:
            if ack_eliciting and first != largest + 1:
                self._urgent = True  # a gap just opened (RFC 9000 §13.2.1)
            self._largest = first + count - 1
            self._largest_at = now
        else:
            if ack_eliciting:
                self._urgent = True  # reordered: the sender should learn at once
            if first + count - 1 > largest:
                self._largest = first + count - 1
                self._largest_at = now
        if ack_eliciting:
            self._let_go(now)
            self._eliciting += count
            if self._deadline is None:
                is_fast = self._threshold > ACK_ELICITING_THRESHOLD
                self._deadline = Instant(now + (self._patience if is_fast else self._max_ack_delay))
        if len(received) > MAX_TRACKED_RANGES:
            received.pop_first()

    def due(self, now: Instant) -> bool:
        """Whether an ACK must leave now, be it alone.  RFC 9000 §13.2.1, §13.2.2."""
        if self._eliciting >= self._threshold or self._urgent:
            return True
        return self._eliciting > 0 and self._deadline is not None and now >= self._deadline

    def deadline(self) -> Instant | None:
        """When the owed ACK is due at the latest, or will be if packets go on coming; None where neither is known.

        Not in the future when it is due already.  Call `handle_timeout` when that instant has come.
        """
        if self._eliciting >= self._threshold or self._urgent:
            return self._largest_at
        return self._deadline

    def handle_timeout(self, now: Instant) -> None:
        """The deadline may have come; an ACK that is owed then is due until it is sent."""
        self._let_go(now)

    def _let_go(self, now: Instant) -> None:
        """Forget a deadline that came while nothing was owed."""
        if not self._eliciting and self._deadline is not None and now >= self._deadline:
            self._deadline = None

    def ack_delay(self, now: Instant) -> Seconds:
        """How long the largest packet has waited for its ACK."""
        return Seconds(max(0.0, now - self._largest_at))

    def build_ranges(self, max_ranges: int = MAX_ACK_RANGES) -> list[tuple[int, int]]:
        """The newest ranges as (low, high), both inclusive, highest first; empty when nothing was received."""
        return [(start, stop - 1) for start, stop in islice(reversed(self._received), max_ranges)]

    @property
    def _patience(self) -> Seconds:
        """How long packets of a fast flow wait.  Longer than the spacing, so that the next packets bring the ACK and no timer."""
        return ACK_SPACING if self._spacing == ACK_SPACING else min(Seconds(2 * self._spacing), self._max_ack_delay)

    def on_ack_sent(self, now: Instant, round_trip: Seconds = _UNKNOWN) -> None:
        """An ACK with `build_ranges` leaves now: nothing is owed any more.  `round_trip`: the shortest of the path.

        The deadline of the next one stands already where packets come fast: that they move it cost more than to open them.  It
        is no later than theirs would be, and late enough for packets to bring the ACK before.
        """
        self._deadline = None
        if self._eliciting:
            spacing = self._spacing = min(max(ACK_SPACING, Seconds(round_trip / ACKS_A_ROUND)), MAX_ACK_SPACING)
            since = max(now - self._sent_at, spacing / self._most)
            self._threshold = min(max(int(self._eliciting * spacing / since), ACK_ELICITING_THRESHOLD), self._most)
            self._sent_at = now
            if spacing > ACK_SPACING and self._threshold > ACK_ELICITING_THRESHOLD:
                self._deadline = Instant(now + self._patience)
        self._eliciting = 0
        self._urgent = False

    def prune(self, below: int) -> None:
        """Forget the ranges that lie wholly under `below`; the highest is never forgotten.

        Call it when the peer acknowledges an ACK of ours, with one more than the largest packet number that ACK told of.
        Source: RFC 9000 §13.2.4.
        """
        received = self._received
        while len(received) > 1 and received.first[1] <= below:
            received.pop_first()
