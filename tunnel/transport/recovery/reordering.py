"""How patient loss detection is, learnt from losses that turned out to be reordering; and what persistent congestion is."""

from __future__ import annotations

from typing import Final

from tunnel.transport.recovery.rtt import GRANULARITY, RttEstimator
from tunnel.transport.recovery.sent import Marked
from tunnel.units import Instant, Seconds

PACKET_THRESHOLD: Final = 3  # kPacketThreshold, RFC 9002 §6.1.1
TIME_THRESHOLD: Final = 9 / 8  # kTimeThreshold, RFC 9002 §6.1.2
MAX_PACKET_THRESHOLD: Final = 256  # packets: four bursts may overtake one another before we stop learning
EVENTS_TO_UNLEARN: Final = 16  # congestion events without reordering until the thresholds return (as RACK, RFC 8985 §7.2)


class Reordering:
    """The two thresholds of RFC 9002 §6.1, which grow with the reordering seen (§6.1.1 and §6.1.2 allow it)."""

    __slots__ = ("_events_since", "extra", "packet_threshold")

    def __init__(self) -> None:
        self.packet_threshold = PACKET_THRESHOLD  # later packets acknowledged that make one lost
        self.extra = 0.0  # seconds added to the time threshold; at most one min_rtt
        self._events_since = 0

    def loss_delay(self, rtt: RttEstimator) -> Seconds:
        """How long after sending a packet is lost, once a later one was acknowledged.  RFC 9002 §6.1.2."""
        latest, smoothed = rtt.latest_rtt, rtt.smoothed_rtt
        delay = TIME_THRESHOLD * (latest if latest > smoothed else smoothed)
        return Seconds((delay if delay > GRANULARITY else GRANULARITY) + self.extra)

    def on_spurious(self, spurious: list[Marked], largest: int, now: Instant, rtt: RttEstimator) -> None:
        """These packets were only late; `largest` is the largest ordinal acknowledged before they came."""
        self._events_since = 0
        for burst, mask in spurious:
            lowest_bit = (mask & -mask).bit_length() - 1
            distance = largest - burst.ordinal - lowest_bit + 1
            if distance > self.packet_threshold:
                self.packet_threshold = min(distance, MAX_PACKET_THRESHOLD)
            extra = now - burst.sent_at - TIME_THRESHOLD * max(rtt.latest_rtt, rtt.smoothed_rtt)
            if extra > self.extra:
                self.extra = min(extra, rtt.min_rtt)

    def on_congestion_event(self) -> None:
        """A congestion event began; after many with no reordering among them, patience is no longer earned."""
        self._events_since += 1
        if self._events_since >= EVENTS_TO_UNLEARN:
            self.packet_threshold = PACKET_THRESHOLD
            self.extra = 0.0


def is_persistent(lost: list[Marked], first_sample_at: Instant | None, duration: float) -> bool:
    """Whether `lost`, in the order sent, spans persistent congestion: long enough, and nothing sent in between arrived.

    Only ack-eliciting packets sent after the first round-trip sample count as ends.  Source: RFC 9002 §7.6.2.
    """
    if first_sample_at is None or lost[-1][0].sent_at - lost[0][0].sent_at < duration:
        return False  # the usual end
    since: Instant | None = None  # when the run of losses that we are in began
    previous = -1  # ordinal behind the last burst looked at
    for burst, mask in lost:
        if burst.ordinal != previous:
            since = None  # a whole burst in between arrived
        previous = burst.ordinal + burst.count
        arrived = (1 << burst.count) - 1 & ~burst.outstanding & ~burst.lost
        counts = burst.ack_eliciting and burst.in_flight and burst.sent_at > first_sample_at
        if arrived and not mask & (arrived & -arrived) - 1:
            since = None  # this burst begins with an arrival
        if counts and since is not None and burst.sent_at - since >= duration:
            return True
        if arrived:
            since = burst.sent_at if counts and mask >> arrived.bit_length() else None
        elif counts and since is None:
            since = burst.sent_at
    return False
