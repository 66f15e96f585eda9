"""CUBIC (RFC 9438) with HyStart++ (RFC 9406), in bytes: what paths share a link with, and what ours is measured against.

A congestion event is undone only when every loss of it was refuted (RFC 9438 §4.9.2).  A round of HyStart++ is told apart by
sending times, since numbers belong to several paths; its L is unlimited, as senders are paced (RFC 9406 §4.2).
"""

from __future__ import annotations

import math
from typing import Final

from tunnel.transport.recovery.congestion import SHORTEST_RTT, initial_window
from tunnel.transport.recovery.rate import DeliveryRate
from tunnel.transport.recovery.rtt import RttEstimator
from tunnel.units import Instant

MINIMUM_WINDOW_PACKETS: Final = 2  # kMinimumWindow, RFC 9002 §7.2
PACING_GAIN: Final = 1.25  # the N of RFC 9002 §7.7
SLOW_START_PACING_GAIN: Final = 2.0  # a window may double within a round trip
CUBIC_C: Final = 0.4  # segments a second cubed: how fast the window grows (RFC 9438 §5)
CUBIC_BETA: Final = 0.7  # what is left of the window after a loss (RFC 9438 §4.6)
RENO_ALPHA: Final = 3 * (1 - CUBIC_BETA) / (1 + CUBIC_BETA)  # segments a round trip, to match Reno (RFC 9438 §4.3)
LARGEST_TARGET: Final = 1.5  # times the window: how far one round trip may aim (RFC 9438 §4.2)
IDLE_RTTS: Final = 2  # round trips without sending that do not count as time in an epoch (RFC 9438 §5.8)

MIN_RTT_THRESH: Final = 0.004  # seconds; these six are RFC 9406 §4.3
MAX_RTT_THRESH: Final = 0.016
MIN_RTT_DIVISOR: Final = 8
N_RTT_SAMPLE: Final = 8
CSS_GROWTH_DIVISOR: Final = 4
CSS_ROUNDS: Final = 5


class HyStart:
    """Notices that round trips grow before packets are lost.  RFC 9406 §4.2; L is infinite since we always pace."""

    __slots__ = ("_baseline", "_current_min", "_last_min", "_round_at", "_rounds_in_css", "_samples", "_seen", "in_css")

    def __init__(self, now: Instant) -> None:
        self.in_css = False  # conservative slow start: growth is divided by CSS_GROWTH_DIVISOR
        self._round_at = now  # packets sent from here on belong to the next round
        self._last_min = math.inf
        self._current_min = math.inf
        self._samples = 0
        self._seen = 0  # RttEstimator.samples when last looked
        self._baseline = math.inf
        self._rounds_in_css = 0

    def on_ack(self, sent_at: Instant, now: Instant, rtt: RttEstimator) -> bool:
        """Fold in an ACK of slow start; True when slow start has found its end."""
        if sent_at >= self._round_at:  # the round's last packet is acknowledged
            self._round_at = now
            self._last_min, self._current_min = self._current_min, math.inf
            self._samples = 0
            if self.in_css:
                self._rounds_in_css += 1
                if self._rounds_in_css >= CSS_ROUNDS:
                    return True
        if rtt.samples == self._seen:
            return False
        self._seen = rtt.samples
        self._samples += 1
        if rtt.latest_rtt < self._current_min:
            self._current_min = rtt.latest_rtt
        if self._samples < N_RTT_SAMPLE:
            return False
        if self.in_css:
            if self._current_min < self._baseline:  # the growth was a hiccup: back to slow start
                self.in_css = False
                self._baseline = math.inf
        elif self._last_min < math.inf:
            threshold = max(MIN_RTT_THRESH, min(self._last_min / MIN_RTT_DIVISOR, MAX_RTT_THRESH))
            if self._current_min >= self._last_min + threshold:
                self.in_css = True
                self._baseline = self._current_min
                self._rounds_in_css = 0
        return False


class Cubic:
    """A CongestionController.  Windows are float bytes; the RFC's segments are multiplied by the datagram size."""

    __slots__ = (
        "_epoch_at",
        "_hystart",
        "_k",
        "_last_sent_at",
        "_mss",
        "_prior_window",
        "_quiet_since",
        "_recovery_start",
        "_smoothed_rtt",
        "_ssthresh",
        "_undo",
        "_w_est",
        "_w_max",
        "_window",
    )

    def __init__(self, datagram_size: int, now: Instant) -> None:
        """A controller in slow start with the initial window of RFC 9002 §7.2."""
        self._mss = datagram_size
        self._window = float(initial_window(datagram_size))
        self._ssthresh = math.inf
        self._hystart = HyStart(now)
        self._recovery_start: Instant | None = None
        self._epoch_at: float | None = None  # t_epoch; None until congestion avoidance begins
        self._w_max = 0.0
        self._k = 0.0
        self._w_est = 0.0
        self._prior_window = 0.0  # cwnd_prior
        self._quiet_since: Instant | None = None
        self._last_sent_at = now
        self._smoothed_rtt = 0.0
        self._undo: tuple[float, float, Instant | None, float | None, float, float, float, float] | None = None

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
        gap = now - self._last_sent_at
        self._last_sent_at = now
        if self._epoch_at is not None and gap > IDLE_RTTS * self._smoothed_rtt:
            self._epoch_at += gap
            self._quiet_since = None

    def on_ack(self, acked: int, sent_at: Instant, now: Instant, rtt: RttEstimator, rate: DeliveryRate | None = None) -> None:
        self._smoothed_rtt = rtt.smoothed_rtt
        if self._recovery_start is not None and sent_at <= self._recovery_start:
            return  # still recovering (RFC 9002 §7.3.2)
        if self._window < self._ssthresh:
            if self._ssthresh == math.inf and self._hystart.on_ack(sent_at, now, rtt):
                self._ssthresh = self._window
            elif self._hystart.in_css and self._ssthresh == math.inf:
                self._window += acked / CSS_GROWTH_DIVISOR
            else:
                self._window += acked
            return
        if acked == 0:  # time without the need to grow is not time in the epoch (RFC 9438 §5.8)
            if self._quiet_since is None:
                self._quiet_since = now
            return
        self._avoid_congestion(acked, now, rtt.smoothed_rtt)

    def _avoid_congestion(self, acked: int, now: Instant, smoothed_rtt: float) -> None:
        """RFC 9438 §4.2 to §4.5."""
        window, mss = self._window, self._mss
        if self._epoch_at is None:
            self._epoch_at = now
            self._w_est = window
            if self._w_max > window:
                self._k = ((self._w_max - window) / mss / CUBIC_C) ** (1 / 3)
            else:
                self._w_max = window
                self._k = 0.0
        elif self._quiet_since is not None:
            self._epoch_at += now - self._quiet_since
        self._quiet_since = None
        alpha = RENO_ALPHA if self._w_est < self._prior_window else 1.0
        self._w_est += alpha * acked * mss / window
        elapsed = now - self._epoch_at - self._k
        scale = CUBIC_C * mss
        if scale * elapsed * elapsed * elapsed + self._w_max < self._w_est:
            if self._w_est > window:
                self._window = self._w_est  # the Reno-friendly region
            return
        elapsed += smoothed_rtt
        target = scale * elapsed * elapsed * elapsed + self._w_max
        if target > window:
            if target > LARGEST_TARGET * window:
                target = LARGEST_TARGET * window
            self._window = window + (target - window) / window * acked

    def on_loss(self, lost: int, sent_at: Instant, now: Instant, persistent: bool) -> bool:
        minimum = float(MINIMUM_WINDOW_PACKETS * self._mss)
        is_new = self._recovery_start is None or sent_at > self._recovery_start
        if is_new:
            window = self._window
            self._undo = (
                window,
                self._ssthresh,
                self._recovery_start,
                self._epoch_at,
                self._w_max,
                self._k,
                self._w_est,
                self._prior_window,
            )
            self._recovery_start = now
            self._prior_window = window
            # Fast convergence: the flow gives way faster while its peak is falling (RFC 9438 §4.7).
            self._w_max = window * (1 + CUBIC_BETA) / 2 if window < self._w_max else window
            self._ssthresh = self._window = max(window * CUBIC_BETA, minimum)
            self._epoch_at = self._quiet_since = None
        if persistent:  # RFC 9002 §7.6.2; RFC 9438 §4.8: the next epoch has K = 0 from where it begins
            self._window = minimum
            self._ssthresh = max(self._ssthresh, minimum)
            self._w_max = 0.0
            self._epoch_at = self._recovery_start = self._undo = None
        return is_new

    def on_spurious_loss(self, now: Instant) -> None:
        """RFC 9438 §4.9.2."""
        if self._undo is None:
            return
        window, self._ssthresh, self._recovery_start, self._epoch_at, self._w_max, self._k, self._w_est, self._prior_window = (
            self._undo
        )
        self._window = max(self._window, window)
        self._undo = None

    def on_app_limited(self, now: Instant) -> None:
        if self._quiet_since is None:
            self._quiet_since = now

    def on_datagram_size(self, size: int) -> None:
        if size != self._mss and self._ssthresh == math.inf and self._window == initial_window(self._mss):
            self._window = float(initial_window(size))
        self._mss = size
        self._window = max(self._window, float(MINIMUM_WINDOW_PACKETS * size))

    def pacing_rate(self, rtt: RttEstimator) -> float:
        gain = SLOW_START_PACING_GAIN if self._window < self._ssthresh else PACING_GAIN
        smoothed_rtt = rtt.smoothed_rtt
        return gain * self._window / (smoothed_rtt if smoothed_rtt > SHORTEST_RTT else SHORTEST_RTT)
