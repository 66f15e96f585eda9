"""Reassembly against a naive model: an array of bytes with a set of what arrived."""

from __future__ import annotations

import random
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.errors import PeerError
from tunnel.transport.stream.flow import INITIAL_STREAM_WINDOW
from tunnel.transport.stream.receive import MAX_GAPS, ReceiveStream
from tunnel.units import Instant, Seconds, StreamId

TEXT = random.Random(1).randbytes(6000)
pieces = st.lists(st.tuples(st.integers(0, 5999), st.integers(1, 2000), st.integers(0, 5)), max_size=40)


def receive(stream: ReceiveStream, offset: int, data: bytes, fin: bool) -> int:
    """As the connection does where no sink stands."""
    grown = stream.admit(offset + len(data), fin)
    stream.place(offset, data)
    return grown


@settings(max_examples=250, deadline=None)
@given(pieces)
def test_any_pieces_in_any_order_become_the_text(pieces: list[tuple[int, int, int]]) -> None:
    stream = ReceiveStream(StreamId(1))
    have: set[int] = set()
    read = bytearray()
    for offset, length, chunks in pieces:
        data = TEXT[offset : offset + length]
        before = max(have, default=-1) + 1
        grown = receive(stream, offset, data, False)
        have |= set(range(offset, offset + len(data)))
        assert grown == max(have, default=-1) + 1 - before
        if chunks:
            for chunk in stream.read(chunks):
                assert chunk
                read += chunk
        in_order = next(n for n in range(len(TEXT) + 1) if n not in have)
        assert stream.arrived == in_order
        assert read == TEXT[: len(read)]
        assert len(read) == stream.read_offset <= in_order
        assert stream.is_readable == (len(read) < in_order)
        early = [(at, at + len(data)) for at, data in stream._early]
        assert sum(b - a for a, b in early) == len([n for n in have if n > in_order])
        assert early == sorted(early)
        assert all(one[1] <= two[0] for one, two in pairwise(early))
    receive(stream, 0, TEXT, True)
    read += b"".join(stream.read(1000))
    assert read == TEXT
    assert stream.is_at_end


@settings(max_examples=250, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["data", "fin", "reset", "stop", "read"]), st.integers(0, 100), st.integers(0, 30)),
        max_size=25,
    )
)
def test_final_sizes_never_move_and_everything_is_counted_once(verbs: list[tuple[str, int, int]]) -> None:
    stream = ReceiveStream(StreamId(1))
    highest, final = 0, None
    for verb, offset, length in verbs:
        stop = offset + length
        try:
            match verb:
                case "data" | "fin":
                    grown = receive(stream, offset, bytes(length), verb == "fin")
                case "reset":
                    grown = stream.reset(3, stop)
                case "stop":
                    stream.stop(5)
                    continue
                case _:
                    stream.read(3)
                    continue
        except PeerError:
            ends = verb != "data"
            assert (final is not None and (stop > final or (ends and stop != final))) or (ends and stop < highest)
            return
        assert not (final is not None and stop > final)
        if verb != "data":
            assert final in (None, stop)
            final = stop
        assert grown == max(0, stop - highest)
        highest = max(highest, stop)
        assert stream.highest == highest
        assert stream.final_size == final


def test_what_came_in_order_before_a_reset_can_still_be_read() -> None:
    """RFC 9000 §3.2.  The stream is over when it was: by no FIN, and without what came early."""
    stream = ReceiveStream(StreamId(1))
    receive(stream, 0, bytes(2_000), False)
    receive(stream, 2_000, b"answer" * 1_000, False)
    receive(stream, 9_000, b"early", False)
    assert stream.reset(3, 10_000) == 10_000 - 9_005
    receive(stream, 8_000, bytes(1_000), False)  # late: what it would fill is gone
    assert not stream.is_done
    assert stream.read(1) == [bytes(2_000)]
    assert not stream.is_done
    assert stream.read(10) == [b"answer" * 1_000]
    assert stream.is_done
    assert not stream.is_at_end
    assert stream.early_pieces == 0


def test_a_reset_behind_the_last_byte_is_no_fin() -> None:
    stream = ReceiveStream(StreamId(1))
    receive(stream, 0, b"answer", False)
    stream.reset(3, 6)
    assert stream.read(1) == [b"answer"]
    assert stream.is_done
    assert not stream.is_at_end


def test_whoever_stops_reading_need_not_read_what_came_before_a_reset() -> None:
    stream = ReceiveStream(StreamId(1))
    receive(stream, 0, b"answer", False)
    stream.reset(3, 6)
    stream.stop(5)
    assert stream.is_done
    assert stream.read(1) == []


def test_more_than_the_window_is_a_breach() -> None:
    stream = ReceiveStream(StreamId(1))
    receive(stream, INITIAL_STREAM_WINDOW - 5, b"12345", False)
    with pytest.raises(PeerError, match="granted"):
        receive(stream, INITIAL_STREAM_WINDOW - 4, b"12345", False)
    with pytest.raises(PeerError, match="granted"):
        receive(stream, 2**64 - 1, b"", True)


def test_a_flood_of_gaps_is_a_breach_and_a_flood_of_neighbours_is_not() -> None:
    stream = ReceiveStream(StreamId(1))
    for offset in range(1, INITIAL_STREAM_WINDOW):
        receive(stream, offset, b"x", False)
    assert stream.early_pieces <= INITIAL_STREAM_WINDOW // 1024 + 1
    other = ReceiveStream(StreamId(1))
    for gap in range(MAX_GAPS):
        receive(other, 1 + 2 * gap, b"x", False)
    with pytest.raises(PeerError, match="gaps"):
        receive(other, 1 + 2 * MAX_GAPS, b"x", False)


def test_tiny_frames_cost_little_more_memory_than_their_bytes() -> None:
    stream = ReceiveStream(StreamId(1))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for offset in range(0, INITIAL_STREAM_WINDOW, 2):
        receive(stream, offset, b"xy", False)
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert held < 1.5 * INITIAL_STREAM_WINDOW
    assert sum(map(len, stream.read(1 << 20))) == INITIAL_STREAM_WINDOW


def test_a_stopped_stream_keeps_nothing_in_order_and_ends_with_its_fin() -> None:
    stream = ReceiveStream(StreamId(1))
    receive(stream, 0, b"abc", False)
    stream.stop(7)
    assert stream.read(10) == []
    receive(stream, 6, b"ghi", True)
    assert not stream.is_done
    receive(stream, 3, b"def", False)
    assert stream.read_offset == 9
    assert stream.is_done
    stream.window.consume(9, Instant(0.0), Seconds(0.1))
