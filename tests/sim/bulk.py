"""A TCP flow with CUBIC inside a LAN in virtual time, over a line that loses: what it gets, bare and through the tunnel.

    python -m tests.sim.bulk             a table over the loss of the line

The flow is tests/sim/cubic.py on the rooms of recovery, which stand for its SACK; it gets no pacing, as Linux gives none.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Final

from tests.sim.cubic import Cubic
from tests.sim.games import Lost, none, runs_of, single
from tests.unit.connection.pair import Pair
from tunnel.room.order import WAIT_RTTS, WAIT_SLACK, Order
from tunnel.transport.connection.connection import TAKES
from tunnel.transport.connection.packets import PACKET_ROOM, PacketBurst, PacketRun
from tunnel.transport.recovery.acks import AckTracker
from tunnel.transport.recovery.loss import Recovery
from tunnel.transport.recovery.sent import SentBurst
from tunnel.units import Instant, Seconds

MSS: Final = 1_340
MBIT: Final = 125_000.0  # bytes a second
WINDOW: Final = 4 << 20  # bytes that the receiving program takes
AT_ONCE: Final = 16  # packets of one super-packet
_FOREVER: Final = float("inf")


def _segment(source: int, number: int, size: int) -> bytes:
    """IPv4 and TCP with the sequence number of the packet of that number."""
    total = 40 + size
    ip = bytes((0x45, 0, total >> 8, total & 255, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, source, 10, 0, 0, 3 - source))
    sequence = (number * MSS) % (1 << 32)
    tcp = bytes((0, source, 0, 3 - source)) + sequence.to_bytes(4, "big") + bytes(4) + bytes((0x50, 0x10)) + bytes(6)
    return ip + tcp


class Bulk:
    """`a` sends as fast as CUBIC lets it, `b` acknowledges.  Without `repairs` the tunnel repairs nothing, as the bare line."""

    def __init__(
        self,
        lost: Lost,
        *,
        seed: int = 1,
        repairs: bool = True,
        rate: float = 20 * MBIT,
        delay: float = 0.020,
        queue: float = 0.05,
    ) -> None:
        self.pair = Pair(seed=seed, relayed=False, delay=delay, rate=rate, queue=queue)
        self.rate = rate
        self.rng = random.Random(seed)
        self.lost: Lost = none
        self.pair.hook = lambda name, relayed, data: [] if self.lost(self.rng, self.pair.now) else [self.pair.delay]
        for side in (self.pair.a, self.pair.b):
            side.set_repair(is_wanted=repairs)
            side.peer_takes(TAKES)
        self.pair.b.set_packet_sink(self._take_data)
        self.pair.a.set_packet_sink(self._take_acks)
        self.pair.run(3.0)
        self.lost = lost
        now = self.pair.now
        self.congestion = Cubic(MSS, now)
        self.recovery = Recovery(now, self.congestion, datagram_size=MSS)
        self.tracker = AckTracker()
        self.order = Order()
        self.arrived = 0
        self._number = 0
        self._acks: dict[int, tuple[list[tuple[int, int]], Seconds]] = {}
        self._ack_number = 0
        self._bursts = {"a": PacketBurst(bytearray(65_536)), "b": PacketBurst(bytearray(65_536))}

    def notice(self, share: float) -> None:
        """The path is known to lose so much, as by a flow before this one."""
        shared = self.pair.a._shared
        shared.losses.total, shared.losses.lost = 1000.0, 1000.0 * share
        shared.repair.look(self.pair.now, shared.losses, shared.paths.current.recovery.rtt)

    # the sender

    def _pump(self) -> None:
        recovery, now = self.recovery, self.pair.now
        while True:
            room = recovery.inflight_limit(WINDOW) - recovery.bytes_in_flight
            count = min(room // MSS, AT_ONCE)
            if count <= 0:
                return
            recovery.on_sent(SentBurst(self._number, count, MSS, MSS, now), now)
            for number in range(self._number, self._number + count):
                self._put("a", self._data(number))
            self._number += count

    @staticmethod
    def _data(number: int) -> bytes:
        return _segment(1, number, MSS) + number.to_bytes(8, "big") + bytes(MSS - 8)

    def _put(self, name: str, packet: bytes) -> None:
        side, burst = self.pair.sides[name], self._bursts[name]
        sealer = side.packets
        assert sealer is not None
        view = memoryview(bytearray(PACKET_ROOM) + packet)
        sealer.begin(burst, 0)
        flags = sealer.repair_flags if len(packet) > 200 else 0
        assert sealer.seal_packet(burst, self.pair.now, view, PACKET_ROOM, len(view), flags)
        transmit = burst.transmit()
        assert transmit is not None
        self.pair.carry(name, transmit)

    def _take_acks(self, now: Instant, runs: list[PacketRun]) -> None:
        for run in runs:
            found = self._acks.pop(int.from_bytes(run.payloads[0][40:48], "big"), None)
            if found is not None:
                self.recovery.on_ack(*found, now)

    # the receiver

    def _take_data(self, now: Instant, runs: list[PacketRun]) -> None:
        if self.order or any(run.is_in_order for run in runs):
            rtt = self.pair.b.current_path.smoothed_rtt
            runs = self.order.take(now, runs, Seconds(WAIT_RTTS * rtt + WAIT_SLACK))
        self._deliver(now, runs)

    def _deliver(self, now: Instant, runs: list[PacketRun]) -> None:
        for run in runs:
            self.arrived += MSS
            self.tracker.on_packets(int.from_bytes(run.payloads[0][40:48], "big"), 1, True, now)

    def _acknowledge(self) -> None:
        now = self.pair.now
        if self.tracker.due(now):
            ranges = self.tracker.build_ranges()
            self._ack_number += 1
            self._acks[self._ack_number] = ranges, self.tracker.ack_delay(now)
            self.tracker.on_ack_sent(now)
            self.tracker.prune(ranges[0][0] - 4000)
            self._put("b", _segment(2, 0, 0) + self._ack_number.to_bytes(8, "big"))

    # time

    def run(self, seconds: float) -> None:
        until = self.pair.now + seconds
        while self.pair.now < until:
            self._pump()
            self.pair.flush()
            waits = (self.recovery.poll_timeout(), self.tracker.deadline(), self.order.due_at)
            following = min([until, *(max(at, self.pair.now + 1e-6) for at in waits if at is not None)])
            self.pair.step(following)
            now = self.pair.now
            at = self.recovery.poll_timeout()
            if at is not None and at <= now and self.recovery.on_timeout(now).probes:
                self.recovery.on_sent(SentBurst(self._number, 1, MSS, MSS, now), now)
                self._put("a", self._data(self._number))
                self._number += 1
            at = self.order.due_at
            if at is not None and at <= now:
                self._deliver(now, self.order.due(now))
            self._acknowledge()

    def measure(self, warm: float, seconds: float) -> float:
        """Mbit/s of what arrived in `seconds`, after `warm`."""
        self.run(warm)
        before = self.arrived
        self.run(seconds)
        return (self.arrived - before) / seconds / MBIT


LINES: Final[dict[str, Callable[[], Lost]]] = {
    "none": lambda: none,
    "1 %": lambda: single(0.01),
    "5 %": lambda: single(0.05),
    "5 % in threes": lambda: runs_of(3, 0.05),
    "5 % in eights": lambda: runs_of(8, 0.05),
}


def table(seconds: float = 20.0, rate: float = 20.0) -> None:
    """Print it."""
    print(f"{rate:.0f} Mbit/s, 40 ms of round trip, 50 ms of queue")
    print(f"{'line':>14} {'bare':>8} {'ours':>8} {'ratio':>6} {'again %':>8} {'given up':>9} {'left':>6}")
    for name, line in LINES.items():
        bare = Bulk(line(), repairs=False, rate=rate * MBIT).measure(8.0, seconds)
        bulk = Bulk(line(), rate=rate * MBIT)
        ours = bulk.measure(8.0, seconds)
        again = 100 * bulk.pair.a.stats().resent / bulk.pair.a.stats().packets_sent
        left = bulk.pair.a.drops["lost packet left to its flow"]
        print(
            f"{name:>14} {bare:8.2f} {ours:8.2f} {ours / bare:6.1f} {again:8.1f} {bulk.order.given_up:9} {left:6}",
            flush=True,
        )


if __name__ == "__main__":
    table(*map(float, sys.argv[1:]))
