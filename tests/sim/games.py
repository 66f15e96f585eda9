"""A game over one connection in virtual time, on a line that loses: what it sees of that, and what the second copies cost.

python -m tests.sim.games            a table over the distances between a datagram and its copy
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tests.unit.connection.pair import Pair
from tunnel.transport.connection import repeats
from tunnel.transport.connection.connection import TAKES
from tunnel.transport.connection.packets import PACKET_ROOM, PacketBurst, PacketRun
from tunnel.units import Instant, Seconds

Lost = Callable[[random.Random, float], bool]  # chance and the time -> is this datagram lost

FLOW: Final = 2
SIZE: Final = 120  # bytes of a game's datagram
WARM: Final = 20.0  # seconds, until loss was measured
NUMBER: Final = 8  # bytes, at the end of each datagram


def none(_rng: random.Random, _now: float) -> bool:
    return False


def single(share: float) -> Lost:
    """Each datagram by itself."""
    return lambda rng, now: rng.random() < share


def runs_of(length: int, share: float) -> Lost:
    """`length` datagrams in a row each time."""
    left = 0
    enter = share / length / (1 - share)

    def lost(rng: random.Random, now: float) -> bool:
        nonlocal left
        if left == 0 and rng.random() < enter:
            left = length
        if left:
            left -= 1
            return True
        return False

    return lost


def bad_times(duration: float, share: float) -> Lost:
    """Nothing passes for about so many seconds (exponential), so that `share` of the time is lost."""
    bad, until = False, 0.0

    def lost(rng: random.Random, now: float) -> bool:
        nonlocal bad, until
        if not until:
            until = now
        while now >= until:
            bad = not bad
            until += rng.expovariate(1 / (duration if bad else duration * (1 - share) / share))
        return bad

    return lost


@dataclass(slots=True)
class Outcome:
    sent: int = 0
    arrived: int = 0  # of those
    twice: int = 0  # delivered more than once
    repeated: int = 0  # packets sent once more
    late: list[float] = field(default_factory=list)  # seconds that a datagram took beyond the line

    @property
    def lost(self) -> float:
        return 1 - self.arrived / self.sent


class Game:
    """`a` sends a datagram `rate` times a second, by a forward or in a LAN; `lost` says which the line loses, both ways."""

    def __init__(
        self,
        lost: Lost,
        *,
        seed: int = 1,
        lan: bool = False,
        mode: str = repeats.AUTO,
        takes: bool = True,
        size: int = SIZE,
        delay: float = 0.020,
        rate: float | None = None,
        queue: float = 0.05,
    ) -> None:
        self.pair = Pair(seed=seed, relayed=False, delay=delay, rate=rate, queue=queue)
        self.lan = lan
        self.size = size
        self.rng = random.Random(seed)
        self.lost: Lost = none
        self.pair.hook = self._fate
        for side in (self.pair.a, self.pair.b):
            side.set_repeat(mode)
            if takes:
                side.peer_takes(TAKES)
        self.pair.b.set_packet_sink(self._take_packets)
        self._burst = PacketBurst(bytearray(65_536))
        self._number = 0
        self._sent_at: dict[int, float] = {}
        self._came: dict[int, int] = {}
        self.pair.run(3.0)  # the search for the size of datagrams loses some
        self.lost = lost

    def _fate(self, name: str, relayed: bool, data: bytes) -> list[float] | None:
        return [] if self.lost(self.rng, self.pair.now) else [self.pair.delay]

    def _take_packets(self, now: Instant, runs: list[PacketRun]) -> None:
        for run in runs:
            for payload in run.payloads:
                self._arrived(bytes(payload))

    def _arrived(self, data: bytes) -> None:
        number = int.from_bytes(data[-NUMBER:], "big")
        self._came[number] = self._came.get(number, 0) + 1
        self.outcome.late.append(self.pair.now - self._sent_at[number] - self.pair.delay)

    def _send(self) -> None:
        data = bytes(self.size - NUMBER) + self._number.to_bytes(NUMBER, "big")
        self._sent_at[self._number] = self.pair.now
        self._number += 1
        if not self.lan:
            self.pair.a.send_datagrams(self.pair.now, FLOW, [data])
            return
        sealer = self.pair.a.packets
        assert sealer is not None
        packet = memoryview(bytearray(PACKET_ROOM) + data)
        sealer.begin(self._burst, 0)
        assert sealer.seal_packet(self._burst, self.pair.now, packet, PACKET_ROOM, len(packet), 0)
        if sealer.repeats:
            sealer.repeat(self.pair.now, packet, PACKET_ROOM, len(packet))
        transmit = self._burst.transmit()
        assert transmit is not None
        self.pair.carry("a", transmit)

    def play(self, seconds: float, hertz: float = 60.0, settle: float = 1.0) -> Outcome:
        """Go on for so long; what became of the datagrams of this time, `settle` seconds after the last."""
        self.outcome = Outcome()
        first, repeated = self._number, self.pair.a.stats().repeated
        until = self.pair.now + seconds
        while self.pair.now < until:
            self._send()
            self._run(1 / hertz)
        self._run(settle)
        sent = range(first, self._number)
        self.outcome.sent = len(sent)
        self.outcome.arrived = sum(number in self._came for number in sent)
        self.outcome.twice = sum(self._came.get(number, 0) > 1 for number in sent)
        self.outcome.repeated = self.pair.a.stats().repeated - repeated
        return self.outcome

    def _run(self, seconds: float) -> None:
        until = Instant(self.pair.now + seconds)
        self.pair.flush()
        while self.pair.now < until:
            self.pair.step(until)
            for _, data in self.pair.b.receive_datagrams():
                self._arrived(data)


LINES: Final[dict[str, Callable[[], Lost]]] = {
    "5 % single": lambda: single(0.05),
    "5 % in threes": lambda: runs_of(3, 0.05),
    "5 % for 20 ms": lambda: bad_times(0.020, 0.05),
    "none": lambda: none,
}


def table(seconds: float = 120.0) -> None:
    """Print it."""
    print(f"{'apart':>12} {'line':>14} {'Hz':>5} {'lost %':>8} {'p99 late ms':>12} {'copies %':>9}")
    for packets, least, most in ((1, 5, 5), (1, 10, 10), (3, 5, 25), (3, 5, 50), (4, 5, 50), (5, 5, 50), (5, 10, 70)):
        for name, line in LINES.items():
            for hertz in (20.0, 30.0, 60.0, 128.0):
                repeats.APART_PACKETS = packets  # type: ignore[misc]
                repeats.APART_LEAST, repeats.APART_MOST = Seconds(least / 1000), Seconds(most / 1000)  # type: ignore[misc]
                game = Game(line())
                game.play(WARM, hertz)
                found = game.play(seconds, hertz)
                late = sorted(found.late)
                p99 = late[int(len(late) * 0.99)] * 1000
                apart = f"{packets}, {least}-{most}"
                cost = 100 * found.repeated / found.sent
                print(f"{apart:>12} {name:>14} {hertz:5.0f} {100 * found.lost:8.2f} {p99:12.1f} {cost:9.0f}", flush=True)


if __name__ == "__main__":
    table(float(sys.argv[1]) if len(sys.argv) > 1 else 120.0)
