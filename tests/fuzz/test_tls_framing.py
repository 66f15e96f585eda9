"""Any bytes, in any pieces, to the reader of frames: datagrams or MalformedPacket; what is framed comes out again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunnel.doors.tls.framing import MAX_FRAME, MAX_RUN, MAX_RUN_BYTES, Framing, frame_burst
from tunnel.errors import MalformedPacket


def drain(reader: Framing) -> list[bytes]:
    found = []
    while (run := reader.decode_run()) is not None:
        data, stride = run
        assert 0 < len(data) <= MAX_RUN_BYTES
        assert 0 < stride <= MAX_FRAME
        pieces = [data[at : at + stride] for at in range(0, len(data), stride)]
        assert len(pieces) <= MAX_RUN
        found += pieces
    return found


@given(st.lists(st.binary(max_size=400), max_size=20))
def test_any_bytes_are_datagrams_or_malformed(pieces: list[bytes]) -> None:
    reader = Framing()
    try:
        for piece in pieces:
            reader.feed(piece)
            drain(reader)
            assert reader.held <= MAX_FRAME + 1
    except MalformedPacket:
        pass


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=3_000), st.integers(1, 1_500)), max_size=12),
    st.lists(st.integers(1, 4_000), max_size=30),
)
def test_every_datagram_comes_out_again_in_order(bursts: list[tuple[bytes, int]], cuts: list[int]) -> None:
    stream = b"".join(frame_burst(memoryview(data), size) for data, size in bursts)
    sent = [data[at : at + size] for data, size in bursts for at in range(0, len(data), size)]
    reader, received, at = Framing(), [], 0
    for cut in [*cuts, len(stream)]:
        reader.feed(stream[at : at + cut])
        at += cut
        received += drain(reader)
    assert received == sent
    assert reader.held == 0
