"""Views of the equal segments of one buffer, made once and kept as columns: slicing anew for every packet costs half as much as
sealing it, and columns are what transport/crypto/batch.py walks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

from tunnel.transport.packet.header import CALL_ROOM, HEADER_SIZE, MAX_SEGMENTS, TAG_SIZE, segments_a_call

MAX_SHAPES: Final = 8  # shapes remembered: flows with other segment sizes, or other options of TCP, take turns
MAX_SIZES: Final = (
    24  # shapes of opened datagrams remembered: those of all connections of a process, which have sizes of their own
)
MAX_BUFFERS: Final = 24  # received buffers remembered, at most 50 KB of views each: one socket's differ only in where they end
MAX_CUTS: Final = 256  # segments of a super-packet: their index is a byte
MAX_PLAINS: Final = 2 * MAX_SEGMENTS  # plaintexts side by side: as many datagrams as one batch has

Column: TypeAlias = list[memoryview]
K = TypeVar("K")
T = TypeVar("T")


class Slots(NamedTuple):
    """The segments of a burst, from the buffer's start on: channel prefix, header, frame head, payload, tag."""

    whole: Column
    header: Column  # the AEAD's associated data
    payload: Column
    plain: Column  # frame head and payload
    sealed: Column  # the same with the tag

    def part(self, first: int, count: int) -> Slots:
        """`count` of them from the one numbered `first` on."""
        stop = first + count
        return Slots(*[column[first:stop] for column in self])

    def put_prefix(self, prefix: bytes) -> None:
        """Write the relay channel in front of each; nothing where there is none."""
        if prefix:
            for place in self.whole:
                place[: len(prefix)] = prefix

    def shorten_last(self, by: int) -> None:
        """The last one has `by` bytes of payload less.  Only of a part: the columns of a whole buffer are kept."""
        if by:
            for column in (self.payload, self.plain, self.sealed):
                column[-1] = column[-1][: len(column[-1]) - by]


class SlotCutter:
    """Cuts one buffer into slots, for the segment size that was asked for last."""

    __slots__ = ("_buffer", "_header", "_shape", "_slots")

    def __init__(self, header: int = HEADER_SIZE) -> None:
        """`header` is the bytes of a datagram's header."""
        self._header = header
        self._buffer: object = None
        self._shape = (0, 0, 0)
        self._slots = Slots([], [], [], [], [])

    def of(self, buffer: memoryview, size: int, prefix: int, head: int) -> Slots:
        """As many as one burst may have there.

        `size` is bytes of a whole segment, `prefix` of a relay channel in front, `head` of the frame before its payload.
        `buffer` is a view of a whole bytearray, which must not be resized any more.
        """
        shape = (size, prefix, head)
        if buffer.obj is not self._buffer or shape != self._shape:
            self._buffer, self._shape = buffer.obj, shape
            calls = max(1, len(buffer) // CALL_ROOM)
            starts = range(0, size * calls * segments_a_call(size), size)
            frame = prefix + self._header
            self._slots = Slots(
                [buffer[at : at + size] for at in starts],
                [buffer[at + prefix : at + frame] for at in starts],
                [buffer[at + frame + head : at + size - TAG_SIZE] for at in starts],
                [buffer[at + frame : at + size - TAG_SIZE] for at in starts],
                [buffer[at + frame : at + size] for at in starts],
            )
        return self._slots


class PieceCutter:
    """Cuts super-packets that all come into one buffer at one place into the payloads of their segments."""

    __slots__ = ("_buffer", "_known")

    def __init__(self) -> None:
        self._buffer: object = None
        self._known: dict[tuple[int, int], Column] = {}

    def of(self, packet: memoryview, body: int, step: int) -> Column:
        """Payloads of `step` bytes from `body` on; the last one there may be cut short by the buffer's end.

        `packet` is a view of the whole of one buffer.
        """
        if packet.obj is not self._buffer or len(self._known) > MAX_SHAPES:
            self._known.clear()
            self._buffer = packet.obj
        found = self._known.get((body, step))
        if found is None:
            end = min(len(packet), body + step * MAX_CUTS)
            found = self._known[body, step] = [packet[at : at + step] for at in range(body, end, step)]
        return found


class Cells(NamedTuple):
    """The datagrams of a received buffer that have its full stride."""

    prefix: Column
    header: Column
    sealed: Column


def cells(buffer: memoryview, stride: int, skip: int) -> Cells:
    """Every whole datagram of `stride` bytes in `buffer`, with `skip` bytes of channel prefix in front of each."""
    starts = range(0, len(buffer) - stride + 1, stride)
    head = skip + HEADER_SIZE
    return Cells(
        [buffer[at : at + skip] for at in starts] if skip else [],
        [buffer[at + skip : at + head] for at in starts],
        [buffer[at + head : at + stride] for at in starts],
    )


class Kept(Generic[T]):
    """The pieces of received buffers, cut by a function such as cells().

    A socket hands out the same view, the very object, whenever it has received into the same place: then nothing is cut anew.
    """

    __slots__ = ("_cut", "_known")

    def __init__(self, cut: Callable[[memoryview, int, int], T]) -> None:
        self._cut = cut
        #: By the view's id, which is its own as long as the value holds it.
        self._known: dict[tuple[int, int, int], tuple[memoryview, T]] = {}

    def of(self, buffer: memoryview, stride: int, skip: int) -> T:
        shape = (id(buffer), stride, skip)
        found = self._known.pop(shape, None)
        if found is None:
            if len(self._known) >= MAX_BUFFERS:
                del self._known[next(iter(self._known))]  # what was not asked for the longest
            found = (buffer, self._cut(buffer, stride, skip))
        self._known[shape] = found
        return found[1]


class Plains:
    """The buffer where the datagrams of a batch are opened to, one behind the other."""

    __slots__ = ("_bodies", "_fronts", "_wholes", "view")

    def __init__(self, size: int) -> None:
        """`size` in bytes."""
        self.view = memoryview(bytearray(size))
        self._wholes: dict[int, Column] = {}
        self._fronts: dict[tuple[int, int], Column] = {}
        self._bodies: dict[tuple[int, int], Column] = {}

    def wholes(self, size: int) -> Column:
        """Places of `size` bytes, MAX_PLAINS at most."""
        found = self._wholes.get(size)
        if found is None:
            found = self._cut(self._wholes, size, size, 0, size)
        return found

    def fronts(self, size: int, front: int) -> Column:
        """The first `front` bytes of each of them."""
        found = self._fronts.get((size, front))
        if found is None:
            found = self._cut(self._fronts, (size, front), size, 0, front)
        return found

    def bodies(self, size: int, front: int) -> Column:
        """Everything behind the first `front` bytes of each of them."""
        found = self._bodies.get((size, front))
        if found is None:
            found = self._cut(self._bodies, (size, front), size, front, size)
        return found

    def _cut(self, known: dict[K, Column], shape: K, size: int, low: int, high: int) -> Column:
        if len(known) >= MAX_SIZES:
            known.clear()
        view = self.view
        starts = range(0, size * min(MAX_PLAINS, len(view) // size), size)
        found = known[shape] = [view[at + low : at + high] for at in starts]
        return found
