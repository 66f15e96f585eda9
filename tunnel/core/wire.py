"""A bounded reader and writer for the cold parts of the wire; the hot frames use one `struct` call each instead."""

from __future__ import annotations

from tunnel.errors import MalformedPacket
from tunnel.units import Buffer


class Reader:
    """Reads big-endian fields from a buffer, front to back.  Every verb raises MalformedPacket when bytes run out."""

    __slots__ = ("_buffer", "_end", "position")

    def __init__(self, buffer: Buffer, start: int = 0, end: int | None = None) -> None:
        self._buffer = memoryview(buffer)
        self._end = len(self._buffer) if end is None else end
        self.position = start

    @property
    def remaining(self) -> int:
        return self._end - self.position

    def _take(self, length: int) -> memoryview:
        start = self.position
        if length < 0 or length > self._end - start:
            raise MalformedPacket(f"{length} bytes wanted, {self._end - start} left")
        self.position = start + length
        return self._buffer[start : self.position]

    def u8(self) -> int:
        return self._take(1)[0]

    def u16(self) -> int:
        return int.from_bytes(self._take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self._take(8), "big")

    def take(self, length: int) -> bytes:
        """The next `length` bytes, copied."""
        return bytes(self._take(length))

    def rest(self) -> bytes:
        return self.take(self.remaining)


class Writer:
    """Appends big-endian fields to a bytearray of at most `limit` bytes.  Raises ValueError beyond: that is our own bug."""

    __slots__ = ("_limit", "_out")

    def __init__(self, limit: int = 65_535) -> None:
        self._out = bytearray()
        self._limit = limit

    def __len__(self) -> int:
        return len(self._out)

    def _append(self, data: bytes) -> Writer:
        if len(self._out) + len(data) > self._limit:
            raise ValueError(f"more than {self._limit} bytes")
        self._out += data
        return self

    def u8(self, value: int) -> Writer:
        return self._append(value.to_bytes(1, "big"))

    def u16(self, value: int) -> Writer:
        return self._append(value.to_bytes(2, "big"))

    def u32(self, value: int) -> Writer:
        return self._append(value.to_bytes(4, "big"))

    def u64(self, value: int) -> Writer:
        return self._append(value.to_bytes(8, "big"))

    def raw(self, data: bytes) -> Writer:
        return self._append(data)

    def finish(self) -> bytes:
        return bytes(self._out)
