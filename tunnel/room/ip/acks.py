"""Pure TCP acknowledgements, and which of two a sender of data can do without: ACK filtering.

An acknowledgment number is cumulative, so of two ACKs that wait together the newer says all that the older says, and more.
Cautious on purpose: what is not exactly the usual shape is no pure ACK here.  Sources: RFC 3449 §5.2.1 and its concerns;
RFC 9293 §3.1, §3.4; RFC 7323 §3.2 (timestamps, and the layout of its appendix A); RFC 5681 §2 (duplicates).
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any, Final, TypeAlias

from tunnel.room.ip.header import IPV4_HEADER, IPV6_HEADER, TCP, TCP_HEADER
from tunnel.units import Buffer

PureAck: TypeAlias = tuple[int, tuple[int, ...]]
"""The bits that all ACKs of its flow have in common, as one number; then acknowledgment number, and TSval and TSecr if any."""

_ACK_ONLY: Final = b"\x10"  # no CWR, ECE, URG, PSH, RST, SYN, FIN
_STAMPED: Final = b"\x01\x01\x08\x0a"  # NOP, NOP, timestamps of 10 bytes
_STAMPS: Final = 8  # bytes of both timestamps
_HALF: Final = 1 << 31  # sequence numbers and timestamps nearer than that are ahead, others behind
_MODULUS: Final = 0xFFFF_FFFF

_Layout: TypeAlias = tuple[int, int, int, Callable[[Buffer, int], tuple[Any, ...]]]


def _layout(version: int, options: bytes) -> tuple[int, _Layout]:
    """By its size in bytes, a kind of pure ACK: mask and value of what makes it one, mask of the flow, and its numbers."""
    tcp_size = TCP_HEADER + len(options) + (_STAMPS if options else 0)
    if version == 4:
        size = IPV4_HEADER + tcp_size
        # Version and header length, (TOS), total length, (identification), no fragment, (TTL), protocol, (checksum, addresses).
        shape = b"\x45\0" + size.to_bytes(2, "big") + bytes(5) + bytes((TCP,)) + bytes(10)
        of_shape = b"\xff\0\xff\xff\0\0\x3f\xff\0\xff" + bytes(10)
        of_flow = b"\xff\xff\xff\xff\0\0\xff\xff\xff\xff\0\0" + b"\xff" * 8  # all but identification and checksum
    else:
        size = IPV6_HEADER + tcp_size
        # Version, (class and label), payload length, next header, (hop limit, addresses).
        shape = b"\x60\0\0\0" + tcp_size.to_bytes(2, "big") + bytes((TCP,)) + bytes(33)
        of_shape = b"\xf0\0\0\0\xff\xff\xff" + bytes(33)
        of_flow = b"\xff" * 40
    # (Ports, sequence and acknowledgment number), data offset with the bits beside it clear, flags, (window, checksum, urgent).
    shape += bytes(12) + bytes((tcp_size // 4 << 4,)) + _ACK_ONLY + bytes(6) + options
    of_shape += bytes(12) + b"\xff\xff" + bytes(6) + b"\xff" * len(options)
    of_flow += b"\xff" * 8 + bytes(4) + b"\xff\xff" + bytes(4) + b"\xff\xff" + b"\xff" * len(options)
    if options:
        shape, of_shape, of_flow = shape + bytes(_STAMPS), of_shape + bytes(_STAMPS), of_flow + bytes(_STAMPS)
    number_at = size - tcp_size + 8
    numbers = Struct(f"!{number_at}xI" + (f"{8 + len(options)}xII" if options else ""))
    return size, (int.from_bytes(of_shape), int.from_bytes(shape), int.from_bytes(of_flow), numbers.unpack_from)


_LAYOUTS: Final = dict(_layout(version, options) for version in (4, 6) for options in (b"", _STAMPED))

ACK_SIZES: Final = frozenset(_LAYOUTS)
"""Bytes of the IP packets that can be pure ACKs: a quick look that rules out all others."""


def read_ack(buffer: Buffer, at: int, end: int) -> PureAck | None:
    """The pure ACK that fills `buffer[at:end]`; None for anything else.

    IPv4 without options or IPv6 without extension headers, no fragment, no payload, no TCP flag but ACK, and of options none
    or just timestamps, never SACK.  The checksum is not looked at.
    """
    layout = _LAYOUTS.get(end - at)
    if layout is None:
        return None
    of_shape, shape, of_flow, numbers = layout
    packet = int.from_bytes(buffer[at:end])
    if packet & of_shape != shape:
        return None
    return packet & of_flow, numbers(buffer, at)


def is_repeated(older: PureAck, newer: PureAck) -> bool:
    """Whether the newer one acknowledges just what the older one of its flow did: a duplicate, or news of the window.

    Fast retransmit counts duplicates, so none of them is needless.
    """
    return newer[1][0] == older[1][0] and newer[0] == older[0]


def is_needless(older: PureAck, newer: PureAck) -> bool:
    """Whether the newer one acknowledges more in the same flow, from the same place in it, and its timestamps did not go back.

    All else is alike, to the bit: addresses, ports, TOS, TTL, sequence number.  The window is the newer one's.
    """
    new, old = newer[1], older[1]
    if newer[0] != older[0] or not 0 < (new[0] - old[0] & _MODULUS) < _HALF:
        return False
    return len(new) == 1 or ((new[1] - old[1] & _MODULUS) < _HALF and (new[2] - old[2] & _MODULUS) < _HALF)
