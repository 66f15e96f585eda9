"""Views of the equal segments of one buffer, made once: slicing them anew for every packet costs half as much as sealing it."""

from __future__ import annotations

from typing import NamedTuple

from tunnel.proto.packet.header import HEADER_SIZE, MAX_BURST, MAX_SEGMENTS, TAG_SIZE


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
