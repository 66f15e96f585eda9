"""BBRv3: the phases, what the model makes of samples, and what becomes of losses."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest

from tests.sim.bottleneck import MBIT, SIZE, Bottleneck, random_loss
from tunnel.transport.recovery.background import ENOUGH_PACKETS, BackgroundLoss
from tunnel.transport.recovery.bbr import MIN_PIPE_PACKETS, PROBE_RTT_DURATION, PROBE_RTT_INTERVAL, Bbr, Phase
from tunnel.transport.recovery.congestion import initial_window
from tunnel.transport.recovery.rate import DeliveryRate
from tunnel.transport.recovery.rtt import RttEstimator
from tunnel.transport.recovery.sent import SentBurst
from tunnel.units import Instant, Seconds

RTT = 0.040


class Path:
    """A controller whose flights all arrive after `rtt`, one ACK each."""

    def __init__(self, rtt: float = RTT) -> None:
        self.now, self.rtt = 1.0, rtt
        self.bbr = Bbr(1000, Instant(self.now), random.Random(1))
        self.rate = DeliveryRate(Instant(self.now))
        self.estimator = RttEstimator()

    def flight(self, size: int, *, lost: int = 0, limited: bool = False) -> None:
        """`size` bytes are sent at once, `lost` of them for nothing."""
        sent_at = Instant(self.now)
        burst = SentBurst(0, 1, size, size, sent_at)
        self.rate.on_sent(burst, sent_at, True)
        burst.flight, burst.app_limited = size, limited
        self.bbr.on_sent(size, sent_at)
        self.now += self.rtt
        now = Instant(self.now)
        self.estimator.update(Seconds(self.rtt), Seconds(0.0), now)
        if lost:
            self.rate.lost += lost
            self.bbr.on_loss(lost, sent_at, now, False)
        self.rate.on_ack(burst, size - lost, now, Seconds(self.rtt), Seconds(self.rtt))
        self.rate.in_flight = 0
        self.bbr.on_ack(size - lost, sent_at, now, self.estimator, self.rate)

    @property
    def pacing(self) -> float:
        return self.bbr.pacing_rate(self.estimator)


def test_it_begins_with_the_initial_window_paced_over_the_round_trip() -> None:
    path = Path()
    assert path.bbr.window == initial_window(1000)
    assert path.bbr.in_slow_start
    assert path.bbr.ssthresh == math.inf
    assert path.bbr.pacing_rate(RttEstimator(Seconds(0.1))) == pytest.approx(2.77 * 10_000 / 0.1)


def test_startup_doubles_a_round_trip() -> None:
    path = Path()
    for _ in range(5):
        before = path.bbr.window
        path.flight(before)
        assert path.bbr.window == pytest.approx(2 * before, rel=0.01)
    assert path.bbr.in_slow_start


def test_three_rounds_without_growth_mean_a_full_pipe_and_the_queue_is_drained() -> None:
    path = Path()
    phases = []
    for _ in range(8):
        path.flight(40_000)
        phases.append(path.bbr.phase)
    assert phases[2] is Phase.STARTUP
    assert phases[3] is not Phase.STARTUP
    assert path.pacing == pytest.approx(1e6 * 0.99, rel=0.11)  # a megabyte a second, at the gain of DOWN or CRUISE


def test_rounds_that_the_application_held_back_say_nothing_of_the_path() -> None:
    path = Path()
    for _ in range(20):
        path.flight(5_000, limited=True)
    assert path.bbr.in_slow_start


def test_the_window_is_twice_the_bandwidth_delay_product() -> None:
    path = Path()
    for _ in range(8):
        path.flight(400_000)
    assert path.bbr.window == pytest.approx(800_000, rel=0.6)
    assert path.bbr.window >= 400_000


def test_after_idleness_pacing_is_the_rate_itself() -> None:
    path = Path()
    for _ in range(8):
        path.flight(40_000)
    path.now += 1.0
    path.bbr.on_sent(1000, Instant(path.now))
    assert path.pacing == pytest.approx(1e6 * 0.99, rel=0.01)


def test_persistent_congestion_leaves_the_least_window_and_what_was_known_of_the_rate() -> None:
    path = Path()
    for _ in range(8):
        path.flight(40_000)
    rate = path.pacing
    assert path.bbr.on_loss(1000, Instant(path.now), Instant(path.now), True)
    assert path.bbr.window == MIN_PIPE_PACKETS * 1000
    assert path.pacing == rate
    for _ in range(6):
        path.flight(path.bbr.window)
    assert path.bbr.window >= 40_000


def test_one_congestion_event_a_round_trip() -> None:
    bbr = Path().bbr
    assert bbr.on_loss(1000, Instant(1.0), Instant(1.1), False)
    assert not bbr.on_loss(1000, Instant(1.05), Instant(1.12), False)
    assert bbr.on_loss(1000, Instant(1.2), Instant(1.3), False)


def test_a_larger_datagram_before_the_first_ack_is_a_larger_first_window() -> None:
    bbr = Bbr(1200, Instant(0.0), random.Random(1))
    bbr.on_datagram_size(1400)
    assert bbr.window == initial_window(1400)


def test_the_cycle_of_probes_goes_through_all_phases_in_order() -> None:
    link = Bottleneck(1, rate=20 * MBIT)
    flow = link.add(Bbr)
    seen: list[Phase] = []
    for _ in range(800):
        link.run(0.010)
        assert isinstance(flow.congestion, Bbr)
        if not seen or seen[-1] is not flow.congestion.phase:
            seen.append(flow.congestion.phase)
    assert seen[:2] == [Phase.STARTUP, Phase.DRAIN] or seen[0] is Phase.STARTUP
    rest = seen[seen.index(Phase.DOWN) :]
    allowed = {
        Phase.DOWN: {Phase.CRUISE, Phase.REFILL},
        Phase.CRUISE: {Phase.REFILL, Phase.PROBE_RTT},
        Phase.REFILL: {Phase.UP},
        Phase.UP: {Phase.DOWN},
    }
    assert all(after in allowed[before] for before, after in pairwise(rest) if before in allowed)
    assert {Phase.CRUISE, Phase.REFILL, Phase.UP} <= set(rest)
    assert Phase.PROBE_RTT not in rest  # the queue was empty often enough


def test_a_standing_queue_of_another_makes_it_look_for_the_shortest_round_trip() -> None:
    link = Bottleneck(2, rate=20 * MBIT, queue=0.080)
    flow = link.add(Bbr)
    link.run(1.0)
    link._busy_until = link.now + 0.020  # a neighbour's queue, from now on
    phases = set()
    for _ in range(int((PROBE_RTT_INTERVAL + 2 * PROBE_RTT_DURATION + 2.0) * 100)):
        link._busy_until = max(link._busy_until, link.now + 0.020)
        link.run(0.010)
        assert isinstance(flow.congestion, Bbr)
        phases.add(flow.congestion.phase)
    assert Phase.PROBE_RTT in phases


def test_random_loss_is_learnt_and_compensated() -> None:
    link = Bottleneck(3, rate=20 * MBIT, loss=random_loss(0.1))
    flow = link.add(Bbr)
    link.run(10.0)
    assert isinstance(flow.congestion, Bbr)
    assert flow.congestion.background.share == pytest.approx(0.1, abs=0.04)
    assert flow.recovery.bytes_in_flight <= flow.congestion.window + SIZE


def test_background_loss_is_believed_only_when_slow_packets_are_lost_too() -> None:
    background = BackgroundLoss()
    background.on_round(20, 100, has_queue=False, is_startup=False, is_check=False)
    assert background.wants_check
    assert background.share == 0.0
    background.begin_check()
    assert not background.is_checked
    background.on_round(0, ENOUGH_PACKETS, has_queue=False, is_startup=False, is_check=True)
    assert background.is_checked
    assert background.share == 0.0  # a policer
    background.begin_check()
    background.on_round(13, ENOUGH_PACKETS, has_queue=False, is_startup=False, is_check=True)
    assert background.share == pytest.approx(13 / ENOUGH_PACKETS)


def test_loss_with_a_queue_is_never_background() -> None:
    background = BackgroundLoss()
    for _ in range(10):
        background.on_round(50, 100, has_queue=True, is_startup=True, is_check=False)
    assert background.share == 0.0
    assert not background.wants_check


def test_a_lost_packet_or_two_are_chance() -> None:
    background = BackgroundLoss()
    assert not background.is_excess(2, 10, 0.02)
    assert background.is_excess(3, 10, 0.02)
    background.share = 0.3
    assert not background.is_excess(35, 100, 0.02)
    assert background.is_excess(45, 100, 0.02)


def test_two_runs_of_losses_are_chance_and_as_many_single_ones_are_not() -> None:
    background = BackgroundLoss()
    assert not background.is_excess(16, 400, 0.01, 8.0)
    assert background.is_excess(16, 400, 0.01)
    assert background.is_excess(40, 400, 0.01, 8.0)
    assert background.is_excess(300, 400, 0.01, 300.0)  # LONGEST_RUN
    background.on_round(20, 400, has_queue=False, is_startup=False, is_check=False)
    assert background.is_excess(15, 400, 0.01)
    assert not background.is_excess(15, 1_200, 0.01, is_suspicion_enough=True)


def test_losses_that_were_reordering_are_undone() -> None:
    path = Path()
    for _ in range(8):
        path.flight(40_000)
    bbr = path.bbr
    bbr.on_loss(10_000, Instant(path.now), Instant(path.now), False)
    bbr._bw_low, bbr._inflight_low, bbr._inflight_high = 1e5, 5e3, 1e4
    bbr.on_spurious_loss(Instant(path.now))
    assert bbr._bw_low == bbr._inflight_low == bbr._inflight_high == math.inf
