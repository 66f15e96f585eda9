"""IP packets that are sent again where the path loses some: what is lost of bulk in the LAN costs a flow inside a moment, not its
rate.

Only while the path loses packets without a queue, only what the caller asks it for, and only to a peer that takes it: such
packets carry PACKET_KEPT, so that the peer acknowledges them and keeps the order of the flows (room/ip/order.py).  Loss
detection is that of everything else (recovery/loss.py); they are not in flight, as the flows inside have their own congestion
control.  That must go on hearing of congestion: what is lost while a queue shows, or beyond a small share, is not sent again.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from tunnel.core.trace import Drops
from tunnel.transport.packet.frames import PACKET_AGAIN, PACKET_IN_ORDER, PACKET_KEPT, PACKET_LAST, Frame
from tunnel.transport.recovery.lossiness import LossMeter
from tunnel.transport.recovery.rtt import RttEstimator
from tunnel.units import Instant, Seconds

REPAIR_FROM: Final = 0.002  # share lost from which on packets are kept for repair ...
FEWEST_LOST: Final = 2.5  # ... if so many packets of late were
REPAIR_FOR: Final = Seconds(30.0)  # after the share has fallen below that
MOST_KEPT: Final = 4 * 1024 * 1024  # bytes of packets that may be asked for again; the oldest go
KEPT_FOR: Final = Seconds(2.0)  # they are worth nothing after that
REPAIR_SHARE: Final = 0.1  # of the packets sent that are sent again, at most: a flow that overfills the path hears of it
REPAIR_AT_ONCE: Final = 64  # packets of that without waiting
SECOND_AFTER: Final = Seconds(0.005)  # each is sent again twice, so long apart: the second time comes too late for a third
PINGS: Final = 3  # behind a packet after which none comes: so many have to come for it to be lost by distance
PING_AFTER: Final = Seconds(0.005)  # between them, and after the packet
QUEUE_LEAST: Final = Seconds(0.010)  # over the shortest round trip, or a quarter of it if that is more: a queue ...
ROUND_LEAST: Final = Seconds(0.05)  # in which the shortest round trip is looked for, or two round trips
QUEUE_SHARE: Final = 1 / 4  # ... that the flows inside have to hear of


_PACKET: Final = int(Frame.PACKET)


class Kept:
    """The frames of a burst of PACKETs: `index` of the first segment, `tail` behind it, and `step` bytes of `data` each.

    Without a step `data` is one frame, of a packet that is whole.
    """

    __slots__ = ("_flags", "_index", "_is_last", "_step", "_tail", "data")

    def __init__(
        self, data: bytes, step: int = 0, index: int = 0, flags: int = 0, tail: bytes = b"", *, is_last: bool = False
    ) -> None:
        self.data = data  # empty once it is not kept any more
        self._step = step
        self._index = index
        self._flags = flags
        self._tail = tail
        self._is_last = is_last  # the super-packet ends with the burst

    def frame(self, number: int) -> bytes:
        """That of the packet of this number in the burst, as it is sent again."""
        if not self._step:
            return self.data[:1] + bytes((self.data[1] | PACKET_AGAIN,)) + self.data[2:]
        start = number * self._step
        end = start + self._step
        flags = self._flags | (PACKET_LAST if self._is_last and end >= len(self.data) else 0)
        return bytes((_PACKET, flags | PACKET_AGAIN, self._index + number)) + self._tail + self.data[start:end]


class Repair:
    """The sender's half."""

    __slots__ = (
        "_bytes",
        "_drops",
        "_first",
        "_has_queue",
        "_is_lossy",
        "_is_wanted",
        "_kept",
        "_lossy_until",
        "_peer_takes",
        "_ping_at",
        "_pings",
        "_round_until",
        "_second",
        "_shortest",
        "_tokens",
        "count",
        "flags",
    )

    def __init__(self, drops: Drops) -> None:
        self._drops = drops
        self._is_wanted = True
        self._peer_takes = self._is_lossy = self._has_queue = False
        self._lossy_until = Instant(0.0)
        self._shortest = math.inf  # round trip since then
        self._round_until = Instant(0.0)
        self._kept: deque[tuple[Instant, Kept, int]] = deque()
        self._bytes = 0
        self._tokens = float(REPAIR_AT_ONCE)
        self._first: deque[bytes] = deque()  # frames to be sent again at once
        self._second: deque[tuple[Instant, bytes]] = deque()  # ... and once more then
        self.flags = 0  # of packets that are sealed now and are to be kept
        self._pings, self._ping_at = 0, Instant(0.0)  # that are to leave behind the last packet that was kept
        self.count = 0  # packets sent again

    def set_wanted(self, is_wanted: bool) -> None:
        self._is_wanted = is_wanted
        self._decide()

    def peer_takes(self) -> None:
        """The peer acknowledges such packets, and keeps order."""
        self._peer_takes = True
        self._decide()

    def look(self, now: Instant, meter: LossMeter, rtt: RttEstimator) -> None:
        """An ACK came."""
        self._look_for_queue(now, rtt)
        if meter.lost < FEWEST_LOST and not self._is_lossy:
            return
        if meter.share >= REPAIR_FROM and meter.lost >= FEWEST_LOST and not self._has_queue:
            self._is_lossy = True
            self._lossy_until = Instant(now + REPAIR_FOR)
        elif now >= self._lossy_until:
            self._is_lossy = False
        self._decide()

    def _look_for_queue(self, now: Instant, rtt: RttEstimator) -> None:
        """One that stands: the shortest round trip of some time shows it, since the flows inside send in bursts."""
        if rtt.latest_rtt < self._shortest:
            self._shortest = rtt.latest_rtt
        if now >= self._round_until:
            self._has_queue = self._shortest > rtt.min_rtt + max(QUEUE_LEAST, rtt.min_rtt * QUEUE_SHARE)
            self._shortest = math.inf
            self._round_until = Instant(now + max(ROUND_LEAST, 2 * rtt.smoothed_rtt))

    def _decide(self) -> None:
        if not (self._is_wanted and self._peer_takes and self._is_lossy):
            self.flags = 0
        else:
            self.flags = PACKET_KEPT if self._has_queue else PACKET_KEPT | PACKET_IN_ORDER

    def keep(self, now: Instant, kept: Kept, count: int) -> None:
        """A burst of so many packets has just been sealed."""
        self._pings, self._ping_at = PINGS, Instant(now + PING_AFTER)
        self._tokens = min(self._tokens + count * REPAIR_SHARE, float(REPAIR_AT_ONCE))
        self._kept.append((now, kept, len(kept.data)))
        self._bytes += len(kept.data)
        while self._bytes > MOST_KEPT or now > self._kept[0][0] + KEPT_FOR:
            _, oldest, size = self._kept.popleft()
            oldest.data = b""
            self._bytes -= size

    def on_lost(self, kept: Kept, mask: int) -> None:
        """The packets in `mask` of a burst are lost."""
        while mask and kept.data:
            number = (mask & -mask).bit_length() - 1
            mask &= mask - 1
            if self._has_queue or self._tokens < 1.0:
                self._drops["lost packet left to its flow"] += 1
                continue
            self._tokens -= 1.0
            self._first.append(kept.frame(number))

    @property
    def is_at_work(self) -> bool:
        """Whether `next_frame` and `takes_ping` may have something to say, now or later."""
        return bool(self._first or self._second or self._pings)

    @property
    def due_at(self) -> Instant | None:
        """When to ask them."""
        second = self._second[0][0] if self._second else None
        if not self._pings:
            return second
        return self._ping_at if second is None or self._ping_at < second else second

    def takes_ping(self, now: Instant) -> bool:
        """Whether a PING is to leave now: without packets behind it nobody would know that the last one is lost."""
        if not self._pings or now < self._ping_at:
            return False
        self._pings -= 1
        self._ping_at = Instant(now + PING_AFTER)
        return True

    def next_frame(self, now: Instant) -> bytes | None:
        """The plaintext of a packet that is to be sent again now."""
        if self._first:
            frame = self._first.popleft()
            self._second.append((Instant(now + SECOND_AFTER), frame))
        elif self._second and now >= self._second[0][0]:
            frame = self._second.popleft()[1]
        else:
            return None
        self.count += 1
        return frame
