from __future__ import annotations

import struct

import pytest

from tests.unit.ip.packets import A4, A6, B4, B6, Flow, ip4, ip6, padded_options
from tunnel.errors import MalformedPacket
from tunnel.room.ip.header import (
    JUMBO,
    MAX_EXTENSION_HEADERS,
    MISPLACED_HOP_BY_HOP,
    ROUTING_HEADER,
    SOURCE_ROUTE,
    TOO_MANY_EXTENSIONS,
    Inner,
    destination_of,
    parse,
    parse_head,
)

TIMESTAMPS = b"\x01\x01\x08\x0a" + bytes(8)
UDP_HEADER = struct.pack("!HHHH", 1, 2, 8, 0)


def look(packet: bytes) -> Inner:
    return parse(packet, 0, len(packet))


def fragment_header(offset: int, more: bool) -> tuple[int, bytes]:
    return 44, bytes(1) + struct.pack("!HI", offset << 3 | more, 0x1234)


def test_a_tcp_packet_is_read_with_its_options() -> None:
    packet = Flow(options=TIMESTAMPS, ip_options=b"\x94\x04\0\0", tos=0xBA).packet(b"hello")
    assert look(packet) == Inner(4, 6, A4, B4, 24, 56, 61, False, False, 2, True, "")
    assert parse_head(packet[:56]) == look(packet)._replace(total_size=56)


def test_a_udp_packet_over_ipv6_is_read_behind_its_extension_headers() -> None:
    flow = Flow(version=6, protocol=17, extensions=((0, padded_options(8)), (60, padded_options(16))), tos=0b1011_0111)
    packet = flow.packet(b"abc")
    assert look(packet) == Inner(6, 17, A6, B6, 64, 72, 75, False, False, 3, True, "")
    assert parse_head(packet[:72]).head_size == 72


def test_a_packet_is_found_in_the_middle_of_a_buffer_and_padding_is_told_from_it() -> None:
    packet = ip4(17, UDP_HEADER)
    inner = parse(b"#" * 14 + packet + bytes(18), 14, 14 + len(packet) + 18)
    assert (inner.total_size, inner.head_size, inner.source) == (28, 28, A4)


def test_other_protocols_have_no_transport_header_of_ours() -> None:
    inner = look(ip4(1, b"\x08\0\0\0"))
    assert (inner.protocol, inner.network_size, inner.head_size) == (1, 20, 20)
    assert look(ip6(59, b"")).head_size == 40
    assert look(ip4(2, b"", field=0)).dont_fragment is False


@pytest.mark.parametrize(
    ("field", "first"),
    [(0x2000, True), (0x2001, False), (0x0001, False)],
)
def test_fragments_of_ipv4(field: int, first: bool) -> None:
    inner = look(ip4(6, b"12345678", field=field))
    assert (inner.is_fragment, inner.is_first_fragment, inner.head_size) == (True, first, 20)


@pytest.mark.parametrize(("offset", "more"), [(0, True), (1, True), (8191, False)])
def test_fragments_of_ipv6(offset: int, more: bool) -> None:
    inner = look(ip6(6, b"12345678", extensions=[fragment_header(offset, more)]))
    assert (inner.is_fragment, inner.is_first_fragment) == (True, offset == 0)
    assert (inner.protocol, inner.network_size, inner.head_size) == (6, 48, 48)


def test_an_atomic_fragment_is_a_whole_packet_but_no_head() -> None:
    packet = ip6(17, UDP_HEADER, extensions=[fragment_header(0, False)])
    assert (look(packet).is_fragment, look(packet).head_size) == (False, 56)
    with pytest.raises(MalformedPacket, match="fragment header"):
        parse_head(packet)


def test_what_follows_a_later_fragment_is_not_read_as_headers() -> None:
    inner = look(ip6(60, b"\xff" * 8, extensions=[fragment_header(5, True)]))
    assert (inner.protocol, inner.network_size) == (60, 48)


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (ip4(17, UDP_HEADER, options=b"\x83\x07\x04\x0a\0\0\x09\0"), SOURCE_ROUTE),
        (ip4(17, UDP_HEADER, options=b"\x01\x89\x03\x04"), SOURCE_ROUTE),
        (ip4(17, UDP_HEADER, options=b"\x00\x89\x03\x04"), ""),  # behind the end of the options
        (ip4(17, UDP_HEADER, options=b"\x94\x04\0\0"), ""),  # router alert
        (ip4(17, UDP_HEADER, options=b"\x01\x01\x07\x02"), ""),  # two bytes at the end
        (ip6(17, UDP_HEADER, extensions=[(0, b"\0\1\2\0\0\1\0")]), ""),  # two bytes at the end
        (ip6(59, b"", extensions=[(60, padded_options(8))]), ""),
        (ip6(17, UDP_HEADER, extensions=[(43, b"\0\0\0" + bytes(4))]), ROUTING_HEADER),
        (ip6(17, UDP_HEADER, extensions=[(43, b"\x02\x04\x01" + bytes(20))]), ROUTING_HEADER),
        (ip6(17, UDP_HEADER, extensions=[(60, padded_options(8)), (43, b"\0\x02\0" + bytes(4))]), ROUTING_HEADER),
        (ip6(17, UDP_HEADER, extensions=[(0, b"\0\xc2\x04\0\1\0\0")]), JUMBO),
        (ip6(17, UDP_HEADER, extensions=[(0, b"\1\0\0\0\xc2\x04\0\1\0\0\1\3\0\0\0")]), JUMBO),  # behind Pad1
        (ip6(17, UDP_HEADER, extensions=[(0, b"\1\5\2\0\0\xc2\4\0\0\0\0\1\2\0\0")]), JUMBO),  # behind router alert
        (ip6(17, UDP_HEADER, extensions=[(60, padded_options(8)), (0, padded_options(8))]), MISPLACED_HOP_BY_HOP),
        (ip6(17, UDP_HEADER, extensions=[(60, padded_options(8))] * (MAX_EXTENSION_HEADERS + 1)), TOO_MANY_EXTENSIONS),
        (ip6(17, UDP_HEADER, extensions=[(60, padded_options(8))] * MAX_EXTENSION_HEADERS), ""),
        (ip6(17, UDP_HEADER, extensions=[(51, b"\x04" + bytes(22))]), ""),  # 24 bytes of AH
    ],
)
def test_what_no_honest_member_sends_is_named(packet: bytes, reason: str) -> None:
    assert look(packet).unsafe == reason


def tcp(doff: int) -> bytes:
    return bytes(12) + bytes([doff << 4, 2]) + bytes(6)


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        ip4(17, UDP_HEADER)[:19],
        ip6(17, UDP_HEADER)[:39],
        b"\x55" + ip4(17, UDP_HEADER)[1:],
        b"\x44" + ip4(17, UDP_HEADER)[1:],  # IHL 4
        b"\x4f" + ip4(17, UDP_HEADER)[1:],  # IHL beyond the packet
        ip4(17, UDP_HEADER, total=29),
        ip4(17, UDP_HEADER, total=19),
        ip4(1, bytes(8), total=19),
        ip4(1, bytes(8), options=b"\1\1\1\1", total=23),
        ip6(0, b"\x11"),
        ip6(17, UDP_HEADER, extensions=[(60, padded_options(8))], length=4),
        ip4(17, UDP_HEADER, total=27),
        ip4(17, UDP_HEADER, options=b"\x07\x01\0\0"),  # option length below 2
        ip4(17, UDP_HEADER, options=b"\x01\x01\x07\x03"),
        ip4(17, UDP_HEADER, options=b"\x01\x01\x01\x07"),
        ip4(6, tcp(4)),
        ip4(6, tcp(6)),
        ip4(6, tcp(5)[:19]),
        ip4(17, struct.pack("!HHHH", 1, 2, 7, 0)),
        ip4(17, struct.pack("!HHHH", 1, 2, 9, 0)),
        ip6(17, UDP_HEADER, length=9),
        ip6(17, UDP_HEADER, length=0),
        ip6(17, b"", extensions=[(0, b"\x01" + bytes(6))]),  # options beyond the packet
        ip6(17, UDP_HEADER, extensions=[(0, b"\0\x05\x06\0\0\0\0")]),  # an option beyond its header
        ip6(0, b"\x11\0\0"),
        ip6(17, UDP_HEADER, extensions=[fragment_header(0, True), fragment_header(0, True)]),
        ip6(6, b"12345678", extensions=[fragment_header(0, True), (60, padded_options(24))], length=24),
    ],
)
def test_lengths_that_lie_are_malformed(packet: bytes) -> None:
    with pytest.raises(MalformedPacket):
        look(packet)


def test_a_packet_must_lie_in_the_buffer() -> None:
    packet = ip4(17, UDP_HEADER)
    for at, end in ((0, len(packet) + 1), (-28, len(packet)), (20, 10)):
        with pytest.raises(MalformedPacket):
            parse(packet, at, end)
    six = ip6(59, b"")
    with pytest.raises(MalformedPacket):
        parse(b"##" + six, 2, 41)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        bytes(40),
        Flow().packet(b"x"),  # a byte of payload
        Flow(protocol=17).packet(b"")[:-1],
        Flow(version=6).packet(b"x"),
        ip4(1, bytes(8)),
        ip4(6, tcp(5), field=0x2000),
        ip4(6, tcp(5), field=0x0001),
        ip6(17, UDP_HEADER, extensions=[fragment_header(0, True)]),
        ip6(58, bytes(8)),
    ],
)
def test_a_head_is_exactly_two_headers(head: bytes) -> None:
    with pytest.raises(MalformedPacket):
        parse_head(head)


def test_the_length_field_of_a_head_is_not_looked_at() -> None:
    head = bytearray(Flow(protocol=17).packet(b""))
    head[2:4] = head[24:26] = b"\xff\xff"
    assert parse_head(head).total_size == 28


def test_the_cheapest_look_gives_the_destination() -> None:
    four, six = Flow().packet(b""), Flow(version=6).packet(b"")
    assert destination_of(b"##" + four, 2, 2 + len(four)) == B4
    assert destination_of(bytearray(six), 0, len(six)) == B6
    assert destination_of(memoryview(six), 0, 39) is None
    assert destination_of(four, 0, 19) is None
    assert destination_of(b"##" + four, 2, 21) is None
    assert destination_of(b"##" + six, 2, 41) is None
    assert destination_of(b"\x50" + bytes(60), 0, 61) is None
