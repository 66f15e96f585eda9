from __future__ import annotations

import random
import struct

import pytest

from tests.unit.ip.packets import A4, A6, B4, Flow, ip4, ip6, is_right, padded_options
from tunnel.errors import MalformedPacket
from tunnel.room.ip.header import parse
from tunnel.room.ip.icmp import fragment, prohibited, too_big

OURS4, OURS6 = bytes((10, 86, 0, 9)), A6[:-1] + b"\x09"
PAYLOAD = random.Random(3).randbytes(3000)


def answer(packet: bytes, mtu: int = 1200, broadcasts: frozenset[bytes] = frozenset()) -> bytes | None:
    return too_big(packet, parse(packet, 0, len(packet)), mtu, OURS4 if packet[0] >> 4 == 4 else OURS6, broadcasts)


def fragment_header(offset: int, more: bool) -> tuple[int, bytes]:
    return 44, bytes(1) + struct.pack("!HI", offset << 3 | more, 0x1234)


def test_an_ipv4_source_is_told_the_mtu_with_a_quotation_of_at_most_576_bytes() -> None:
    packet = Flow(options=b"\x01\x01\x08\x0a" + bytes(8)).packet(PAYLOAD)
    message = answer(packet, 1372)
    assert message is not None
    assert (message[12:16], message[16:20], message[9]) == (OURS4, A4, 1)
    assert message[20:22] == b"\x03\x04"
    assert (message[1], message[6:8]) == (0xC0, b"\x40\x00")
    assert message[24:28] == struct.pack("!HH", 0, 1372)
    assert message[28:] == packet[:548]
    assert len(message) == 576
    assert is_right(message)


def test_a_short_packet_is_quoted_whole() -> None:
    packet = Flow(protocol=17).packet(PAYLOAD[:301])
    message = answer(packet + b"padding", 100)
    assert message is not None
    assert message[28:] == packet
    assert is_right(message)


def test_an_ipv6_source_is_told_the_mtu_within_1280_bytes() -> None:
    for size in (1300, 3000):
        packet = Flow(version=6).packet(PAYLOAD[:size])
        message = answer(packet, 1300)
        assert message is not None
        assert (message[8:24], message[24:40], message[6]) == (OURS6, A6, 58)
        assert message[40:42] == b"\x02\x00"
        assert message[44:48] == struct.pack("!I", 1300)
        assert message[48:] == packet[:1232]
        assert len(message) == 1280
        assert is_right(message)


def test_no_smaller_mtu_is_told_than_every_host_must_take() -> None:
    six, four = answer(Flow(version=6).packet(PAYLOAD), 576), answer(Flow().packet(PAYLOAD), 20)
    assert six is not None
    assert four is not None
    assert six[44:48] == struct.pack("!I", 1280)
    assert four[26:28] == struct.pack("!H", 68)


@pytest.mark.parametrize(
    "packet",
    [
        ip4(1, bytes([kind, 0]) + PAYLOAD) for kind in (0, 8, 13)
    ] + [
        ip6(58, bytes([kind, 0]) + PAYLOAD) for kind in (128, 129, 200)
    ] + [
        ip6(17, PAYLOAD, extensions=[fragment_header(0, True)]),
        ip4(17, PAYLOAD, field=0x6000),
        ip6(17, Flow(version=6, protocol=17).packet(PAYLOAD)[40:], destination=b"\xff\x02" + bytes(13) + b"\xfb"),
    ],
)  # fmt: skip
def test_queries_first_fragments_and_ipv6_multicast_are_answered(packet: bytes) -> None:
    message = answer(packet, 1300)
    assert message is not None
    assert is_right(message)


UDP4, UDP6 = Flow(protocol=17).packet(PAYLOAD)[20:], Flow(version=6, protocol=17).packet(PAYLOAD)[40:]


@pytest.mark.parametrize(
    "packet",
    [
        ip4(1, bytes([kind, 0]) + PAYLOAD) for kind in (3, 4, 5, 11, 12, 99)
    ] + [
        ip6(58, bytes([kind, 0]) + PAYLOAD) for kind in (1, 2, 3, 4, 127, 137)
    ] + [
        ip6(58, b"", extensions=[(60, padded_options(248))] * 6),  # no type
        ip4(17, PAYLOAD, field=0x4001),  # a later fragment
        ip6(17, PAYLOAD, extensions=[fragment_header(1, True)]),
        ip4(17, UDP4, field=0),  # may be fragmented
        ip4(17, Flow(protocol=17).packet(PAYLOAD[:1172])[20:]),  # fits
        ip6(17, Flow(version=6, protocol=17).packet(PAYLOAD[:1232])[40:]),
        *(ip4(17, UDP4, source=bytes(source)) for source in (
            (0, 0, 0, 0), (127, 0, 0, 1), (224, 0, 0, 1), (240, 0, 0, 1), (255, 255, 255, 255), (10, 86, 0, 255),
        )),
        *(ip4(17, UDP4, destination=bytes(destination)) for destination in (
            (224, 0, 0, 251), (255, 255, 255, 255), (10, 86, 0, 255),
        )),
        *(ip6(17, UDP6, source=source) for source in (bytes(16), bytes(15) + b"\1", b"\xff\x02" + bytes(13) + b"\1")),
    ],
)  # fmt: skip
def test_where_the_rfcs_forbid_an_answer_there_is_none(packet: bytes) -> None:
    assert answer(packet, broadcasts=frozenset({bytes((10, 86, 0, 255))})) is None


def test_our_address_must_be_of_the_same_version() -> None:
    packet = Flow().packet(PAYLOAD)
    with pytest.raises(ValueError):
        too_big(packet, parse(packet, 0, len(packet)), 1200, OURS6)


# ------------------------------------------------------------------ IPv4 fragments

COPIED, NOT_COPIED = b"\x94\x04\0\0", b"\x44\x08\x05\0" + bytes(4)  # router alert; timestamps


def pieces_of(packet: bytes, mtu: int) -> list[bytes]:
    return fragment(packet, parse(packet, 0, len(packet)), mtu)


def data_of(pieces: list[bytes]) -> bytes:
    """Put together again, by the procedure of RFC 791 §3.2."""
    data = bytearray()
    for piece in pieces:
        (field,) = struct.unpack_from("!H", piece, 6)
        assert (field & 0x1FFF) * 8 == len(data)
        assert bool(field & 0x2000) == (piece is not pieces[-1])
        data += piece[(piece[0] & 15) * 4 :]
    return bytes(data)


@pytest.mark.parametrize("mtu", [68, 576, 1399, 1400, 3019])
@pytest.mark.parametrize("options", [b"", COPIED, NOT_COPIED, COPIED + NOT_COPIED, b"\x01" + NOT_COPIED + b"\x01\0\0"])
def test_a_packet_without_df_goes_in_pieces(mtu: int, options: bytes) -> None:
    packet = ip4(17, UDP4, field=0, ident=0xBEEF, options=options)
    pieces = pieces_of(packet + b"padding", mtu)
    assert data_of(pieces) == UDP4
    copied = COPIED if COPIED in options else b""
    for piece in pieces:
        size = (piece[0] & 15) * 4
        assert len(piece) <= mtu
        assert len(piece) > mtu - 8 or piece is pieces[-1]
        assert parse(piece, 0, len(piece)).total_size == len(piece)
        assert piece[20:size] == (options if piece is pieces[0] else copied)
        assert (piece[4:6], piece[9], piece[12:20]) == (b"\xbe\xef", 17, A4 + B4)
        assert sum(struct.unpack(f"!{size // 2}H", piece[:size])) % 0xFFFF == 0


def test_copied_options_are_padded_to_four_bytes() -> None:
    first, second, *_ = pieces_of(ip4(17, UDP4, field=0, options=b"\x9a\x05abc\x44\x07\x05\0\0\0\0"), 1000)
    assert (first[0], first[20:32]) == (0x48, b"\x9a\x05abc\x44\x07\x05\0\0\0\0")
    assert (second[0], second[20:28]) == (0x47, b"\x9a\x05abc\0\0\0")


def test_a_packet_that_fits_is_returned_alone() -> None:
    packet = ip4(17, UDP4, field=0)
    assert pieces_of(packet + b"padding", len(packet)) == [packet]
    assert len(pieces_of(packet, len(packet) - 1)) == 2


def test_a_fragment_is_fragmented_further() -> None:
    packet = ip4(17, UDP4, field=0)
    narrow = [smaller for piece in pieces_of(packet, 1400) for smaller in pieces_of(piece, 300)]
    assert data_of(narrow) == UDP4
    assert max(map(len, narrow)) <= 300


@pytest.mark.parametrize(
    "packet", [ip4(17, UDP4), ip6(17, UDP6), ip4(17, PAYLOAD, field=0x1FFF)], ids=["DF", "IPv6", "beyond 64 KB"]
)
def test_what_must_not_be_fragmented_is_refused(packet: bytes) -> None:
    with pytest.raises(MalformedPacket):
        pieces_of(packet, 1400)


def test_an_mtu_below_68_is_our_own_fault() -> None:
    with pytest.raises(ValueError):
        pieces_of(ip4(17, UDP4, field=0), 67)


def refusal(packet: bytes, broadcasts: frozenset[bytes] = frozenset()) -> bytes | None:
    return prohibited(packet, parse(packet, 0, len(packet)), OURS4, broadcasts)


@pytest.mark.parametrize(
    "packet", [Flow(flags=2).packet(b""), Flow(protocol=17).packet(PAYLOAD[:40]), ip4(1, b"\x08\x00" + PAYLOAD[:30])]
)
def test_who_tries_a_host_that_takes_no_ipv4_is_told_that_it_is_prohibited(packet: bytes) -> None:
    message = refusal(packet)
    assert message is not None
    assert (message[12:16], message[16:20], message[9]) == (OURS4, A4, 1)
    assert message[20:22] == b"\x03\x0a", "a code that connected UDP sockets hear of, too"
    assert message[24:28] == bytes(4)
    assert message[28:] == packet
    assert is_right(message)


@pytest.mark.parametrize("packet", [
    ip4(1, b"\x03\x0a" + bytes(30)), ip4(1, b""), ip4(17, PAYLOAD[:40], field=0x0005), ip4(132, PAYLOAD[:40], source=bytes(4)),
    ip4(132, PAYLOAD[:40], destination=bytes((224, 0, 0, 251))), ip4(132, PAYLOAD[:40], destination=bytes((10, 86, 0, 255))),
])  # fmt: skip
def test_no_refusal_of_errors_later_fragments_nobodys_packets_and_those_to_many(packet: bytes) -> None:
    assert refusal(packet, frozenset({bytes((10, 86, 0, 255))})) is None
