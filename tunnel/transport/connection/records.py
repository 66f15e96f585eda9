"""Records: what is sealed once and travels in many datagrams.

A cipher call costs a microsecond besides its bytes, so a fast stream does not pay it for every datagram.  A record is frames and
tag as in any packet, cut into equal parts.  Each part stands behind a header with a sequence number of its own, so that loss is
found and answered as ever; the record's own number, the nonce, is that of its first part, and that part's header is the
associated data.  Losing one part loses all of them: see docs/decisions/records.md for when records are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain, repeat
from operator import setitem
from struct import Struct
from typing import Final, cast

from tunnel.transport.crypto.batch import Crypt, nonce_of, run_through
from tunnel.transport.packet.header import TAG_SIZE, segments_a_call
from tunnel.transport.packet.slots import Column, SlotCutter, Slots

RECORD: Final = 0x81
RECORD_HEADER: Final = Struct(">BIQBB")  # type, receiver index, sequence number, index of the part, parts in all
RECORD_HEADER_SIZE: Final = RECORD_HEADER.size  # 15 bytes
LEAST_PARTS: Final = 16  # of a record that we send: fewer save little, and such small bursts are those of slower links
MOST_PARTS: Final = 32  # of a record: what one lost datagram takes with it
MOST_BYTES: Final = 65_536  # of a record, sealed: it bounds what waits for missing parts; a STREAM frame holds no more either
SPARE: Final = 2  # bytes a part, at LEAST_PARTS, which pay for the head of a STREAM frame and the tag; what is left is PADDING

PADDED: Final = bytes(MOST_PARTS * SPARE)  # more than stands behind a record's frames

_PART = Struct(">5sQBB")  # type and receiver index, sequence number, index, parts
_ALL = slice(None)
_fill = cast(Callable[[memoryview, slice, memoryview], None], setitem)


def record_step(size: int) -> int:
    """Bytes of a stream in each datagram of `size` bytes (without the channel) of a record."""
    return size - RECORD_HEADER_SIZE - SPARE


def split(datagrams: int, size: int, most: int) -> tuple[int, int]:
    """How many records of how many parts make the best of so many datagrams of `size` bytes.

    `most` is how many parts the peer takes.  (0, 0) where records are of no use.  A record does not go beyond a kernel call, of
    which the driver makes as few as it can, and equal ones.
    """
    most = min(most, MOST_PARTS, (MOST_BYTES - 1) // size)
    if datagrams < LEAST_PARTS or most < LEAST_PARTS:
        return 0, 0
    full = segments_a_call(size)
    calls = -(-datagrams // full)
    call = datagrams // calls
    if call < LEAST_PARTS:  # of large datagrams: what is over a full call waits
        calls, call = 1, full
    records = -(-call // most)
    parts = call // records
    if parts < LEAST_PARTS:  # by so small a `most` that one record more would leave too few for each
        records, parts = call // most, most
    return (calls * records, parts) if records else (0, 0)


def copy_into(places: Iterable[memoryview], pieces: Iterable[memoryview]) -> None:
    """Copy as many pieces to places of the same sizes as the shorter of the two columns has."""
    run_through(map(_fill, places, repeat(_ALL), pieces))


def bodies(buffer: memoryview, stride: int, skip: int) -> Column:
    """Cut `buffer` into the bodies of its whole datagrams of `stride` bytes, each a part of a record."""
    head = skip + RECORD_HEADER_SIZE
    return [buffer[at + head : at + stride] for at in range(0, len(buffer) - stride + 1, stride)]


class Whole:
    """A buffer where a record lies in one piece, `whole`, cut into its parts' bodies.  Most connections never need it."""

    __slots__ = ("_body", "_pieces", "whole")

    def __init__(self) -> None:
        self.whole = memoryview(b"")
        self._body = 0
        self._pieces: Column = []

    def pieces(self, body: int) -> Column:
        """Of `body` bytes each, as many as a record may have."""
        if body != self._body:
            if not self._body:
                self.whole = memoryview(bytearray(MOST_BYTES))
            self._body = body
            self._pieces = [self.whole[at : at + body] for at in range(0, body * min(MOST_PARTS, MOST_BYTES // body), body)]
        return self._pieces


class RecordSealer:
    """Seals records into the caller's buffer, by way of one of its own, where the record lies in one piece."""

    __slots__ = ("_cutter", "_padding", "_parts", "_pieces", "_plain", "_rest", "_sealed", "_slots", "_staging")

    def __init__(self) -> None:
        self._staging = Whole()
        self._pieces: Column = []
        self._cutter = SlotCutter(RECORD_HEADER_SIZE)
        self._slots = Slots([], [], [], [], [])
        self._parts = 0
        self._padding = b""
        self._plain = self._rest = self._sealed = memoryview(b"")  # of the staging buffer: frames, what they leave, and all

    def headers(
        self,
        buffer: memoryview,
        size: int,
        prefix: bytes,
        first: int,
        ours: bytes,
        number: int,
        records: int,
        parts: int,
        used: int,
    ) -> memoryview:
        """Write prefix and header of the datagrams of so many records; `ours` is type and receiver index.

        The burst's datagrams are `size` bytes each, prefix included; the records' begin with the one numbered `first`, whose
        sequence number is `number`.  Returns where the frames of each record belong before it is sealed, one after the other:
        `used` bytes of it, behind which comes PADDING.
        """
        skip, count = len(prefix), records * parts
        self._pieces = self._staging.pieces(size - skip - RECORD_HEADER_SIZE)
        self._slots = slots = self._cutter.of(buffer, size, skip, 0)
        self._parts = parts
        places = slots.whole[first : first + count]
        if prefix:
            slots.part(first, count).put_prefix(prefix)
        numbers = range(number, number + count)
        indices = chain.from_iterable(repeat(range(parts), records))
        run_through(map(_PART.pack_into, places, repeat(skip), repeat(ours), numbers, indices, repeat(parts)))
        if (sealed := parts * len(self._pieces[0])) != len(self._sealed) or used + len(self._padding) + TAG_SIZE != sealed:
            self._padding = bytes(sealed - TAG_SIZE - used)
            self._sealed = self._staging.whole[:sealed]
            self._plain = self._sealed[: sealed - TAG_SIZE]
            self._rest = self._plain[used:]
        return self._plain

    def seal(self, seal: Crypt, number: int, first: int) -> None:
        """Seal the frames as the record with that number, whose parts begin with the one at `first`."""
        self._rest[:] = self._padding  # there is the end of the record before
        seal(nonce_of(number), self._plain, self._slots.header[first], self._sealed)
        run_through(map(_fill, self._slots.sealed[first : first + self._parts], repeat(_ALL), self._pieces))
