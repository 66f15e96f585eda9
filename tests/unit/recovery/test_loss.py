"""Loss detection, probing and reordering, one sentence each."""

from __future__ import annotations

import pytest

from tests.sim.cubic import Cubic
from tunnel.transport.recovery import loss, reordering
from tunnel.transport.recovery.acks import MAX_ACK_DELAY
from tunnel.transport.recovery.loss import Recovery
from tunnel.transport.recovery.sent import SentBurst
from tunnel.units import Instant, Seconds

NO_DELAY = Seconds(0.0)


class Sender:
    """A path with a clock, for short tests."""

    def __init__(self) -> None:
        self.now = 0.0
        self.number = 0
        self.recovery = Recovery(Instant(0.0), Cubic(1200, Instant(0.0)))

    def send(self, count: int = 1, *, eliciting: bool = True, in_flight: bool = True) -> SentBurst:
        burst = SentBurst(self.number, count, 1200, 1200, Instant(self.now), None, eliciting, in_flight)
        self.recovery.on_sent(burst, Instant(self.now))
        self.number += count
        return burst

    def ack(self, *ranges: tuple[int, int], delay: float = 0.0) -> loss.AckResult:
        return self.recovery.on_ack(list(ranges), Seconds(delay), Instant(self.now))

    def with_rtt(self, rtt: float) -> Sender:
        """One round trip that gives the first sample."""
        self.send()
        self.now += rtt
        self.ack((0, 0))
        return self


def test_a_packet_three_behind_the_largest_acknowledged_is_lost_at_once() -> None:
    path = Sender().with_rtt(0.1)
    burst = path.send(5)  # 1..5
    result = path.ack((4, 4), (0, 0))
    assert result.acked == [(burst, 0b01000)]
    assert result.lost == [(burst, 0b00001)]
    assert burst.outstanding == 0b10110


def test_a_packet_nearer_is_lost_after_nine_eighths_of_a_round_trip() -> None:
    path = Sender().with_rtt(0.1)
    first, second = path.send(), path.send()
    path.now += 0.1
    assert path.ack((2, 2)).lost == []
    assert path.recovery.poll_timeout() == pytest.approx(0.1 + 0.1125)
    path.now = path.recovery.poll_timeout() or 0.0
    assert path.recovery.on_timeout(Instant(path.now)) == ([(first, 1)], 0)
    assert second.outstanding == 0
    assert path.recovery.poll_timeout() is None


def test_packets_of_other_paths_in_between_do_not_make_a_loss() -> None:
    path = Sender().with_rtt(0.1)
    path.send()
    path.number += 1_000
    path.send()
    assert path.ack((2, 1_002), (0, 0)).lost == []


def test_an_ack_delay_beyond_the_promised_one_is_not_believed() -> None:
    path = Sender().with_rtt(0.1)
    path.send()
    path.now += 0.2
    path.ack((0, 1), delay=0.1)
    assert path.recovery.rtt.smoothed_rtt == pytest.approx(0.875 * 0.1 + 0.125 * 0.195)


def test_a_frame_whose_largest_belongs_to_another_path_gives_no_sample() -> None:
    path = Sender().with_rtt(0.1)
    path.send()
    path.now += 0.3
    path.ack((0, 9))
    assert path.recovery.rtt.samples == 1


def test_an_ack_repeated_says_nothing_new() -> None:
    path = Sender().with_rtt(0.1)
    path.send(64)
    path.send(64)
    assert len(path.ack((10, 90), (0, 5)).acked) == 3
    assert path.ack((10, 90), (0, 5)) == ([], [], [])
    result = path.ack((8, 100), (0, 5))
    assert [mask for _, mask in result.spurious] == [0b11 << 7]
    assert [mask for _, mask in result.acked] == [0b1111111111 << 26]


def test_silence_earns_two_probes_with_doubling_patience_up_to_a_cap() -> None:
    path = Sender().with_rtt(0.1)
    path.send()
    base = path.recovery.rtt.pto(MAX_ACK_DELAY)
    assert base == pytest.approx(0.1 + 4 * 0.05 + 0.005)
    waits = []
    for _ in range(8):
        deadline = path.recovery.poll_timeout()
        assert deadline is not None
        assert path.recovery.on_timeout(Instant(deadline - 0.001)).probes == 0
        assert path.recovery.on_timeout(deadline) == ([], loss.PROBES)
        waits.append(deadline - path.now)
        path.now = deadline
        path.send()
    assert waits == pytest.approx([base, base * 2, base * 4, base * 8] + [loss.MAX_PTO_INTERVAL] * 4)
    assert path.recovery.pto_count == 8
    path.now += 0.1
    path.ack((path.number - 1, path.number - 1))
    assert path.recovery.pto_count == 0


def test_a_probe_timeout_without_a_probe_sent_does_not_spin() -> None:
    path = Sender().with_rtt(0.1)
    path.send()
    deadline = path.recovery.poll_timeout()
    assert deadline is not None
    path.recovery.on_timeout(deadline)
    assert path.recovery.poll_timeout() == pytest.approx(deadline + 2 * (deadline - path.now))


def test_the_oldest_outstanding_is_what_a_probe_repeats() -> None:
    path = Sender().with_rtt(0.1)
    path.send(eliciting=False, in_flight=False)
    bursts = [path.send(3) for _ in range(3)]
    path.ack((2, 3), (0, 0))
    assert path.recovery.oldest_outstanding(2) == [(bursts[0], 0b100), (bursts[1], 0b111)]


def test_only_acks_sent_need_no_timer_no_window_and_no_memory() -> None:
    path = Sender().with_rtt(0.1)
    window = path.recovery.congestion.window
    for _ in range(3 * loss.MAX_UNCOUNTED_BURSTS):
        path.send(eliciting=False, in_flight=False)
    assert path.recovery.poll_timeout() is None
    assert path.recovery.bytes_in_flight == 0
    assert len(path.recovery.ring) <= loss.MAX_UNCOUNTED_BURSTS + 1
    path.ack((path.number - 1, path.number - 1), (0, 0))
    assert path.recovery.congestion.window == window
    assert len(path.recovery.ring) <= loss.LOST_MEMORY_BURSTS + reordering.PACKET_THRESHOLD


def test_a_peer_that_acknowledges_nothing_does_not_grow_our_memory() -> None:
    path = Sender().with_rtt(0.1)
    path.send()
    for _ in range(3 * loss.MAX_UNCOUNTED_BURSTS):
        path.send(eliciting=False, in_flight=False)
    assert len(path.recovery.ring) <= loss.MAX_UNCOUNTED_BURSTS + 1


def test_a_lost_probe_is_not_congestion() -> None:
    path = Sender().with_rtt(0.1)
    window = path.recovery.congestion.window
    probe = path.send(in_flight=False)
    path.send(5)
    result = path.ack((2, 6), (0, 0))
    assert result.lost == [(probe, 1)]
    assert path.recovery.congestion.window >= window
    assert path.recovery.congestion.ssthresh == float("inf")


def test_a_loss_is_one_congestion_event_per_round_trip() -> None:
    path = Sender().with_rtt(0.1)
    path.send(9)
    window = path.recovery.congestion.window
    path.ack((4, 4), (0, 0))
    path.ack((9, 9), (4, 4), (0, 0))
    assert path.recovery.congestion.window == int(window * 0.7)


def test_a_late_packet_is_reported_undone_and_learnt_from() -> None:
    path = Sender().with_rtt(0.1)
    window = path.recovery.congestion.window
    late, rest = path.send(), path.send(8)
    path.now += 0.1
    assert path.ack((2, 9), (0, 0)).lost == [(late, 1)]
    assert path.recovery.congestion.window < window
    path.now += 0.01
    result = path.ack((0, 9))
    assert result.spurious == [(late, 1)]
    assert result.acked == []
    assert path.recovery.congestion.window >= window
    assert path.recovery.packet_threshold == 9
    path.send()
    path.send(8)
    assert path.ack((11, 18), (0, 9)).lost == []
    assert rest.outstanding == 0


def test_a_packet_lost_by_time_that_comes_late_widens_the_time_by_at_most_min_rtt() -> None:
    path = Sender().with_rtt(0.1)
    late = path.send()
    path.send()
    path.now += 0.1
    path.ack((2, 2), (0, 0))
    path.now = 0.22
    assert path.recovery.on_timeout(Instant(path.now)).lost == [(late, 1)]
    path.now = 0.25
    assert path.ack((0, 2)).spurious == [(late, 1)]
    assert path.recovery.loss_delay == pytest.approx(0.15)
    path.now = 0.3
    late = path.send()
    path.send()
    path.now += 0.1
    path.ack((4, 4), (0, 2))
    path.now += 0.06
    path.recovery.on_timeout(Instant(path.now))
    path.now += 0.2
    path.ack((0, 4))
    assert path.recovery.loss_delay == pytest.approx(0.1125 + 0.1, rel=0.05)


def test_patience_wears_off_when_losses_are_real() -> None:
    path = Sender().with_rtt(0.01)
    path.send()
    path.send(8)
    path.ack((2, 9), (0, 0))
    path.ack((0, 9))
    assert path.recovery.packet_threshold == 9
    for _ in range(reordering.EVENTS_TO_UNLEARN):
        path.now += 0.02
        path.send(20)
        path.now += 0.01
        path.ack((path.number - 19, path.number - 1))
    assert path.recovery.packet_threshold == reordering.PACKET_THRESHOLD


def test_a_real_loss_among_late_packets_is_not_undone() -> None:
    path = Sender().with_rtt(0.1)
    path.send(10)
    reduced = int(path.recovery.congestion.window * 0.7)
    path.ack((5, 10), (0, 0))
    path.ack((3, 10), (0, 0))
    assert path.recovery.congestion.window == reduced


def test_a_long_stretch_of_losses_is_persistent_congestion() -> None:
    path = Sender().with_rtt(0.1)
    duration = path.recovery.rtt.pto(MAX_ACK_DELAY) * 3
    path.now += 0.01
    path.send()
    path.now += duration + 0.01
    path.send()
    path.send(4)
    path.now += 0.1
    assert len(path.ack((3, 6), (0, 0)).lost) == 2
    assert path.recovery.congestion.window == 2 * 1200 + 4 * 1200  # collapsed, then grown by what arrived


def test_the_same_stretch_with_one_arrival_in_between_is_not() -> None:
    for arrived in (False, True):
        path = Sender().with_rtt(0.1)
        path.now += 0.01
        path.send(2)  # 1 2
        path.now += 0.6
        path.send(2)  # 3 4
        path.now += 0.6
        path.send(2)  # 5 6
        path.send(10)  # 7 .. 16
        ranges = [(9, 16), (4, 4), (0, 0)] if arrived else [(9, 16), (0, 0)]
        path.now += 0.2
        path.ack(*ranges)
        assert path.recovery.rtt.min_rtt == pytest.approx(0.1 if arrived else 0.2)  # forgotten in persistent congestion
        assert path.recovery.congestion.window == (8_400 if arrived else 2 * 1200 + 8 * 1200)


def test_losses_before_the_first_sample_are_never_persistent() -> None:
    path = Sender()
    path.send()
    path.now += 100.0
    path.send()
    path.send(10)
    path.now += 0.1
    path.ack((3, 11))
    assert path.recovery.congestion.window > 2 * 1200


def test_discarding_a_path_gives_everything_back_and_disarms_it() -> None:
    path = Sender().with_rtt(0.1)
    burst = path.send(6)
    path.ack((2, 2), (0, 0))
    assert path.recovery.discard(Instant(path.now)) == [(burst, 0b111101)]
    assert path.recovery.poll_timeout() is None
    assert path.recovery.bytes_in_flight == 0
    assert path.ack((0, 6)).acked == []


def test_an_unused_window_does_not_grow() -> None:
    path = Sender().with_rtt(0.1)
    for _ in range(100):
        path.send(2)
        path.now += 0.1
        path.ack((0, path.number - 1))
    assert path.recovery.congestion.window <= 12_000 + 1200 * 2
    path = Sender().with_rtt(0.1)
    window = path.recovery.congestion.window
    path.recovery.on_app_limited(Instant(path.now))
    for _ in range(3):
        path.send(9)
        path.recovery.on_app_limited(Instant(path.now))
        path.now += 0.1
        path.ack((0, path.number - 1))
    assert path.recovery.congestion.window == window


def test_in_flight_is_capped_by_what_the_peers_socket_holds_and_drains() -> None:
    path = Sender().with_rtt(0.01)
    for _ in range(12):
        while path.recovery.bytes_in_flight + 12_000 <= path.recovery.congestion.window:
            path.send(10)
        path.now += 0.01
        path.ack((0, path.number - 1))
    window, rate = path.recovery.congestion.window, path.recovery._rate.value
    assert window > 1_000_000
    assert rate == pytest.approx(window / 2 / 0.01, rel=0.5)
    assert path.recovery.inflight_limit(100_000) == min(window, 100_000 + int(2 * rate * 0.01))
    assert Sender().recovery.inflight_limit(0) == 12_000


def test_acks_that_are_acknowledged_make_room_to_remember_others() -> None:
    path = Sender().with_rtt(0.1)
    for _ in range(3 * loss.MAX_UNCOUNTED_BURSTS):
        burst = path.send(eliciting=False, in_flight=False)
        assert path.ack((0, path.number - 1)).acked == [(burst, 1)]
    path.send()
    assert path.ack((0, path.number - 2)).acked == []
    burst = path.send(eliciting=False, in_flight=False)
    assert path.recovery.ring.find(burst.first) is burst


def test_what_needed_no_answer_gives_no_sample() -> None:
    path = Sender().with_rtt(0.1)
    path.send(eliciting=False)
    path.now += 3.0
    path.ack((0, 1))
    assert path.recovery.rtt.samples == 1
    assert path.recovery.rtt.smoothed_rtt == 0.1


def test_losses_of_one_event_found_in_two_steps_must_all_be_refuted() -> None:
    path = Sender().with_rtt(0.1)
    path.send(12)  # 1 .. 12
    reduced = int(path.recovery.congestion.window * 0.7)
    path.ack((4, 4), (0, 0))  # 1 is lost
    path.ack((6, 6), (4, 4), (0, 0))  # 2 and 3
    path.ack((2, 4), (0, 0))  # 2 and 3 were late, 1 is still missing
    assert path.recovery.congestion.window == reduced
    path.ack((0, 4))
    assert path.recovery.congestion.window > reduced


def test_a_late_packet_of_an_older_event_undoes_nothing() -> None:
    path = Sender().with_rtt(0.1)
    path.send(6)  # 1 .. 6
    path.ack((2, 6), (0, 0))  # 1 by time or distance: the first event
    path.now += 0.05
    path.send(6)  # 7 .. 12
    path.now += 0.05
    path.ack((8, 12), (2, 6), (0, 0))  # 7: the second
    window = path.recovery.congestion.window
    assert [b.first for b, _ in path.ack((8, 12), (0, 6)).spurious] == [1]
    assert path.recovery.congestion.window == window


def test_a_lost_packet_is_not_remembered_for_ever() -> None:
    path = Sender().with_rtt(0.1)
    path.send(5)
    path.ack((2, 5), (0, 0))
    path.now += 5.0
    path.send(1)
    path.now += 0.1
    path.ack((2, 6), (0, 0))
    assert len(path.recovery.ring) == 0
    assert path.ack((0, 6)).spurious == []


def lost_bursts(*runs: tuple[float, int, int]) -> list[tuple[SentBurst, int]]:
    """Bursts of four as (sent_at, mask lost, ordinal); the packets not lost arrived."""
    found = []
    for sent_at, mask, ordinal in runs:
        burst = SentBurst(ordinal, 4, 1200, 1200, Instant(sent_at))
        burst.outstanding, burst.lost, burst.ordinal = 0, mask, ordinal
        found.append((burst, mask))
    return found


@pytest.mark.parametrize(
    ("runs", "persistent"),
    [
        ([(1.0, 0b1111, 0), (3.0, 0b1111, 4)], True),
        ([(1.0, 0b1111, 0), (2.9, 0b1111, 4)], False),  # too short
        ([(1.0, 0b1111, 0), (3.0, 0b1111, 8)], False),  # a burst in between arrived
        ([(1.0, 0b1000, 0), (3.0, 0b0001, 4)], True),  # arrivals only outside
        ([(1.0, 0b0001, 0), (3.0, 0b1111, 4)], False),  # the rest of the first arrived after its loss
        ([(1.0, 0b1111, 0), (3.0, 0b1000, 4)], False),  # the last begins with an arrival
        ([(1.0, 0b1111, 0), (2.0, 0b1101, 4), (3.0, 0b1111, 8)], False),
        ([(1.0, 0b1111, 0), (2.0, 0b1101, 4), (4.0, 0b1111, 8)], True),
        ([(0.5, 0b1111, 0), (2.9, 0b1111, 4)], False),  # began before the first sample
    ],
)
def test_persistent_congestion_is_a_run_of_two_seconds_without_an_arrival(
    runs: list[tuple[float, int, int]], persistent: bool
) -> None:
    assert reordering.is_persistent(lost_bursts(*runs), Instant(0.9), 2.0) is persistent


def test_losses_in_a_row_are_one_run_however_they_are_sent_and_found_out() -> None:
    sender = Sender().with_rtt(0.1)
    sender.send(10)  # 1 to 10
    sender.send(10)  # 11 to 20
    sender.ack((12, 12), (1, 7))  # 8 and 9 are lost; 10 and 11 may be late
    sender.ack((12, 14), (1, 7))
    rate = sender.recovery._rate
    assert rate.lost == 4 * 1200
    assert rate.lost_runs == 1
    assert rate.lost_run == pytest.approx(4.0)
    sender.ack((19, 19), (12, 14), (1, 7))  # 15 and 16
    assert rate.lost_runs == 2
    assert rate.lost_run < 4.0
