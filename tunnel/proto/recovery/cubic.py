"""CUBIC (RFC 9438) with HyStart++ (RFC 9406), in bytes."""

from __future__ import annotations

import math
from typing import Final

from tunnel.proto.recovery.congestion import (
    MINIMUM_WINDOW_PACKETS,
    PACING_GAIN,
    SHORTEST_RTT,
    SLOW_START_PACING_GAIN,
    initial_window,
)
from tunnel.proto.recovery.rtt import RttEstimator
from tunnel.units import Instant

CUBIC_C: Final = 0.4  # segments a second cubed: how aggressively the window grows (RFC 9438 §5)
CUBIC_BETA: Final = 0.7  # what is left of the window after a loss (RFC 9438 §4.6)
RENO_ALPHA: Final = 3 * (1 - CUBIC_BETA) / (1 + CUBIC_BETA)  # α_cubic while catching up with Reno (RFC 9438 §4.3)
LARGEST_TARGET: Final = 1.5  # times the window: how far one round trip may aim (RFC 9438 §4.2)

MIN_RTT_THRESH: Final = 0.004  # seconds; these six are RFC 9406 §4.3
MAX_RTT_THRESH: Final = 0.016
MIN_RTT_DIVISOR: Final = 8
N_RTT_SAMPLE: Final = 8
CSS_GROWTH_DIVISOR: Final = 4
CSS_ROUNDS: Final = 5


class Cubic:
    """A CongestionController.  Window arithmetic in float bytes; the RFC's segments are multiplied by the datagram size."""

    def __init__(self, datagram_size: int, now: Instant) -> None:
        """A controller in slow start with the initial window of RFC 9002 §7.2."""
        self._mss = datagram_size
        self._window = float(initial_window(datagram_size))
        self._ssthresh = math.inf
        self._recovery_start: Instant | None = None

    @property
    def window(self) -> int:
        return int(self._window)

    @property
    def ssthresh(self) -> float:
        return self._ssthresh

    @property
    def in_slow_start(self) -> bool:
        return self._window < self._ssthresh

    def on_sent(self, size: int, now: Instant) -> None:
        pass

    def on_ack(self, acked: int, sent_at: Instant, now: Instant, rtt: RttEstimator) -> None:
        self._window += acked

    def on_loss(self, lost: int, sent_at: Instant, now: Instant, persistent: bool) -> bool:
        if self._recovery_start is not None and sent_at <= self._recovery_start:
            return False
        self._recovery_start = now
        self._ssthresh = self._window = max(self._window * CUBIC_BETA, float(MINIMUM_WINDOW_PACKETS * self._mss))
        return True

    def on_spurious_loss(self, now: Instant) -> None:
        pass

    def on_app_limited(self, now: Instant) -> None:
        pass

    def on_datagram_size(self, size: int) -> None:
        self._mss = size

    def pacing_rate(self, rtt: RttEstimator) -> float:
        gain = SLOW_START_PACING_GAIN if self._window < self._ssthresh else PACING_GAIN
        return gain * self._window / max(rtt.smoothed_rtt, SHORTEST_RTT)
