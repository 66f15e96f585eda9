"""Datagrams in frames: what goes in comes out, in batches as the hot path wants them."""

from __future__ import annotations

import pytest

from tunnel.doors.tls.framing import MAX_FRAME, MAX_RUN, MAX_RUN_BYTES, Framing, frame_burst
from tunnel.errors import MalformedPacket


def runs(reader: Framing) -> list[tuple[bytes, int]]:
    found = []
    while (run := reader.decode_run()) is not None:
        found.append(run)
    return found


def test_a_frame_is_its_length_and_its_datagram() -> None:
    assert frame_burst(memoryview(b"abc"), 3) == b"\x00\x03abc"
    assert frame_burst(memoryview(b"abc"), 1200) == b"\x00\x03abc"


def test_a_burst_is_cut_into_frames_of_which_the_last_may_be_shorter() -> None:
    assert frame_burst(memoryview(b"aaabbbc"), 3) == b"\x00\x03aaa\x00\x03bbb\x00\x01c"
    assert frame_burst(memoryview(b"aaabbb"), 3) == b"\x00\x03aaa\x00\x03bbb"


def test_a_burst_comes_out_as_one_batch_again() -> None:
    burst = bytes(range(250)) * 4
    reader = Framing()
    reader.feed(frame_burst(memoryview(burst), 300))
    assert runs(reader) == [(burst, 300)]
    assert reader.held == 0


def test_a_longer_datagram_begins_a_batch_of_its_own() -> None:
    reader = Framing()
    reader.feed(frame_burst(memoryview(b"aabb"), 2) + frame_burst(memoryview(b"cccc"), 4) + frame_burst(memoryview(b"d"), 1))
    assert runs(reader) == [(b"aabb", 2), (b"ccccd", 4)]


def test_pieces_of_any_size_make_the_same_datagrams() -> None:
    stream = frame_burst(memoryview(b"x" * 1000), 300) + frame_burst(memoryview(b"y" * 7), 7)
    reader, found = Framing(), bytearray()
    for at in range(len(stream)):
        reader.feed(stream[at : at + 1])
        for data, stride in runs(reader):
            assert len(data) <= stride  # a byte at a time, no two frames are there at once
            found += data
    assert found == b"x" * 1000 + b"y" * 7


def test_a_batch_is_never_more_than_a_udp_socket_sends_at_once() -> None:
    reader = Framing()
    reader.feed(frame_burst(memoryview(b"z" * 200), 1))
    assert [len(data) for data, _ in runs(reader)] == [MAX_RUN, MAX_RUN, MAX_RUN, 200 - 3 * MAX_RUN]
    reader.feed(frame_burst(memoryview(bytes(160_000)), 8_000))
    assert all(len(data) <= MAX_RUN_BYTES for data, _ in runs(reader))


@pytest.mark.parametrize("length", [0, MAX_FRAME + 1, 0xFFFF, 0x4854])  # the last is how a web server begins: HT(TP)
def test_a_frame_of_no_or_too_many_bytes_ends_the_stream(length: int) -> None:
    reader = Framing()
    reader.feed(length.to_bytes(2, "big"))
    with pytest.raises(MalformedPacket):
        reader.decode_run()


def test_what_is_held_is_bounded_by_one_frame() -> None:
    reader = Framing()
    reader.feed(MAX_FRAME.to_bytes(2, "big") + bytes(MAX_FRAME - 1))
    assert reader.decode_run() is None
    assert reader.held == MAX_FRAME + 1
    reader.feed(b"\x00")
    assert runs(reader) == [(bytes(MAX_FRAME), MAX_FRAME)]
