"""IP packets through a connection: cut, sealed, joined; what is lost costs itself alone."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.unit.connection.pair import Pair
from tunnel.errors import MalformedPacket
from tunnel.transport.connection.connection import Connection
from tunnel.transport.connection.events import ConnectionClosed
from tunnel.transport.connection.packets import PACKET_ROOM, PacketBurst, PacketJoiner, PacketRun
from tunnel.transport.packet.frames import PACKET, PACKET_PARTIAL, PACKET_SPLIT, Frame
from tunnel.transport.packet.header import MAX_BURST, MAX_SEGMENTS
from tunnel.transport.packet.slots import Plains
from tunnel.units import Instant, Transmit

HEAD = bytes(range(52))
STEP = 1000


class Lan:
    """A pair whose `b` keeps the packets that `a` sends."""

    def __init__(self, **options: Any) -> None:
        self.pair = Pair(**options)
        self.pair.run(1.0)
        self.got: list[tuple[bytes, bytes, int, int, bool, bool, int]] = []
        self.pair.b.set_packet_sink(self._take)
        self.burst = PacketBurst(bytearray(65_536))
        self.bursts: list[Transmit] = []
        self.lose: set[int] = set()  # datagrams, counted over all bursts

    def _take(self, now: Instant, runs: list[PacketRun]) -> None:
        for run in runs:
            body = b"".join(run.payloads)
            assert len(body) == run.size
            self.got.append((run.head, body, run.gso_size, run.first, run.is_last, run.is_partial, run.ecn))

    def leave(self) -> None:
        """Deliver the burst as one batch, as GRO would, less what is lost."""
        transmit = self.burst.transmit()
        if transmit is None:
            return
        self.bursts.append(transmit)
        data, stride = bytes(transmit.buffer), transmit.segment_size
        assert len(data) <= MAX_BURST
        assert -(-len(data) // stride) <= MAX_SEGMENTS
        pieces = [data[at : at + stride] for at in range(0, len(data), stride)]
        kept = b"".join(piece for number, piece in enumerate(pieces) if number not in self.lose)
        key = self.pair.b.current_path.key
        self.pair.b.handle_datagrams(self.pair.now, key, memoryview(kept), 0, stride, transmit.ecn)

    def segments(self, body: bytes, *, head: bytes = HEAD, step: int = STEP, flags: int = PACKET_PARTIAL, ecn: int = 0) -> None:
        sealer = self.pair.a.packets
        assert sealer is not None
        packet = memoryview(bytearray(PACKET_ROOM) + head + body)
        index, count = 0, -(-len(body) // step)
        while index < count:
            if not sealer.goes_on(self.burst, ecn):
                self.leave()
                sealer.begin(self.burst, ecn)
            index = sealer.seal_segments(self.burst, self.pair.now, packet, PACKET_ROOM, head, len(packet), step, index, flags)
            if index < count:
                self.leave()

    def whole(self, packet: bytes, ecn: int = 0) -> None:
        sealer = self.pair.a.packets
        assert sealer is not None
        view = memoryview(bytearray(PACKET_ROOM) + packet)
        for _ in range(2):
            if not sealer.goes_on(self.burst, ecn):
                self.leave()
                sealer.begin(self.burst, ecn)
            if sealer.seal_packet(self.burst, self.pair.now, view, PACKET_ROOM, len(view), 0):
                return
            self.leave()
        raise AssertionError("an empty burst takes any packet")


@pytest.mark.parametrize("size", [1, 999, 1000, 1001, 45_000, 65_000])
@pytest.mark.parametrize("relayed", [False, True])
def test_a_super_packet_arrives_as_runs_that_are_it(size: int, relayed: bool) -> None:
    lan = Lan(relayed=relayed)
    body = random.Random(size).randbytes(size)
    lan.segments(body)
    lan.leave()
    assert b"".join(run[1] for run in lan.got) == body
    assert all(run[0] == HEAD and run[2] == STEP and run[5] for run in lan.got)
    offsets = [sum(len(run[1]) for run in lan.got[:number]) for number in range(len(lan.got))]
    assert [run[3] * STEP for run in lan.got] == offsets
    assert len(lan.got) == len(lan.bursts)
    assert [run[4] for run in lan.got] == [False] * (len(lan.got) - 1) + [True]


def test_one_lost_datagram_costs_one_segment() -> None:
    lan = Lan(relayed=False)
    lan.lose = {3}
    body = random.Random(1).randbytes(10 * STEP)
    lan.segments(body)
    lan.leave()
    assert [(run[3], len(run[1])) for run in lan.got] == [(0, 3 * STEP), (4, 6 * STEP)]
    assert lan.got[0][1] + body[3 * STEP : 4 * STEP] + lan.got[1][1] == body
    assert [run[4] for run in lan.got] == [False, True]


def test_small_packets_of_one_size_share_a_burst_and_a_shorter_one_ends_it() -> None:
    lan = Lan(relayed=False)
    for number in range(5):
        lan.whole(bytes((number,)) * 100)
    lan.whole(b"s" * 60)
    lan.whole(b"s" * 60)
    lan.whole(b"l" * 200)
    lan.leave()
    assert [run[1][:1] for run in lan.got] == [b"\x00", b"\x01", b"\x02", b"\x03", b"\x04", b"s", b"s", b"l"]
    sizes = [-(-len(burst.buffer) // burst.segment_size) for burst in lan.bursts]
    assert sizes == [6, 1, 1]


def test_another_ecn_mark_begins_another_burst() -> None:
    lan = Lan(relayed=False)
    for ecn in (0, 0, 2, 2, 3):
        lan.whole(b"x" * 100, ecn)
    lan.leave()
    assert [run[6] for run in lan.got] == [0, 0, 2, 2, 3]
    assert len(lan.bursts) == 3


def test_two_super_packets_with_one_head_do_not_run_together() -> None:
    lan = Lan(relayed=False)
    lan.segments(b"a" * 2 * STEP)
    lan.segments(b"b" * 2 * STEP)
    lan.leave()
    assert [run[1][:1] for run in lan.got] == [b"a", b"b"]


def test_a_packet_that_the_burst_does_not_take_is_left_as_it_is() -> None:
    lan = Lan()
    sealer = lan.pair.a.packets
    assert sealer is not None
    sealer.begin(lan.burst, 0)
    for count in range(MAX_SEGMENTS + 1):
        packet = memoryview(bytearray(b"header" + bytes((count,)) * 100))
        taken = sealer.seal_packet(lan.burst, lan.pair.now, packet, PACKET_ROOM, len(packet), 0)
        assert taken == (count < MAX_SEGMENTS)
        assert (bytes(packet[:PACKET_ROOM]) == b"header") != taken
    lan.leave()
    assert [run[1] for run in lan.got] == [bytes((count,)) * 100 for count in range(MAX_SEGMENTS)]


def test_a_packet_larger_than_the_path_is_split_and_rejoined() -> None:
    lan = Lan(relayed=False)
    sealer = lan.pair.a.packets
    assert sealer is not None
    assert sealer.room is not None
    packet = random.Random(2).randbytes(sealer.room + 1)
    view = memoryview(bytearray(PACKET_ROOM) + packet)
    sealer.begin(lan.burst, 0)
    assert sealer.seal_split(lan.burst, lan.pair.now, view, PACKET_ROOM, len(view))
    lan.leave()
    assert [run[1] for run in lan.got] == [packet]
    sealer.begin(lan.burst, 0)
    assert sealer.seal_split(lan.burst, lan.pair.now, view, PACKET_ROOM, len(view))
    lan.lose = {1}
    lan.leave()
    assert len(lan.got) == 1


def test_packets_are_neither_in_flight_nor_acknowledged_but_sampled() -> None:
    lan = Lan()
    before, in_flight = lan.pair.a.stats(), lan.pair.a._shared.paths.current.recovery.bytes_in_flight
    asked = lan.pair.datagrams
    for _ in range(100):
        lan.segments(bytes(20 * STEP))
        lan.leave()
    stats = lan.pair.a.stats()
    assert lan.pair.a._shared.paths.current.recovery.bytes_in_flight == in_flight
    assert stats.packets_sent - before.packets_sent == 2000
    lan.pair.run(0.2)
    assert lan.pair.datagrams - asked <= 6  # a PING or two, and what they ask for


def test_packets_into_a_black_hole_put_the_mtu_back_within_two_seconds() -> None:
    lan = Lan(relayed=False)
    assert lan.pair.a.current_path.mtu == 1472
    lan.pair.mtu = 1300
    started = lan.pair.now
    while lan.pair.a.current_path.mtu == 1472:
        lan.whole(bytes(1400))
        lan.burst.transmit()  # lost: it is larger than the path
        lan.whole(bytes(60))
        lan.leave()
        lan.pair.run(0.05)
        assert lan.pair.now - started < 2.0


def test_packets_on_a_dead_path_have_it_doubted_at_once() -> None:
    lan = Lan()
    lan.pair.a.challenge(lan.pair.now, lan.pair.direct("a"), lan.pair.a.current_path.kind.DIRECT)
    lan.pair.run(1.0)
    assert not lan.pair.a.current_path.key.prefix
    lan.pair.cut = {("a", False), ("b", False)}
    started = lan.pair.now
    while not lan.pair.a.current_path.key.prefix:
        lan.whole(bytes(100))
        lan.burst.transmit()
        lan.pair.run(0.05)
        assert lan.pair.now - started < 2.0


@pytest.mark.parametrize(
    "frame",
    [
        bytes((Frame.PACKET,)),
        PACKET.pack(Frame.PACKET, 0, 0, 0, 1000),  # no payload
        PACKET.pack(Frame.PACKET, 0, 0, 60, 1000) + bytes(60),
        PACKET.pack(Frame.PACKET, 0, 0, 60, 1000) + bytes(59),
        PACKET.pack(Frame.PACKET, 0, 0, 10, 100) + bytes(111),  # more than gso_size
        PACKET.pack(Frame.PACKET, 0, 0, 10, 0) + bytes(100),  # a head without segments
        PACKET.pack(Frame.PACKET, PACKET_SPLIT, 2, 2, 7) + bytes(100),
    ],
)
def test_what_no_sender_makes_does_not_parse(frame: bytes) -> None:
    joiner = PacketJoiner(Pair().b._shared, Plains(65_536))
    with pytest.raises(MalformedPacket):
        joiner.add(Instant(1000.0), memoryview(frame), 0, len(frame), 0)


def test_without_an_interface_packets_are_dropped_and_counted() -> None:
    lan = Lan(relayed=False)
    lan.pair.b.set_packet_sink(None)
    lan.segments(bytes(3 * STEP))
    lan.leave()
    assert lan.pair.b.drops["packet without an interface"] == 1
    assert not any(isinstance(event, ConnectionClosed) for event in lan.pair.events["b"])


def touches(connection: Connection) -> list[Instant]:
    """Grows with each time that the connection says that there may be something to do."""
    touched: list[Instant] = []
    connection._touched = lambda: touched.append(connection.last_heard)
    return touched


def test_packets_leave_nothing_to_be_done() -> None:
    lan = Lan(relayed=False)
    lan.pair.run(0.1)
    touched = touches(lan.pair.b)
    lan.segments(bytes(3 * STEP))
    lan.leave()
    assert not touched
    lan.pair.a.send_control(b"hello")
    lan.pair.run_until(lambda: bool(touched))


def test_an_ack_is_never_nothing_as_streams_may_wait_for_it() -> None:
    lan = Lan(relayed=False)
    stream = lan.pair.a.open_stream()
    lan.pair.a.stream_write(stream, b"x" * 1000)
    heard, touched = lan.pair.a.stats().packets_received, touches(lan.pair.a)
    lan.pair.run_until(lambda: lan.pair.a.stats().packets_received > heard)
    assert touched
