"""Which of two ACKs is needless, seen from the sender of data that would get them."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from tests.unit.ip.packets import A4, ACK, CWR, ECE, FIN, PSH, RST, SYN, URG, Flow, ip4, padded_options
from tunnel.room.ip.acks import ACK_SIZES, PureAck, is_needless, is_repeated, read_ack


def stamps(value: int = 1000, echo: int = 900) -> bytes:
    return struct.pack("!BBBBII", 1, 1, 8, 10, value & 0xFFFF_FFFF, echo & 0xFFFF_FFFF)


KINDS = [Flow(options=options, version=version) for version in (4, 6) for options in (b"", stamps())]


def bytes_of(flow: Flow, number: int, window: int = 500) -> bytearray:
    """A pure ACK with its numbers written in; the checksum, which nobody looks at, is that of another."""
    packet = bytearray(flow.packet(b""))
    at = 20 if flow.version == 4 else 40
    struct.pack_into("!I", packet, at + 8, number & 0xFFFF_FFFF)
    struct.pack_into("!H", packet, at + 14, window)
    return packet


def ack(flow: Flow, number: int, window: int = 500) -> PureAck:
    packet = bytes_of(flow, number, window)
    found = read_ack(b"##" + packet + b"#", 2, 2 + len(packet))
    assert found is not None
    return found


@pytest.mark.parametrize("flow", KINDS)
@pytest.mark.parametrize("number", [0, 1_000_000, 0xFFFF_FFFF, 0x7FFF_FFFF])
@pytest.mark.parametrize("step", [1, 65_000, (1 << 31) - 1])
def test_an_ack_is_needless_where_a_newer_one_acknowledges_more(flow: Flow, number: int, step: int) -> None:
    older, newer = ack(flow, number), ack(replace(flow, ident=3), number + step, window=0)
    assert is_needless(older, newer)
    assert not is_repeated(older, newer)
    assert not is_needless(newer, older)


@pytest.mark.parametrize("flow", KINDS)
def test_the_same_number_again_is_a_duplicate_or_a_window_update(flow: Flow) -> None:
    for window in (500, 600):
        older, newer = ack(flow, 5_000), ack(flow, 5_000, window)
        assert is_repeated(older, newer)
        assert not is_needless(older, newer)
    other = ack(replace(flow, ports=(1, 2)), 5_000)
    assert not is_repeated(ack(flow, 5_000), other)


@pytest.mark.parametrize("flow", KINDS)
def test_half_the_numbers_ahead_is_not_ahead(flow: Flow) -> None:
    assert not is_needless(ack(flow, 0), ack(flow, 1 << 31))


@pytest.mark.parametrize("flow", KINDS)
@pytest.mark.parametrize(
    "other",
    [
        {"ports": (40_001, 5_001)},
        {"ports": (40_000, 5_002)},
        {"sequence": 0xFFFF_FF01},
        {"tos": 1},
        {"tos": 0x20},
    ],
)
def test_an_ack_of_another_flow_or_mark_or_place_stands_for_none(flow: Flow, other: dict[str, object]) -> None:
    assert not is_needless(ack(flow, 100), ack(replace(flow, **other), 200))  # type: ignore[arg-type]


def test_nor_does_one_of_other_addresses_or_another_time_to_live() -> None:
    for at, flow in ((8, KINDS[0]), (12, KINDS[0]), (19, KINDS[0]), (7, KINDS[2]), (8, KINDS[2]), (39, KINDS[2]), (3, KINDS[2])):
        changed = bytes_of(flow, 200)
        changed[at] ^= 1
        newer = read_ack(changed, 0, len(changed))
        assert newer is not None
        assert not is_needless(ack(flow, 100), newer)


def test_nor_does_one_with_timestamps_for_one_without_or_of_the_other_version() -> None:
    for one in KINDS:
        for other in KINDS:
            assert is_needless(ack(one, 100), ack(other, 200)) == (one is other)


@pytest.mark.parametrize(
    ("value", "echo", "needless"), [(1000, 900, True), (1001, 950, True), (999, 900, False), (1000, 899, False)]
)
@pytest.mark.parametrize("base", [0, 0xFFFF_FFFF - 950])
@pytest.mark.parametrize("version", [4, 6])
def test_timestamps_do_not_go_back(value: int, echo: int, needless: bool, base: int, version: int) -> None:
    older = Flow(version=version, options=stamps(base + 1000, base + 900))
    newer = Flow(version=version, options=stamps(base + value, base + echo))
    assert is_needless(ack(older, 100), ack(newer, 200)) == needless


SACK = b"\x01\x01\x05\x0a" + bytes(8)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    "flow",
    [
        *(Flow(flags=ACK | more) for more in (FIN, SYN, RST, PSH, URG, ECE, CWR)),
        Flow(flags=0),
        Flow(options=SACK),
        Flow(options=stamps() + SACK),
        Flow(options=b"\x01\x01\x05\x12" + bytes(16)),
        Flow(options=stamps()[2:] + b"\x01\x01"),
        Flow(options=b"\x08\x0a" + bytes(8) + b"\x01\x01"),
        Flow(options=b"\x01" * 12),
        Flow(options=b"\0" * 12),
        Flow(ip_options=b"\x01\x01\x01\0"),
        Flow(protocol=17),
    ],
)
def test_what_says_more_than_an_acknowledgment_is_no_pure_ack(flow: Flow, version: int) -> None:
    packet = replace(flow, version=version, ip_options=b"" if version == 6 else flow.ip_options).packet(b"")
    if version == 6 and flow.ip_options:
        packet = Flow(version=6, extensions=((60, padded_options(8)),)).packet(b"")
    assert read_ack(packet, 0, len(packet)) is None


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [1, 12, 20, 32])
def test_payload_is_not_thrown_away(version: int, size: int) -> None:
    packet = Flow(version=version).packet(stamps() + bytes(size - 12) if size >= 12 else bytes(size))
    assert read_ack(packet, 0, len(packet)) is None


def test_neither_is_one_with_an_accurate_ecn_bit_or_reserved_ones() -> None:
    for flow in KINDS:
        for bit in range(4):
            packet = bytes_of(flow, 100)
            packet[(20 if flow.version == 4 else 40) + 12] |= 1 << bit
            assert read_ack(packet, 0, len(packet)) is None


@pytest.mark.parametrize("field", [0x2000, 1, 0x1FFF, 0x6000])
def test_nor_a_fragment(field: int) -> None:
    packet = ip4(6, Flow().packet(b"")[20:], field=field)
    assert read_ack(packet, 0, len(packet)) is None


def test_nor_a_packet_whose_own_length_is_another() -> None:
    body = Flow().packet(b"")[20:]
    for total in (0, 39, 41, 52):
        packet = ip4(6, body, total=total)
        assert read_ack(packet, 0, len(packet)) is None
    whole = bytes(bytes_of(KINDS[1], 5))
    assert whole[12:16] == A4
    assert read_ack(whole, 0, len(whole) - 12) is None
    assert read_ack(whole, 0, len(whole) + 20) is None
    assert read_ack(whole[:-1], 0, len(whole)) is None
    assert frozenset(len(bytes_of(flow, 0)) for flow in KINDS) == ACK_SIZES
