"""Loss detection of one path (RFC 9002 §6, Appendix A and B): what arrived, what is lost, when to probe."""

from __future__ import annotations

from typing import Final, NamedTuple

from tunnel.proto.recovery.acks import MAX_ACK_DELAY
from tunnel.proto.recovery.congestion import CongestionController
from tunnel.proto.recovery.cubic import Cubic
from tunnel.proto.recovery.rtt import INITIAL_RTT, RttEstimator
from tunnel.proto.recovery.sent import SentBurst, SentRing
from tunnel.units import Instant, Seconds

PACKET_THRESHOLD: Final = 3  # kPacketThreshold

Marked = tuple[SentBurst, int]  # a burst and the mask of the packets meant


class AckResult(NamedTuple):
    """What one ACK frame told about this path.  All lists are in the order sent."""

    acked: list[Marked]
    lost: list[Marked]
    spurious: list[Marked]  # arrived after all: were given out as lost before; not in `acked`
    newly_acked_bytes: int
    rtt_sample: Seconds | None


class TimeoutResult(NamedTuple):
    """What a timer that ran out asks for: `probes` ack-eliciting packets to send at once, past window and pacer."""

    lost: list[Marked]
    probes: int


class Recovery:
    """Round trip, losses, window and delivery rate of one path; it knows only the bursts sent on that path."""

    def __init__(
        self,
        now: Instant,
        *,
        datagram_size: int = 1200,
        initial_rtt: Seconds = INITIAL_RTT,
        max_ack_delay: Seconds = MAX_ACK_DELAY,
        congestion: CongestionController | None = None,
    ) -> None:
        self.rtt = RttEstimator(initial_rtt)
        self.congestion: CongestionController = Cubic(datagram_size, now) if congestion is None else congestion
        self.ring = SentRing()
        self.bytes_in_flight = 0
        self.pto_count = 0
        self.loss_deadline: Instant | None = None

    def on_sent(self, burst: SentBurst, now: Instant) -> None:
        """`burst` has just been handed to the socket."""

    def on_ack(self, ranges: list[tuple[int, int]], ack_delay: Seconds, now: Instant) -> AckResult:
        """An ACK frame came, with `ranges` (low, high inclusive, highest first) over all paths of the connection."""
        return AckResult([], [], [], 0, None)

    def detect_lost(self, now: Instant) -> list[Marked]:
        """Declare lost what is lost by now, tell congestion control, and set `loss_deadline` for what may be soon."""
        return []

    @property
    def pto_deadline(self) -> Instant | None:
        """When silence earns a probe; None with nothing ack-eliciting in flight."""
        return None

    def poll_timeout(self) -> Instant | None:
        """When to call `on_timeout`."""
        return None

    def on_timeout(self, now: Instant) -> TimeoutResult:
        """The deadline may have come: losses by time, else probes.  Harmless when called early."""
        return TimeoutResult([], 0)

    def oldest_outstanding(self, count: int) -> list[Marked]:
        """Up to `count` of the oldest bursts with something outstanding: what a probe had best repeat."""
        return []

    def discard(self, now: Instant) -> list[Marked]:
        """The path is abandoned: forget all, returning everything outstanding as lost.  Congestion is not told."""
        return []

    def on_app_limited(self, now: Instant) -> None:
        """The application has nothing more to send although the window has room."""

    def inflight_limit(self, receive_buffer: int) -> int:
        """Bytes that may be in flight: the window, but no more than the peer's socket can hold while it is being drained."""
        return self.congestion.window

    def pacing_rate(self) -> float:
        """Bytes a second for the pacer."""
        return self.congestion.pacing_rate(self.rtt)

    @property
    def delivery_rate(self) -> float:
        """Bytes a second that lately arrived: the windowed maximum over about ten round trips; 0 before the first sample."""
        return 0.0

    def set_datagram_size(self, size: int) -> None:
        """The path carries datagrams of another size now."""
        self.congestion.on_datagram_size(size)
