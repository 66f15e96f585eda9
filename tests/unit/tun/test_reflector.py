"""What is reflected leaves with our source and whole checksums; which groups are mirrored; any bytes do no harm."""

from __future__ import annotations

import socket
import struct
import time
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.doors.tun.groups import parse_igmp, parse_igmp6
from tunnel.doors.tun.reflector import MAX_REMEMBERED, Reflector, filter_program, rewrite_source
from tunnel.errors import MalformedPacket

INNER4 = socket.inet_aton("10.77.1.3")
INNER6 = socket.inet_pton(socket.AF_INET6, "fe80::7074:0:0:3")


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp(payload: bytes) -> bytes:
    return struct.pack("!HHHH", 5555, 4445, 8 + len(payload), 0xBEEF) + payload


def packet4(target: str, payload: bytes, *, options: bytes = b"", fragment: int = 0) -> bytes:
    words = 5 + len(options) // 4
    body = udp(payload)
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0, 4 * words + len(body), 1, fragment, 4, 17, 0xDEAD)
    return head + socket.inet_aton("192.168.7.2") + socket.inet_aton(target) + options + body


def packet6(target: str, payload: bytes) -> bytes:
    body = udp(payload)
    source = socket.inet_pton(socket.AF_INET6, "fe80::1")
    return struct.pack("!IHBB", 6 << 28, len(body), 17, 1) + source + socket.inet_pton(socket.AF_INET6, target) + body


@pytest.mark.parametrize("payload", [b"", b"odd", b"even", bytes(1400)])
@pytest.mark.parametrize("options", [b"", bytes.fromhex("94040000")])
def test_an_ipv4_packet_gets_our_source_and_whole_checksums(payload: bytes, options: bytes) -> None:
    changed = rewrite_source(packet4("224.0.2.60", payload, options=options), INNER4)
    start = 20 + len(options)
    assert (changed[12:16], changed[16:20]) == (INNER4, socket.inet_aton("224.0.2.60"))
    assert checksum(changed[:start]) == 0
    pseudo = changed[12:20] + struct.pack("!HH", 17, len(changed) - start)
    padded = changed[start:] + bytes(len(changed) % 2)
    assert checksum(pseudo + padded) == 0
    assert changed[start + 8 :] == payload


def test_an_ipv4_packet_may_be_fragmented_and_another_one_has_another_identification() -> None:
    one, other = (rewrite_source(packet4("224.0.2.60", payload, fragment=0x4000), INNER4) for payload in (b"one", b"other"))
    assert one[6:8] == other[6:8] == bytes(2)
    assert one[4:6] != other[4:6]
    assert one[4:6] == rewrite_source(packet4("224.0.2.60", b"one"), INNER4)[4:6]


def test_an_ipv6_packet_gets_our_source_and_a_whole_checksum() -> None:
    changed = rewrite_source(packet6("ff02::c", b"hello"), INNER4, INNER6)
    assert changed[8:24] == INNER6
    assert checksum(changed[8:40] + struct.pack("!II", len(changed) - 40, 17) + changed[40:] + b"\0") == 0


def test_the_broadcast_address_of_another_subnet_becomes_everybodys() -> None:
    assert rewrite_source(packet4("192.168.7.255", b"x"), INNER4)[16:20] == b"\xff" * 4
    assert rewrite_source(packet4("255.255.255.255", b"x"), INNER4)[16:20] == b"\xff" * 4


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (packet4("224.0.2.60", b"x", fragment=0x2000), "fragment"),
        (packet4("224.0.2.60", b"x", fragment=100), "fragment"),
        (packet4("224.0.2.60", b"x") + b"trailer", "length"),
        (packet4("224.0.2.60", b"x")[:-1], "length"),
        (packet4("224.0.2.60", bytes(20_000)), "length"),
        (b"", "length"),
        (packet6("ff02::c", b"x"), "family"),
    ],
)
def test_what_is_no_whole_packet_is_refused(packet: bytes, reason: str) -> None:
    with pytest.raises(MalformedPacket, match=reason):
        rewrite_source(packet, INNER4)


@given(
    st.binary(max_size=100)
    | st.tuples(st.integers(0, 60), st.binary(max_size=4)).map(
        lambda change: (
            packet4("224.0.0.251", bytes(20))[: change[0]]
            + change[1]
            + packet4("224.0.0.251", bytes(20))[change[0] + len(change[1]) :]
        )
    )
)
def test_any_bytes_are_rewritten_or_malformed(data: bytes) -> None:
    try:
        assert len(rewrite_source(data, INNER4, INNER6)) == len(data)
    except MalformedPacket:
        return


def test_every_jump_of_the_filter_lands_inside_it() -> None:
    program = filter_program(7)
    rows = list(struct.iter_unpack("=HBBI", program))
    assert rows[-1] == (6, 0, 0, 0)
    assert all(place + 1 + max(row[1], row[2]) < len(rows) or row[0] == 6 for place, row in enumerate(rows))
    assert [row[3] for row in rows].count(7) == 1


IGMP = """Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter
1\tlo        :     1      V3
\t\t\t\t%s     1 0:00000000\t\t0
2\teth0      :     2      V3
\t\t\t\t%s     1 0:00000000\t\t0
\t\t\t\tnonsense     1 0:00000000\t\t0
"""
IGMP6 = """1    lo              ff020000000000000000000000000001     1 0000000C 0
2    eth0            ff0200000000000000000000000000fb     1 00000004 0
2    eth0            nonsense     1 00000004 0
short
"""


def test_groups_are_read_as_the_kernel_writes_them() -> None:
    native = [f"{struct.unpack('=I', socket.inet_aton(group))[0]:08X}" for group in ("224.0.0.1", "239.255.255.250")]
    found = [(name, str(group)) for name, group in parse_igmp(IGMP % tuple(native))]
    assert found == [("lo", "224.0.0.1"), ("eth0", "239.255.255.250")]
    assert [(name, str(group)) for name, group in parse_igmp6(IGMP6)] == [("lo", "ff02::1"), ("eth0", "ff02::fb")]


@given(st.text(alphabet="0123456789abcdefF \t\n:", max_size=100))
def test_any_table_is_read(text: str) -> None:
    list(parse_igmp(text))
    list(parse_igmp6(text))


def test_so_many_announcements_are_remembered_and_the_oldest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """All within the moment in which a copy of each is known by it."""
    monkeypatch.setattr(time, "monotonic", lambda: 1_000.0)
    watcher = Reflector.__new__(Reflector)  # without its socket, which not every user may open
    watcher._remembered, watcher._index = OrderedDict(), 1
    packets = [packet4("224.0.0.251", b"%d" % number) for number in range(MAX_REMEMBERED + 1)]
    assert not any(watcher.note(packet) for packet in packets)
    assert len(watcher._remembered) == MAX_REMEMBERED
    watcher._index = 2  # what comes now is a copy from another interface
    assert all(watcher.note(packet) for packet in packets[1:])
    assert not watcher.note(packets[0])
    assert len(watcher._remembered) == MAX_REMEMBERED
