"""The estimator against numbers worked out by hand from RFC 9002 §5.3."""

from __future__ import annotations

import pytest

from tunnel.transport.recovery.rtt import INITIAL_RTT, RttEstimator
from tunnel.units import Instant, Seconds


def test_before_the_first_sample_the_initial_rtt_rules() -> None:
    rtt = RttEstimator()
    assert rtt.smoothed_rtt == INITIAL_RTT
    assert rtt.pto(Seconds(0.025)) == pytest.approx(0.333 + 4 * 0.1665 + 0.025)


def test_the_first_sample_replaces_everything() -> None:
    rtt = RttEstimator()
    rtt.update(Seconds(0.100), Seconds(0.010), Instant(1.0))
    assert (rtt.smoothed_rtt, rtt.rttvar, rtt.min_rtt) == (0.100, 0.050, 0.100)
    assert rtt.first_sample_at == 1.0


def test_the_variance_is_taken_from_the_old_average() -> None:
    rtt = RttEstimator()
    rtt.update(Seconds(0.100), Seconds(0.0), Instant(0.0))
    rtt.update(Seconds(0.140), Seconds(0.010), Instant(0.2))  # adjusted: 0.130
    assert rtt.rttvar == pytest.approx(0.75 * 0.050 + 0.25 * 0.030)
    assert rtt.smoothed_rtt == pytest.approx(0.875 * 0.100 + 0.125 * 0.130)


def test_an_ack_delay_never_takes_a_sample_under_min_rtt() -> None:
    rtt = RttEstimator()
    rtt.update(Seconds(0.100), Seconds(0.0), Instant(0.0))
    rtt.update(Seconds(0.102), Seconds(0.010), Instant(0.2))
    assert rtt.smoothed_rtt == pytest.approx(0.875 * 0.100 + 0.125 * 0.102)


def test_the_variation_of_a_pto_is_at_least_the_granularity() -> None:
    rtt = RttEstimator()
    for _ in range(200):
        rtt.update(Seconds(0.010), Seconds(0.0), Instant(0.0))
    assert rtt.pto(Seconds(0.005)) == pytest.approx(0.010 + 0.001 + 0.005)


def test_min_rtt_can_start_again() -> None:
    rtt = RttEstimator()
    rtt.update(Seconds(0.010), Seconds(0.0), Instant(0.0))
    rtt.update(Seconds(0.200), Seconds(0.0), Instant(0.0))
    rtt.forget_min()
    assert rtt.min_rtt == 0.200


def test_the_newest_sample_is_kept_without_the_peers_own_wait() -> None:
    rtt = RttEstimator()
    assert rtt.newest_at is None
    rtt.update(Seconds(0.100), Seconds(0.0), Instant(1.0))
    rtt.update(Seconds(0.125), Seconds(0.005), Instant(9.0))
    assert rtt.newest_rtt == pytest.approx(0.120)
    assert rtt.newest_at == 9.0
    assert rtt.smoothed_rtt < 0.105
