"""Datagrams on a byte stream: each is a 16-bit big-endian length, then as many bytes.

Datagrams of one length that follow one another become one batch, as UDP_GRO would make it, so that the hot path stays what it is.
"""

from __future__ import annotations

import struct
from typing import ClassVar, Final

from tunnel.errors import MalformedPacket
from tunnel.units import Buffer

LENGTH: Final = struct.Struct(">H")
MAX_FRAME: Final = 16_384  # bytes of one datagram: beyond the largest that we ever send (8,972), and what one TLS record holds
MAX_RUN: Final = 64  # datagrams of one batch: what a UDP socket sends at once, since a relay passes a batch on as it came
MAX_RUN_BYTES: Final = 65_507  # bytes of one batch, for the same reason


def frame_burst(buffer: memoryview, segment_size: int) -> bytes:
    """The datagrams of a burst, each behind its length; `segment_size` is at most MAX_FRAME, the last may be shorter."""
    length = len(buffer)
    if length <= segment_size:
        return LENGTH.pack(length) + buffer
    head = LENGTH.pack(segment_size)
    whole = length // segment_size
    parts: list[bytes | memoryview] = []
    for at in range(0, whole * segment_size, segment_size):
        parts.append(head)
        parts.append(buffer[at : at + segment_size])
    rest = buffer[whole * segment_size :]
    if len(rest):
        parts.append(LENGTH.pack(len(rest)))
        parts.append(rest)
    return b"".join(parts)


class Framing:
    """Of one connection: puts datagrams on a byte stream, and cuts one, in pieces of any size, into runs of datagrams.

    Holds at most one unfinished frame between calls.
    """

    __slots__ = ("_at", "_data")

    overhead: ClassVar = LENGTH.size  # bytes beside each datagram

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0  # how far it was read

    def frame(self, buffer: memoryview, segment_size: int) -> bytes:
        """A burst, as frame_burst does it."""
        return frame_burst(buffer, segment_size)

    @property
    def held(self) -> int:
        """Bytes that wait for more."""
        return len(self._data) - self._at

    def feed(self, data: Buffer) -> None:
        """Take the next piece of the stream.  Call decode_run until None before the next piece."""
        if self._at:
            del self._data[: self._at]
            self._at = 0
        self._data += data

    def decode_run(self) -> tuple[bytes, int] | None:
        """(datagrams, stride): the next ones of one length, of which the last may be shorter; None: more bytes are needed.

        Raises MalformedPacket for a frame of no bytes or of more than MAX_FRAME: the stream cannot be read on.
        """
        data, at, end = self._data, self._at, len(self._data)
        if end - at < LENGTH.size:
            return None
        (stride,) = LENGTH.unpack_from(data, at)
        if not 0 < stride <= MAX_FRAME:
            raise MalformedPacket(f"a frame of {stride} bytes")
        most = min(MAX_RUN, MAX_RUN_BYTES // stride)
        starts: list[int] = []
        step = LENGTH.size + stride
        while len(starts) < most and at + step <= end and LENGTH.unpack_from(data, at)[0] == stride:
            starts.append(at + LENGTH.size)
            at += step
        if not starts:
            return None
        with memoryview(data) as view:
            parts: list[memoryview] = [view[start : start + stride] for start in starts]
            if len(starts) < most and at + LENGTH.size < end:
                (tail,) = LENGTH.unpack_from(data, at)
                if 0 < tail < stride and at + LENGTH.size + tail <= end:
                    parts.append(view[at + LENGTH.size : at + LENGTH.size + tail])
                    at += LENGTH.size + tail
            run = b"".join(parts)
            for part in parts:
                part.release()
        self._at = at
        return run, stride
