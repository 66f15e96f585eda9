"""Runs of stream bytes: what consecutive packets carry of one stream is gathered, and becomes one piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag

from tunnel.proto.packet.frames import STREAM, STREAM_SIZE, Frame
from tunnel.proto.packet.header import HEADER, HEADER_SIZE, NONCE_SIZE, TAG_SIZE, TRANSPORT

FULL: Final = 1_000  # bytes of a stream in a packet: with less it is not worth while to follow
_STREAM = int(Frame.STREAM)


class StreamRun:
    """The run being gathered; `pieces` are views of the plaintext, and it is empty without any."""

    __slots__ = ("_plain", "_views", "_views_for", "end", "fin", "offset", "pieces", "stream")

    def __init__(self, plain: memoryview) -> None:
        """`plain` is where all packets of a batch are opened to, one behind the other."""
        self._plain = plain
        self._views: list[tuple[memoryview, memoryview]] = []
        self._views_for = -1
        self.pieces: list[memoryview] = []
        self.begin(-1, 0)

    def begin(self, stream: int, offset: int) -> None:
        """A new one, which is empty still."""
        self.stream = stream
        self.offset = self.end = offset
        self.fin = False
        self.pieces = []

    def follow(
        self,
        unseal: Callable[..., int],
        buffer: memoryview,
        position: int,
        stride: int,
        prefix: bytes,
        receiver: int,
        number: int,
        at: int,
    ) -> int:
        """The hot loop: how many datagrams from `position` on simply continue the run; at the first surprise it leaves.

        Each is full, has the next number after `number`, and the next bytes of the same stream.  What is opened in vain is
        opened once more by the caller, who looks at everything.
        """
        skip = len(prefix)
        length = stride - skip - HEADER_SIZE - TAG_SIZE - STREAM_SIZE
        if length < FULL:
            return 0
        first, rest = divmod(at, length + STREAM_SIZE)
        if rest:
            return 0
        unpack, frame_of, append = HEADER.unpack_from, STREAM.unpack_from, self.pieces.append
        stream, offset = self.stream, self.end
        count = 0
        for plain, body in self._views_of(length)[first : first + (len(buffer) - position) // stride]:
            head = position + skip
            sealed = head + HEADER_SIZE
            number += 1
            if unpack(buffer, head) != (TRANSPORT, receiver, number) or (skip and buffer[position:head] != prefix):
                break
            position += stride
            try:
                unseal(number.to_bytes(NONCE_SIZE, "big"), buffer[sealed:position], buffer[head:sealed], plain)
            except InvalidTag:
                break
            if frame_of(plain) != (_STREAM, stream, offset, length):
                break
            append(body)
            offset += length
            count += 1
        self.end = offset
        return count

    def _views_of(self, length: int) -> list[tuple[memoryview, memoryview]]:
        """Where full packets with `length` bytes of a stream are opened to: plaintext, and bytes alone."""
        if length != self._views_for:
            size, plain = length + STREAM_SIZE, self._plain
            self._views = [
                (plain[at : at + size], plain[at + STREAM_SIZE : at + size]) for at in range(0, len(plain) - size + 1, size)
            ]
            self._views_for = length
        return self._views
