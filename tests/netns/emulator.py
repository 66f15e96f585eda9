"""A link of our own between two tap devices: delay, rate, loss and a queue, since many kernels lack netem.

Run as `python -m tests.netns.emulator FD FD DELAY_S RATE_BIT_S LOSS SEED`; it ends with its parent.
"""

from __future__ import annotations

import os
import random
import select
import sys
import time
from collections import deque

QUEUE_S = 0.1
"""Seconds of rate that the queue before the link holds; a frame that would wait longer is dropped."""

FRAMES_A_TURN = 128


def is_neighbour_talk(frame: bytes) -> bool:
    """ARP, or IPv6 neighbour discovery: Ethernet's own business, which a lossy path beyond it does not lose."""
    kind = frame[12:14]
    return kind == b"\x08\x06" or (kind == b"\x86\xdd" and frame[20:21] == b"\x3a" and 133 <= frame[54] <= 137)


class Direction:
    """Frames on their way from one tap to the other, in order."""

    def __init__(self, source: int, sink: int, delay: float, rate: float, loss: float, seed: int) -> None:
        self.source = source
        self.sink = sink
        self._delay = delay
        self._byte_time = 8 / rate if rate else 0.0
        self._loss = loss
        self._rng = random.Random(seed)
        self._free_at = 0.0  # when the link has sent all that was given to it
        self._frames: deque[tuple[float, bytes]] = deque()

    @property
    def due(self) -> float | None:
        return self._frames[0][0] if self._frames else None

    def take(self) -> None:
        now = time.monotonic()
        for _ in range(FRAMES_A_TURN):
            try:
                frame = os.read(self.source, 65_536)
            except BlockingIOError:
                return
            if self._loss and self._rng.random() < self._loss and not is_neighbour_talk(frame):
                continue
            if self._byte_time:
                self._free_at = max(self._free_at, now)
                if self._free_at - now > QUEUE_S:
                    continue
                self._free_at += len(frame) * self._byte_time
                self._frames.append((self._free_at + self._delay, frame))
            else:
                self._frames.append((now + self._delay, frame))

    def give(self) -> None:
        now = time.monotonic()
        while self._frames and self._frames[0][0] <= now:
            frame = self._frames.popleft()[1]
            try:
                os.write(self.sink, frame)
            except OSError:  # the device is down or full: lost, as on any link
                continue


def main() -> None:
    first, second = int(sys.argv[1]), int(sys.argv[2])
    delay, rate, loss, seed = float(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]), int(sys.argv[6])
    there = Direction(first, second, delay, rate, loss, seed)
    back = Direction(second, first, delay, rate, loss, seed + 1)
    by_source = {first: there, second: back}
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
