"""The round-trip time of one path, as RFC 9002 §5 estimates it."""

from __future__ import annotations

from typing import Final

from tunnel.units import Instant, Seconds

GRANULARITY: Final = Seconds(0.001)  # kGranularity: the timer grain every sum of time-outs respects (RFC 9002 §6.1.2)
INITIAL_RTT: Final = Seconds(0.333)  # kInitialRtt: believed until the first sample (RFC 9002 §6.2.2)


class RttEstimator:
    """`latest_rtt`, `smoothed_rtt`, `rttvar` and `min_rtt` of a path; all in seconds.

    `newest_rtt` is the newest sample without the peer's own wait, taken at `newest_at`: for people.
    """

    __slots__ = ("first_sample_at", "latest_rtt", "min_rtt", "newest_at", "newest_rtt", "rttvar", "samples", "smoothed_rtt")

    def __init__(self, initial_rtt: Seconds = INITIAL_RTT) -> None:
        """`initial_rtt` stands in until the first sample, for instance what validating the path took."""
        self.latest_rtt: Seconds = Seconds(0.0)
        self.smoothed_rtt: Seconds = initial_rtt
        self.rttvar: Seconds = Seconds(initial_rtt / 2)
        self.min_rtt: Seconds = Seconds(0.0)  # 0 means: no sample yet
        self.first_sample_at: Instant | None = None
        self.newest_rtt: Seconds = initial_rtt
        self.newest_at: Instant | None = None
        self.samples = 0

    def update(self, latest: Seconds, ack_delay: Seconds, now: Instant) -> None:
        """Fold one round-trip sample into the estimate.

        `latest` spans from sending the largest newly acknowledged packet to receiving its ACK.
        `ack_delay` is the peer's own wait, already limited to max_ack_delay.
        Source: RFC 9002 §5.3, in the order of §A.7 (variance first, from the old average).
        """
        self.latest_rtt = latest
        self.samples += 1
        self.newest_at = now
        if self.first_sample_at is None:
            self.first_sample_at = now
            self.min_rtt = self.smoothed_rtt = self.newest_rtt = latest
            self.rttvar = Seconds(latest / 2)
            return
        min_rtt = self.min_rtt
        if latest < min_rtt:
            self.min_rtt = min_rtt = latest
        adjusted = latest - ack_delay if latest >= min_rtt + ack_delay else latest
        self.newest_rtt = Seconds(adjusted)
        smoothed = self.smoothed_rtt
        self.rttvar = Seconds(0.75 * self.rttvar + 0.25 * abs(smoothed - adjusted))
        self.smoothed_rtt = Seconds(0.875 * smoothed + 0.125 * adjusted)

    def forget_min(self) -> None:
        """The path may have changed under us: `min_rtt` starts again from the newest sample.  RFC 9002 §5.2."""
        self.min_rtt = self.latest_rtt

    def pto(self, max_ack_delay: Seconds) -> Seconds:
        """The probe timeout before any back-off.  RFC 9002 §6.2.1."""
        variation = 4 * self.rttvar
        return Seconds(self.smoothed_rtt + (variation if variation > GRANULARITY else GRANULARITY) + max_ack_delay)
