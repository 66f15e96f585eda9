"""Unreliable datagrams (RFC 9221): a short queue out, and the rejoining of those that were split."""

from __future__ import annotations

from collections import deque
from typing import Final, TypeAlias

from tunnel.core.trace import Drops
from tunnel.errors import MalformedPacket
from tunnel.units import Instant, Seconds

QUEUE_TIME: Final = Seconds(0.005)  # a datagram older than this is worth less than the next one
QUEUE_BYTES: Final = 1024 * 1024  # bytes queued: 5 ms at 1.6 Gbit/s
ENTRY_BYTES: Final = 64  # what a queued datagram counts for besides its payload, so that empty ones are bounded too
MAX_DATAGRAM: Final = 65_507  # bytes: the largest UDP payload over IPv4
MAX_FRAGMENTS: Final = 255
REJOIN_TIME: Final = Seconds(2.0)  # a datagram not whole by then never will be: several round trips
REJOIN_BYTES: Final = 1024 * 1024  # bytes of incomplete datagrams; the oldest goes first


#: Flow, id, fragment index, fragment count, payload.
Fragment: TypeAlias = tuple[int, int, int, int, bytes | memoryview]


class DatagramQueue:
    """The queue of datagrams to send: the oldest is dropped first."""

    __slots__ = ("_bytes", "_next_id", "_queue", "drops")

    def __init__(self, drops: Drops) -> None:
        self._queue: deque[tuple[int, int, bytes, int, int, Instant]] = deque()  # flow, id, data, offset sent, step, since
        self._bytes = 0
        self._next_id = 0
        self.drops = drops

    def __bool__(self) -> bool:
        return bool(self._queue)

    def __len__(self) -> int:
        return len(self._queue)

    def push(self, now: Instant, flow: int, batch: list[bytes]) -> None:
        append, identifier, size = self._queue.append, self._next_id, 0
        for data in batch:
            append((flow, identifier, data, 0, 0, now))
            identifier = (identifier + 1) & 0xFFFF
            size += len(data) + ENTRY_BYTES
        self._next_id = identifier
        self._bytes += size
        while self._bytes > QUEUE_BYTES:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, _, data, _, _, _ = self._queue.popleft()
        self._bytes -= len(data) + ENTRY_BYTES
        self.drops["datagram waited too long"] += 1

    def drop_stale(self, now: Instant) -> None:
        """Call when the path lets nothing more through.  One that is partly sent is finished first."""
        kept = self._queue.popleft() if self._queue and self._queue[0][3] else None
        while self._queue and now - self._queue[0][5] > QUEUE_TIME:
            self._drop_oldest()
        if kept is not None:
            self._queue.appendleft(kept)

    def head_size(self) -> int:
        """Bytes of payload that the next fragment has: all that is left of the first datagram, or the step it was split by."""
        _, _, data, offset, step, _ = self._queue[0]
        left = len(data) - offset
        return min(left, step) if step else left

    def take_run(self, count: int, over: int, room: int) -> list[Fragment]:
        """Up to `count` fragments for a burst of equal packets: all of one size, but the last may be shorter.

        Each has at most `room` bytes and more than `over`: less is better sent together in one packet.
        """
        queue = self._queue
        run: list[Fragment] = []
        size = 0  # of the first, once there is one
        while queue and len(run) < count:
            flow, identifier, data, offset, step, _ = queue[0]
            length = len(data) - offset
            if step and step < length:
                length = step
            elif length > room:
                length = room
            if length <= over or (size and length > size):
                break
            if length == len(data):
                queue.popleft()
                self._bytes -= length + ENTRY_BYTES
                run.append((flow, identifier, 0, 1, data))
            else:
                fragment = self.next_fragment(room)
                if fragment is None:
                    continue
                run.append(fragment)
            if not size:
                size = length
            elif length < size:
                break
        return run

    def next_fragment(self, room: int) -> Fragment | None:
        """A fragment of at most `room` bytes; None when the head cannot be sent so.

        A datagram is split by the `room` of its first fragment; when a later one no longer fits, it is given up and counted.
        """
        flow, identifier, data, offset, step, since = self._queue[0]
        size = len(data)
        if offset == 0 and size <= room:
            self._queue.popleft()
            self._bytes -= size + ENTRY_BYTES
            return flow, identifier, 0, 1, data
        if not step:
            step = room
        count = -(-size // step)
        payload = memoryview(data)[offset : offset + step]
        if count > MAX_FRAGMENTS or len(payload) > room:
            self._drop_oldest()
            return None
        index = offset // step
        if offset + step >= size:
            self._queue.popleft()
            self._bytes -= size + ENTRY_BYTES
        else:
            self._queue[0] = (flow, identifier, data, offset + step, step, since)
        return flow, identifier, index, count, payload


class _Partial:
    __slots__ = ("bytes", "count", "parts", "since")

    def __init__(self, count: int, since: Instant) -> None:
        self.count = count
        self.since = since
        self.parts: dict[int, bytes] = {}
        self.bytes = 0


class Rejoiner:
    """Puts split datagrams together again, within REJOIN_BYTES and REJOIN_TIME."""

    __slots__ = ("_bytes", "_partials", "drops")

    def __init__(self, drops: Drops) -> None:
        self._partials: dict[tuple[int, int], _Partial] = {}
        self._bytes = 0
        self.drops = drops

    def add(self, now: Instant, flow: int, identifier: int, index: int, count: int, data: bytes) -> bytes | None:
        """The whole datagram when this was the missing piece.  Raises MalformedPacket on an impossible index."""
        if index >= count:
            raise MalformedPacket("DATAGRAM: fragment index beyond the count")
        key = (flow, identifier)
        partial = self._partials.get(key)
        if partial is None or partial.count != count or now - partial.since > REJOIN_TIME:
            if partial is not None:
                self._forget(key)
            partial = self._partials[key] = _Partial(count, now)
        if index in partial.parts:
            return None
        partial.parts[index] = data
        partial.bytes += len(data)
        self._bytes += len(data)
        if len(partial.parts) == count:
            del self._partials[key]
            self._bytes -= partial.bytes
            if partial.bytes > MAX_DATAGRAM:
                self.drops["split datagram never whole"] += 1
                return None
            return b"".join(partial.parts[n] for n in range(count))
        while self._bytes > REJOIN_BYTES or len(self._partials) > MAX_FRAGMENTS:
            self._forget(next(iter(self._partials)))
        return None

    def _forget(self, key: tuple[int, int]) -> None:
        self._bytes -= self._partials.pop(key).bytes
        self.drops["split datagram never whole"] += 1
