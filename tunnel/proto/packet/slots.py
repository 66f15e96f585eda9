"""Views of the equal segments of one buffer, made once: slicing them anew for every packet costs half as much as sealing it."""

from __future__ import annotations

from typing import Final, NamedTuple

from tunnel.proto.packet.header import HEADER_SIZE, MAX_BURST, MAX_SEGMENTS, TAG_SIZE

MAX_SHAPES: Final = 8  # shapes remembered: flows with other segment sizes, or other options of TCP, take turns
MAX_CUTS: Final = 256  # segments of a super-packet: their index is a byte


class Slot(NamedTuple):
    """One segment: channel prefix, header, frame head, payload, tag."""

    whole: memoryview
    header: memoryview  # the AEAD's associated data
    payload: memoryview
    plain: memoryview  # frame head and payload
    sealed: memoryview  # the same with the tag


class Slots:
    """The slots of one buffer, for the segment size that was asked for last."""

    __slots__ = ("_buffer", "_shape", "_slots")

    def __init__(self) -> None:
        self._buffer: object = None
        self._shape = (0, 0, 0)
        self._slots: list[Slot] = []

    def of(self, buffer: memoryview, size: int, prefix: int, head: int) -> list[Slot]:
        """As many as one burst may have, from the buffer's start on.

        `size` is bytes of a whole segment, `prefix` of a relay channel in front, `head` of the frame before its payload.
        `buffer` is a view of a whole bytearray, which must not be resized any more.
        """
        shape = (size, prefix, head)
        if buffer.obj is not self._buffer or shape != self._shape:
            self._buffer, self._shape = buffer.obj, shape
            self._slots = [
                Slot(
                    buffer[at : at + size],
                    buffer[at + prefix : at + prefix + HEADER_SIZE],
                    buffer[at + prefix + HEADER_SIZE + head : at + size - TAG_SIZE],
                    buffer[at + prefix + HEADER_SIZE : at + size - TAG_SIZE],
                    buffer[at + prefix + HEADER_SIZE : at + size],
                )
                for at in range(0, size * min(MAX_SEGMENTS, MAX_BURST // size), size)
            ]
        return self._slots


class Cuts:
    """Where the segments of super-packets lie that all come into one buffer at one place."""

    __slots__ = ("_buffer", "_known")

    def __init__(self) -> None:
        self._buffer: object = None
        self._known: dict[tuple[int, int, int], list[tuple[memoryview, memoryview]]] = {}

    def of(self, packet: memoryview, body: int, step: int, front: int) -> list[tuple[memoryview, memoryview]]:
        """Of each segment of `step` bytes from `body` on: the `front` bytes before it, and those with it.

        `packet` is a view of the whole of one buffer.  The last segment there may be cut short by the buffer's end.
        """
        if packet.obj is not self._buffer or len(self._known) > MAX_SHAPES:
            self._known.clear()
            self._buffer = packet.obj
        shape = (body, step, front)
        found = self._known.get(shape)
        if found is None:
            end = min(len(packet), body + step * MAX_CUTS)
            found = [(packet[at - front : at], packet[at - front : at + step]) for at in range(body, end, step)]
            self._known[shape] = found
        return found


class Cells:
    """Header and sealed part of equal datagrams in received buffers.

    A socket hands out the same view, the very object, whenever it has received into the same place: then nothing is cut anew.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        #: By the view's id, which is its own as long as the value holds it.
        self._known: dict[tuple[int, int, int], tuple[memoryview, list[tuple[memoryview, memoryview]]]] = {}

    def of(self, buffer: memoryview, stride: int, skip: int) -> list[tuple[memoryview, memoryview]]:
        """Of every whole datagram of `stride` bytes in `buffer`, with `skip` bytes of channel prefix in front of each."""
        shape = (id(buffer), stride, skip)
        found = self._known.get(shape)
        if found is None:
            if len(self._known) >= MAX_SHAPES:
                self._known.clear()
            cells = [
                (buffer[at + skip : at + skip + HEADER_SIZE], buffer[at + skip + HEADER_SIZE : at + stride])
                for at in range(0, len(buffer) - stride + 1, stride)
            ]
            found = self._known[shape] = (buffer, cells)
        return found[1]
