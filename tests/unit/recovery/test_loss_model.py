"""Recovery with its burst masks against a per-packet model written straight from RFC 9002 Appendix A."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.transport.recovery.loss import Recovery
from tunnel.transport.recovery.rate import DeliveryRate
from tunnel.transport.recovery.rtt import GRANULARITY, RttEstimator
from tunnel.transport.recovery.sent import SentBurst
from tunnel.units import Instant, Seconds

SIZE, LAST = 1200, 700


class FixedWindow:
    """A congestion controller that only counts."""

    def __init__(self) -> None:
        self.window = 1 << 40
        self.ssthresh = 0.0
        self.in_slow_start = False
        self.acked = self.lost = 0

    def on_sent(self, size: int, now: Instant) -> None: ...
    def on_ack(self, acked: int, sent_at: Instant, now: Instant, rtt: RttEstimator, rate: DeliveryRate) -> None:
        self.acked += acked

    def on_loss(self, lost: int, sent_at: Instant, now: Instant, persistent: bool) -> bool:
        self.lost += lost
        return True

    def on_spurious_loss(self, now: Instant) -> None: ...
    def on_app_limited(self, now: Instant) -> None: ...
    def on_datagram_size(self, size: int) -> None: ...
    def pacing_rate(self, rtt: RttEstimator) -> float:
        return 1e6


class Model:
    """Each packet by itself, everything looked at every time.  Distance is counted along this path's own packets."""

    def __init__(self) -> None:
        self.packets: dict[int, tuple[int, float, int]] = {}  # number -> ordinal, sent_at, size
        self.ordinal = 0
        self.largest = -1
        self.lost_numbers: set[int] = set()
        self.loss_time: float | None = None

    def send(self, number: int, now: float, size: int) -> None:
        self.packets[number] = (self.ordinal, now, size)
        self.ordinal += 1

    def ack(self, ranges: list[tuple[int, int]]) -> tuple[set[int], set[int]]:
        numbers = {n for n in self.packets if any(low <= n <= high for low, high in ranges)}
        for n in numbers:
            self.largest = max(self.largest, self.packets.pop(n)[0])
        late = {n for n in self.lost_numbers if any(low <= n <= high for low, high in ranges)}
        self.lost_numbers -= late
        return numbers, late

    def detect(self, now: float, delay: float, threshold: int) -> set[int]:
        self.loss_time = None
        lost = set()
        for n, (ordinal, sent_at, _) in self.packets.items():
            if ordinal > self.largest:
                continue
            if sent_at + delay <= now or self.largest >= ordinal + threshold:
                lost.add(n)
            elif self.loss_time is None or sent_at + delay < self.loss_time:
                self.loss_time = sent_at + delay
        for n in lost:
            del self.packets[n]
        self.lost_numbers |= lost
        return lost

    @property
    def in_flight(self) -> int:
        return sum(size for _, _, size in self.packets.values())


def numbers_of(marked: Iterable[tuple[SentBurst, int]]) -> list[int]:
    return [burst.first + i for burst, mask in marked for i in range(burst.count) if mask >> i & 1]


def ranges_of(numbers: Iterable[int]) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for n in sorted(numbers, reverse=True):
        if ranges and ranges[-1][0] == n + 1:
            ranges[-1] = (n, ranges[-1][1])
        else:
            ranges.append((n, n))
    return ranges


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_burst_masks_do_what_a_model_of_single_packets_does(data: st.DataObject) -> None:
    controller = FixedWindow()
    recovery = Recovery(Instant(0.0), controller)
    model = Model()
    rng = data.draw(st.randoms(use_true_random=False))
    now, number = 0.0, 0
    received: set[int] = set()
    underway: list[int] = []  # sent on this path, neither delivered nor dropped
    sent: list[int] = []
    for step in data.draw(st.lists(st.sampled_from("sssaaaatgx"), min_size=1, max_size=40)):
        now += rng.choice((0.0, 0.0005, 0.004, 0.03))
        if step == "s":
            count = rng.choice((1, 1, 2, 5, 63, 64))
            burst = SentBurst(number, count, SIZE, LAST, Instant(now), content=number)
            recovery.on_sent(burst, Instant(now))
            for i in range(count):
                model.send(number + i, now, LAST if i == count - 1 else SIZE)
            underway += range(number, number + count)
            sent += range(number, number + count)
            number += count
        elif step == "g":  # another path takes numbers, which arrive too
            received |= set(range(number, number + 4))
            number += 4
        elif step == "a":
            rng.shuffle(underway) if rng.random() < 0.3 else underway.sort()
            arriving = [underway.pop(0) for _ in range(rng.randint(0, len(underway)))]
            received |= {n for n in arriving if rng.random() < rng.choice((1.0, 0.9, 0.5))}
            ranges = ranges_of(received)[: rng.choice((1, 3, 32))]
            before = recovery.bytes_in_flight
            result = recovery.on_ack(ranges, Seconds(0.0), Instant(now))
            acked, late = model.ack(ranges)
            assert numbers_of(result.acked) == sorted(acked)
            if len(sent) < 5000 and recovery.rtt.samples:
                assert set(numbers_of(result.spurious)) <= late
            model.lost_numbers |= late - set(numbers_of(result.spurious))
            lost = model.detect(now, recovery.loss_delay, recovery.packet_threshold) if acked else set()
            assert numbers_of(result.lost) == sorted(lost)
            assert sum(b.bytes_of(m) for b, m in (*result.acked, *result.lost)) == before - recovery.bytes_in_flight
        elif step == "t":
            deadline = recovery.poll_timeout()
            if deadline is not None:
                now = max(now, deadline)
                timeout = recovery.on_timeout(Instant(now))
                if model.loss_time is not None:
                    assert numbers_of(timeout.lost) == sorted(model.detect(now, recovery.loss_delay, recovery.packet_threshold))
                else:
                    assert timeout.probes == (2 if model.packets else 0)
        assert recovery.bytes_in_flight == model.in_flight
        assert recovery.loss_deadline == model.loss_time
        assert {n for b in recovery.ring for n in numbers_of([(b, b.outstanding)])} == set(model.packets)
        assert (recovery.pto_deadline is not None) == bool(model.packets)
        assert recovery.loss_delay >= GRANULARITY
    if not model.packets:
        assert recovery.poll_timeout() is None
    left = recovery.discard(Instant(now))
    assert numbers_of(left) == sorted(model.packets)
    assert recovery.bytes_in_flight == 0


@given(st.integers(0, 100), st.integers(1, 64), st.integers(-5, 200), st.integers(-5, 200))
def test_a_mask_of_a_range_has_exactly_its_packets(first: int, count: int, low: int, high: int) -> None:
    burst = SentBurst(first, count, SIZE, LAST, Instant(0.0))
    mask = burst.mask(low, high)
    assert [first + i for i in range(count + 5) if mask >> i & 1] == [n for n in range(first, first + count) if low <= n <= high]
    sizes = [SIZE] * (count - 1) + [LAST]
    assert burst.bytes_of(mask) == sum(size for i, size in enumerate(sizes) if mask >> i & 1)
