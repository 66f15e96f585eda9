"""The interface of a congestion controller, and the numbers of RFC 9002 §7 that all of them share."""

from __future__ import annotations

from typing import Final, Protocol

from tunnel.transport.recovery.rate import DeliveryRate
from tunnel.transport.recovery.rtt import RttEstimator
from tunnel.units import Instant

INITIAL_WINDOW_PACKETS: Final = 10  # RFC 9002 §7.2
INITIAL_WINDOW_BYTES: Final = 14_720  # RFC 9002 §7.2: the limit for large datagrams
SHORTEST_RTT: Final = 0.000_05  # seconds: keeps a rate finite when a clock grain swallows the round trip


class CongestionController(Protocol):
    """Decides how many bytes may be in flight on one path.  One call per burst sent and per ACK frame, never per packet."""

    @property
    def window(self) -> int:
        """The congestion window, in bytes."""

    @property
    def ssthresh(self) -> float:
        """The slow-start threshold in bytes; infinite before the first congestion event."""

    @property
    def in_slow_start(self) -> bool: ...

    def on_sent(self, size: int, now: Instant) -> None:
        """`size` bytes in flight were sent."""

    def on_ack(self, acked: int, sent_at: Instant, now: Instant, rtt: RttEstimator, rate: DeliveryRate) -> None:
        """`acked` bytes that made use of the window arrived, the newest of them sent at `sent_at`.

        `acked` is 0 when all that arrived was application-limited (RFC 9002 §7.8); `rtt` and `rate` are already up to date,
        and what this ACK shows to be lost was told before.
        """

    def on_loss(self, lost: int, sent_at: Instant, now: Instant, persistent: bool) -> bool:
        """`lost` bytes are gone, the newest of them sent at `sent_at`; True when this began a new congestion event."""

    def on_spurious_loss(self, now: Instant) -> None:
        """Every loss of the latest congestion event turned out to be reordering: undo it."""

    def on_app_limited(self, now: Instant) -> None:
        """The application has nothing to send although the window has room."""

    def on_datagram_size(self, size: int) -> None:
        """The path carries datagrams of another size now."""

    def pacing_rate(self, rtt: RttEstimator) -> float:
        """Bytes a second to pace at."""


def initial_window(datagram_size: int) -> int:
    """Bytes that may be in flight before anything is known of the path.  RFC 9002 §7.2."""
    return min(INITIAL_WINDOW_PACKETS * datagram_size, max(INITIAL_WINDOW_BYTES, 2 * datagram_size))
