from __future__ import annotations

import struct

import pytest

from tests.unit.ip.packets import A4, A6, B4, B6, Flow, ip4, ip6, padded_options
from tests.unit.ip.said import REASONS, UNSAFE
from tunnel.room.ip.filter import (
    CLOCKS,
    ENCAPSULATED,
    FOREIGN_QUOTE,
    GROUP_MEMBERSHIP,
    HOST_CONFIGURATION,
    NEIGHBOUR_DISCOVERY,
    REDIRECT_OR_ROUTER,
    ROUTERS,
    UDP_TUNNEL,
    UNKNOWN_ICMP,
    UNKNOWN_PROTOCOL,
    WRONG_DESTINATION,
    WRONG_SOURCE,
    MemberFilter,
)
from tunnel.room.ip.header import ROUTING_HEADER, SOURCE_ROUTE, parse, parse_head

LINK_LOCAL_A = bytes.fromhex("fe80000000000000707400000000000a")
LINK_LOCAL_B = bytes.fromhex("fe80000000000000707400000000000b")
ALL_NODES = b"\xff\x02" + bytes(13) + b"\x01"
UDP = struct.pack("!HHHH", 1, 2, 8, 0)
BACK4 = ip4(17, UDP, source=B4, destination=A4, options=b"\x94\4\0\0")  # what we sent to the member
BACK6 = ip6(17, UDP, source=LINK_LOCAL_B, destination=LINK_LOCAL_A)
FILTER = MemberFilter({A4, A6, LINK_LOCAL_A}, {B4, B6, LINK_LOCAL_B}, {bytes((10, 86, 0, 255))})


def verdict(packet: bytes) -> str | None:
    found = FILTER.why_dropped(parse(b"##" + packet, 2, len(packet) + 2), b"##" + packet, 2)
    assert found is None or found in REASONS or found in UNSAFE
    return found


def fragment_header(offset: int, more: bool) -> tuple[int, bytes]:
    return 44, bytes(1) + struct.pack("!HI", offset << 3 | more, 0x1234)


@pytest.mark.parametrize(
    "packet",
    [
        Flow().packet(b"x"),
        Flow(version=6, extensions=((60, padded_options(8)),)).packet(b"x"),
        ip6(17, UDP, source=LINK_LOCAL_A, destination=LINK_LOCAL_B),
        ip6(17, UDP, source=LINK_LOCAL_A, destination=ALL_NODES),
        ip4(17, UDP, destination=b"\xff\xff\xff\xff"),
        ip4(17, UDP, destination=bytes((10, 86, 0, 255))),
        ip4(17, UDP, destination=bytes((224, 0, 0, 251))),
        ip4(17, UDP, destination=bytes((239, 255, 255, 250))),
        ip4(132, b"sctp"),
        ip6(136, b"udplite!"),
        ip4(17, struct.pack("!HHHH", 68, 67, 8, 0)),  # to a server of DHCP, if there is one
        ip6(17, b"12345678", extensions=[fragment_header(0, True)]),
        ip6(60, b"a later piece of whatever the first one says", extensions=[fragment_header(1, True)]),
        ip4(17, b"12345678", field=0x2000),
        ip4(17, b"12345678", field=0x0001),
        ip4(1, b"\x05", field=0x0001),  # the middle of something
        *(ip4(1, bytes([kind]) + bytes(7)) for kind in (0, 8, 13, 14)),
        *(ip6(58, bytes([kind]) + bytes(7)) for kind in (128, 129)),
        *(ip4(1, bytes([kind]) + bytes(7) + BACK4[:28]) for kind in (3, 11, 12)),
        *(ip6(58, bytes([kind]) + bytes(7) + BACK6) for kind in (1, 2, 3, 4)),
        ip4(1, b"\x03" + bytes(7) + BACK4[:20], options=b"\x94\4\0\0"),
        ip6(58, b"\x02" + bytes(7) + BACK6[:40], extensions=[(60, padded_options(8))]),
    ],
)
def test_what_a_lan_carries_passes(packet: bytes) -> None:
    assert verdict(packet) is None


@pytest.mark.parametrize(
    "source",
    [B4, bytes((10, 86, 0, 3)), bytes(4), bytes((127, 0, 0, 1)), bytes((255, 255, 255, 255)), bytes((224, 0, 0, 1))],
)
def test_an_ipv4_source_that_is_not_the_members_is_refused(source: bytes) -> None:
    assert verdict(ip4(17, UDP, source=source)) == WRONG_SOURCE


@pytest.mark.parametrize(
    "source", [B6, LINK_LOCAL_B, bytes(16), bytes(15) + b"\x01", bytes(10) + b"\xff\xff" + A4, ALL_NODES, bytes(12) + A4]
)
def test_an_ipv6_source_that_is_not_the_members_is_refused(source: bytes) -> None:
    assert verdict(ip6(17, UDP, source=source)) == WRONG_SOURCE


@pytest.mark.parametrize(
    "packet",
    [
        *(ip4(17, UDP, destination=bytes(to)) for to in (
            (10, 86, 0, 3), (8, 8, 8, 8), (127, 0, 0, 1), (10, 86, 1, 255), (0, 0, 0, 0), (240, 0, 0, 1), (10, 86, 0, 1),
        )),
        *(ip6(17, UDP, destination=to) for to in (
            bytes(16), bytes(15) + b"\1", bytes(10) + b"\xff\xff" + B4, b"\xfe" + ALL_NODES[1:], A6[:-1] + b"\7",
        )),
    ],
)  # fmt: skip
def test_nothing_goes_on_through_us(packet: bytes) -> None:
    assert verdict(packet) == WRONG_DESTINATION


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (ip4(17, UDP, options=b"\x83\x07\x04\x0a\0\0\x09\0"), SOURCE_ROUTE),
        (ip6(17, UDP, extensions=[(43, b"\0\0\0" + bytes(4))]), ROUTING_HEADER),
        (ip6(58, b"\x80" + bytes(7), extensions=[(43, b"\0\0\0" + bytes(4))]), ROUTING_HEADER),
        *((ip4(1, bytes([kind]) + bytes(7)), REDIRECT_OR_ROUTER) for kind in (5, 9, 10)),
        *((ip4(1, bytes([kind]) + bytes(7)), UNKNOWN_ICMP) for kind in (4, 15, 17, 18, 42, 255)),
        *((ip6(58, bytes([kind]) + bytes(7)), REDIRECT_OR_ROUTER) for kind in (133, 134, 137, 138)),
        *((ip6(58, bytes([kind]) + bytes(7)), NEIGHBOUR_DISCOVERY) for kind in (135, 136, 141, 142)),
        *((ip6(58, bytes([kind]) + bytes(7)), GROUP_MEMBERSHIP) for kind in (130, 131, 132, 143)),
        *((ip6(58, bytes([kind]) + bytes(7)), UNKNOWN_ICMP) for kind in (0, 5, 139, 151, 155, 255)),
        (ip6(58, b"\x86" + bytes(7), extensions=[(0, padded_options(8)), (60, padded_options(8))]), REDIRECT_OR_ROUTER),
        (ip6(58, b"\x86" + bytes(7), extensions=[fragment_header(0, True)]), REDIRECT_OR_ROUTER),
        (ip6(58, b"\x86" + bytes(7), extensions=[fragment_header(0, False)]), REDIRECT_OR_ROUTER),
        (ip6(58, b"\x86" + bytes(7), source=LINK_LOCAL_A, destination=ALL_NODES), REDIRECT_OR_ROUTER),
        (ip4(1, b"\x05" + bytes(7), field=0x2000), REDIRECT_OR_ROUTER),
        (ip4(1, b""), UNKNOWN_ICMP),
        (ip6(58, b""), UNKNOWN_ICMP),
        (ip4(58, b"\x80" + bytes(7)), UNKNOWN_ICMP),
        (ip6(1, b"\x08" + bytes(7)), UNKNOWN_ICMP),
        (ip4(2, b"\x16" + bytes(7), destination=bytes((224, 0, 0, 22))), GROUP_MEMBERSHIP),
        *((ip4(kind, bytes(40)), ENCAPSULATED) for kind in (4, 41, 47, 97, 115)),
        *((ip6(kind, bytes(40)), ENCAPSULATED) for kind in (4, 41, 47, 97, 115)),
        (ip4(41, bytes(40), field=0x0001), ENCAPSULATED),
        *((ip4(kind, bytes(40), destination=bytes((224, 0, 0, 5))), UNKNOWN_PROTOCOL) for kind in (0, 59, 88, 89, 103, 112, 253)),
        *((ip6(kind, bytes(40)), UNKNOWN_PROTOCOL) for kind in (59, 88, 89, 103, 112, 135, 255)),
        *((ip4(17, struct.pack("!HHHH", 67, 68, 8, 0), destination=to), HOST_CONFIGURATION) for to in (B4, b"\xff" * 4)),
        (ip4(17, struct.pack("!HHHH", 67, 68, 80, 0), field=0x2000), HOST_CONFIGURATION),
        (ip4(17, b"", field=0x2000), HOST_CONFIGURATION),
        (ip6(17, struct.pack("!HHHH", 547, 546, 8, 0), source=LINK_LOCAL_A, destination=LINK_LOCAL_B), HOST_CONFIGURATION),
        (ip6(17, struct.pack("!HHHH", 547, 546, 8, 0), extensions=[fragment_header(0, True)]), HOST_CONFIGURATION),
    ],
)
def test_a_member_does_not_reconfigure_our_host(packet: bytes, reason: str) -> None:
    assert verdict(packet) == reason


REFUSED = {
    UDP_TUNNEL: (1701, 2152, 2268, 3386, 4341, 4342, 4754, 4789, 4790, 6080, 6081, 6635, 8472),
    ROUTERS: (269, 520, 521, 646, 654, 698, 1985, 2029, 3222, 4784, 6696),
    CLOCKS: (319, 320),
}


@pytest.mark.parametrize(("reason", "port"), [(reason, port) for reason, ports in REFUSED.items() for port in ports])
def test_tunnels_routers_and_clocks_over_udp_are_refused_as_their_sisters_are(reason: str, port: int) -> None:
    datagram = struct.pack("!HHHH", 40_000, port, 48, 0) + bytes(40)
    for destination in (B4, b"\xff" * 4, bytes((224, 0, 0, 9))):
        assert verdict(ip4(17, datagram, destination=destination)) == reason
        assert verdict(ip4(17, datagram, destination=destination, field=0x2000)) == reason
        assert verdict(ip4(17, datagram, destination=destination, options=b"\x94\4\0\0")) == reason
    for destination in (B6, ALL_NODES):
        assert verdict(ip6(17, datagram, destination=destination)) == reason
        assert verdict(ip6(17, datagram, destination=destination, extensions=[fragment_header(0, True)])) == reason
        assert verdict(ip6(17, datagram, destination=destination, extensions=[(60, padded_options(8))])) == reason
    for version in (4, 6):
        head = Flow(version=version, protocol=17, ports=(5, port)).packet(b"")
        assert FILTER.why_dropped(parse_head(head), head) == reason
        # An answer comes from such a port, and TCP is reached as any program is.
        assert verdict(Flow(version=version, protocol=17, ports=(port, 40_000)).packet(b"")) is None
        assert verdict(Flow(version=version, ports=(5, port)).packet(b"")) is None


@pytest.mark.parametrize("port", [3784, 3785, 6784])
def test_bfd_is_refused_by_the_ttl_that_it_must_have_and_ventrilo_passes(port: int) -> None:
    for packet, where in ((ip4(17, struct.pack("!HHHH", 5, port, 8, 0)), 8), (ip6(17, struct.pack("!HHHH", 5, port, 8, 0)), 7)):
        for ttl, reason in ((255, ROUTERS), (254, None), (128, None), (64, None)):
            assert verdict(packet[:where] + bytes((ttl,)) + packet[where + 1 :]) == reason


#: Ports to which games, their servers and their voice send, over UDP.
GAMES = (
    88, 1234, 2092, 2300, 2302, 2346, 2757, 2759, 3074, 3478, 3544, 3659, 3724, 3784, 3979, 4380, 4445, 4500, 4534, 5029, 5121,
    5154, 5555, 6073, 6112, 6118, 6119, 7777, 7787, 8303, 8767, 9987, 14_567, 15_345, 16_567, 19_132, 20_595, 23_073, 25_565,
    26_000, 27_015, 27_036, 27_500, 27_910, 27_960, 28_000, 28_960, 30_000, 34_197, 47_624, 64_738,
)  # fmt: skip


def test_where_games_send_nothing_is_refused() -> None:
    assert [port for port in GAMES if verdict(Flow(protocol=17, ports=(5, port)).packet(b"")) is not None] == []


def test_later_fragments_cannot_change_the_ports_that_were_looked_at() -> None:
    vxlan = struct.pack("!HHHH", 5, 4789, 24, 0)
    assert verdict(ip4(17, vxlan, field=0x2000)) == UDP_TUNNEL
    assert verdict(ip4(17, vxlan[:4], field=0x2000)) == UDP_TUNNEL  # the shortest with a port
    assert verdict(ip4(17, vxlan[:3], field=0x2000)) == HOST_CONFIGURATION
    # Offset 1 is 8 bytes behind the transport header's first, where no port is: alone it is nothing, behind an allowed one, data.
    assert verdict(ip4(17, vxlan, field=0x0001)) is None


FAR4, FAR6 = bytes((8, 8, 8, 8)), bytes.fromhex("20014860486000000000000000008888")


@pytest.mark.parametrize(
    "packet",
    [
        *(ip4(1, bytes([kind]) + bytes(7) + ip4(17, UDP, source=B4, destination=FAR4)) for kind in (3, 11, 12)),
        *(ip6(58, bytes([kind]) + bytes(7) + ip6(58, b"\x80", source=B6, destination=FAR6)) for kind in (1, 2, 3, 4)),
        ip4(1, b"\x03" + bytes(7) + ip4(17, UDP, source=FAR4, destination=A4)),
        ip6(58, b"\x02" + bytes(7) + ip6(17, UDP, source=FAR6, destination=A6)),
        ip4(1, b"\x03" + bytes(7) + BACK4[:19]),
        ip6(58, b"\x02" + bytes(7) + BACK6[:39]),
        ip4(1, b"\x03"),
        ip6(58, b"\x02"),
        ip4(1, b"\x03" + bytes(7) + b"\x55" + BACK4[1:]),
        ip4(1, b"\x03" + bytes(7) + BACK6),
        ip6(58, b"\x02" + bytes(7) + BACK4 + bytes(20)),
        ip4(1, b"\x03" + bytes(7) + BACK4[:12], total=40) + BACK4[12:],  # the rest is padding
        ip4(1, b"\x03" + bytes(7) + ip4(17, UDP, source=B4, destination=FAR4), field=0x2000),
        ip4(1, b"\x03" + bytes(7) + BACK4, field=0x2000),  # true so far, and the next piece would lie over it
        ip6(58, b"\x02" + bytes(7) + BACK6, extensions=[fragment_header(0, True)]),
    ],
)
def test_a_member_tells_errors_only_of_what_we_sent_to_it(packet: bytes) -> None:
    assert verdict(packet) == FOREIGN_QUOTE


def test_the_head_of_a_run_is_judged_alike() -> None:
    head = ip4(17, struct.pack("!HHHH", 67, 68, 8, 0))
    assert FILTER.why_dropped(parse_head(head), head) == HOST_CONFIGURATION
    for flow in (Flow(), Flow(version=6)):
        head = flow.packet(b"")
        assert FILTER.why_dropped(parse_head(head), head) is None
        assert MemberFilter({B4, B6}, {A4, A6}).why_dropped(parse_head(head), head) == WRONG_SOURCE
        assert MemberFilter({A4, A6}, {A4, A6}).why_dropped(parse_head(head), head) == WRONG_DESTINATION
