"""How fast data lately arrived: delivery-rate samples and their maximum over a window of time.

The sampling is that of draft-cheng-iccrg-delivery-rate-estimation, per burst instead of per packet.
"""

from __future__ import annotations

from typing import Final

from tunnel.transport.recovery.sent import SentBurst
from tunnel.units import Instant, Seconds

WINDOW_RTTS: Final = 10  # how long a maximum is believed, in round trips (it is replaced after 5 to 10)
RUNS_AVERAGED: Final = 8  # of losses, about
SHORTEST_WINDOW: Final = 0.010  # seconds: on a very short path ten round trips say nothing


class DeliveryRate:
    """Bytes a second; the larger of the best sample of this half window and of the one before.

    `in_flight`, `lost`, `newest`, `newly_acked` and `sample` are what a model of the path needs besides, once per ACK.
    """

    __slots__ = (
        "_best",
        "_best_before",
        "_epoch_at",
        "_first_sent_at",
        "_run_packets",
        "_runs",
        "app_limited_until",
        "delivered",
        "delivered_at",
        "in_flight",
        "lost",
        "lost_runs",
        "newest",
        "newly_acked",
        "sample",
    )

    def __init__(self, now: Instant) -> None:
        self.delivered = 0  # bytes in flight that arrived, ever
        self.delivered_at = now
        self.lost = 0  # bytes in flight declared lost and not refuted since, ever
        self.lost_runs = 0  # runs of packets declared lost, ever
        self.in_flight = 0  # bytes in flight after the last ACK
        self.newest: SentBurst | None = None  # the latest sent burst among those of the last ACK
        self.newly_acked = 0  # bytes of the last ACK
        self.sample = 0.0  # bytes a second told by the last ACK; 0 when it told nothing
        self.app_limited_until = 0  # while `delivered` is below, samples tell of the application, not of the path
        self._first_sent_at = now
        self._best = 0.0
        self._best_before = 0.0
        self._run_packets = self._runs = 0.0  # of the last runs
        self._epoch_at = now

    @property
    def value(self) -> float:
        return self._best if self._best > self._best_before else self._best_before

    def on_sent(self, burst: SentBurst, now: Instant, was_idle: bool) -> None:
        """Note on `burst` where delivery stands; `was_idle` when nothing else was in flight."""
        if was_idle:
            self._first_sent_at = self.delivered_at = now
        burst.delivered = self.delivered
        burst.delivered_at = self.delivered_at
        burst.first_sent_at = self._first_sent_at
        burst.lost_before = self.lost
        burst.app_limited = self.delivered < self.app_limited_until

    def on_lost(self, packets: int, runs: int) -> None:
        """So many more packets were lost; with them began so many runs of packets that were sent one after the other."""
        fade = RUNS_AVERAGED / (RUNS_AVERAGED + runs)
        self._run_packets = self._run_packets * fade + packets
        self._runs = self._runs * fade + runs
        self.lost_runs += runs

    @property
    def lost_run(self) -> float:
        """How many packets were lost in a row, on average over the last runs."""
        return self._run_packets / self._runs if self._runs else 1.0

    def on_ack(self, newest: SentBurst, acked: int, now: Instant, min_rtt: Seconds, smoothed_rtt: Seconds) -> None:
        """`acked` bytes arrived; `newest` is the latest sent burst among them."""
        self.newest = newest
        self.newly_acked = acked
        self.sample = 0.0
        self.delivered += acked
        self.delivered_at = now
        self._first_sent_at = newest.sent_at
        half = smoothed_rtt * (WINDOW_RTTS / 2)
        if now - self._epoch_at > (half if half > SHORTEST_WINDOW else SHORTEST_WINDOW):
            self._epoch_at = now
            self._best_before = self._best
            self._best = 0.0
        send_elapsed = newest.sent_at - newest.first_sent_at
        ack_elapsed = now - newest.delivered_at
        interval = send_elapsed if send_elapsed > ack_elapsed else ack_elapsed
        if interval <= 0.0 or interval < min_rtt:
            return  # ACKs were bunched: the sample would exceed what the path carries
        self.sample = rate = (self.delivered - newest.delivered) / interval
        if rate > self._best and (not newest.app_limited or rate > self._best_before):
            self._best = rate
