"""A stream of a whole connection over one line in virtual time: what it gets where losses come in bursts and arrivals unevenly.

python -m tests.sim.lines [SECONDS] [MBIT ...]            a table over the lines

Other than tests/sim/bottleneck.py, ACKs are lost and late like everything else, and what is lost is sent again.
"""

from __future__ import annotations

import heapq
import random
import sys
from collections.abc import Callable
from typing import Final

from tests.sim.games import Lost, bad_times, none, runs_of, single
from tests.unit.connection.pair import Pair
from tunnel.transport.connection.connection import Connection
from tunnel.units import Instant

MBIT: Final = 125_000.0  # bytes a second
CHUNK: Final = bytes(1 << 16)


class BusyPair(Pair):
    """Either end is not scheduled now and then, for some milliseconds: it neither hears nor sends then, and all at once after."""

    pauses: tuple[float, float] | None = None  # seconds between two of an end on average, and of the longest one

    def __init__(self, seed: int, **words: float) -> None:
        super().__init__(seed, relayed=False, **words)  # type: ignore[arg-type]
        self._chance = random.Random(seed)
        self._away = {"a": (0.0, 0.0), "b": (0.0, 0.0)}  # from when to when

    def _back_at(self, name: str) -> float:
        """When that end runs: now, or later."""
        if self.pauses is None:
            return self.now
        between, longest = self.pauses
        began, ended = self._away[name]
        while ended <= self.now:
            began = (ended or self.now) + self._chance.expovariate(1 / between)
            ended = began + self._chance.random() * longest
        self._away[name] = began, ended
        return ended if began <= self.now else self.now

    def flush(self) -> None:
        for name, side in self.sides.items():
            if self._back_at(name) <= self.now:
                self._turn(name, side)

    def _turn(self, name: str, side: Connection) -> None:
        while (transmit := side.poll_transmit(self.now, self._out)) is not None:
            self.carry(name, transmit)
        self._events(name, side)

    def step(self, until: float = float("inf")) -> bool:
        self.flush()
        times = [until]
        for name, side in self.sides.items():
            if (at := side.poll_timeout()) is not None:
                times.append(max(at, self._back_at(name)))
        if self._queue:
            times.append(self._queue[0][0])
        self.now = Instant(max(self.now, min(times)))
        while self._queue and self._queue[0][0] <= self.now:
            _, count, name, key, data, stride = heapq.heappop(self._queue)
            if (back := self._back_at(name)) > self.now:
                heapq.heappush(self._queue, (back, count, name, key, data, stride))
            else:
                self.sides[name].handle_datagrams(self.now, key, memoryview(data), 0, stride)
        for name, side in self.sides.items():
            at = side.poll_timeout()
            if at is not None and at <= self.now and self._back_at(name) <= self.now:
                side.handle_timeout(self.now)
        self.flush()
        return True


class Line:
    """`a` sends as fast as it can.  `lost` datagrams never reach the bottleneck, in either direction.

    `pauses` of the ends: see BusyPair.

    `jitter` is added to the delay of each datagram, by chance between 0 and so many seconds; with `in_order` none overtakes
    another.
    """

    def __init__(
        self,
        make: Callable[[], Lost] = lambda: none,
        *,
        seed: int = 1,
        rate: float = 50 * MBIT,
        delay: float = 0.020,
        queue: float = 0.040,
        jitter: float = 0.0,
        in_order: bool = False,
        pauses: tuple[float, float] | None = None,
    ) -> None:
        self.pair = BusyPair(seed, delay=delay, rate=rate, queue=queue)
        self.rate, self.jitter, self.in_order = rate, jitter, in_order
        self._rng = random.Random(seed)
        self._lost: dict[str, Lost] = {"a": none, "b": none}
        self._latest = {"a": 0.0, "b": 0.0}
        self.pair.hook = self._fate
        self.pair.run(3.0)  # the search for the size of datagrams loses some
        self._lost = {"a": make(), "b": make()}
        self.pair.pauses = pauses
        self._stream = self.pair.a.open_stream()
        self.arrived = 0

    def _fate(self, name: str, _relayed: bool, data: bytes) -> list[float]:
        pair = self.pair
        if self._lost[name](self._rng, pair.now):
            return []
        late = pair.delay
        if self.jitter:
            late += self._rng.random() * self.jitter
            if self.in_order:
                passed = max(pair.now, pair._busy_until[name]) + len(data) / self.rate
                self._latest[name] = max(self._latest[name], passed + late)
                late = self._latest[name] - passed
        return [late]

    def run(self, seconds: float) -> None:
        pair, stream = self.pair, self._stream
        until = pair.now + seconds
        while pair.now < until:
            while pair.a.stream_write(stream, CHUNK):
                pass
            pair.step(until)
            data = pair.read["b"].setdefault(stream, bytearray())
            self.arrived += len(data)
            data.clear()

    def measure(self, warm: float, seconds: float) -> float:
        """The share of the line that the stream's bytes take in `seconds`, after `warm`."""
        self.run(warm)
        before = self.arrived
        self.run(seconds)
        return (self.arrived - before) / seconds / self.rate


LINES: Final[dict[str, Callable[..., Line]]] = {
    "none lost": lambda **words: Line(**words),
    "5 % lost, each by itself": lambda **words: Line(lambda: single(0.05), **words),
    "1 % lost in eights": lambda **words: Line(lambda: runs_of(8, 0.01), **words),
    "5 % lost in eights": lambda **words: Line(lambda: runs_of(8, 0.05), **words),
    "20 ms bad, 2 % of the time": lambda **words: Line(lambda: bad_times(0.020, 0.02), **words),
    "20 ms bad, 5 % of the time": lambda **words: Line(lambda: bad_times(0.020, 0.05), **words),
    "busy ends": lambda **words: Line(pauses=(0.030, 0.015), **words),
    "busy ends, 5 % lost in eights": lambda **words: Line(lambda: runs_of(8, 0.05), pauses=(0.030, 0.015), **words),
    "30 ms of jitter, in order": lambda **words: Line(jitter=0.030, in_order=True, **words),
    "30 ms of jitter": lambda **words: Line(jitter=0.030, **words),
}


def table(seconds: float = 10.0, *rates: float) -> None:
    """Print it."""
    for mbit in rates or (50.0, 100.0):
        print(f"{mbit:.0f} Mbit/s, 40 ms of round trip, 40 ms of queue; medians of 3 seeds")
        print(f"{'line':<30} {'share':>7} {'least':>7} {'sent/arrived':>13}")
        for name, make in LINES.items():
            found, spent = [], []
            for seed in (1, 2, 3):
                line = make(seed=seed, rate=mbit * MBIT)
                found.append(line.measure(3.0, seconds))
                spent.append(line.pair.a.stats().sent_bytes / max(1, line.arrived))
            found.sort()
            print(f"{name:<30} {found[1]:7.3f} {found[0]:7.3f} {sorted(spent)[1]:13.3f}", flush=True)


if __name__ == "__main__":
    table(*map(float, sys.argv[1:]))
