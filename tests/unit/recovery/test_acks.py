"""What is acknowledged, and when."""

from __future__ import annotations

import pytest

from tunnel.proto.recovery import acks
from tunnel.proto.recovery.acks import AckTracker
from tunnel.units import Instant

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
