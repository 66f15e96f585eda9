"""A batch is opened in one go as far as it is what it seems; everything else is looked at datagram by datagram."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.hostile import PATH, Hostile, stream
from tests.unit.connection.pair import Pair
from tunnel.transport.connection.events import ConnectionClosed
from tunnel.transport.connection.opening import consecutive
from tunnel.transport.packet.header import HEADER, HEADER_SIZE, TRANSPORT
from tunnel.units import PathKey

RECEIVER = 77


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [([], 0), ([5, 6, 7, 8], 4), ([5, 6, 8, 9], 2), ([6, 7], 0), ([5, 6, 6], 2), ([5, 9, 7], 3), ([5], 1)],
)
def test_numbers_that_go_on_are_counted_by_a_look(numbers: list[int], expected: int) -> None:
    """Where the last one fits, nobody looks between: opening will tell."""
    headers = [memoryview(HEADER.pack(TRANSPORT, RECEIVER, number)) for number in numbers]
    assert all(len(header) == HEADER_SIZE for header in headers)
    assert consecutive(headers, RECEIVER, 5) == expected
    assert consecutive(headers, RECEIVER + 1, 5) == 0


class Bulk:
    """A pair where `a` has bursts of one stream to send, and `b` gets them as the test likes."""

    def __init__(self, *, relayed: bool, calls: int = 1) -> None:
        self.pair = Pair(relayed=relayed, delay=0.001)
        self.pair.run(1.0)
        stream = self.pair.a.open_stream()
        self.pair.write_all("a", stream, random.Random(5).randbytes(4 << 20), fin=False)
        self.pair.run(1.0)
        assert self.pair.a.stream_write(stream, bytes(range(256)) * 800) == 256 * 800
        self.key: PathKey = self.pair.b.current_path.key
        burst = self.pair.a.poll_transmit(self.pair.now, bytearray(calls * 65_536))
        assert burst is not None
        self.datagrams = [
            bytes(burst.buffer[at : at + burst.segment_size]) for at in range(0, len(burst.buffer), burst.segment_size)
        ]
        assert len(self.datagrams) > 10
        assert len(self.datagrams[-1]) == len(self.datagrams[0])

    def give(self, datagrams: list[bytes]) -> int:
        """All in one buffer; how many packets `b` has opened of them."""
        before = self.pair.b.stats().packets_received
        self.pair.b.handle_datagrams(self.pair.now, self.key, memoryview(b"".join(datagrams)), 0, len(datagrams[0]))
        self.pair.flush()
        assert not any(isinstance(event, ConnectionClosed) for event in self.pair.events["b"])
        return self.pair.b.stats().packets_received - before

    def drops(self, reason: str) -> int:
        return self.pair.b.stats().drops.get(reason, 0)


@pytest.mark.parametrize("relayed", [False, True])
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_forged_datagram_costs_itself_alone(relayed: bool, where: str) -> None:
    bulk = Bulk(relayed=relayed)
    datagrams = bulk.datagrams
    bad = {"first": 0, "middle": 4, "last": len(datagrams) - 1}[where]
    forged = bytearray(datagrams[bad])
    forged[-20] ^= 1
    count = len(datagrams)
    assert bulk.give([*datagrams[:bad], bytes(forged), *datagrams[bad + 1 :]]) == count - 1
    assert bulk.drops("does not authenticate") == 1
    assert bulk.give([datagrams[bad]]) == 1


@pytest.mark.parametrize("relayed", [False, True])
def test_a_gap_and_a_repetition_in_a_batch_are_seen(relayed: bool) -> None:
    bulk = Bulk(relayed=relayed)
    datagrams = bulk.datagrams
    assert bulk.give([*datagrams[:3], *datagrams[4:8], *datagrams[4:8], *datagrams[8:]]) == len(datagrams) - 1
    assert bulk.drops("replayed") == 4
    assert bulk.give([datagrams[3]]) == 1
    assert bulk.give(datagrams) == 0


def test_a_relayed_batch_ends_where_the_channel_is_anothers() -> None:
    bulk = Bulk(relayed=True)
    datagrams = bulk.datagrams
    other = bytes([datagrams[4][0], datagrams[4][1] ^ 1]) + datagrams[4][2:]
    buffer = memoryview(b"".join([*datagrams[:4], other, *datagrams[5:]]))
    stopped = bulk.pair.b.handle_datagrams(bulk.pair.now, bulk.key, buffer, 0, len(datagrams[0]))
    assert stopped == 4 * len(datagrams[0])


def test_what_comes_backwards_is_opened_all_the_same() -> None:
    bulk = Bulk(relayed=False)
    datagrams = bulk.datagrams
    assert bulk.give(datagrams[::-1]) == len(datagrams)


def test_a_burst_is_as_large_as_the_room_for_it_and_opens_in_pieces_where_that_is_larger_than_ours() -> None:
    counts = [len(Bulk(relayed=False, calls=calls).datagrams) for calls in (1, 2, 3)]
    assert counts[1] == 2 * counts[0]
    assert counts[2] == 3 * counts[0]
    bulk = Bulk(relayed=False, calls=3)
    assert bulk.give(bulk.datagrams) == counts[2]


def test_empty_stream_frames_in_a_row_are_no_run() -> None:
    """They say nothing, in as many packets as a peer likes."""
    foe = Hostile()
    datagrams = [foe.seal(stream(2, 0, b"")) for _ in range(6)]
    foe.victim.handle_datagrams(foe.now, PATH, memoryview(b"".join(datagrams)), 0, len(datagrams[0]))
    assert foe.victim.stats().packets_received == 6
    foe.send(stream(2, 0, b"x"))
    assert foe.victim.close_reason is None
