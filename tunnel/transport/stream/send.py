"""The sending half of a stream: a ring of bytes that stay until the peer has acknowledged them.

The local socket is read straight into the ring (`space`, `commit`), datagrams are filled straight from it (`copy_to`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from tunnel.core.ranges import RangeSet
from tunnel.units import StreamId

SMALLEST_RING: Final = 16 * 1024  # bytes
_NO_RING: Final = bytearray(0)
_NO_VIEW: Final = memoryview(_NO_RING)

#: Puts what a local program has said into the room it is given, when that is about to be sent: how many bytes that was.
StreamSource: TypeAlias = Callable[[memoryview], int]


class SendStream:
    """Finishes when everything up to the FIN is acknowledged, or when a RESET is acknowledged.

    Offsets: `base` <= `sent` <= `written`.  Below `base` all is acknowledged; the ring holds [base, written).
    """

    __slots__ = (
        "_acked",
        "_mask",
        "_ring",
        "_view",
        "base",
        "fin_acked",
        "fin_lost",
        "fin_sent",
        "finished",
        "limit",
        "lost",
        "reset_acked",
        "reset_code",
        "scheduled",
        "sent",
        "source",
        "stream_id",
        "wants_space",
        "written",
    )

    def __init__(self, stream_id: StreamId, limit: int) -> None:
        self.stream_id = stream_id
        self.limit = limit  # the peer's credit, an offset
        self._ring = _NO_RING
        self._view = _NO_VIEW
        self._mask = 0
        self.base = 0
        self.sent = 0
        self.written = 0
        self._acked = RangeSet()
        self.lost = RangeSet()
        self.finished = False  # the application said finish()
        self.fin_sent = False
        self.fin_lost = False
        self.fin_acked = False
        self.reset_code: int | None = None
        self.reset_acked = False
        self.scheduled = False  # owned by Scheduler
        self.wants_space = False  # the application met an empty space(), or the source a full ring
        self.source: StreamSource | None = None

    # the application's side

    @property
    def is_roomy(self) -> bool:
        """A quarter of the ring is free: space() would not grow it."""
        size = len(self._ring)
        return size - (self.written - self.base) > size // 4

    @property
    def is_half_full(self) -> bool:
        """Less than half of the ring is free: who met it full waits, and then fills much at once."""
        return 2 * (self.written - self.base) > len(self._ring)

    def space(self, ring_limit: int, wanted: int = 0) -> memoryview:
        """Free contiguous room to read a local socket into; grows the ring up to `ring_limit` bytes.  May be empty."""
        if self.finished or self.reset_code is not None:
            return self._view[:0]
        size = len(self._ring)
        held = self.written - self.base
        if not self.is_roomy and size < ring_limit:
            size = max(SMALLEST_RING, size * 2)
            while size < held + wanted and size < ring_limit:
                size *= 2
            self._grow(size)
        index = self.written & self._mask
        return self._view[index : index + min(size - held, size - index)]

    def commit(self, count: int) -> None:
        """`count` bytes were put into what space() gave."""
        if self.reset_code is None:
            self.written += count

    def write(self, data: memoryview, ring_limit: int) -> int:
        """Copy in what fits; returns how much that was."""
        done = 0
        while done < len(data):
            room = self.space(ring_limit)
            count = min(len(room), len(data) - done)
            if not count:
                break
            room[:count] = data[done : done + count]
            self.commit(count)
            done += count
        return done

    def pull(self, most: int, least: int, ring_limit: int, *, are_others: bool) -> bool:
        """Have the source top up what is unsent to `most` bytes, if that is less than `least`; False if that has to wait.

        A source that gives less than it could is let go.  Where others have something to send, bulk waits until the peer's
        credit is enough for all of `most`, or no more of it is on its way: small turns cost as much as large ones.
        """
        if self.written - self.sent >= least or self.lost:
            return True
        if are_others and self.limit - self.sent < most and self.base < self.sent:
            return False
        while self.source is not None and (wanted := min(self.sent + most, self.limit) - self.written) > 0:
            room = self.space(ring_limit, wanted)[:wanted]
            if not len(room):
                self.wants_space = True
                return self.written - self.sent >= least
            count = self.source(room)
            self.commit(count)
            if count < len(room):
                self.source = None
        return True

    def _grow(self, size: int) -> None:
        ring = bytearray(size)
        view = memoryview(ring)
        mask = size - 1
        position = self.base
        while position < self.written:
            old, new = position & self._mask, position & mask
            count = min(self.written - position, len(self._ring) - old, size - new)
            view[new : new + count] = self._view[old : old + count]
            position += count
        self._ring, self._view, self._mask = ring, view, mask

    def finish(self) -> None:
        self.finished = True
        self.source = None

    def reset(self, code: int) -> None:
        """Give up: what is not acknowledged is thrown away, the peer is told `code`."""
        if self.reset_code is None and not self.is_done:
            self.reset_code = code
            self.source = None
            self._drop_ring()

    def rest(self) -> None:
        """Nothing has been sent for a while: give the ring back, unless something is in it."""
        if self.base == self.written:
            self._drop_ring()

    def _drop_ring(self) -> None:
        self._ring = _NO_RING
        self._view = _NO_VIEW
        self._mask = 0
        if self.lost:
            self.lost = RangeSet()

    # the packet's side

    @property
    def is_done(self) -> bool:
        return self.reset_acked or (self.fin_acked and self.base >= self.written)

    @property
    def final_size(self) -> int:
        """Return the highest offset that was ever sent: a RESET announces it (RFC 9000 §4.5)."""
        return self.sent

    def has_work(self, may_send_new: bool = True) -> bool:
        """Whether a datagram could carry something of this stream now; `may_send_new` is the connection's credit."""
        if self.reset_code is not None:
            return False
        if self.lost or self.fin_lost:
            return True
        if self.sent < self.written or (self.source is not None and not self.wants_space):
            return may_send_new and self.sent < self.limit
        return self.finished and not self.fin_sent

    def next_range(self, most: int, credit: int) -> tuple[int, int, bool, bool]:
        """Choose what to send next: offset, length (at most `most`), whether the FIN goes with it, whether it is new data.

        `credit` is what the connection still may send of new bytes.  Lost bytes go first.  Call `mark_sent` once it is sealed.
        """
        if self.lost:
            start, stop = self.lost.first
            length = min(stop - start, most)
            fin = self.fin_sent and not self.fin_acked and start + length == self.written
            return start, length, fin, False
        start = self.sent
        length = max(0, min(self.written - start, self.limit - start, most, credit))
        fin = self.finished and start + length == self.written and (not self.fin_sent or self.fin_lost)
        return start, length, fin, True

    def mark_sent(self, offset: int, length: int, fin: bool, new: bool) -> None:
        if new:
            self.sent = offset + length
        else:
            self.lost.remove(offset, offset + length)
        if fin:
            self.fin_sent = True
            self.fin_lost = False

    def copy_to(self, out: memoryview, position: int, offset: int, length: int) -> None:
        """Copy stream bytes [offset, offset + length) to `out` at `position`."""
        index = offset & self._mask
        first = len(self._ring) - index
        if length <= first:
            out[position : position + length] = self._view[index : index + length]
        else:
            out[position : position + first] = self._view[index:]
            out[position + first : position + length] = self._view[: length - first]

    @property
    def contiguous(self) -> tuple[memoryview, int]:
        """The ring and its mask, for the hot loop of transport/connection/send.py."""
        return self._view, self._mask

    def on_acked(self, offset: int, length: int, fin: bool) -> None:
        """The peer has [offset, offset + length), and the FIN if `fin`."""
        if fin:
            self.fin_acked = True
            self.fin_lost = False
        stop = offset + length
        if stop <= self.base:
            return
        if self.lost:  # it was declared lost, and arrived after all
            self.lost.remove(offset, stop)
        if offset > self.base:
            self._acked.add(offset, stop)
            return
        self.base = stop
        while self._acked and self._acked.first[0] <= self.base:
            self.base = max(self.base, self._acked.pop_first()[1])

    def on_lost(self, offset: int, length: int, fin: bool) -> None:
        """[offset, offset + length) must be sent again, unless it was acknowledged by another copy."""
        if self.reset_code is not None:
            return
        start, stop = max(offset, self.base), offset + length
        if start < stop:
            self.lost.add(start, stop)
            for acked_start, acked_stop in self._acked.overlapping(start, stop):
                self.lost.remove(acked_start, acked_stop)
        if fin and not self.fin_acked:
            self.fin_lost = True

    def on_reset_acked(self) -> None:
        self.reset_acked = True
