"""Sender, bottleneck and receiver in one loop: the rooms of recovery together, in virtual time and with seeded chance."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import pytest

from tests.sim.cubic import Cubic
from tunnel.transport.recovery.acks import AckTracker
from tunnel.transport.recovery.loss import Recovery
from tunnel.transport.recovery.pacer import Pacer
from tunnel.transport.recovery.sent import SentBurst
from tunnel.units import Instant, Seconds

SIZE = 1200


class Loop:
    """A greedy sender over a link of `rate` bytes a second, `delay` seconds each way, and a drop-tail queue."""

    def __init__(self, seed: int, *, rate: float, delay: float, queue: float, loss: float = 0.0, jitter: float = 0.0) -> None:
        self.rng = random.Random(seed)
        self.rate, self.delay, self.queue, self.loss, self.jitter = rate, delay, queue, loss, jitter
        self.now = 0.0
        self.recovery = Recovery(Instant(0.0), Cubic(SIZE, Instant(0.0)), datagram_size=SIZE)
        self.pacer = Pacer(self.recovery.pacing_rate(), SIZE, Instant(0.0))
        self.tracker = AckTracker()
        self.number = 0
        self.busy_until = 0.0
        self.delivered = self.dropped = self.duplicates = 0
        self.lost = self.spurious = 0  # packets that recovery gave out as lost, and those of them that arrived after all
        self.left_slow_start_at: float | None = None
        self.dropped_in_slow_start = 0
        self.black_hole = False
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._timer: float | None = None

    def at(self, when: float, what: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (when, self._order, what))

    def run(self, until: float) -> None:
        self.send()
        while self._events and self._events[0][0] <= until:
            self.now, _, what = heapq.heappop(self._events)
            what()
        self.now = until

    def send(self, probes: int = 0) -> None:
        now, recovery, pacer = Instant(self.now), self.recovery, self.pacer
        pacer.set_rate(recovery.pacing_rate(), now)
        while True:
            room = recovery.congestion.window - recovery.bytes_in_flight
            count = probes or min(room, pacer.budget(now)) // SIZE
            if count <= 0:
                break
            count, probes = min(64, count), 0
            recovery.on_sent(SentBurst(self.number, count, SIZE, SIZE, now), now)
            pacer.consume(count * SIZE)
            for number in range(self.number, self.number + count):
                self.carry(number)
            self.number += count
        deadline = recovery.poll_timeout()
        if room >= SIZE:
            paced = max(pacer.next_at(now, SIZE), self.now + 0.000_5)
            deadline = Instant(paced) if deadline is None else min(deadline, Instant(paced))
        if deadline is not None and (self._timer is None or self._timer <= self.now or deadline < self._timer):
            self._timer = max(deadline, self.now + 1e-6)
            self.at(self._timer, self.wake)

    def wake(self) -> None:
        deadline = self.recovery.poll_timeout()
        probes = 0
        if deadline is not None and deadline <= self.now:
            lost, probes = self.recovery.on_timeout(Instant(self.now))
            self.lost += sum(mask.bit_count() for _, mask in lost)
        self.send(probes)

    def carry(self, number: int) -> None:
        start = max(self.now, self.busy_until)
        if self.black_hole or self.rng.random() < self.loss or start - self.now > self.queue:
            self.dropped += 1
            if self.left_slow_start_at is None:
                self.dropped_in_slow_start += 1
            return
        self.busy_until = start + SIZE / self.rate
        self.at(self.busy_until + self.delay + self.rng.random() * self.jitter, lambda: self.arrive(number))

    def arrive(self, number: int) -> None:
        self.delivered += 1
        self.tracker.on_packets(number, 1, True, Instant(self.now))
        if self.tracker.due(Instant(self.now)):
            ranges, waited = self.tracker.build_ranges(), self.tracker.ack_delay(Instant(self.now))
            self.tracker.on_ack_sent(Instant(self.now))
            self.at(self.now + self.delay, lambda: self.acknowledged(ranges, waited))
        else:
            self.at((self.tracker.deadline() or self.now) + 1e-6, self.late_ack)

    def late_ack(self) -> None:
        if self.tracker.owes and self.tracker.due(Instant(self.now)):
            ranges, waited = self.tracker.build_ranges(), self.tracker.ack_delay(Instant(self.now))
            self.tracker.on_ack_sent(Instant(self.now))
            self.at(self.now + self.delay, lambda: self.acknowledged(ranges, waited))

    def acknowledged(self, ranges: list[tuple[int, int]], waited: Seconds) -> None:
        result = self.recovery.on_ack(ranges, waited, Instant(self.now))
        self.lost += sum(mask.bit_count() for _, mask in result.lost)
        self.spurious += sum(mask.bit_count() for _, mask in result.spurious)
        self.tracker.prune(ranges[0][1] - 500)
        if self.left_slow_start_at is None and not self.recovery.congestion.in_slow_start:
            self.left_slow_start_at = self.now
        self.send()

    def throughput(self, seconds: float) -> float:
        """Share of the link used in the next `seconds`."""
        before = self.delivered
        self.run(self.now + seconds)
        return (self.delivered - before) * SIZE / self.rate / seconds


def test_slow_start_ends_by_delay_without_a_loss_and_the_link_is_full() -> None:
    loop = Loop(1, rate=5e6, delay=0.020, queue=1.0)
    loop.run(2.0)
    assert loop.left_slow_start_at is not None
    assert loop.dropped_in_slow_start == 0
    assert loop.throughput(3.0) > 0.95
    assert loop.recovery._rate.value == pytest.approx(5e6, rel=0.1)
    assert loop.spurious == 0


def test_a_short_queue_costs_little_of_the_link() -> None:
    loop = Loop(2, rate=5e6, delay=0.010, queue=0.010)
    loop.run(1.0)
    assert loop.throughput(3.0) > 0.85
    assert loop.lost >= loop.dropped - 64


def test_reordering_is_learnt_and_then_costs_nothing() -> None:
    loop = Loop(3, rate=5e6, delay=0.020, queue=0.100, jitter=0.004)
    loop.run(2.0)
    assert loop.spurious > 0
    spurious = loop.spurious
    assert loop.throughput(2.0) > 0.9
    assert loop.spurious - spurious <= 20


def test_random_loss_loses_nothing_of_the_books() -> None:
    loop = Loop(4, rate=2e6, delay=0.010, queue=0.050, loss=0.02)
    loop.run(4.0)
    loop.pacer.consume(1 << 40)  # no more is sent: the rest drains
    loop.run(4.3)
    recovery = loop.recovery
    assert loop.lost - loop.spurious == pytest.approx(loop.dropped, abs=3)
    assert recovery.bytes_in_flight == sum(b.bytes_of(b.outstanding) for b in recovery.ring)
    assert len(recovery.ring) < 300


def test_a_path_that_comes_back_is_found_by_probes() -> None:
    loop = Loop(5, rate=2e6, delay=0.010, queue=0.050)
    loop.run(1.0)
    loop.black_hole = True
    loop.run(4.0)
    assert loop.recovery.pto_count >= 3
    loop.black_hole = False
    loop.run(9.0)
    assert loop.recovery.pto_count == 0
    assert loop.throughput(2.0) > 0.8
