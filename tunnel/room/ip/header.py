"""Inner IPv4 and IPv6 headers: one look that says all that cutting, joining, routing and filtering need.

Nothing here is trusted: what a member sends and what the kernel hands out are read alike.  A packet is not copied, and the
one object made is the NamedTuple.  Sources: RFC 791 §3.1, RFC 8200 §3 and §4, RFC 9293 §3.1, RFC 768.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

from tunnel.errors import MalformedPacket
from tunnel.units import Buffer

# Protocol numbers (IANA "Assigned Internet Protocol Numbers"), as far as somebody here asks for them.
ICMP: Final = 1
IGMP: Final = 2
TCP: Final = 6
UDP: Final = 17
ICMPV6: Final = 58

_HOP_BY_HOP: Final = 0
_ROUTING: Final = 43
_FRAGMENT: Final = 44
_AUTHENTICATION: Final = 51
_DESTINATION_OPTIONS: Final = 60
_EXTENSIONS: Final = frozenset({_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION_OPTIONS})

IPV4_HEADER: Final = 20  # bytes without options
IPV6_HEADER: Final = 40  # bytes without extension headers
TCP_HEADER: Final = 20  # bytes without options
UDP_HEADER: Final = 8  # bytes
MAX_PACKET: Final = 65_535  # bytes after which neither length field counts on (a jumbogram is not carried)

MAX_EXTENSION_HEADERS: Final = 6
"""Extension headers of one IPv6 packet; RFC 8200 §4.1 knows seven places with ESP, and nobody fills them.  Bounds the walk."""

SOURCE_ROUTE: Final = "source route option"
ROUTING_HEADER: Final = "routing header"
JUMBO: Final = "jumbo payload option"
TOO_MANY_EXTENSIONS: Final = "too many extension headers"
MISPLACED_HOP_BY_HOP: Final = "hop-by-hop header not in front"

_LSRR: Final = 131  # loose source and record route, RFC 791 §3.1
_SSRR: Final = 137  # strict
_JUMBO_OPTION: Final = 0xC2  # RFC 2675 §2

_V4 = Struct("!BBH2xHxB2x4s4s")  # version and IHL, TOS, total length, fragment, protocol, source, destination
_V6 = Struct("!IHBx16s16s")  # version, class, label; payload length; next header; source; destination
_U16 = Struct("!H")


class Inner(NamedTuple):
    """The headers of one inner IP packet.  All sizes are bytes, counted from the first byte of the IP header."""

    version: int  # 4 or 6
    protocol: int  # of the transport, after IPv6 extension headers; of a non-first fragment, what the fragment header names
    source: bytes  # 4 or 16 bytes
    destination: bytes
    network_size: int  # IP header with options, or with all extension headers
    head_size: int  # up to the end of the TCP or UDP header; network_size for all else, and for every fragment
    total_size: int  # by the IP length field; what parse_head was given, there
    is_fragment: bool  # not the whole transport packet
    is_first_fragment: bool  # a fragment, and it begins with the transport header
    ecn: int  # 2 bits, RFC 3168 §5
    dont_fragment: bool  # the DF bit; always true for IPv6, which nobody fragments on the way
    unsafe: str  # empty, or one of those above: no honest member sends that


def destination_of(buffer: Buffer, at: int, end: int) -> bytes | None:
    """The destination of the IP packet in `buffer[at:end]`, by the cheapest look; None when it is no IP packet."""
    if end - at >= IPV4_HEADER:
        version = buffer[at] >> 4
        if version == 4:
            return bytes(buffer[at + 16 : at + 20])
        if version == 6 and end - at >= IPV6_HEADER:
            return bytes(buffer[at + 24 : at + 40])
    return None


def parse(buffer: Buffer, at: int, end: int) -> Inner:
    """The headers of the IP packet that begins at `buffer[at]` and ends at or before `end`.

    A packet may be shorter than `end - at` (an Ethernet frame is padded): total_size tells.  Raises MalformedPacket: another
    version, a length that lies beyond `end` or below the header, a TCP or UDP header that is cut or contradicts itself.
    """
    if at < 0 or end > len(buffer) or end - at < IPV4_HEADER:
        raise MalformedPacket("IP: cut before the header's end")
    version = buffer[at] >> 4
    if version == 4:
        return _parse_v4(buffer, at, end, False)
    if version == 6:
        return _parse_v6(buffer, at, end, False)
    raise MalformedPacket(f"IP: version {version}")


def parse_head(head: Buffer) -> Inner:
    """The headers of a super-packet, of which `head` is exactly the IP and the TCP or UDP header.

    Length fields are not looked at, as those of a super-packet say nothing about one run of its segments.  Raises
    MalformedPacket: as parse; a fragment; another transport; a byte too many or too few.
    """
    size = len(head)
    if size < IPV4_HEADER + UDP_HEADER:
        raise MalformedPacket("head: too short")
    version = head[0] >> 4
    if version == 4:
        inner = _parse_v4(head, 0, size, True)
    elif version == 6:
        inner = _parse_v6(head, 0, size, True)
    else:
        raise MalformedPacket(f"head: version {version}")
    if inner.head_size != size or inner.head_size == inner.network_size:
        raise MalformedPacket("head: not exactly an IP and a TCP or UDP header")
    return inner


def _parse_v4(buffer: Buffer, at: int, end: int, only_head: bool) -> Inner:
    first, tos, total, fragment, protocol, source, destination = _V4.unpack_from(buffer, at)
    size = (first & 15) * 4
    if only_head:
        total = end - at
        if fragment & 0x3FFF:
            raise MalformedPacket("head: a fragment")
    if size < IPV4_HEADER or size > total or total > end - at:
        raise MalformedPacket("IPv4: header length or total length out of bounds")
    unsafe = "" if size == IPV4_HEADER else _unsafe_options(buffer, at + IPV4_HEADER, at + size)
    if fragment & 0x3FFF:  # more to come, or not at offset 0
        head, is_fragment, is_first = size, True, not fragment & 0x1FFF
    else:
        is_fragment = is_first = False
        if protocol == TCP or protocol == UDP:
            head = _transport_end(buffer, at, size, total, protocol, only_head)
        else:
            head = size
    return Inner(
        4, protocol, source, destination, size, head, total, is_fragment, is_first, tos & 3, fragment & 0x4000 != 0, unsafe
    )


def _parse_v6(buffer: Buffer, at: int, end: int, only_head: bool) -> Inner:
    if end - at < IPV6_HEADER:
        raise MalformedPacket("IPv6: cut before the header's end")
    first, length, protocol, source, destination = _V6.unpack_from(buffer, at)
    total = end - at if only_head else IPV6_HEADER + length
    if total > end - at:
        raise MalformedPacket("IPv6: payload length out of bounds")
    size, is_fragment, is_first, unsafe = IPV6_HEADER, False, False, ""
    if protocol in _EXTENSIONS:
        protocol, size, is_fragment, is_first, unsafe = _walk(buffer, at, total, protocol, only_head)
    if not is_fragment and (protocol == TCP or protocol == UDP):
        head = _transport_end(buffer, at, size, total, protocol, only_head)
    else:
        head = size
    return Inner(6, protocol, source, destination, size, head, total, is_fragment, is_first, first >> 20 & 3, True, unsafe)


def _transport_end(buffer: Buffer, at: int, network: int, total: int, protocol: int, only_head: bool) -> int:
    """Where the TCP or UDP header ends, counted from the IP header's first byte."""
    room = total - network
    if protocol == TCP:
        if room >= TCP_HEADER:
            size = (buffer[at + network + 12] >> 4) * 4
            if TCP_HEADER <= size <= room:
                return network + size
        raise MalformedPacket("TCP: cut, or data offset out of bounds")
    if room < UDP_HEADER:
        raise MalformedPacket("UDP: cut")
    if not only_head and not UDP_HEADER <= _U16.unpack_from(buffer, at + network + 4)[0] <= room:
        raise MalformedPacket("UDP: length out of bounds")
    return network + UDP_HEADER


def _unsafe_options(buffer: Buffer, at: int, end: int) -> str:
    """Walks IPv4 options (RFC 791 §3.1).  Raises MalformedPacket where their lengths do not fit."""
    unsafe = ""
    while at < end:
        kind = buffer[at]
        if kind == 0:
            break
        if kind == 1:
            at += 1
            continue
        if at + 2 > end or buffer[at + 1] < 2 or at + buffer[at + 1] > end:
            raise MalformedPacket("IPv4: option length out of bounds")
        if kind == _LSRR or kind == _SSRR:
            unsafe = SOURCE_ROUTE
        at += buffer[at + 1]
    return unsafe


def _walk(buffer: Buffer, at: int, total: int, protocol: int, only_head: bool) -> tuple[int, int, bool, bool, str]:
    """Over the extension headers (RFC 8200 §4): final protocol, network size, is_fragment, is_first_fragment, unsafe.

    The whole chain must be in the packet, in a first fragment as well (RFC 7112 §5).
    """
    size, unsafe, seen = IPV6_HEADER, "", 0
    is_fragment = is_first = False
    while protocol in _EXTENSIONS:
        if seen == MAX_EXTENSION_HEADERS:
            return protocol, size, is_fragment, is_first, TOO_MANY_EXTENSIONS
        seen += 1
        if size + 8 > total:
            raise MalformedPacket("IPv6: extension header cut")
        here = at + size
        following, units = buffer[here], buffer[here + 1]
        if protocol == _FRAGMENT:
            length = 8
            if only_head:
                raise MalformedPacket("head: a fragment header")
            (field,) = _U16.unpack_from(buffer, here + 2)
            if field & 0xFFF9:  # else it is an atomic fragment (RFC 6946): the whole packet
                if is_fragment:
                    raise MalformedPacket("IPv6: a fragment of a fragment")
                is_fragment, is_first = True, not field & 0xFFF8
        elif protocol == _AUTHENTICATION:
            length = (units + 2) * 4
        else:
            length = (units + 1) * 8
        if size + length > total:
            raise MalformedPacket("IPv6: extension header cut")
        if protocol == _ROUTING:
            unsafe = ROUTING_HEADER
        elif protocol == _HOP_BY_HOP:
            if seen > 1:
                unsafe = unsafe or MISPLACED_HOP_BY_HOP
            elif _has_jumbo(buffer, here + 2, here + length):
                unsafe = JUMBO
        size += length
        protocol = following
        if is_fragment and not is_first:
            break  # what follows is the middle of something
    return protocol, size, is_fragment, is_first, unsafe


def _has_jumbo(buffer: Buffer, at: int, end: int) -> bool:
    """Walks hop-by-hop options (RFC 8200 §4.2).  Raises MalformedPacket where their lengths do not fit."""
    found = False
    while at < end:
        kind = buffer[at]
        if kind == 0:
            at += 1
            continue
        if at + 2 > end or at + 2 + buffer[at + 1] > end:
            raise MalformedPacket("IPv6: option length out of bounds")
        found = found or kind == _JUMBO_OPTION
        at += 2 + buffer[at + 1]
    return found
