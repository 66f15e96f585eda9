"""Opening what a batch brings: into one buffer, packets of one size side by side, many in one go.

What consecutive ones carry of one stream is gathered where it lies, and becomes one piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat, takewhile
from operator import eq
from typing import Final

from tunnel.transport.crypto.batch import Crypt, open_batch
from tunnel.transport.packet.frames import STREAM, STREAM_SIZE, Frame
from tunnel.transport.packet.header import HEADER, OVERHEAD, TRANSPORT
from tunnel.transport.packet.slots import MAX_PLAINS, Kept, Plains, cells

ROOM: Final = 2 * 65_536  # bytes that one batch opens to: what the driver receives at once; a larger one is handled in pieces
FEW: Final = 4  # datagrams: to open fewer in one go saves nothing

_STREAM = int(Frame.STREAM)


class Opener:
    """`plains` is the buffer, which serves all batches, of many connections too: nothing points into it once a batch is done."""

    __slots__ = ("_cells", "plains")

    def __init__(self, plains: Plains) -> None:
        self.plains = plains
        self._cells = Kept(cells)

    def ahead(
        self, unseal: Crypt, buffer: memoryview, position: int, stride: int, prefix: bytes, receiver: int, number: int, at: int
    ) -> int:
        """Open the full datagrams from `position` on that are numbered on from `number`, to `at` and behind; returns how many.

        At the first surprise it leaves: what follows is looked at by itself.
        """
        if len(buffer) - position < FEW * stride:
            return 0
        skip = len(prefix)
        size = stride - skip - OVERHEAD
        cell, misaligned = divmod(position, stride)
        place, off = divmod(at, size) if size > 0 else (0, 1)
        if misaligned or off:
            return 0
        found = self._cells.of(buffer, stride, skip)
        headers = found.header[cell:]
        plains = self.plains.wholes(size)[place:]
        count = min(consecutive(headers, receiver, number), len(plains))
        if skip and b"".join(found.prefix[cell : cell + count]) != prefix * count:
            return 0
        return open_batch(unseal, number, count, found.sealed[cell:], headers, plains)


def consecutive(headers: list[memoryview], receiver: int, first: int) -> int:
    """How many of `headers` say the sequence numbers from `first` on: a look, not a proof, so that little is opened in vain."""
    unpack, count = HEADER.unpack_from, len(headers)
    if count and unpack(headers[-1]) == (TRANSPORT, receiver, first + count - 1):
        return count
    for index, header in enumerate(headers):
        if unpack(header) != (TRANSPORT, receiver, first + index):
            return index
    return count


class StreamRun:
    """The run being gathered; `pieces` are views of the plaintext, and it is empty without any."""

    __slots__ = ("_plains", "end", "fin", "offset", "pieces", "stream")

    def __init__(self, plains: Plains) -> None:
        """`plains` is where all packets of a batch are opened to, one behind the other."""
        self._plains = plains
        self.pieces: list[memoryview] = []
        self.begin(-1, 0)

    def begin(self, stream: int, offset: int) -> None:
        """A new one, which is empty still."""
        self.stream = stream
        self.offset = self.end = offset
        self.fin = False
        self.pieces = []

    def take(self, at: int, size: int, count: int) -> int:
        """The next bytes of the run, which the packet of `size` bytes opened to `at` carries and nothing else.

        Of the `count` packets from there, those that go on with just the next bytes each are taken too: returns how many in all.
        """
        length = size - STREAM_SIZE
        first, misaligned = divmod(at, size)
        taken = 1
        if count == 1 or not length or misaligned or self.fin or first + count > MAX_PLAINS:
            self.pieces.append(self._plains.view[at + STREAM_SIZE : at + size])
            self.end += length
            return taken
        following = map(STREAM.unpack_from, self._plains.wholes(size)[first + 1 : first + count])
        offsets = range(self.end + length, self.end + count * length, length)
        expected = zip(repeat(_STREAM), repeat(self.stream), offsets, repeat(length))  # the offsets end it
        go_on: Iterator[bool] = map(eq, following, expected)
        taken += sum(takewhile(bool, go_on))
        self.pieces.extend(self._plains.bodies(size, STREAM_SIZE)[first : first + taken])
        self.end += taken * length
        return taken
