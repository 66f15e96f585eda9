"""Runs of stream bytes: what consecutive packets carry of one stream is gathered, and becomes one piece."""

from __future__ import annotations

from tunnel.transport.packet.frames import STREAM, STREAM_SIZE, Frame
from tunnel.transport.packet.slots import MAX_PLAINS, Plains

_STREAM = int(Frame.STREAM)


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
        first, crooked = divmod(at, size)
        taken = 1
        if count == 1 or not length or crooked or self.fin or first + count > MAX_PLAINS:
            self.pieces.append(self._plains.view[at + STREAM_SIZE : at + size])
            self.end += length
            return taken
        stream, stop = self.stream, first + count
        following = map(STREAM.unpack_from, self._plains.wholes(size)[first + 1 : stop])
        for frame, offset in zip(following, range(self.end + length, self.end + count * length, length), strict=True):
            if frame != (_STREAM, stream, offset, length):
                break
            taken += 1
        self.pieces.extend(self._plains.bodies(size, STREAM_SIZE)[first : first + taken])
        self.end += taken * length
        return taken
