"""What a frame of an authenticated peer costs, counted in instructions of the interpreter (tests/work.py)."""

from __future__ import annotations

from struct import Struct

import pytest

from tests.adversary.reproduction.hostile import Hostile
from tests.work import instructions

STREAM = Struct(">BIQH")  # 0x08, stream, offset, length
STOP_SENDING = Struct(">BIH")  # 0x05, stream, code
MAX_DATA = Struct(">BQ")  # 0x10, limit
STREAMS = 2_048  # that one side may open
CREDIT = 100_663_296  # bytes of a connection, at its beginning
MOST_A_BYTE = 160  # instructions, some 2 us


def limits() -> bytes:
    return b"".join(MAX_DATA.pack(0x10, CREDIT + number + 1) for number in range(150))


def stop() -> bytes:
    return STOP_SENDING.pack(0x05, 2 * STREAMS, 1)


@pytest.mark.parametrize(
    ("frames", "streams"), [(limits(), STREAMS), (stop(), 0)], ids=["limits a byte higher each", "a stop of the last stream"]
)
def test_a_frame_costs_its_bytes_whatever_number_of_streams_there_are(frames: bytes, streams: int) -> None:
    peer = Hostile()
    peer.send(b"\x01")
    for first in range(2, 2 * streams + 2, 160):
        opened = range(first, min(first + 160, 2 * streams + 2), 2)
        peer.send(b"".join(STREAM.pack(0x08, number, 0, 1) + b"x" for number in opened))
    datagram = peer.seal(frames)
    cost = instructions(lambda: peer.deliver(datagram)) / len(datagram)
    assert peer.victim.close_reason is None
    assert cost <= MOST_A_BYTE, f"{cost:.0f} instructions for each of {len(datagram)} bytes"
