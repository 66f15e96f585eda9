"""Opening what a batch brings: into one buffer, packets of one size side by side, many in one go."""

from __future__ import annotations

from typing import Final

from tunnel.transport.crypto.batch import Crypt, open_batch
from tunnel.transport.packet.header import HEADER, OVERHEAD, TRANSPORT
from tunnel.transport.packet.slots import Kept, Plains, cells

ROOM: Final = 2 * 65_536  # bytes that one batch opens to: what the driver receives at once; a larger one is handled in pieces
FEW: Final = 4  # datagrams: to open fewer in one go saves nothing


class Opener:
    """`plains` is the buffer, which serves all batches: nothing points into it once a batch is done."""

    __slots__ = ("_cells", "plains")

    def __init__(self) -> None:
        self.plains = Plains(ROOM)
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
        cell, crooked = divmod(position, stride)
        place, askew = divmod(at, size) if size > 0 else (0, 1)
        if crooked or askew:
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
