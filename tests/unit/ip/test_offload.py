from __future__ import annotations

import random
import struct

import pytest

from tests.unit.ip.packets import ACK, CWR, FIN, PSH, RST, SYN, Flow, ip4, ip6, is_right, kernel_takes, padded_options
from tests.unit.ip.said import REFUSALS, is_own_checksum, most_in_run
from tunnel.errors import MalformedPacket
from tunnel.room.ip.header import parse, parse_head
from tunnel.room.ip.offload import (
    BAD_PARTIAL,
    BAD_RUN,
    BAD_SEGMENT_SIZE,
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP,
    GSO_UDP_L4,
    MAX_UDP_SEGMENTS,
    MISMATCHED,
    NOT_CUTTABLE,
    Offload,
    build_prefix,
    build_run,
    cut_in_software,
    decode_offload,
    finish_checksum,
    finish_foreign_checksum,
    wants_cut,
)

ETHERNET = bytes(12) + b"\x08\x00"
TIMESTAMPS = b"\x01\x01\x08\x0a" + bytes(8)
FLOWS = [
    Flow(),
    Flow(options=TIMESTAMPS, flags=ACK | PSH | FIN | CWR, ip_options=b"\x94\x04\0\0"),
    Flow(version=6, options=TIMESTAMPS, flags=ACK | PSH),
    Flow(version=6, flags=ACK | CWR, extensions=((0, padded_options(8)), (60, padded_options(24)))),
    Flow(protocol=17),
    Flow(version=6, protocol=17, extensions=((60, padded_options(8)),)),
]
KIND = {(4, 6): GSO_TCPV4, (6, 6): GSO_TCPV6, (4, 17): GSO_UDP_L4, (6, 17): GSO_UDP_L4}


def payload_of(size: int, seed: int = 5) -> bytes:
    return random.Random(seed).randbytes(size)


def said_of(flow: Flow, step: int, ecn: int = 0) -> Offload:
    packet = flow.packet(b"", partial=True)
    inner = parse(packet, 0, len(packet))
    return Offload(True, KIND[flow.version, flow.protocol] | ecn, step, 14 + inner.network_size, 16 if flow.protocol == 6 else 6)


# ------------------------------------------------------------------ reading


def test_the_header_is_read_in_the_machines_order() -> None:
    data = b"##" + struct.pack("=BBHHHH", 1, 0x81, 66, 1448, 34, 16)
    assert decode_offload(data, 2) == Offload(True, GSO_TCPV4 | GSO_ECN, 1448, 34, 16)
    assert decode_offload(b"\x02" + bytes(9), 0) == Offload(False, GSO_NONE, 0, 0, 0)
    for at in (-1, 3):
        with pytest.raises(MalformedPacket):
            decode_offload(data, at)


def test_a_partial_checksum_is_told_from_that_of_a_packet_inside() -> None:
    packet = Flow(protocol=17).packet(b"inner packet", partial=True)
    inner = parse(packet, 0, len(packet))
    assert is_own_checksum(Offload(True, 0, 0, 34, 6), inner)
    assert not is_own_checksum(Offload(True, 0, 0, 34, 16), inner)
    assert not is_own_checksum(Offload(True, 0, 0, 34 + 8 + 8 + 14 + 20, 16), inner)
    assert is_own_checksum(Offload(True, 0, 0, 20, 6), inner, link_size=0)
    assert is_own_checksum(said_of(Flow(version=6), 0), parse_head(Flow(version=6).packet(b"")))


# ------------------------------------------------------------------ sending


@pytest.mark.parametrize("flow", FLOWS)
def test_a_super_packet_is_cut_behind_its_head(flow: Flow) -> None:
    packet = flow.packet(payload_of(10_000), partial=True)
    inner = parse(packet, 0, len(packet))
    assert wants_cut(said_of(flow, 1400), inner, len(packet)) == (flow.head_size, 1400)
    assert wants_cut(said_of(flow, 1400, GSO_ECN), inner, len(packet)) == (flow.head_size, 1400)
    assert wants_cut(said_of(flow, 10_000), inner, len(packet)) is None
    assert wants_cut(Offload(True, GSO_NONE, 0, 34, 16), inner, len(packet)) is None


@pytest.mark.parametrize(
    ("flow", "offload", "reason"),
    [
        (Flow(protocol=17), Offload(True, GSO_UDP, 1400, 34, 6), NOT_CUTTABLE),
        (Flow(), Offload(True, 0x11, 1400, 34, 16), NOT_CUTTABLE),
        (Flow(), Offload(True, 0x21, 1400, 34, 16), NOT_CUTTABLE),
        (Flow(), Offload(True, GSO_TCPV6, 1400, 34, 16), MISMATCHED),
        (Flow(version=6), Offload(True, GSO_TCPV4, 1400, 54, 16), MISMATCHED),
        (Flow(protocol=17), Offload(True, GSO_TCPV4, 1400, 34, 16), MISMATCHED),
        (Flow(), Offload(True, GSO_UDP_L4, 1400, 34, 6), MISMATCHED),
        (Flow(), Offload(True, GSO_TCPV4, 0, 34, 16), BAD_SEGMENT_SIZE),
        (Flow(), Offload(True, GSO_TCPV4, 7, 34, 16), BAD_SEGMENT_SIZE),
        (Flow(), Offload(True, GSO_TCPV4, 30, 34, 16), BAD_SEGMENT_SIZE),  # more than 256 segments
        (Flow(protocol=17), Offload(True, GSO_UDP_L4, 0, 34, 6), BAD_SEGMENT_SIZE),
        (Flow(version=6, extensions=((60, padded_options(240)),)), Offload(True, GSO_TCPV6, 1400, 294, 16), BAD_SEGMENT_SIZE),
    ],
)
def test_what_cannot_be_cut_is_refused_by_name(flow: Flow, offload: Offload, reason: str) -> None:
    packet = flow.packet(payload_of(8_000), partial=True)
    with pytest.raises(MalformedPacket) as refusal:
        wants_cut(offload, parse(packet, 0, len(packet)), len(packet))
    assert str(refusal.value) == reason
    assert reason in REFUSALS


def test_a_super_packet_of_another_size_or_a_fragment_is_refused() -> None:
    packet = Flow().packet(payload_of(8_000), partial=True)
    inner = parse(packet, 0, len(packet))
    for wrong, size in ((inner, len(packet) + 1), (inner._replace(is_fragment=True), len(packet))):
        with pytest.raises(MalformedPacket, match=MISMATCHED):
            wants_cut(said_of(Flow(), 1400), wrong, size)


# ------------------------------------------------------------------ joining


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("size", [9_000, 9_800, 65_000])
def test_every_run_of_segments_arrives_as_its_stack_would_have_sent_it(flow: Flow, size: int) -> None:
    step = 1400
    payload = payload_of(size)
    head = flow.packet(payload, partial=True)[: flow.head_size]
    expected = flow.segments(payload, step)
    inner = parse_head(head)
    total = len(expected)
    for index in range(total):
        for count in {1, 2, 5, total - index}:
            if index + count > total:
                continue
            part = payload[index * step : (index + count) * step]
            is_last = index + count == total
            written = build_run(inner, head, index, count, len(part), step, is_last, True, ETHERNET)
            assert written[10:24] == ETHERNET
            assert len(written) == 24 + flow.head_size
            frame = kernel_takes(bytes(written + part))
            assert frame.packets == expected[index : index + count]
            kind = KIND[flow.version, flow.protocol] if count > 1 else GSO_NONE
            ecn = GSO_ECN if count > 1 and index == 0 and flow.protocol == 6 and flow.flags & CWR else 0
            assert frame.gso_type == kind | ecn


@pytest.mark.parametrize(("flow", "size"), [(Flow(protocol=17), 65_507), (Flow(version=6, protocol=17), 65_527)])
def test_the_largest_super_packet_of_each_version_arrives(flow: Flow, size: int) -> None:
    payload = payload_of(size)
    packet = flow.packet(payload, partial=True)
    assert wants_cut(said_of(flow, 1400), parse(packet, 0, len(packet)), len(packet)) == (flow.head_size, 1400)
    head = packet[: flow.head_size]
    inner, step, arrived = parse_head(head), 1400, []
    for index in (0, 30):
        part = payload[30 * step :] if index else payload[: 17 * step]
        count = -(-len(part) // step)
        written = build_run(inner, head, index, count, len(part), step, index == 30, True, ETHERNET)
        arrived += kernel_takes(bytes(written) + part).packets
    expected = flow.segments(payload, step)
    assert arrived == expected[:17] + expected[30:]
    with pytest.raises(MalformedPacket, match=BAD_RUN):
        build_run(inner, head, 30, count, len(part) + 1, step, True, True, ETHERNET)


def test_the_virtio_header_says_where_things_are() -> None:
    flow = FLOWS[3]
    head = flow.packet(payload_of(4200), partial=True)[: flow.head_size]
    written = build_run(parse_head(head), head, 0, 3, 4200, 1400, True, True, ETHERNET)
    assert struct.unpack_from("=BBHHHH", written) == (1, GSO_TCPV6 | GSO_ECN, 14 + 92, 1400, 14 + 72, 16)
    written = build_run(parse_head(head), head, 2, 1, 1400, 1400, True, True, b"")
    assert struct.unpack_from("=BBHHHH", written) == (1, GSO_NONE, 0, 0, 72, 16)


def test_an_ordinary_packet_stays_as_it_is() -> None:
    packet = Flow(flags=ACK | PSH | FIN).packet(b"hello")
    inner = parse_head(packet[:40])
    written = build_run(inner, packet[:40], 0, 1, 5, 0, True, False, ETHERNET)
    assert kernel_takes(bytes(written) + b"hello").packets == [packet]
    assert written[:10] == bytes(10)
    partial = Flow(flags=ACK | PSH | FIN).packet(b"hello", partial=True)
    written = build_run(inner, partial[:40], 0, 1, 5, 0, True, True, ETHERNET)
    assert kernel_takes(bytes(written) + b"hello").packets == [packet]
    assert build_prefix(inner, True, ETHERNET) + partial[:40] == written
    for flow in (Flow(protocol=17), Flow(version=6, protocol=17), Flow(version=6)):
        partial = flow.packet(b"hello", partial=True)
        prefix = build_prefix(parse(partial, 0, len(partial)), True, ETHERNET)
        assert kernel_takes(prefix + partial).packets == [flow.packet(b"hello")]


def test_a_partial_checksum_is_only_believed_of_tcp_and_udp() -> None:
    for packet in (ip4(1, bytes(8)), ip4(6, bytes(20), field=0x2000), ip6(58, bytes(8))):
        inner = parse(packet, 0, len(packet))
        assert build_prefix(inner, False, ETHERNET) == bytes(10) + ETHERNET
        with pytest.raises(MalformedPacket, match=BAD_PARTIAL):
            build_prefix(inner, True, ETHERNET)


@pytest.mark.parametrize(
    ("index", "count", "size", "step", "is_last"),
    [
        (0, 0, 0, 1400, True),
        (-1, 2, 2800, 1400, True),
        (0, 2, 2801, 1400, True),  # more than its segments hold
        (0, 3, 2800, 1400, True),  # the last segment would be empty
        (2, 1, 0, 1400, True),
        (0, 2, 2000, 1400, False),  # a short segment in the middle
        (44, 3, 4200, 1400, True),  # beyond 65,535 bytes
        (0, 47, 47 * 1400, 1400, True),
        (0, 2, 14, 7, True),  # no sender's segment
        (1, 1, 5, 0, True),
        (0, 2, 5, 0, True),
        (0, 1, 65_530, 0, True),
    ],
)
def test_runs_that_no_super_packet_gives_are_refused(index: int, count: int, size: int, step: int, is_last: bool) -> None:
    for flow in (Flow(), Flow(version=6)):
        head = flow.packet(b"")
        with pytest.raises(MalformedPacket, match=BAD_RUN):
            build_run(parse_head(head), head, index, count, size, step, is_last, True, ETHERNET)


@pytest.mark.parametrize("flags", [SYN, RST | ACK])
def test_no_run_opens_or_resets_a_connection(flags: int) -> None:
    head = Flow(flags=flags).packet(b"")
    with pytest.raises(MalformedPacket, match=BAD_RUN):
        build_run(parse_head(head), head, 0, 2, 2800, 1400, True, True, ETHERNET)
    written = build_run(parse_head(head), head, 0, 1, 1400, 1400, True, True, ETHERNET)
    assert kernel_takes(bytes(written) + bytes(1400)).packets == [Flow(flags=flags).packet(bytes(1400))]


def test_a_run_is_no_longer_than_one_write_takes() -> None:
    udp, tcp = (Flow(protocol=protocol).packet(b"") for protocol in (17, 6))
    assert most_in_run(parse_head(udp), 100) == MAX_UDP_SEGMENTS
    assert most_in_run(parse_head(tcp), 100) == 654
    assert most_in_run(parse_head(tcp), 65_495) == 1
    build_run(parse_head(udp), udp, 0, 64, 6400, 100, True, True, ETHERNET)
    build_run(parse_head(tcp), tcp, 0, 654, 65_400, 100, True, True, ETHERNET)
    build_run(parse_head(tcp), tcp, 0, 2, 16, 8, True, True, ETHERNET)
    build_run(parse_head(udp), udp, 0, 2, 2, 1, True, True, ETHERNET)
    with pytest.raises(MalformedPacket, match=BAD_RUN):
        build_run(parse_head(udp), udp, 0, 65, 6500, 100, True, True, ETHERNET)


# ------------------------------------------------------------------ without offloads


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("size", [1, 1400, 9_001])
def test_software_cuts_as_the_flows_own_stack(flow: Flow, size: int) -> None:
    payload = payload_of(size)
    head = flow.packet(payload, partial=True)[: flow.head_size]
    expected = flow.segments(payload, 1400)
    assert list(cut_in_software(parse_head(head), head, payload, 1400)) == expected
    if size > 1400:
        part = memoryview(payload)[1400:7000]
        assert list(cut_in_software(parse_head(head), head, part, 1400, index=1, is_last=False)) == expected[1:5]


def test_software_gives_a_bare_head_one_packet_and_refuses_no_size() -> None:
    head = Flow().packet(b"")
    assert list(cut_in_software(parse_head(head), head, b"", 1400)) == [head]
    with pytest.raises(MalformedPacket, match=BAD_SEGMENT_SIZE):
        list(cut_in_software(parse_head(head), head, b"abc", 0))


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("size", [0, 1, 1400, 60_001])
def test_a_partial_checksum_is_finished(flow: Flow, size: int) -> None:
    payload = payload_of(size)
    packet = bytearray(b"##" + flow.packet(payload, partial=True) + b"padding")
    inner = parse(packet, 2, len(packet))
    finish_checksum(packet, 2, len(packet), inner)
    assert packet == b"##" + flow.packet(payload) + b"padding"
    finish_checksum(memoryview(packet), 2, len(packet), inner)  # whatever was there
    assert packet == b"##" + flow.packet(payload) + b"padding"


def test_a_udp_checksum_of_zero_is_written_as_all_ones() -> None:
    flow = Flow(protocol=17)
    bare = flow.packet(b"\0\0")
    (field,) = struct.unpack_from("!H", bare, 26)
    packet = bytearray(flow.packet(struct.pack("!H", field), partial=True))
    finish_checksum(packet, 0, len(packet), parse(packet, 0, len(packet)))
    assert packet[26:28] == b"\xff\xff"
    assert is_right(bytes(packet))
    (software,) = cut_in_software(parse_head(bare[:28]), bare[:28], struct.pack("!H", field), 2)
    assert software == packet


def test_what_has_no_checksum_is_not_given_one() -> None:
    whole = Flow().packet(b"")
    inner = parse(whole, 0, len(whole))
    for packet, said in ((ip4(1, bytes(8)), None), (ip4(6, bytes(20), field=0x2000), None), (whole[:-1], inner)):
        with pytest.raises(MalformedPacket, match=BAD_PARTIAL):
            finish_checksum(bytearray(packet), 0, len(packet), said or parse(packet, 0, len(packet)))
    udp = bytearray(Flow(protocol=17).packet(b""))
    inner = parse(udp, 0, len(udp))
    udp[25] = 9
    with pytest.raises(MalformedPacket, match=BAD_PARTIAL):
        finish_checksum(udp, 0, len(udp), inner)


def test_the_checksum_of_a_packet_inside_is_finished_where_the_kernel_says() -> None:
    inside = Flow().packet(b"inside", partial=True)
    outer = ETHERNET + Flow(protocol=17).packet(inside)
    frame = bytearray(outer)
    start = 14 + 28 + 20
    finish_foreign_checksum(frame, 0, len(frame), Offload(True, 0, 0, start, 16))
    assert bytes(frame[42:]) == Flow().packet(b"inside")
    assert frame[:42] == outer[:42]
    for offload in (Offload(True, 0, 0, len(frame), 0), Offload(True, 0, 0, start, 60_000), Offload(True, 0, 0, 65_535, 65_535)):
        with pytest.raises(MalformedPacket, match=BAD_PARTIAL):
            finish_foreign_checksum(frame, 0, len(frame), offload)
