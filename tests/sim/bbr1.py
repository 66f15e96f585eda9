"""BBR as Linux has it (tcp_bbr.c, which is version 1): what ours is measured against on links that lose.

Its model is the best rate of ten rounds and the shortest round trip of ten seconds; loss means nothing to it.  Left out are the
long-term rate for policers, aggregation, and what it does when only an application limits it.
"""

from __future__ import annotations

import math
import random
from collections import deque
from typing import Final

from tunnel.transport.recovery.congestion import SHORTEST_RTT, initial_window
from tunnel.transport.recovery.rate import DeliveryRate
from tunnel.transport.recovery.rtt import RttEstimator
from tunnel.units import Instant

HIGH_GAIN: Final = 2.885  # bbr_high_gain
CYCLE: Final = (1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)  # bbr_pacing_gain
WINDOW_GAIN: Final = 2.0
RATE_ROUNDS: Final = 10  # bbr_bw_rtts
MIN_RTT_FOR: Final = 10.0  # seconds
PROBE_RTT: Final = 0.200
FULL_GROWTH: Final = 1.25
FULL_ROUNDS: Final = 3
MARGIN: Final = 0.99


class Bbr1:
    """A CongestionController."""

    def __init__(self, datagram_size: int, now: Instant, rng: random.Random) -> None:
        self._mss, self._rng = datagram_size, rng
        self._window = float(initial_window(datagram_size))
        self._gain, self._window_gain = HIGH_GAIN, HIGH_GAIN
        self._best: deque[tuple[int, float]] = deque()  # round and rate, falling
        self._min_rtt, self._min_rtt_at = math.inf, now
        self._rounds = self._round_end = 0
        self._full, self._full_count, self._is_full = 0.0, 0, False
        self._is_draining, self._phase, self._phase_at = False, 0, now
        self._probe_rtt_until: float | None = None
        self._before_probe = 0.0

    @property
    def window(self) -> int:
        return int(self._window)

    @property
    def ssthresh(self) -> float:
        return math.inf

    @property
    def in_slow_start(self) -> bool:
        return not self._is_full

    def pacing_rate(self, rtt: RttEstimator) -> float:
        if not self._best:
            return HIGH_GAIN * initial_window(self._mss) / max(rtt.smoothed_rtt, SHORTEST_RTT)
        return self._gain * self._best[0][1] * MARGIN

    def on_app_limited(self, now: Instant) -> None: ...

    def on_datagram_size(self, size: int) -> None:
        self._mss = size

    def on_sent(self, size: int, now: Instant) -> None: ...

    def on_loss(self, lost: int, sent_at: Instant, now: Instant, persistent: bool) -> bool:
        return False

    def on_spurious_loss(self, now: Instant) -> None: ...

    def on_ack(self, acked: int, sent_at: Instant, now: Instant, rtt: RttEstimator, rate: DeliveryRate) -> None:
        assert rate.newest is not None
        is_round = rate.newest.delivered >= self._round_end
        if is_round:
            self._rounds, self._round_end = self._rounds + 1, rate.delivered
        if rate.sample:
            self._take(rate.sample)
        if rtt.latest_rtt <= self._min_rtt:
            self._min_rtt, self._min_rtt_at = rtt.latest_rtt, now
        if not self._best:
            return
        bw = self._best[0][1]
        bdp = bw * self._min_rtt
        if not self._is_full and is_round:
            if bw >= self._full * FULL_GROWTH:
                self._full, self._full_count = bw, 0
            else:
                self._full_count += 1
                if self._full_count >= FULL_ROUNDS:
                    self._is_full = self._is_draining = True
                    self._gain, self._window_gain = 1 / HIGH_GAIN, HIGH_GAIN
        if self._is_draining and rate.in_flight <= bdp:
            self._is_draining = False
            self._window_gain = WINDOW_GAIN
            self._phase, self._phase_at = self._rng.randrange(2, len(CYCLE)), now
        elif self._is_full and not self._is_draining:
            self._cycle(now, rate, bdp)
        self._grow(now, rate, bdp)

    def _take(self, sample: float) -> None:
        best = self._best
        while best and best[-1][1] <= sample:
            best.pop()
        best.append((self._rounds, sample))
        while best[0][0] < self._rounds - RATE_ROUNDS:
            best.popleft()

    def _cycle(self, now: Instant, rate: DeliveryRate, bdp: float) -> None:
        """bbr_is_next_cycle_phase: a phase lasts the shortest round trip, but for filling and draining."""
        gain, is_over = CYCLE[self._phase], now - self._phase_at > self._min_rtt
        if gain > 1:
            is_over = is_over and rate.in_flight >= gain * bdp
        elif gain < 1:
            is_over = is_over or rate.in_flight <= bdp
        if is_over:
            self._phase, self._phase_at = (self._phase + 1) % len(CYCLE), now
        self._gain = CYCLE[self._phase]

    def _grow(self, now: Instant, rate: DeliveryRate, bdp: float) -> None:
        target = self._window_gain * bdp + 3 * self._mss
        if self._is_full:
            self._window = min(self._window + rate.newly_acked, target)
        elif self._window < target:
            self._window += rate.newly_acked
        least = 4.0 * self._mss
        self._window = max(self._window, least)
        if self._probe_rtt_until is None and now - self._min_rtt_at > MIN_RTT_FOR:
            self._probe_rtt_until, self._before_probe = now + PROBE_RTT, self._window
        if self._probe_rtt_until is not None:
            self._window = least
            if now > self._probe_rtt_until:
                self._probe_rtt_until, self._window = None, self._before_probe
                self._min_rtt, self._min_rtt_at = rate_rtt(rate, now), now


def rate_rtt(rate: DeliveryRate, now: Instant) -> float:
    """Seconds since the newest packet acknowledged was sent."""
    assert rate.newest is not None
    return now - rate.newest.sent_at
