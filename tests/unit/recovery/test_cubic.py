"""CUBIC and HyStart++ against figures worked out by hand from RFC 9438 and RFC 9406."""

from __future__ import annotations

import math

import pytest

from tests.sim.cubic import CSS_ROUNDS, N_RTT_SAMPLE, Cubic
from tunnel.transport.recovery.rtt import RttEstimator
from tunnel.units import Instant, Seconds

MSS = 1000


def at(t: float) -> Instant:
    return Instant(t)


def rtt_of(seconds: float) -> RttEstimator:
    rtt = RttEstimator()
    rtt.update(Seconds(seconds), Seconds(0.0), at(0.0))
    return rtt


def grown_to(segments: int) -> Cubic:
    cubic = Cubic(MSS, at(0.0))
    cubic.on_ack(segments * MSS - cubic.window, at(0.0), at(0.0), RttEstimator())
    assert cubic.window == segments * MSS
    return cubic


def test_it_starts_with_the_window_of_rfc_9002() -> None:
    assert Cubic(1200, at(0.0)).window == 12_000
    assert Cubic(1472, at(0.0)).window == 14_720
    assert Cubic(9000, at(0.0)).window == 18_000
    assert Cubic(1200, at(0.0)).ssthresh == math.inf


def test_a_loss_leaves_seven_tenths() -> None:
    cubic = grown_to(100)
    assert cubic.on_loss(MSS, at(1.0), at(1.1), False)
    assert cubic.window == 70 * MSS
    assert cubic.ssthresh == 70 * MSS
    assert not cubic.in_slow_start


def test_losses_of_one_flight_count_once_and_recovery_does_not_grow() -> None:
    cubic = grown_to(100)
    assert cubic.on_loss(MSS, at(1.0), at(1.1), False)
    assert not cubic.on_loss(MSS, at(1.05), at(1.12), False)
    cubic.on_ack(50 * MSS, at(1.1), at(1.15), rtt_of(0.1))
    assert cubic.window == 70 * MSS
    assert cubic.on_loss(MSS, at(1.2), at(1.3), False)
    assert cubic.window == 49 * MSS


def test_the_plateau_is_reached_after_k_seconds() -> None:
    """W_max 1000, after the cut 700: K = cbrt(300 / 0.4) = 9.0856 s; at t = K the window is W_max again."""
    cubic, rtt = grown_to(1000), rtt_of(0.1)
    cubic.on_loss(MSS, at(0.0), at(0.0), False)
    k = (300 / 0.4) ** (1 / 3)
    assert k == pytest.approx(9.0856, abs=1e-4)
    now = 0.1
    started = now
    while now - started < k:
        cubic.on_ack(cubic.window // 2, at(now), at(now), rtt)
        now += 0.05
        if now - started == pytest.approx(k / 2, abs=0.026):
            # An eighth of the dip is left half way: 1000 - 300 / 8 = 962.5
            assert cubic.window == pytest.approx(962_500, rel=0.01)
    assert cubic.window == pytest.approx(1_000_000, rel=0.002)
    while now - started < k + 5:
        cubic.on_ack(cubic.window // 2, at(now), at(now), rtt)
        now += 0.05
    assert cubic.window == pytest.approx(1_000_000 + 0.4 * 5**3 * MSS, rel=0.01)  # 0.4 * 5^3 = 50 segments above


def test_a_target_is_at_most_half_a_window_away() -> None:
    cubic = grown_to(10)
    cubic.on_loss(MSS, at(0.0), at(0.0), False)
    rtt = rtt_of(0.1)
    cubic.on_ack(1, at(0.1), at(0.1), rtt)
    cubic.on_sent(1, at(0.1))
    before = cubic.window
    for i in range(1, 600):
        cubic.on_sent(1, at(0.1 + i * 0.1))
    cubic.on_ack(before, at(59.0), at(60.0), rtt)
    assert cubic.window == pytest.approx(1.5 * before, rel=0.01)


def test_a_short_path_grows_like_reno() -> None:
    """At 1 ms and 20 segments, Reno's alpha 3(1-0.7)/(1+0.7) = 0.529 segments a round trip beats the cubic."""
    cubic, rtt = grown_to(40), rtt_of(0.001)
    cubic.on_loss(MSS, at(0.0), at(0.0), False)
    now = 0.001
    for _ in range(10):
        cubic.on_ack(cubic.window, at(now), at(now), rtt)
        now += 0.001
    assert cubic.window == pytest.approx((28 + 10 * 0.5294) * MSS, rel=0.005)
    for _ in range(30):
        cubic.on_ack(cubic.window, at(now), at(now), rtt)
        now += 0.001
    assert cubic.window > (40 + 15) * MSS  # past cwnd_prior alpha is 1


def test_a_falling_peak_gives_way_faster() -> None:
    cubic = grown_to(100)
    cubic.on_loss(MSS, at(1.0), at(1.0), False)
    cubic.on_loss(MSS, at(2.0), at(2.0), False)  # window 70 under W_max 100: W_max = 70 * 1.7 / 2 = 59.5
    assert cubic.window == 49 * MSS
    rtt = rtt_of(0.5)
    now = 2.5
    k = (10.5 / 0.4) ** (1 / 3)
    started = now
    while now - started < k - 0.5:
        cubic.on_ack(cubic.window // 10, at(now), at(now), rtt)
        now += 0.05
    assert cubic.window == pytest.approx(59.5 * MSS, rel=0.02)


def test_persistent_congestion_leaves_two_segments_and_slow_start_to_the_old_threshold() -> None:
    cubic = grown_to(100)
    assert cubic.on_loss(MSS, at(1.0), at(1.0), True)
    assert cubic.window == 2 * MSS
    assert cubic.ssthresh == 70 * MSS
    cubic.on_ack(2 * MSS, at(1.0), at(1.1), rtt_of(0.1))
    assert cubic.window == 4 * MSS


def test_a_spurious_event_is_undone_completely() -> None:
    cubic = grown_to(100)
    cubic.on_loss(MSS, at(1.0), at(1.0), False)
    cubic.on_spurious_loss(at(1.1))
    assert cubic.window == 100 * MSS
    assert cubic.in_slow_start
    cubic.on_spurious_loss(at(1.2))
    assert cubic.window == 100 * MSS


def test_idle_time_does_not_count_as_time_to_grow() -> None:
    windows = []
    for idle in (0.0, 30.0):
        cubic, rtt = grown_to(100), rtt_of(0.05)
        cubic.on_loss(MSS, at(0.0), at(0.0), False)
        now = 0.1
        for i in range(20):
            if i == 10:
                now += idle
            cubic.on_sent(MSS, at(now))
            cubic.on_ack(cubic.window, at(now), at(now + 0.05), rtt)
            now += 0.05
        windows.append(cubic.window)
    assert windows[1] == pytest.approx(windows[0], rel=0.02)


def round_trip(cubic: Cubic, rtt: RttEstimator, now: float, seconds: float) -> float:
    """One round of twice as many ACKs as HyStart++ samples, every sample `seconds`."""
    per_ack = cubic.window // (2 * N_RTT_SAMPLE)
    for i in range(2 * N_RTT_SAMPLE):
        arrived = now + seconds + i * 1e-6
        rtt.update(Seconds(seconds), Seconds(0.0), at(arrived))
        cubic.on_ack(per_ack, at(now + i * 1e-6), at(arrived), rtt)
    return now + seconds + 1e-4


@pytest.mark.parametrize(("base", "threshold"), [(0.020, 0.004), (0.080, 0.010), (0.400, 0.016)])
def test_slow_start_turns_cautious_when_round_trips_grow_and_ends_five_rounds_later(base: float, threshold: float) -> None:
    cubic, rtt, now = Cubic(MSS, at(0.0)), RttEstimator(), 0.001
    for _ in range(3):
        now = round_trip(cubic, rtt, now, base)
    assert cubic.window > 60 * MSS  # doubling
    before = cubic.window
    now = round_trip(cubic, rtt, now, base + threshold * 0.9)
    assert cubic.window == pytest.approx(2 * before, rel=0.02)
    grown = base + threshold * 2.2
    before = cubic.window
    now = round_trip(cubic, rtt, now, grown)
    assert before * 1.5 < cubic.window < before * 1.8  # half of this round cautiously
    for _ in range(CSS_ROUNDS - 1):
        before = cubic.window
        now = round_trip(cubic, rtt, now, grown)
        assert cubic.window == pytest.approx(1.25 * before, rel=0.02)
        assert cubic.in_slow_start
    round_trip(cubic, rtt, now, grown)
    assert not cubic.in_slow_start
    assert cubic.ssthresh < math.inf


def test_a_hiccup_does_not_end_slow_start() -> None:
    cubic, rtt, now = Cubic(MSS, at(0.0)), RttEstimator(), 0.001
    for _ in range(3):
        now = round_trip(cubic, rtt, now, 0.02)
    now = round_trip(cubic, rtt, now, 0.03)
    now = round_trip(cubic, rtt, now, 0.02)
    for _ in range(CSS_ROUNDS + 1):
        before = cubic.window
        now = round_trip(cubic, rtt, now, 0.02)
        assert cubic.window == pytest.approx(2 * before, rel=0.02)
    assert cubic.in_slow_start


def test_pacing_is_faster_than_the_window_per_round_trip() -> None:
    cubic, rtt = grown_to(100), rtt_of(0.1)
    assert cubic.pacing_rate(rtt) == pytest.approx(2.0 * 100 * MSS / 0.1)
    cubic.on_loss(MSS, at(1.0), at(1.0), False)
    assert cubic.pacing_rate(rtt) == pytest.approx(1.25 * 70 * MSS / 0.1)


def test_a_larger_datagram_size_enlarges_only_a_fresh_window() -> None:
    cubic = Cubic(1200, at(0.0))
    cubic.on_datagram_size(1400)
    assert cubic.window == 14_000
    cubic = grown_to(100)
    cubic.on_datagram_size(1400)
    assert cubic.window == 100 * MSS


def test_an_ack_aims_at_where_the_curve_is_one_round_trip_ahead() -> None:
    """One second into the epoch at 1 s: W(2) = 1000 - 0.4 * 7.0856^3 = 857.70; a tenth of the window moves a tenth of the way."""
    cubic, rtt = grown_to(1000), rtt_of(1.0)
    cubic.on_loss(MSS, at(0.0), at(0.0), False)
    cubic.on_ack(1, at(0.5), at(1.0), rtt)
    cubic.on_ack(70 * MSS, at(1.0), at(2.0), rtt)
    assert cubic.window == pytest.approx(715_770, abs=20)


def test_time_limited_by_the_application_is_left_out_of_the_epoch() -> None:
    windows = []
    for quiet in (0.0, 10.0):
        cubic, rtt = grown_to(1000), rtt_of(1.0)
        cubic.on_loss(MSS, at(0.0), at(0.0), False)
        cubic.on_ack(1, at(0.5), at(1.0), rtt)
        cubic.on_ack(0, at(1.0), at(2.0), rtt)
        cubic.on_ack(70 * MSS, at(1.5 + quiet), at(2.0 + quiet), rtt)
        windows.append(cubic.window)
    assert windows[0] == windows[1] > 710 * MSS
