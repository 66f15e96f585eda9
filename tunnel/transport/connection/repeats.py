"""Small datagrams that are sent twice, on paths that lose some: games and voice cannot wait for a retransmission.

The copy stands in a REPEAT frame, which names the packet that had it first: whoever has seen that number needs no copy, so a
datagram is delivered once, by whichever comes first.  Copies are sent a little later, behind a few other packets, since losses
come in runs; they are in flight and paced like anything else, and a link that is full gets none.

`Repeats` is the sender's half; the receiver's is in receive.py, and needs no memory but the replay window.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from tunnel.core.bucket import Bucket
from tunnel.core.trace import Drops
from tunnel.transport.packet.frames import REPEAT, REPEAT_SIZE, Frame
from tunnel.transport.recovery.lossiness import LossMeter
from tunnel.transport.recovery.rtt import RttEstimator
from tunnel.units import Instant, Seconds

MOST_IN_ONE: Final = 600  # bytes of frames that are sent twice, and no more in one packet: about half of any packet of ours
REPEAT_RATE: Final = 64 * 1024  # bytes a second of copies to one peer: 128 datagrams a second of half a kilobyte
REPEAT_BURST: Final = 16 * 1024  # bytes of copies at once
MOST_WAITING: Final = 256  # copies that wait for their time; the oldest goes
APART_LEAST: Final = Seconds(0.010)  # between a datagram and its copy: some radios are silent for so long
APART_MOST: Final = Seconds(0.050)  # ... however few packets go in between: a game of 20 Hz has two by then
APART_PACKETS: Final = 3  # a run of so many lost packets does not take both
TOO_LATE: Final = Seconds(0.020)  # after its time a copy is worth nothing any more
LOSSY: Final = 0.01  # share lost from which on datagrams are sent twice ...
FEWEST_LOST: Final = 2.5  # ... if that is more than chance: so many packets of late
NOT_LOSSY: Final = 0.003  # share lost below which they are not, after
LOSSY_FOR: Final = Seconds(10.0)
FULL_FOR: Final = Seconds(1.0)  # no copies, after one found the window or the pacer in its way
QUEUE: Final = Seconds(0.025)  # over the shortest round trip, or half of that if it is more: what is lost then a full queue loses

AUTO: Final = "auto"
ALWAYS: Final = "always"


class _Copy(NamedTuple):
    since: Instant
    number: int  # of the packet that had it first
    frames: bytes


class Repeats:
    """Copies that wait for their time, and whether what is sent now is to have one."""

    __slots__ = ("_bucket", "_drops", "_full_until", "_is_lossy", "_lossy_until", "_mode", "_peer_takes",
                 "count", "is_on", "waiting")  # fmt: skip

    def __init__(self, drops: Drops) -> None:
        self._drops = drops
        self._mode = AUTO
        self._peer_takes = False
        self._is_lossy = False
        self._lossy_until = self._full_until = Instant(0.0)
        self._bucket = Bucket(REPEAT_BURST, REPEAT_RATE)
        self.waiting: deque[_Copy] = deque()  # the oldest first
        self.is_on = False  # what is sent now is to be sent twice
        self.count = 0  # packets whose copy was sent

    def set_mode(self, mode: str) -> None:
        """AUTO, ALWAYS, or anything else: never."""
        self._mode = mode
        self._decide(is_full=False)

    def peer_takes(self) -> None:
        """The peer knows REPEAT frames."""
        self._peer_takes = True
        self._decide(is_full=False)

    def judge(self, now: Instant, meter: LossMeter, rtt: RttEstimator) -> None:
        """The meter has something new."""
        if meter.share >= NOT_LOSSY:
            self._lossy_until = Instant(now + LOSSY_FOR)
            self._is_lossy = self._is_lossy or (meter.share >= LOSSY and meter.lost >= FEWEST_LOST)
        elif now >= self._lossy_until:
            self._is_lossy = False
        has_queue = rtt.smoothed_rtt > rtt.min_rtt + max(QUEUE, rtt.min_rtt / 2)
        self._decide(is_full=has_queue or now < self._full_until)

    def _decide(self, *, is_full: bool) -> None:
        wanted = self._mode == ALWAYS or (self._mode == AUTO and self._is_lossy and not is_full)
        self.is_on = wanted and self._peer_takes

    def add(self, now: Instant, number: int, frames: bytes) -> None:
        """Packet `number` has just been sealed with these DATAGRAM frames, or this PACKET frame."""
        if len(frames) > MOST_IN_ONE:
            return
        if not self._bucket.take(now, len(frames) + REPEAT_SIZE):
            self._drops["copy over the rate"] += 1
            return
        if len(self.waiting) >= MOST_WAITING:
            self.waiting.popleft()
            self._drops["copy over the rate"] += 1
        self.waiting.append(_Copy(now, number, frames))

    def due_at(self, next_number: int) -> Instant | None:
        """When the first copy is to leave, if the next packet has that number."""
        if not self.waiting:
            return None
        first = self.waiting[0]
        return Instant(first.since + (APART_LEAST if next_number - first.number >= APART_PACKETS else APART_MOST))

    def is_due(self, now: Instant, next_number: int) -> bool:
        """Whether one may leave now.  Those that nobody would miss any more are dropped."""
        waiting = self.waiting
        while waiting and now > waiting[0].since + APART_MOST + TOO_LATE:
            waiting.popleft()
            self._drops["copy too late"] += 1
        at = self.due_at(next_number)
        return at is not None and now >= at

    def write(self, now: Instant, view: memoryview, at: int, limit: int, next_number: int) -> int:
        """Put what is due into the packet that will have that number, as far as it fits; returns the position behind it."""
        while self.is_due(now, next_number):
            _, number, frames = self.waiting[0]
            size = len(frames)
            if at + REPEAT_SIZE + size > limit:
                break
            self.waiting.popleft()
            REPEAT.pack_into(view, at, Frame.REPEAT, number, size)
            at += REPEAT_SIZE
            view[at : at + size] = frames
            at += size
            self.count += 1
        return at

    def on_blocked(self, now: Instant, next_number: int) -> None:
        """Nothing may leave now: what is due is dropped, and for a while nothing is sent twice."""
        while self.is_due(now, next_number):
            self.waiting.popleft()
            self._drops["copy for a full link"] += 1
            self._full_until = Instant(now + FULL_FOR)
            self._decide(is_full=True)

    def drop_due(self, now: Instant, next_number: int) -> None:
        """Datagrams may not go where we send now."""
        while self.is_due(now, next_number):
            self.waiting.popleft()
            self._drops["copy for a path that carries none"] += 1
