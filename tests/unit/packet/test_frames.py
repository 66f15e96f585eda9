"""Frames: what is encoded is decoded again; the rest is malformed."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.errors import MalformedPacket
from tunnel.transport.connection.carried import OWED_FRAMES
from tunnel.transport.packet import frames
from tunnel.transport.packet.frames import Frame
from tunnel.transport.packet.header import HEADER_SIZE, OVERHEAD, TAG_SIZE


@st.composite
def ack_ranges(draw: st.DrawFn) -> list[tuple[int, int]]:
    high = draw(st.integers(2**20, 2**64 - 1))
    ranges = []
    for gap, below in draw(st.lists(st.tuples(st.integers(1, 2000), st.integers(0, 2000)), min_size=1, max_size=60)):
        ranges.append((high - below, high))
        high = high - below - gap - 1
    return ranges


@settings(max_examples=100, deadline=None)
@given(ack_ranges(), st.floats(0, 2), st.integers(18, 400))
def test_an_ack_is_read_as_written_as_far_as_it_fits(ranges: list[tuple[int, int]], delay: float, room: int) -> None:
    out = memoryview(bytearray(500))
    end = frames.encode_ack(out, 10, ranges, delay, room)
    assert end - 10 <= max(room, frames.ack_size(1))
    read, read_delay, after = frames.decode_ack(out, 10, end)
    assert after == end
    assert read == ranges[: len(read)]
    assert len(read) == min(len(ranges), frames.MAX_ACK_RANGES + 1, 1 + (room - frames.ack_size(1)) // 8)
    assert end - 10 == frames.ack_size(len(read))
    assert read_delay == pytest.approx(min(delay, 0xFFFF * frames.ACK_DELAY_UNIT), abs=frames.ACK_DELAY_UNIT)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 4))
def test_any_bytes_as_ack_or_close_give_a_value_or_malformed_packet(data: bytes, position: int) -> None:
    for decode in (frames.decode_ack, frames.decode_close):
        try:
            result = decode(data, position, len(data))
        except MalformedPacket:
            continue
        assert position < result[2] <= len(data)
        if decode is frames.decode_ack:
            flat = [bound for low, high in result[0] for bound in (high, low)]  # type: ignore[union-attr]
            assert flat == sorted(flat, reverse=True)
            assert flat[-1] >= 0


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 40), st.integers(0, 60), st.integers(0, 60), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3))))
def test_a_decoded_ack_is_descending_with_gaps(count: int, high: int, below: int, rest: list[tuple[int, int]]) -> None:
    data = frames._ACK_HEAD.pack(Frame.ACK, 0, min(count, len(rest)), high, below)
    data += b"".join(frames._ACK_RANGE.pack(*pair) for pair in rest)
    try:
        ranges, _, _ = frames.decode_ack(data, 0, len(data))
    except MalformedPacket:
        return
    assert all(0 <= low <= top for low, top in ranges)
    assert all(upper[0] - lower[1] >= 2 for upper, lower in pairwise(ranges))


@pytest.mark.parametrize("text", ["", "bye", "ş" * 150, "x" * 5000, "a\x00b\x1b[31m"])
def test_a_goodbye_is_bounded_and_printable(text: str) -> None:
    data = frames.encode_close(7, text)
    assert len(data) <= frames.CLOSE.size + frames.MAX_CLOSE_TEXT
    code, read, after = frames.decode_close(data, 0, len(data))
    assert (code, after) == (7, len(data))
    assert read.isprintable()
    assert text.startswith(read[:50]) or "\x00" in text


@pytest.mark.parametrize("code", [-1, 65_536, 1 << 40])
def test_a_goodbye_with_a_code_out_of_range_is_still_said(code: int) -> None:
    assert frames.decode_close(frames.encode_close(code, "x"), 0, 6)[1] == "x"


def test_sizes_are_those_of_the_protocol_document() -> None:
    assert (frames.STREAM_SIZE, frames.DATAGRAM_SIZE, frames.PATH.size, frames.CLOSE.size) == (15, 11, 9, 5)
    sizes = {kind.NAME: kind.LAYOUT.size for kind in OWED_FRAMES.values()}
    small = {"RESET": 15, "STOP_SENDING": 7, "MAX_DATA": 9, "MAX_STREAMS": 9, "MAX_STREAM_DATA": 13}
    assert sizes == {"PING": 1, **small}
    assert (HEADER_SIZE, TAG_SIZE, OVERHEAD) == (13, 16, 29)
    assert frames.HEADER_AND_STREAM.size == HEADER_SIZE + frames.STREAM_SIZE
