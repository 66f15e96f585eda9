"""What is carried over between a room and the ethernet is bounded by a rate."""

from __future__ import annotations

from tunnel.core.bucket import Bucket
from tunnel.doors.tun.ethernet import CARRIED_BURST, CARRIED_RATE
from tunnel.units import Instant


def test_after_the_burst_the_rate_holds_and_a_clock_that_goes_back_gives_nothing() -> None:
    now = 100.0
    bucket = Bucket(CARRIED_BURST, CARRIED_RATE)
    assert sum(bucket.take(Instant(now)) for _ in range(CARRIED_BURST + 5)) == CARRIED_BURST
    now = 101.0
    assert sum(bucket.take(Instant(now)) for _ in range(CARRIED_BURST)) == CARRIED_RATE
    now = 50.0
    assert not bucket.take(Instant(now))
    now = 1_000.0
    assert sum(bucket.take(Instant(now)) for _ in range(2 * CARRIED_BURST)) == CARRIED_BURST
