"""The order of TCP flows of a member that sends lost packets again: what came behind a gap waits a moment for what fills it.

Without that a flow's receiver would report each packet that was sent again as lost, and its sender would slow down for it.  A
flow waits for its own gaps alone, told by its sequence numbers, and never longer than it was said: then all goes on as it came.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from typing import Final, NamedTuple

from tunnel.shell.packets import PacketRun
from tunnel.units import Buffer, Instant, Seconds

MOST_FLOWS: Final = 256  # of one member; the one longest silent is forgotten
MOST_HELD: Final = 4 * 1024 * 1024  # bytes held of one member: 0.3 s at 100 Mbit/s; then its flows go on
MOST_HELD_OF_ALL: Final = 16 * MOST_HELD  # bytes held of all members together: a room may have 64
ENTRY: Final = 512  # bytes that each of them counts for besides, so that empty ones are bounded too
WAIT_RTTS: Final = 1.5  # round trips that a packet waits for one that was lost before it ...
WAIT_SLACK: Final = Seconds(0.020)  # ... and so much: until the loss is noticed, and for the second time that it is sent
MOST_WAIT: Final = Seconds(0.5)  # whatever the round trip
FORGET_AFTER: Final = Seconds(10.0)  # of nothing that is kept for repair
TCP: Final = 6
_SYN, _RST = 0x02, 0x04
_SPACE: Final = 1 << 32  # of sequence numbers
_HALF: Final = 1 << 31


class Placed(NamedTuple):
    """A run in its flow: which one that is, its first sequence number, and how many bytes it has."""

    flow: bytes
    sequence: int
    size: int
    is_first: bool  # SYN or RST: numbers begin anew


def place(run: PacketRun) -> Placed | None:
    """None: it is not TCP, or only a fragment of it."""
    head: Buffer = run.head or run.payloads[0]
    length = len(head)
    if length < 40:
        return None
    if head[0] >> 4 == 4:
        at, total = (head[0] & 15) * 4, head[2] << 8 | head[3]
        if head[9] != TCP or (head[6] & 0x3F) or head[7] or length < at + 20:
            return None
        ends = bytes(head[12:20])
    else:
        at, total = 40, 40 + (head[4] << 8 | head[5])
        if head[6] != TCP or length < 60:
            return None
        ends = bytes(head[8:40])
    size = run.size if run.gso_size else total - at - (head[at + 12] >> 4) * 4
    sequence = (int.from_bytes(head[at + 4 : at + 8], "big") + run.first * run.gso_size) % _SPACE
    return Placed(ends + bytes(head[at : at + 4]), sequence, size, bool(head[at + 13] & (_SYN | _RST)))


class _Held(NamedTuple):
    distance: int  # from where its flow began to wait; what they are sorted by
    sequence: int
    size: int
    until: Instant
    run: PacketRun


class _Flow:
    __slots__ = ("base", "expected", "held")

    def __init__(self, expected: int) -> None:
        self.expected = expected  # the next sequence number
        self.base = expected  # of the distances
        self.held: list[_Held] = []


class Held:
    """The bytes that are held of all members together."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class Order:
    """Of one member."""

    def __init__(self, of_all: Held | None = None) -> None:
        self._of_all = Held() if of_all is None else of_all
        self._kept_at = Instant(0.0)
        self._flows: OrderedDict[bytes, _Flow] = OrderedDict()
        self._waiting: dict[bytes, _Flow] = {}  # those that hold something
        self._bytes = 0
        self.given_up = 0  # gaps that were not filled in time

    def __bool__(self) -> bool:
        return bool(self._flows)

    @property
    def due_at(self) -> Instant | None:
        """When to call `due`."""
        return min((flow.held[0].until for flow in self._waiting.values()), default=None)

    def take(self, now: Instant, runs: list[PacketRun], wait: Seconds) -> list[PacketRun]:
        """Return what may go on now; the rest is kept, for `wait` at most.  The views of `runs` need not live on."""
        passed: list[PacketRun] = []
        for run in runs:
            if run.is_in_order:
                self._kept_at = now
            placed = place(run)
            if placed is None or placed.size <= 0:
                passed.append(run)
                continue
            key, sequence, size, is_first = placed
            flow = self._flows.get(key)
            if flow is None or is_first:
                if flow is not None:
                    self._release_all(key, flow, passed)
                    del self._flows[key]
                if run.is_in_order and not is_first:
                    self._begin(key, (sequence + size) % _SPACE, passed)
                passed.append(run)
                continue
            self._flows.move_to_end(key)
            ahead = (sequence - flow.expected) % _SPACE
            if 0 < ahead < _HALF and run.is_in_order and self._has_room(run.size + ENTRY):
                self._hold(key, flow, sequence, size, run, Instant(now + wait))
                continue
            if run.is_again and ahead >= _HALF:
                continue  # it was sent again twice
            if 0 < ahead < _HALF:  # nobody fills the gap
                self._release_all(key, flow, passed)
            passed.append(run)
            self._advance(flow, sequence, size)
            self._release(key, flow, passed)
        if now > self._kept_at + FORGET_AFTER and not self._waiting:
            self._flows.clear()
        return passed

    def due(self, now: Instant) -> list[PacketRun]:
        """Let go on what has waited in vain."""
        passed: list[PacketRun] = []
        for key, flow in list(self._waiting.items()):
            while flow.held and flow.held[0].until <= now:
                self.given_up += 1
                flow.expected = flow.held[0].sequence
                self._release(key, flow, passed)
        return passed

    def forget(self) -> None:
        """The member is gone, and what is held of it with it."""
        self._count(-self._bytes)
        self._flows.clear()
        self._waiting.clear()

    def _has_room(self, size: int) -> bool:
        return self._bytes + size <= MOST_HELD and self._of_all.bytes + size <= MOST_HELD_OF_ALL

    def _count(self, change: int) -> None:
        self._bytes += change
        self._of_all.bytes += change

    def _begin(self, key: bytes, expected: int, passed: list[PacketRun]) -> None:
        self._flows[key] = _Flow(expected)
        if len(self._flows) > MOST_FLOWS:
            oldest, flow = self._flows.popitem(last=False)
            self._release_all(oldest, flow, passed)

    def _hold(self, key: bytes, flow: _Flow, sequence: int, size: int, run: PacketRun, until: Instant) -> None:
        if not flow.held:
            flow.base = flow.expected
            self._waiting[key] = flow
        distance = (sequence - flow.base) % _SPACE
        if any(each.distance == distance and each.size == size for each in flow.held[-64:]):
            return  # it came twice
        self._count(run.size + ENTRY)
        whole = memoryview(b"".join(run.payloads))
        step = run.gso_size or len(whole)
        payloads = [whole[at : at + step] for at in range(0, len(whole), step)]
        insort(flow.held, _Held(distance, sequence, size, until, run._replace(payloads=payloads)), key=lambda each: each.distance)

    @staticmethod
    def _advance(flow: _Flow, sequence: int, size: int) -> None:
        end = (sequence + size) % _SPACE
        if 0 < (end - flow.expected) % _SPACE < _HALF:
            flow.expected = end

    def _release(self, key: bytes, flow: _Flow, passed: list[PacketRun]) -> None:
        """Let go on whatever follows without a gap now."""
        held, count = flow.held, 0
        while count < len(held) and not 0 < (held[count].sequence - flow.expected) % _SPACE < _HALF:
            each = held[count]
            self._count(-each.run.size - ENTRY)
            self._advance(flow, each.sequence, each.size)
            passed.append(each.run)
            count += 1
        if count:
            del held[:count]
            if not held:
                del self._waiting[key]

    def _release_all(self, key: bytes, flow: _Flow, passed: list[PacketRun]) -> None:
        while flow.held:
            self.given_up += 1
            flow.expected = flow.held[0].sequence
            self._release(key, flow, passed)
