"""What is acknowledged, and when."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tunnel.transport.recovery import acks
from tunnel.transport.recovery.acks import AckTracker
from tunnel.units import Instant, Seconds

NOW = Instant(10.0)


def test_a_lone_packet_waits_and_a_second_one_does_not() -> None:
    tracker = AckTracker()
    tracker.on_packets(0, 1, True, NOW)
    assert not tracker.due(NOW)
    assert tracker.owes
    assert tracker.deadline() == pytest.approx(NOW + acks.MAX_ACK_DELAY)
    assert tracker.due(Instant(NOW + acks.MAX_ACK_DELAY))
    tracker.on_packets(1, 1, True, NOW)
    assert tracker.due(NOW)
    assert (tracker.deadline() or 0) <= NOW
    tracker.on_ack_sent(NOW)
    assert not tracker.due(Instant(NOW + 1))
    assert tracker.deadline() is None


def test_packets_that_need_no_answer_get_none() -> None:
    tracker = AckTracker()
    tracker.on_packets(5, 64, False, NOW)
    assert not tracker.due(Instant(NOW + 1))
    assert tracker.build_ranges() == [(5, 68)]


def test_a_gap_and_a_late_packet_are_told_at_once() -> None:
    tracker = AckTracker()
    tracker.on_packets(0, 1, True, NOW)
    tracker.on_ack_sent(NOW)
    tracker.on_packets(2, 1, True, NOW)
    assert tracker.due(NOW)
    tracker.on_ack_sent(NOW)
    tracker.on_packets(1, 1, True, NOW)
    assert tracker.due(NOW)
    assert tracker.build_ranges() == [(0, 2)]


def test_the_delay_is_that_of_the_largest_packet() -> None:
    tracker = AckTracker()
    tracker.on_packets(7, 1, True, NOW)
    tracker.on_packets(3, 1, True, Instant(NOW + 0.002))
    assert tracker.ack_delay(Instant(NOW + 0.003)) == pytest.approx(0.003)
    assert tracker.largest == 7


def test_ranges_come_highest_first_and_only_the_newest() -> None:
    tracker = AckTracker()
    for n in range(0, 100, 2):
        tracker.on_packets(n, 1, True, NOW)
    assert tracker.build_ranges(3) == [(98, 98), (96, 96), (94, 94)]
    assert len(tracker.build_ranges()) == acks.MAX_ACK_RANGES
    assert tracker.wants_pruning


def test_what_the_peer_knows_we_know_is_forgotten_but_never_the_newest() -> None:
    tracker = AckTracker()
    for n in (0, 2, 4):
        tracker.on_packets(n, 1, True, NOW)
    tracker.prune(3)
    assert tracker.build_ranges() == [(4, 4)]
    tracker.prune(1_000)
    assert tracker.build_ranges() == [(4, 4)]


def test_holes_made_by_a_stranger_to_order_stay_bounded() -> None:
    tracker = AckTracker()
    for n in range(0, 10_000, 2):
        tracker.on_packets(n, 1, True, NOW)
    assert len(tracker.build_ranges(10_000)) == acks.MAX_TRACKED_RANGES


def fast(tracker: AckTracker, milliseconds: int, packets: int = 40, step: float = 0.000_25) -> tuple[int, int, Instant]:
    """`packets` every `step` seconds: ACKs that were due, packets sent, and when it ended."""
    acked = number = 0
    now = NOW
    for _ in range(int(milliseconds * 0.001 / step)):
        now = Instant(now + step)
        tracker.on_packets(number, packets, True, now)
        number += packets
        if tracker.due(now):
            tracker.on_ack_sent(now)
            acked += 1
    return acked, number, now


def test_a_fast_flow_earns_an_ack_a_millisecond_and_no_more_than_the_socket_holds_wait() -> None:
    acked, _, _ = fast(AckTracker(), 100)
    assert 80 <= acked <= 150
    acked, number, _ = fast(AckTracker(most=20), 100)
    assert acked == number // 40  # each batch is more than may wait


def test_a_fast_flow_that_stops_is_answered_within_a_millisecond_and_then_as_ever() -> None:
    tracker = AckTracker()
    _, number, now = fast(tracker, 20)
    tracker.on_ack_sent(now)
    tracker.on_packets(number, 3, True, now)
    assert not tracker.due(now)
    deadline = tracker.deadline()
    assert deadline == pytest.approx(now + acks.ACK_SPACING)
    tracker.on_ack_sent(Instant(now + acks.ACK_SPACING))
    later = Instant(now + 1)
    for first in (number + 3, number + 5):
        tracker.on_packets(first, 2, True, later)
        if first > number + 3:
            assert tracker.due(later)  # as ever: two earn one
        tracker.on_ack_sent(later)
        later = Instant(later + 1)


def test_a_gap_in_a_fast_flow_is_told_at_once() -> None:
    tracker = AckTracker()
    _, number, now = fast(tracker, 20)
    tracker.on_ack_sent(now)
    tracker.on_packets(number + 1, 1, True, now)
    assert tracker.due(now)


def test_slow_flows_are_answered_as_ever() -> None:
    tracker = AckTracker()
    for number in range(0, 200, 2):
        now = Instant(NOW + number * 0.001)
        tracker.on_packets(number, 2, True, now)
        assert tracker.due(now)
        tracker.on_ack_sent(now)


def long_path(round_trip: float) -> list[float]:
    """Seconds between the ACKs of a flow of 8,600 packets a second, which come one by one."""
    tracker = AckTracker()
    sent_at: list[float] = []
    for number in range(4_000):
        now = Instant(NOW + number / 8_600)
        tracker.on_packets(number, 1, True, now)
        if tracker.due(now):
            tracker.on_ack_sent(now, Seconds(round_trip))
            sent_at.append(now)
    return [after - before for before, after in pairwise(sent_at)][20:]


@pytest.mark.parametrize(("round_trip", "wanted"), [(0.0, 0.001), (0.010, 0.001), (0.040, 0.0025), (0.3, 0.004)])
def test_a_fast_flow_over_a_long_path_earns_an_ack_sixteen_times_in_a_round_trip_and_every_four_ms(
    round_trip: float, wanted: float
) -> None:
    gaps = long_path(round_trip)
    assert sum(gaps) / len(gaps) == pytest.approx(wanted, rel=0.25)
    assert max(gaps) <= acks.MAX_ACK_DELAY


def test_a_fast_flow_that_stops_on_a_long_path_is_answered_within_max_ack_delay() -> None:
    tracker = AckTracker()
    for number in range(1_000):
        now = Instant(NOW + number / 8_600)
        tracker.on_packets(number, 1, True, now)
        if tracker.due(now):
            tracker.on_ack_sent(now, Seconds(0.3))
    tracker.on_ack_sent(now, Seconds(0.3))
    tracker.on_packets(1_000, 1, True, now)
    assert not tracker.due(now)
    assert now < (tracker.deadline() or 0) <= now + acks.MAX_ACK_DELAY


def test_the_deadline_of_a_fast_flow_over_a_long_path_stands_before_its_packets_come() -> None:
    tracker = AckTracker()
    now = NOW
    for number in range(0, 400, 4):
        now = Instant(now + 0.000_5)
        tracker.on_packets(number, 4, True, now)
        if tracker.due(now):
            tracker.on_ack_sent(now, Seconds(0.04))
    tracker.on_ack_sent(now, Seconds(0.04))
    standing = tracker.deadline()
    assert standing is not None
    assert now + 0.002_5 < standing <= now + acks.MAX_ACK_DELAY
    assert not tracker.owes
    tracker.on_packets(400, 4, True, Instant(now + 0.000_5))
    assert tracker.deadline() == standing
    assert not tracker.due(Instant(now + 0.000_5))
    assert tracker.due(standing)
    tracker.handle_timeout(standing)
    assert tracker.due(standing)


def test_a_deadline_that_stands_for_nothing_is_let_go() -> None:
    for is_asked in (True, False):
        tracker = AckTracker()
        for number in (0, 100):
            tracker.on_packets(number, 100, True, NOW)
            tracker.on_ack_sent(NOW, Seconds(0.04))
        standing = tracker.deadline()
        assert standing is not None
        assert not tracker.due(standing)
        if is_asked:
            tracker.handle_timeout(standing)
            assert tracker.deadline() is None
        tracker.on_packets(200, 1, True, standing)
        assert not tracker.due(standing)
        assert tracker.deadline() == pytest.approx(standing + acks.MAX_ACK_DELAY)


def test_what_is_to_be_forgotten_is_asked_for_once_in_a_thousand_packets() -> None:
    tracker = AckTracker()
    for n in range(0, 2 * (acks.MANY_RANGES + 1), 2):
        assert not tracker.wants_pruning
        tracker.on_packets(n, 1, True, NOW)
    assert tracker.wants_pruning
    tracker.on_asked()
    largest = tracker.largest
    tracker.on_packets(largest + 2, acks.ASK_AFTER - 2, True, NOW)
    assert not tracker.wants_pruning
    tracker.on_packets(largest + acks.ASK_AFTER, 1, True, NOW)
    assert tracker.wants_pruning
    tracker.prune(largest + 2)
    assert not tracker.wants_pruning
