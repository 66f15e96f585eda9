"""The frames: what stands inside a sealed datagram.  The three hot ones are read with one `struct` call and make no object.

Layouts are docs/protocol.md §4.  Every decoder takes `(buffer, position, end)` and raises MalformedPacket.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import IntEnum
from struct import Struct
from typing import Final

from tunnel.errors import MalformedPacket
from tunnel.notation import printable
from tunnel.units import Buffer


class Frame(IntEnum):
    """The first byte of a frame."""

    PADDING = 0x00
    PING = 0x01
    ACK = 0x02
    STREAM = 0x08
    STREAM_FIN = 0x09
    PATH_CHALLENGE = 0x1A
    PATH_RESPONSE = 0x1B
    CLOSE = 0x1C
    DATAGRAM = 0x30
    PACKET = 0x31
    REPEAT = 0x32


STREAM: Final = Struct(">BIQH")  # type, stream id, offset, length
STREAM_SIZE: Final = STREAM.size  # 15
DATAGRAM: Final = Struct(">BIHBBH")  # type, flow, datagram id, fragment index, fragment count, length
DATAGRAM_SIZE: Final = DATAGRAM.size  # 11
PATH: Final = Struct(">B8s")  # type, data; challenge and response
CLOSE: Final = Struct(">BHH")  # type, code, length of the text

PACKET: Final = Struct(">BBBBH")  # type, flags, index, head size, gso size; then head and payload to the end of the packet
PACKET_SIZE: Final = PACKET.size  # 6
PACKET_PARTIAL: Final = 0x01  # flags: the transport checksum inside is not filled in
PACKET_LAST: Final = 0x02  # the last segment of its super-packet
PACKET_SPLIT: Final = 0x04  # a piece: `index` of `head size` pieces of packet number `gso size`
PACKET_KEPT: Final = 0x08  # acknowledge it: it may be sent again if it is lost
PACKET_AGAIN: Final = 0x10  # it is one that was lost
PACKET_IN_ORDER: Final = 0x20  # keep the order of its flow: what was lost of that is sent again now
MAX_PACKET_HEAD: Final = 255  # bytes, as its size is a byte: IPv4 and TCP with all options are 120

REPEAT: Final = Struct(">BQH")  # type, number of the packet that had it before, length; then DATAGRAM frames or one PACKET
REPEAT_SIZE: Final = REPEAT.size  # 11

#: Header and STREAM frame in one call: type and receiver index, sequence number, frame type and stream id, offset, length.
HEADER_AND_STREAM: Final = Struct(">5sQ5sQH")
#: The same with a DATAGRAM: ..., frame type, flow, datagram id, fragment index, fragment count, length.
HEADER_AND_DATAGRAM: Final = Struct(">BIQBIHBBH")

_NOT_PADDING = re.compile(rb"[^\0]")
_ACK_HEAD = Struct(">BHBQI")  # type, delay in ACK_DELAY_UNIT, further ranges, largest, packets below it in the first range
_ACK_RANGE = Struct(">II")  # packets missing before this range, packets in it
ACK_DELAY_UNIT: Final = 16e-6  # seconds; 16 bits of it reach a second
MAX_ACK_RANGES: Final = 32  # in one ACK frame: 272 bytes; older ranges were reported before
MAX_CLOSE_TEXT: Final = 200  # bytes of UTF-8: one sentence


def encode_ack(out: memoryview, position: int, ranges: Sequence[tuple[int, int]], delay: float, room: int) -> int:
    """Write an ACK of `ranges` ((low, high) inclusive, descending) in at most `room` bytes; returns the position after it.

    `delay` is the seconds since the largest arrived.  Source: RFC 9000 §19.3, with fixed widths.
    """
    low, high = ranges[0]
    count = 0
    after = position + _ACK_HEAD.size
    limit = position + room
    previous = low
    for range_low, range_high in ranges[1 : MAX_ACK_RANGES + 1]:
        gap = previous - range_high - 1
        if after + _ACK_RANGE.size > limit or gap > 0xFFFF_FFFF:
            break
        _ACK_RANGE.pack_into(out, after, gap, min(range_high - range_low + 1, 0xFFFF_FFFF))
        after += _ACK_RANGE.size
        previous = range_low
        count += 1
    units = min(int(max(delay, 0.0) / ACK_DELAY_UNIT), 0xFFFF)
    _ACK_HEAD.pack_into(out, position, Frame.ACK, units, count, high, min(high - low, 0xFFFF_FFFF))
    return after


def ack_size(ranges: int) -> int:
    """Bytes of an ACK frame with so many ranges."""
    return _ACK_HEAD.size + max(ranges - 1, 0) * _ACK_RANGE.size


def decode_ack(buffer: Buffer, position: int, end: int) -> tuple[list[tuple[int, int]], float, int]:
    """The ranges ((low, high) inclusive, descending), the delay in seconds, and the position after the frame.

    Source: RFC 9000 §19.3.  Raises MalformedPacket.
    """
    after = position + _ACK_HEAD.size
    if after > end:
        raise MalformedPacket("ACK: cut short")
    _, units, count, high, below = _ACK_HEAD.unpack_from(buffer, position)
    if below > high or count > MAX_ACK_RANGES or after + count * _ACK_RANGE.size > end:
        raise MalformedPacket("ACK: first range or number of ranges out of bounds")
    low = high - below
    ranges = [(low, high)]
    for _ in range(count):
        gap, length = _ACK_RANGE.unpack_from(buffer, after)
        after += _ACK_RANGE.size
        high = low - gap - 1
        low = high - length + 1
        if gap == 0 or length == 0 or low < 0:
            raise MalformedPacket("ACK: a range is empty, touches its neighbour or falls below zero")
        ranges.append((low, high))
    return ranges, units * ACK_DELAY_UNIT, after


def skip_padding(plain: memoryview, at: int, end: int) -> int:
    """Return the position of the first byte that is not PADDING; `end` if there is none."""
    found = _NOT_PADDING.search(plain, at, end)
    return end if found is None else found.start()


def encode_close(code: int, text: str) -> bytes:
    """A CLOSE frame; the text is cut at MAX_CLOSE_TEXT bytes."""
    body = text.encode(errors="replace")[:MAX_CLOSE_TEXT]
    return CLOSE.pack(Frame.CLOSE, min(max(code, 0), 0xFFFF), len(body)) + body


def decode_close(buffer: Buffer, position: int, end: int) -> tuple[int, str, int]:
    """Code, text (bad UTF-8 replaced, control characters stripped) and the position after.  Raises MalformedPacket."""
    after = position + CLOSE.size
    if after > end:
        raise MalformedPacket("CLOSE: cut short")
    _, code, length = CLOSE.unpack_from(buffer, position)
    if length > MAX_CLOSE_TEXT or after + length > end:
        raise MalformedPacket("CLOSE: text out of bounds")
    text = bytes(memoryview(buffer)[after : after + length]).decode(errors="replace")
    return code, printable(text), after + length
