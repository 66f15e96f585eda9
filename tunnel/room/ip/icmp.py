"""Answers to an inner packet that the path does not carry: too-big messages, IPv4 fragments, refusals.

Sources: RFC 792 and RFC 1191 §4 (fragmentation needed), RFC 1122 §3.2.2, RFC 1812 §5.2.7.1 (prohibited),
RFC 4443 §2.4 and §3.2 (packet too big), RFC 791 §3.2.
"""

from __future__ import annotations

from collections.abc import Collection
from struct import Struct
from typing import Final

from tunnel.errors import MalformedPacket
from tunnel.room.ip.checksum import complement, pseudo_sum, word_sum
from tunnel.room.ip.header import ICMP, ICMPV6, IPV4_HEADER, IPV6_HEADER, Inner
from tunnel.units import Buffer

MIN_MTU_V4: Final = 68  # bytes; RFC 791 §3.2: what every module must forward
MIN_MTU_V6: Final = 1_280  # bytes; RFC 8200 §5; a smaller value is not believed (RFC 8201 §4)
MAX_MESSAGE_V4: Final = 576  # bytes of the whole message, RFC 1812 §4.3.2.3
MAX_MESSAGE_V6: Final = 1_280  # bytes of the whole message, RFC 4443 §2.4 (c)

_V4_QUERIES: Final = frozenset({0, 8, 13, 14, 15, 16, 17, 18})  # all other types are errors, or answered as little
_V6_REDIRECT: Final = 137
_FRAGMENTATION_NEEDED: Final = 4  # codes of destination unreachable
_HOST_PROHIBITED: Final = 10
_HOPS: Final = 64
_CONTROL_CLASS: Final = 0xC0  # internetwork control, as RFC 1812 §4.3.2.5 gives to ICMP errors
_DONT_FRAGMENT: Final = 0x4000
_MORE_FRAGMENTS: Final = 0x2000
_OFFSET: Final = 0x1FFF

_V4 = Struct("!BBHHHBBH4s4s")
_V6 = Struct("!IHBB16s16s")
_UNREACHABLE_V4 = Struct("!BBHHH")  # type, code, checksum, unused, next-hop MTU
_TOO_BIG_V6 = Struct("!BBHI")  # type, code, checksum, MTU
_U16 = Struct("!H")


def too_big(
    packet: Buffer, inner: Inner, mtu: int, our_address: bytes, broadcasts: Collection[bytes] = frozenset()
) -> bytes | None:
    """The whole IP packet that tells the source of `packet` to send at most `mtu` bytes; None where no answer is allowed.

    `our_address` is what the message comes from, of the packet's version; `broadcasts` are the subnet's own.  No answer: to
    an ICMP error, a fragment but the first, a source that is not one host, a destination of many (IPv6 multicast excepted,
    RFC 4443 §2.4 (e.3)), an IPv4 packet that may be fragmented, a packet no larger than the MTU told.  Never less than
    68 bytes (IPv4) or 1,280 (IPv6) are told.
    """
    if len(our_address) != (4 if inner.version == 4 else 16):
        raise ValueError("our_address is of the other version")
    if inner.is_fragment and not inner.is_first_fragment:
        return None
    if inner.version == 4:
        return _too_big_v4(packet, inner, max(mtu, MIN_MTU_V4), our_address, broadcasts)
    return _too_big_v6(packet, inner, max(mtu, MIN_MTU_V6), our_address)


def _too_big_v4(packet: Buffer, inner: Inner, mtu: int, our_address: bytes, broadcasts: Collection[bytes]) -> bytes | None:
    if not inner.dont_fragment or inner.total_size <= mtu:
        return None
    return _unreachable_v4(packet, inner, _FRAGMENTATION_NEEDED, min(mtu, 0xFFFF), our_address, broadcasts)


def prohibited(packet: Buffer, inner: Inner, our_address: bytes, broadcasts: Collection[bytes] = frozenset()) -> bytes | None:
    """The whole IP packet that tells the source of an IPv4 `packet` that this host takes none; None where no answer is allowed.

    Of the codes that fit, connected UDP sockets hear of this one too: what tries the next address does so at once.
    """
    if inner.is_fragment and not inner.is_first_fragment:
        return None
    return _unreachable_v4(packet, inner, _HOST_PROHIBITED, 0, our_address, broadcasts)


def _unreachable_v4(
    packet: Buffer, inner: Inner, code: int, mtu: int, our_address: bytes, broadcasts: Collection[bytes]
) -> bytes | None:
    source, destination = inner.source, inner.destination
    # 0/8 and 127/8 are no hosts out there; 224/4 is multicast, 240/4 reserved, with 255.255.255.255.
    if source[0] in (0, 127) or source[0] >= 224:
        return None
    if destination[0] >= 224 or source in broadcasts or destination in broadcasts:
        return None
    if inner.protocol == ICMP and (inner.total_size == inner.network_size or packet[inner.network_size] not in _V4_QUERIES):
        return None
    quote = bytes(packet[: min(inner.total_size, MAX_MESSAGE_V4 - IPV4_HEADER - 8)])
    message = bytearray(_UNREACHABLE_V4.pack(3, code, 0, 0, mtu) + quote)
    _U16.pack_into(message, 2, complement(word_sum(message)))
    total = IPV4_HEADER + len(message)
    header = bytearray(_V4.pack(0x45, _CONTROL_CLASS, total, 0, _DONT_FRAGMENT, _HOPS, ICMP, 0, our_address, source))
    _U16.pack_into(header, 10, complement(word_sum(header)))
    return bytes(header + message)


def _too_big_v6(packet: Buffer, inner: Inner, mtu: int, our_address: bytes) -> bytes | None:
    source = inner.source
    if inner.total_size <= mtu or source[0] == 0xFF or not any(source[:15]):  # multicast; unspecified and loopback
        return None
    if inner.protocol == ICMPV6:
        kind = packet[inner.network_size] if inner.total_size > inner.network_size else 0
        if kind < 128 or kind == _V6_REDIRECT:
            return None
    quote = bytes(packet[: min(inner.total_size, MAX_MESSAGE_V6 - IPV6_HEADER - 8)])
    message = bytearray(_TOO_BIG_V6.pack(2, 0, 0, mtu) + quote)
    total = word_sum(message) + pseudo_sum(our_address, source, ICMPV6, len(message))
    _U16.pack_into(message, 2, complement(total))
    return _V6.pack(6 << 28, len(message), ICMPV6, _HOPS, our_address, source) + bytes(message)


def fragment(packet: Buffer, inner: Inner, mtu: int) -> list[bytes]:
    """The IPv4 `packet` in pieces of at most `mtu` bytes (68 or more), by the procedure of RFC 791 §3.2.

    A partial checksum must be finished before.  A fragment is fragmented further; a packet that fits is returned alone.
    Raises MalformedPacket when it must not be fragmented: DF, or IPv6.
    """
    if mtu < MIN_MTU_V4:
        raise ValueError(f"an IPv4 MTU is at least {MIN_MTU_V4} bytes")
    if inner.version != 4 or inner.dont_fragment:
        raise MalformedPacket("a packet that must not be fragmented")
    size, total = inner.network_size, inner.total_size
    if total <= mtu:
        return [bytes(packet[:total])]
    (field,) = _U16.unpack_from(packet, 6)
    offset, has_more = field & _OFFSET, field & _MORE_FRAGMENTS
    header = bytes(packet[:size])
    pieces: list[bytes] = []
    at = size
    while at < total:
        room = (mtu - len(header)) // 8 * 8
        data = packet[at : min(at + room, total)]
        more = has_more if at + room >= total else _MORE_FRAGMENTS
        if offset > _OFFSET:
            raise MalformedPacket("a fragment beyond the largest packet")
        piece = bytearray(header)
        _U16.pack_into(piece, 2, len(header) + len(data))
        _U16.pack_into(piece, 6, field & 0x8000 | more | offset)
        _U16.pack_into(piece, 10, 0)
        _U16.pack_into(piece, 10, complement(word_sum(piece)))
        pieces.append(bytes(piece + data))
        at += len(data)
        offset += len(data) // 8
        if len(pieces) == 1:
            header = _header_of_later_fragments(header)
    return pieces


def _header_of_later_fragments(header: bytes) -> bytes:
    """The header with only those options whose copied flag is set (RFC 791 §3.1), padded to four bytes."""
    options = bytearray()
    at = IPV4_HEADER
    while at < len(header):
        kind = header[at]
        if kind == 0:
            break
        length = 1 if kind == 1 else header[at + 1]  # parse saw that it fits
        if kind & 0x80:
            options += header[at : at + length]
        at += length
    options += bytes(-len(options) % 4)
    first = 0x40 | (IPV4_HEADER + len(options)) // 4
    return bytes([first]) + header[1:IPV4_HEADER] + bytes(options)
