"""Any bytes as an inner packet: a value or MalformedPacket; and cutting, losing and joining gives what the flow's stack would."""

from __future__ import annotations

import contextlib
import struct

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.ip.packets import ACK, CWR, ECE, FIN, PSH, SYN, URG, Flow, ip4, ip6, is_right, kernel_takes, padded_options
from tests.unit.ip.said import REASONS, REFUSALS, UNSAFE, is_own_checksum, most_in_run
from tunnel.errors import MalformedPacket
from tunnel.room.ip.filter import MemberFilter
from tunnel.room.ip.header import Inner, destination_of, parse, parse_head
from tunnel.room.ip.icmp import fragment, too_big
from tunnel.room.ip.mss import clamp
from tunnel.room.ip.offload import (
    Offload,
    build_run,
    cut_in_software,
    decode_offload,
    finish_checksum,
    finish_foreign_checksum,
    wants_cut,
)

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""How long an example takes says something about the machine, not about what is tested."""

ETHERNET = bytes(14)
OURS = {4: bytes((10, 86, 0, 9)), 6: bytes.fromhex("fd707400000000000000000000000009")}
U8, U16 = st.integers(0, 255), st.integers(0, 0xFFFF)
PROTOCOLS = st.sampled_from([0, 1, 2, 4, 6, 17, 41, 43, 44, 50, 51, 58, 59, 60]) | U8


@st.composite
def options4(draw: st.DrawFn) -> bytes:
    data = draw(st.lists(st.sampled_from([b"\1", b"\0", b"\x83\3\4", b"\x94\4\0\0", b"\x44\4\5\0"]) | st.binary(max_size=5)))
    joined = b"".join(data)[:40]
    return joined + bytes(-len(joined) % 4)


@st.composite
def extension(draw: st.DrawFn) -> tuple[int, bytes]:
    kind = draw(st.sampled_from([0, 43, 44, 51, 60]))
    if kind == 44:
        return kind, bytes(1) + struct.pack("!HI", draw(st.sampled_from([0, 1, 8, 9]) | U16), 1)
    if draw(st.booleans()):
        return kind, padded_options(8 * draw(st.integers(1, 4)))
    return kind, draw(st.binary(min_size=7, max_size=23))


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    """Shaped like packets, with lies in them, so that they get past the first look."""
    body = draw(
        st.binary(max_size=80)
        | st.builds(lambda doff, flags, rest: bytes(12) + bytes([doff << 4, flags]) + bytes(6) + rest,
                    st.integers(0, 15), U8, st.binary(max_size=60))
        | st.builds(lambda length, rest: struct.pack("!HHHH", 1, 2, length, 0) + rest, U16 | st.integers(0, 60),
                    st.binary(max_size=60))
    )  # fmt: skip
    if draw(st.booleans()):
        packet = bytearray(
            ip4(
                draw(PROTOCOLS),
                body,
                options=draw(options4()),
                field=draw(st.sampled_from([0, 0x4000, 0x2000, 1]) | U16),
                total=draw(st.none() | U16 | st.integers(0, 120)),
            )
        )
    else:
        packet = bytearray(
            ip6(
                draw(PROTOCOLS),
                body,
                extensions=draw(st.lists(extension(), max_size=8)),
                length=draw(st.none() | U16 | st.integers(0, 120)),
            )
        )
    for _ in range(draw(st.integers(0, 2))):
        packet[draw(st.integers(0, len(packet) - 1))] = draw(U8)
    return bytes(packet) + draw(st.binary(max_size=10))


@st.composite
def tcp_options(draw: st.DrawFn) -> bytes:
    kinds = st.sampled_from([b"\1", b"\2\4\xff\xff", b"\x01\x01\x08\x0a" + bytes(range(8)), b"\1\1\5\x0a" + b"sackblok"])
    data = b"".join(draw(st.lists(kinds | st.binary(max_size=4), max_size=4)))[:40]
    return data + bytes(-len(data) % 4)


@st.composite
def flows(draw: st.DrawFn, flags: tuple[int, ...] = (FIN, PSH, ECE, CWR, URG)) -> Flow:
    lengths = st.integers(1, 5).map(lambda units: padded_options(8 * units))
    extensions = draw(st.lists(lengths.map(lambda data: (60, data)), max_size=3))
    if draw(st.booleans()):
        extensions.insert(0, (0, draw(lengths)))
    return Flow(
        version=draw(st.sampled_from([4, 6])),
        protocol=draw(st.sampled_from([6, 17])),
        options=draw(tcp_options()),
        ip_options=draw(st.sampled_from([b"", b"\x94\4\0\0", b"\1\x44\4\5" + bytes(4)])),
        extensions=tuple(extensions),
        ident=draw(U16),
        sequence=draw(st.integers(0, 2**32 - 1)),
        flags=ACK | sum(draw(st.sets(st.sampled_from(flags)))),
        ports=(draw(U16), draw(U16)),
        tos=draw(U8),
    )


@st.composite
def nearly_right(draw: st.DrawFn) -> bytes:
    """Packets of which at most one byte lies, and IPv4 ones that may be fragmented."""
    body = draw(st.binary(max_size=40)) + bytes(draw(st.sampled_from([0, 40, 1500, 3000])))
    kind = draw(U8)
    packet = bytearray(
        draw(
            flows((SYN, CWR)).map(lambda flow: flow.packet(body))
            | st.sampled_from([ip4(1, bytes([kind]) + body), ip6(58, bytes([kind]) + body)])
            | st.builds(lambda options, field: ip4(17, bytes(4) + b"\0\x08\0\0" + body, options=options, field=field),
                        st.sampled_from([b"", b"\x94\4\0\0\1\x44\4\5" + bytes(4)]), st.sampled_from([0, 0, 0x2000, 0x2005, 5]))
        )
    )  # fmt: skip
    if draw(st.booleans()):
        packet[draw(st.integers(0, min(len(packet), 100) - 1))] = draw(U8)
    return bytes(packet)


ANY = st.binary(max_size=200) | packets() | nearly_right() | nearly_right()


def checked(inner: Inner, room: int) -> None:
    assert inner.version in (4, 6)
    assert len(inner.source) == len(inner.destination) == (4 if inner.version == 4 else 16)
    assert 20 <= inner.network_size <= inner.head_size <= inner.total_size <= room
    assert inner.unsafe == "" or inner.unsafe in UNSAFE
    assert inner.is_fragment or not inner.is_first_fragment
    assert inner.head_size == inner.network_size or (inner.protocol in (6, 17) and not inner.is_fragment)


@CALM
@given(ANY, st.integers(0, 3), st.integers(-4, 3))
def test_any_bytes_are_a_packet_or_malformed(data: bytes, at: int, beyond: int) -> None:
    destination = destination_of(data, 0, len(data))
    with contextlib.suppress(MalformedPacket):
        inner = parse(data, at, len(data) + beyond)
        assert at + inner.total_size <= len(data)
        checked(inner, len(data) - at)
        if at == 0:
            assert inner.destination == destination
        assert parse(memoryview(data)[at:], 0, len(data) - at) == parse(bytearray(data), at, len(data)) or beyond


@CALM
@given(ANY)
def test_any_bytes_are_a_head_or_malformed(data: bytes) -> None:
    with contextlib.suppress(MalformedPacket):
        inner = parse_head(data)
        checked(inner, len(data))
        assert inner.head_size == len(data) > inner.network_size


@settings(CALM, max_examples=300)
@given(ANY, st.sampled_from([68, 300, 576, 1280, 1400]) | st.integers(0, 70_000), st.booleans())
def test_whatever_parses_can_be_asked_about(data: bytes, mtu: int, partial: bool) -> None:
    try:
        inner = parse(data, 0, len(data))
    except MalformedPacket:
        return
    for member in (MemberFilter({inner.source}, {inner.destination}), MemberFilter({inner.source}, ()), MemberFilter((), ())):
        reason = member.why_dropped(inner, data)
        assert reason is None or reason in REASONS or reason in UNSAFE
    message = too_big(data, inner, mtu, OURS[inner.version])
    assert message is None or (is_right(message) and len(message) <= (576 if inner.version == 4 else 1280))
    changed = bytearray(data)
    if not clamp(changed, 0, inner, mtu, partial):
        assert changed == data
    assert parse(changed, 0, len(changed)) == inner
    finished = bytearray(data)
    with contextlib.suppress(MalformedPacket):
        finish_checksum(finished, 0, len(finished), inner)
        assert parse(finished, 0, len(finished)) == inner
    with contextlib.suppress(MalformedPacket):
        for piece in fragment(data, inner, max(mtu, 68)):
            assert parse(piece, 0, len(piece)).total_size == len(piece)


@CALM
@given(
    st.sampled_from([4, 6]),
    st.sampled_from([SYN, SYN | ACK]),
    tcp_options() | st.binary(max_size=40).map(lambda data: data + bytes(-len(data) % 4)),
    st.integers(0, 2_000),
    st.booleans(),
)
def test_any_options_of_a_syn(version: int, flags: int, options: bytes, mtu: int, partial: bool) -> None:
    packet = Flow(version=version, flags=flags, options=options).packet(b"early", partial=partial)
    changed = bytearray(packet)
    inner = parse(changed, 0, len(changed))
    if clamp(changed, 0, inner, mtu, partial):
        assert sum(one != other for one, other in zip(changed, packet, strict=True)) <= 4
        assert partial or is_right(bytes(changed))
        assert not clamp(changed, 0, inner, mtu, partial)
    else:
        assert changed == packet


@CALM
@given(ANY, st.builds(Offload, st.booleans(), st.integers(0, 7) | U8, U16, U16, U16), st.integers(0, 70_000))
def test_whatever_the_kernel_says_of_a_packet(data: bytes, offload: Offload, size: int) -> None:
    frame = bytearray(ETHERNET + data)
    with contextlib.suppress(MalformedPacket):
        finish_foreign_checksum(frame, 0, len(frame), offload)
    try:
        inner = parse(data, 0, len(data))
    except MalformedPacket:
        return
    for wanted in (inner.total_size, size):
        try:
            cut = wants_cut(offload, inner, wanted)
        except MalformedPacket as error:
            refusal = str(error)
            assert refusal in REFUSALS
        else:
            assert cut is None or (cut[0] == inner.head_size and 0 < cut[1] < inner.total_size)
    assert is_own_checksum(offload, inner) in (False, True)


@CALM
@given(st.binary(max_size=20), st.integers(-2, 12))
def test_any_virtio_header(data: bytes, at: int) -> None:
    with contextlib.suppress(MalformedPacket):
        assert decode_offload(data, at).gso_type == data[at + 1]


# ------------------------------------------------------------------ cut and join


@CALM
@given(flows(), st.integers(8, 1500), st.integers(1, 20_000), st.data())
def test_cut_and_join_gives_what_the_flows_own_stack_sends(flow: Flow, step: int, size: int, data: st.DataObject) -> None:
    size = min(size, step * 60)
    payload = (bytes(range(251)) * (size // 251 + 1))[:size]
    expected = flow.segments(payload, step)
    packet = flow.packet(payload, partial=True)
    inner = parse(packet, 0, len(packet))
    kind = 5 if flow.protocol == 17 else 1 if flow.version == 4 else 4
    cut = wants_cut(Offload(True, kind, step, 0, 0), inner, len(packet))
    assert cut == (None if size <= step else (flow.head_size, step))
    head = packet[: flow.head_size]
    inner = parse_head(head)
    # Any of the segments is lost on the way, and the rest comes in runs that are no longer than somebody likes.
    lost = data.draw(st.sets(st.integers(0, len(expected) - 1), max_size=4))
    limit = data.draw(st.integers(1, 64))
    arrived: list[bytes] = []
    index = 0
    while index < len(expected):
        count = 0
        while count < limit and index + count < len(expected) and index + count not in lost:
            count += 1
        if count:
            part = payload[index * step : (index + count) * step]
            assert count <= most_in_run(inner, step)
            is_last = index + count == len(expected)
            arrived += kernel_takes(
                bytes(build_run(inner, head, index, count, len(part), step, is_last, True, ETHERNET)) + part
            ).packets
            software = list(cut_in_software(inner, head, part, step, index=index, is_last=is_last))
            assert software == expected[index : index + count]
        index += count or 1
    assert arrived == [one for index, one in enumerate(expected) if index not in lost]


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Index, count, size and step; half of them fit together, or nearly."""
    index, count, step = draw(st.integers(-3, 300)), draw(st.integers(-3, 300)), draw(st.integers(0, 2_000) | U16)
    if draw(st.booleans()):
        index, count = draw(st.integers(0, 5)), draw(st.integers(1, 66))
        return index, count, max(0, count * step - draw(st.sampled_from([0, 0, 1, step - 1, step, -1]))) % 70_000, step
    return index, count, draw(st.integers(0, 70_000)), step


@CALM
@given(flows() | st.builds(lambda flow: Flow(version=flow.version, flags=SYN), flows()), runs(), st.booleans(), st.booleans())
def test_no_numbers_of_a_peer_make_a_write_that_the_kernel_refuses(
    flow: Flow, run: tuple[int, int, int, int], is_last: bool, partial: bool
) -> None:
    head = flow.packet(b"")
    index, count, size, step = run
    try:
        written = build_run(parse_head(head), head, index, count, size, step, is_last, partial, ETHERNET)
    except MalformedPacket as error:
        refusal = str(error)
        assert refusal in REFUSALS
    else:
        for packet in kernel_takes(bytes(written) + bytes(size)).packets:
            assert len(packet) <= flow.head_size + (step or size)
