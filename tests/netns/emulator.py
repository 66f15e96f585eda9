"""A link of our own between two tap devices: delay, rate behind a drop-tail queue, loss by chance or in bursts, reordering and
duplication, since many kernels lack netem.

Run as `python -m tests.netns.emulator FD FD SEED`, the fields of a Shape in their order, and the addresses whose words come with
the delay `news`; it ends with its parent.
"""

from __future__ import annotations

import ipaddress
import os
import random
import select
import signal
import sys
import time
from heapq import heappop, heappush
from typing import NamedTuple

FRAMES_A_TURN = 128


class Shape(NamedTuple):
    """What a link does to frames, the same in both directions."""

    delay: float = 0.0  # seconds, one way
    rate: float = 0.0  # bit/s; 0 is none
    loss: float = 0.0  # share of the frames, before the queue
    burst: float = 1.0  # of them in a row, on average (Gilbert)
    reorder: float = 0.0  # share of the frames that come ...
    late: float = 0.005  # ... so many seconds late
    duplicate: float = 0.0  # share of the frames that come twice
    queue: float = 0.1  # seconds of rate that the queue holds; a frame that would wait longer is dropped
    news: float = 0.0  # seconds that the words of some come late, from the second device to the first
    bad: float = 0.0  # seconds that nothing passes each time, on average, for the `loss` share of the time (Gilbert-Elliott)
    jitter: float = 0.0  # seconds added to the delay of each frame, at most, by chance; ...
    overtakes: float = 0.0  # ... 1 when a frame may thereby overtake another
    spell: float = 0.0  # seconds of delay more, one way, from every other SIGUSR1 to the next one


def is_neighbour_talk(frame: bytes) -> bool:
    """ARP, or IPv6 neighbour discovery: Ethernet's own business, which a lossy path beyond it does not lose."""
    kind = frame[12:14]
    return kind == b"\x08\x06" or (kind == b"\x86\xdd" and frame[20:21] == b"\x3a" and 133 <= frame[54] <= 137)


def sender(frame: bytes) -> bytes:
    """The source address of the IP packet in it."""
    kind = frame[12:14]
    return frame[26:30] if kind == b"\x08\x00" else frame[22:38] if kind == b"\x86\xdd" else b""


class Direction:
    """Frames on their way from one tap to the other, in order but for those that are made late."""

    def __init__(self, source: int, sink: int, shape: Shape, seed: int, late_senders: frozenset[bytes] = frozenset()) -> None:
        self.source = source
        self.sink = sink
        self._shape = shape
        self._late_senders = late_senders
        self._byte_time = 8 / shape.rate if shape.rate else 0.0
        self._rng = random.Random(seed)
        self._is_bad = False  # within a burst of losses, or within bad seconds
        self._bad_changes_at = 0.0
        self._free_at = 0.0  # when the link has sent all that was given to it
        self._latest = 0.0  # when the last frame comes out, with its jitter
        self._frames: list[tuple[float, int, bytes]] = []  # a heap: due, in which order they came, frame
        self._count = 0
        self.is_slow = False  # a spell lasts

    @property
    def due(self) -> float | None:
        return self._frames[0][0] if self._frames else None

    def _loses(self) -> bool:
        shape, rng = self._shape, self._rng
        if shape.bad:
            return self._is_bad_time()
        if shape.burst <= 1:
            return bool(shape.loss) and rng.random() < shape.loss
        stays = rng.random() >= 1 / shape.burst
        self._is_bad = stays if self._is_bad else rng.random() < shape.loss / (shape.burst * (1 - shape.loss))
        return self._is_bad

    def _is_bad_time(self) -> bool:
        shape, rng, now = self._shape, self._rng, time.monotonic()
        self._bad_changes_at = self._bad_changes_at or now
        while now >= self._bad_changes_at:
            self._is_bad = not self._is_bad
            length = shape.bad if self._is_bad else shape.bad * (1 - shape.loss) / shape.loss
            self._bad_changes_at += rng.expovariate(1 / length)
        return self._is_bad

    def take(self) -> None:
        now = time.monotonic()
        for _ in range(FRAMES_A_TURN):
            try:
                frame = os.read(self.source, 65_536)
            except BlockingIOError:
                return
            if self._loses() and not is_neighbour_talk(frame):
                continue
            due = now
            if self._byte_time:
                self._free_at = max(self._free_at, now)
                if self._free_at - now > self._shape.queue:
                    continue
                self._free_at += len(frame) * self._byte_time
                due = self._free_at
            self._deliver(due + self._shape.delay + self.is_slow * self._shape.spell, frame)

    def _deliver(self, due: float, frame: bytes) -> None:
        shape, rng = self._shape, self._rng
        if self._late_senders and sender(frame) in self._late_senders:
            due += shape.news
        if shape.reorder and rng.random() < shape.reorder:
            due += shape.late
        if shape.jitter:
            due += rng.random() * shape.jitter
            if not shape.overtakes:
                due = self._latest = max(due, self._latest)
        for _ in range(2 if shape.duplicate and rng.random() < shape.duplicate else 1):
            self._count += 1
            heappush(self._frames, (due, self._count, frame))

    def give(self) -> None:
        now = time.monotonic()
        while self._frames and self._frames[0][0] <= now:
            frame = heappop(self._frames)[2]
            try:
                os.write(self.sink, frame)
            except OSError:  # the device is down or full: lost, as on any link
                continue


def main() -> None:
    first, second, seed = (int(word) for word in sys.argv[1:4])
    addresses = 4 + len(Shape._fields)
    shape = Shape(*(float(word) for word in sys.argv[4:addresses]))
    late_senders = frozenset(ipaddress.ip_address(word).packed for word in sys.argv[addresses:])
    there = Direction(first, second, shape, seed)
    back = Direction(second, first, shape, seed + 1, late_senders)
    by_source = {first: there, second: back}

    def turn(*_: object) -> None:
        there.is_slow = back.is_slow = not back.is_slow

    signal.signal(signal.SIGUSR1, turn)
    while True:
        dues = [direction.due for direction in (there, back) if direction.due is not None]
        wait = None if not dues else max(0.0, min(dues) - time.monotonic())
        readable, _, _ = select.select([first, second], [], [], wait)
        for fd in readable:
            by_source[fd].take()
        there.give()
        back.give()


if __name__ == "__main__":
    main()
