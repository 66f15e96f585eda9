"""Any bytes as an ACK: an answer and no exception; and whatever is called needless, the newer one says as much and more."""

from __future__ import annotations

import struct

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.ip.packets import ACK, Flow
from tunnel.room.ip.acks import ACK_SIZES, is_needless, is_repeated, read_ack
from tunnel.room.ip.header import TCP, parse

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

U32 = st.integers(0, 0xFFFF_FFFF)
NEAR = st.sampled_from([0, 1, 2, 1 << 31, (1 << 31) - 1, (1 << 31) + 1, 0xFFFF_FFFF]) | U32


@st.composite
def acks(draw: st.DrawFn) -> bytes:
    """Pure ACKs of few flows with near numbers, some of them with one bit turned over."""
    version = draw(st.sampled_from([4, 6]))
    options = draw(st.sampled_from([b"", b"stamped"]))
    if options:
        options = struct.pack("!BBBBII", 1, 1, 8, 10, draw(NEAR), draw(NEAR))
    flow = Flow(version=version, options=options, flags=ACK, sequence=draw(st.integers(0, 1)), ident=draw(st.integers(0, 3)))
    packet = bytearray(flow.packet(b""))
    struct.pack_into("!I", packet, len(packet) - len(options) - 12, draw(NEAR))
    if draw(st.integers(0, 3)) == 0:
        bit = draw(st.integers(0, len(packet) * 8 - 1))
        packet[bit // 8] ^= 1 << bit % 8
    return bytes(packet)


def fields(packet: bytes) -> tuple[tuple[object, ...], int, tuple[int, ...]]:
    """What must be alike, the acknowledgment number, and the timestamps, read the slow way."""
    inner = parse(packet, 0, len(packet))
    assert (inner.protocol, inner.is_fragment, inner.head_size, inner.unsafe) == (TCP, False, len(packet), "")
    assert inner.total_size == len(packet)
    transport = packet[inner.network_size :]
    ports, sequence, number, offset, flags, _, _, urgent = struct.unpack_from("!IIIBBHHH", transport)
    assert (flags, offset) == (ACK, len(transport) // 4 << 4)
    options = transport[20:]
    assert not options or (len(options), options[:4]) == (12, b"\1\1\x08\x0a")
    assert inner.network_size == (20 if inner.version == 4 else 40)
    class_of = (packet[1], packet[8]) if inner.version == 4 else (packet[:4], packet[7])
    alike = (inner.version, inner.source, inner.destination, ports, sequence, urgent, class_of, len(options))
    return alike, number, struct.unpack("!II", options[4:]) if options else ()


def is_behind(older: int, newer: int) -> bool:
    return (newer - older) % (1 << 32) >= 1 << 31


@CALM
@given(st.binary(max_size=90), st.integers(0, 90), st.integers(0, 90) | st.sampled_from(sorted(ACK_SIZES)))
def test_any_bytes_give_an_answer(data: bytes, at: int, size: int) -> None:
    if read_ack(memoryview(data), at, at + size) is not None:
        fields(data[at : at + size])


@CALM
@given(acks(), acks())
def test_what_is_needless_is_said_again_and_more(older: bytes, newer: bytes) -> None:
    one, two = read_ack(older, 0, len(older)), read_ack(newer, 0, len(newer))
    if one is None or two is None:
        return
    (of_one, number_one, stamps_one), (of_two, number_two, stamps_two) = fields(older), fields(newer)
    needless = (
        of_one == of_two
        and number_one != number_two
        and not is_behind(number_one, number_two)
        and not any(is_behind(a, b) for a, b in zip(stamps_one, stamps_two, strict=True))
    )
    if is_needless(one, two):
        assert needless
        assert not is_needless(two, one)
        assert not is_repeated(one, two)
    elif needless:  # then it is a bit that says nothing to TCP: "don't fragment"
        assert older[6:8] != newer[6:8]
    if is_repeated(one, two):
        assert (of_one, number_one) == (of_two, number_two)
