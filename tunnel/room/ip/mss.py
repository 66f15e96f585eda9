"""The MSS option of a TCP SYN, lowered to what the path carries, so that TCP never needs a too-big message.

Source: RFC 9293 §3.7.1 (the option), RFC 6691 (what it counts), RFC 1624 (the checksum).
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from tunnel.room.ip.checksum import adjusted
from tunnel.room.ip.header import IPV4_HEADER, IPV6_HEADER, TCP, TCP_HEADER, Inner
from tunnel.units import Buffer

MIN_MSS: Final = 48
"""Bytes.  Below, Linux takes no segment size (TCP_MIN_SND_MSS); a path so narrow is not a reason to go on."""

_SYN: Final = 0x02
_MSS: Final = 2  # option kind; its length is 4
_U16 = Struct("!H")


def may_be_syn(buffer: Buffer, at: int, end: int) -> bool:
    """A quick look at the IP packet in `buffer[at:end]`, at least 20 bytes of IPv4 or 40 of IPv6; who acts on it parses."""
    if buffer[at] >> 4 == 4:
        flags_at = at + (buffer[at] & 15) * 4 + 13
        return buffer[at + 9] == TCP and flags_at < end and bool(buffer[flags_at] & _SYN)
    flags_at = at + IPV6_HEADER + 13
    return flags_at < end and buffer[at + 6] == TCP and bool(buffer[flags_at] & _SYN)


def clamp(buffer: bytearray | memoryview, at: int, inner: Inner, mtu: int, partial: bool = False) -> bool:
    """Lowers the MSS option of the SYN at `buffer[at]` to `mtu` less IP and TCP header; whether anything was changed.

    `mtu` is the largest inner packet that the path carries, in bytes.  A whole checksum is kept right; a `partial` one does
    not cover the option yet.  Anything but an unfragmented SYN with well-formed options is left alone.
    """
    network, head = inner.network_size, inner.head_size
    if inner.protocol != TCP or head <= network + TCP_HEADER or not buffer[at + network + 13] & _SYN:
        return False
    most = max(mtu - TCP_HEADER - (IPV4_HEADER if inner.version == 4 else IPV6_HEADER), MIN_MSS)
    transport, end = at + network, at + head
    where = transport + TCP_HEADER
    while where < end:
        kind = buffer[where]
        if kind == 0:
            return False
        if kind == 1:
            where += 1
            continue
        if where + 2 > end or buffer[where + 1] < 2 or where + buffer[where + 1] > end:
            return False
        if kind == _MSS:
            return buffer[where + 1] == 4 and _lower(buffer, transport, where + 2, most, partial)
        where += buffer[where + 1]
    return False


def _lower(buffer: bytearray | memoryview, transport: int, where: int, most: int, partial: bool) -> bool:
    (old,) = _U16.unpack_from(buffer, where)
    if old <= most:
        return False
    _U16.pack_into(buffer, where, most)
    if not partial:
        (field,) = _U16.unpack_from(buffer, transport + 16)
        # At an odd offset the value lies across two words, its high byte in the low half of the first.
        weight = 256 if (where - transport) & 1 else 1
        _U16.pack_into(buffer, transport + 16, adjusted(field, old * weight, most * weight))
    return True
