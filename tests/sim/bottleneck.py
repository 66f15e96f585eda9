"""Greedy flows over one bottleneck in virtual time: the rooms of recovery without streams and crypto, so a second of
100 Mbit/s takes a tenth of one.  Packets are numbers; nothing is sent again, so what arrives is goodput but for what was
declared lost and arrived after all, which a real sender would have repeated."""

from __future__ import annotations

import random
from collections.abc import Callable
from heapq import heappop, heappush
from typing import cast

from tunnel.transport.recovery.acks import AckTracker
from tunnel.transport.recovery.congestion import CongestionController
from tunnel.transport.recovery.loss import Recovery
from tunnel.transport.recovery.pacer import Pacer
from tunnel.transport.recovery.sent import SentBurst
from tunnel.units import Instant, Seconds

SIZE = 1472
MBIT = 125_000.0  # bytes a second
COALESCED = 0.0003  # seconds: a receiver takes what has come in the meantime at once
PING = 0.010
RECEIVE_BUFFER = 4 << 20

Make = Callable[[int, Instant, random.Random], CongestionController]


def random_loss(share: float) -> Callable[[random.Random], bool]:
    return lambda rng: rng.random() < share


def bursty_loss(share: float, length: float = 8.0) -> Callable[[random.Random], bool]:
    """Gilbert: runs of `length` packets lost on average, `share` of all."""
    bad = False
    enter = share / (length * (1 - share))

    def lost(rng: random.Random) -> bool:
        nonlocal bad
        bad = rng.random() >= 1 / length if bad else rng.random() < enter
        return bad

    return lost


class Flow:
    """One sender and its receiver."""

    def __init__(self, number: int, make: Make, now: float, rng: random.Random, *, paced: bool) -> None:
        self.number = number
        at = Instant(now)
        self.congestion = make(SIZE, at, rng)
        self.recovery = Recovery(at, self.congestion, datagram_size=SIZE)
        self.pacer = Pacer(self.recovery.pacing_rate(), SIZE, at)
        self.tracker = AckTracker()
        self.paced = paced
        self.next_number = 0
        self.arrived = 0
        self.spurious = 0  # packets that were given out as lost and arrived after all
        self.timer = float("inf")
        self.receive_at = float("inf")
        self.arrivals: list[tuple[float, int]] = []

    @property
    def goodput(self) -> int:
        """Bytes."""
        return (self.arrived - self.spurious) * SIZE


class Bottleneck:
    """`rate` bytes a second, `delay` seconds each way, a drop-tail queue of `queue` seconds.

    `loss` takes packets before the queue, `late_loss` behind it; `reorder` is the share that arrives `by` seconds late.
    With `police` packets that would wait at all are dropped beyond `queue` seconds of credit, and none is delayed.
    """

    def __init__(
        self,
        seed: int,
        *,
        rate: float = 100 * MBIT,
        delay: float = 0.020,
        queue: float = 0.040,
        loss: Callable[[random.Random], bool] | None = None,
        late_loss: Callable[[random.Random], bool] | None = None,
        reorder: float = 0.0,
        by: float = 0.005,
        police: bool = False,
    ) -> None:
        self.rng = random.Random(seed)
        self.rate, self.delay, self.queue = rate, delay, queue
        self.loss, self.late_loss, self.reorder, self.by, self.police = loss, late_loss, reorder, by, police
        self.now = 0.0
        self.flows: list[Flow] = []
        self.pings: list[float] = []  # seconds in the queue, every PING
        self.dropped = 0
        self._busy_until = 0.0
        self._events: list[tuple[float, int, int, Flow | None, object]] = []
        self._order = 0
        self._at(PING, 3, None)

    def add(self, make: Make, *, paced: bool = True) -> Flow:
        flow = Flow(len(self.flows), make, self.now, random.Random(self.rng.random()), paced=paced)
        self.flows.append(flow)
        self._send(flow)
        return flow

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        events = self._events
        while events and events[0][0] <= until:
            self.now, _, kind, flow, what = heappop(events)
            if flow is None:
                self.pings.append(max(0.0, self._busy_until - self.now) if not self.police else 0.0)
                self._at(self.now + PING, 3, None)
            elif kind == 0:
                if flow.receive_at <= self.now:
                    self._receive(flow)
            elif kind == 1:
                ranges, waited = cast(tuple[list[tuple[int, int]], Seconds], what)
                result = flow.recovery.on_ack(ranges, waited, Instant(self.now))
                flow.spurious += sum(mask.bit_count() for _, mask in result.spurious)
                flow.tracker.prune(ranges[0][1] - 2000)
                self._send(flow)
            elif flow.timer <= self.now:
                flow.timer = float("inf")
                self._wake(flow)
        self.now = until

    def measure(self, seconds: float) -> list[float]:
        """Shares of the link that each flow's goodput has in the next `seconds`."""
        before = [flow.goodput for flow in self.flows]
        self.run(seconds)
        return [(flow.goodput - was) / self.rate / seconds for flow, was in zip(self.flows, before, strict=True)]

    def _at(self, when: float, kind: int, flow: Flow | None, what: object = None) -> None:
        self._order += 1
        heappush(self._events, (when, self._order, kind, flow, what))

    def _send(self, flow: Flow, probes: int = 0) -> None:
        now, recovery, pacer = Instant(self.now), flow.recovery, flow.pacer
        pacer.set_rate(recovery.pacing_rate(), now)
        while True:
            room = recovery.inflight_limit(RECEIVE_BUFFER) - recovery.bytes_in_flight
            count = probes or min(room, pacer.budget(now) if flow.paced else room) // SIZE
            if count <= 0:
                break
            count, probes = min(44, count), 0
            recovery.on_sent(SentBurst(flow.next_number, count, SIZE, SIZE, now), now)
            pacer.consume(count * SIZE)
            self._carry(flow, flow.next_number, count)
            flow.next_number += count
        deadline = recovery.poll_timeout()
        if room >= SIZE:
            paced = max(pacer.next_at(now, pacer.quantum), Instant(self.now + 0.000_2))
            deadline = paced if deadline is None else min(deadline, paced)
        if deadline is not None and (deadline < flow.timer or flow.timer <= self.now):
            flow.timer = max(deadline, self.now + 1e-6)
            self._at(flow.timer, 2, flow)

    def _wake(self, flow: Flow) -> None:
        deadline = flow.recovery.poll_timeout()
        due = deadline is not None and deadline <= self.now
        self._send(flow, flow.recovery.on_timeout(Instant(self.now)).probes if due else 0)

    def _carry(self, flow: Flow, first: int, count: int) -> None:
        now, rng, each = self.now, self.rng, SIZE / self.rate
        loss, late_loss, reorder = self.loss, self.late_loss, self.reorder
        arrivals = flow.arrivals
        for number in range(first, first + count):
            if loss is not None and loss(rng):
                continue
            start = self._busy_until if self._busy_until > now else now
            if start - now > self.queue:
                self.dropped += 1
                continue
            self._busy_until = start + each
            if late_loss is not None and late_loss(rng):
                continue
            at = (now if self.police else start + each) + self.delay
            if reorder and rng.random() < reorder:
                at += self.by
            heappush(arrivals, (at, number))
        if arrivals and arrivals[0][0] < flow.receive_at:
            flow.receive_at = arrivals[0][0] + COALESCED
            self._at(flow.receive_at, 0, flow)

    def _receive(self, flow: Flow) -> None:
        now, arrivals, tracker = Instant(self.now), flow.arrivals, flow.tracker
        first = count = 0
        while arrivals and arrivals[0][0] <= now:
            number = heappop(arrivals)[1]
            flow.arrived += 1
            if count and number == first + count:
                count += 1
                continue
            if count:
                tracker.on_packets(first, count, True, now)
            first, count = number, 1
        if count:
            tracker.on_packets(first, count, True, now)
        deadline = tracker.deadline()
        if tracker.due(now):
            ranges, waited = tracker.build_ranges(), tracker.ack_delay(now)
            tracker.on_ack_sent(now)
            self._at(self.now + self.delay, 1, flow, (ranges, Seconds(waited)))
            deadline = None
        following = arrivals[0][0] + COALESCED if arrivals else float("inf")
        flow.receive_at = following if deadline is None else min(following, max(deadline, self.now + 1e-6))
        if flow.receive_at < float("inf"):
            self._at(flow.receive_at, 0, flow)
