"""A peer that acknowledges what it does not get: numbers are left out, and a path proves now and then that somebody is there."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from tests.fuzz.hostile import Hostile, ack
from tests.unit.connection.pair import Pair
from tests.unit.connection.test_packets import Lan
from tunnel.core.ranges import RangeSet
from tunnel.transport.connection import shared
from tunnel.transport.connection.carried import MaxData, MaxStreamData
from tunnel.transport.connection.events import AllPathsLost, PathKind, PathLost
from tunnel.transport.connection.packets import PACKET_ROOM, PacketBurst
from tunnel.transport.connection.paths import PROOF_ATTEMPTS, PROOF_INTERVAL, PROOF_SPACING
from tunnel.transport.connection.records import RECORD
from tunnel.transport.connection.shared import MAX_SKIPPED, SKIP_FIRST, SKIP_LEAST, SKIP_MOST
from tunnel.transport.packet.header import HEADER
from tunnel.units import StreamId, Transmit


class Optimist(Hostile):
    """Has its victim send without end, and acknowledges it all as it leaves."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__(seed)
        self.mine = self.victim.open_stream()
        self.send(MaxData.pack(2**60))
        self.send(MaxStreamData.pack(self.mine, 2**60))

    def got(self, *, knows: bool) -> list[tuple[int, int]]:
        """What to acknowledge; whoever `knows` what was left out leaves it out too."""
        found = RangeSet()
        found.add(0, self.victim._shared.next_number)
        for number in self.victim._shared._skipped if knows else ():
            found.remove(number, number + 1)
        return [(start, stop - 1) for start, stop in reversed(found)][:33]

    def go_on(self, seconds: float, *, knows: bool) -> None:
        until = self.now + seconds
        while self.now < until and not self.victim.is_closed:
            self.victim.stream_write(self.mine, bytes(50_000))
            self.settle()
            self.send(ack(*self.got(knows=knows)))
            self.pass_time(0.01)


@pytest.mark.parametrize("seed", range(5))
def test_whoever_acknowledges_what_it_did_not_get_names_a_number_that_was_left_out(seed: int) -> None:
    peer = Optimist(seed)
    peer.go_on(30.0, knows=False)
    peer.assert_closed("never sent")
    assert peer.victim.stats().packets_sent <= SKIP_FIRST + 200


def test_numbers_are_left_out_unforeseeably() -> None:
    left_out = []
    for seed in range(3):
        peer = Optimist(seed)
        peer.go_on(40.0, knows=True)
        assert not peer.victim.is_closed
        numbers = peer.victim._shared._skipped
        assert len(numbers) > 2
        assert SKIP_LEAST <= numbers[0] <= SKIP_FIRST + 64
        assert all(SKIP_LEAST <= after - before <= SKIP_MOST + 64 for before, after in pairwise(numbers))
        left_out.append(set(numbers))
    assert not left_out[0] & left_out[1] & left_out[2]


def test_an_old_number_that_was_left_out_is_remembered_as_long_as_it_may_be_in_flight() -> None:
    peer = Hostile()
    sent = peer.victim._shared
    for _ in range(3 * MAX_SKIPPED):
        sent._skip_at = 0
        sent.take_numbers(1, 100)
    assert len(sent._skipped) == MAX_SKIPPED
    assert not sent.was_sent([(sent._skipped[0], sent._skipped[0])])
    assert not sent.was_sent([(sent.next_number, sent.next_number)])
    assert sent.was_sent([(number + 1, number + 1) for number in reversed(sent._skipped)])
    peer.send(ack((sent.next_number - 1, sent.next_number - 1), (sent._skipped[-2], sent._skipped[-2])))
    peer.assert_closed("never sent")


def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """One number in three is left out."""
    monkeypatch.setattr(shared, "SKIP_LEAST", 1)
    monkeypatch.setattr(shared, "SKIP_MOST", 4)


@pytest.mark.parametrize("relayed", [False, True])
@pytest.mark.parametrize("frequent", [False, True])
def test_a_number_that_was_left_out_is_no_loss_and_slows_nothing(
    relayed: bool, frequent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    took = []
    data = random.Random(5).randbytes(6_000_000)
    for leaves_out in (False, True):
        if leaves_out and frequent:
            often(monkeypatch)
        pair = Pair(1, relayed=relayed, delay=0.005, rate=20e6, queue=0.3)
        if not leaves_out:
            for side in (pair.a, pair.b):
                side._shared._skip_at = 1 << 62
        if leaves_out and frequent:
            for side in (pair.a, pair.b):
                side._shared._skip_at = 0
        stream, at = pair.a.open_stream(), pair.now
        pair.write_all("a", stream, data)
        pair.run_until(lambda p=pair, s=stream: len(p.read["b"].get(s, b"")) == len(data))
        assert bytes(pair.read["b"][stream]) == data
        took.append(pair.now - at)
        assert pair.a.stats().packets_lost == 0
        assert bool(pair.a._shared._skipped) == leaves_out
        assert not pair.b.stats().drops
        assert frequent or len(pair.b._shared.acks._received) < 10
    assert took[1] < 1.03 * took[0]


def test_losses_are_found_between_numbers_that_were_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    often(monkeypatch)
    pair = Pair(2, relayed=False, loss=0.03)
    for side in (pair.a, pair.b):
        side._shared._skip_at = 0
    data = random.Random(5).randbytes(1_000_000)
    stream = pair.a.open_stream()
    pair.write_all("a", stream, data)
    pair.run_until(lambda: bytes(pair.read["b"].get(stream, b"")) == data)
    assert not pair.a.is_closed
    assert not pair.b.is_closed


def test_records_go_on_where_numbers_are_left_out() -> None:
    pair = Pair(1, relayed=False, delay=0.000_1)
    records: list[bytes] = []

    def count(name: str, _relayed: bool, data: bytes) -> None:
        if name == "a" and data[0] == RECORD:
            records.append(data)

    pair.hook = count
    data = random.Random(5).randbytes(20_000_000)
    stream = pair.a.open_stream()
    pair.write_all("a", stream, data)
    pair.run_until(lambda: len(pair.read["b"].get(stream, b"")) == len(data))
    assert bytes(pair.read["b"][stream]) == data
    assert len(records) > 5_000
    assert len(pair.a._shared._skipped) > 3
    assert pair.a.stats().packets_lost == 0


def test_no_number_is_sealed_under_twice_whoever_seals(monkeypatch: pytest.MonkeyPatch) -> None:
    often(monkeypatch)
    lan = Lan(relayed=False, delay=0.000_1)
    pair, sent = lan.pair, lan.pair.a._shared
    sent._skip_at = first = sent.next_number
    before = sent.stats.packets_sent
    numbers: list[int] = []

    def note(transmit: Transmit | None) -> Transmit | None:
        if transmit is not None:
            starts = range(0, len(transmit.buffer), transmit.segment_size)
            numbers.extend(HEADER.unpack_from(transmit.buffer, at)[2] for at in starts)
        return transmit

    poll, leave = pair.a.poll_transmit, PacketBurst.transmit
    monkeypatch.setattr(pair.a, "poll_transmit", lambda now, out: note(poll(now, out)))
    monkeypatch.setattr(PacketBurst, "transmit", lambda burst: note(leave(burst)))
    stream = pair.a.open_stream()
    pair.write_all("a", stream, bytes(10_000_000))  # packets, records, MTU probes
    pair.a.send_datagrams(pair.now, 1, [bytes(1_000)] * 20 + [bytes(5_000)])
    sealer = pair.a.packets
    assert sealer is not None
    for round_ in range(20):
        lan.segments(bytes(30_000))
        for _ in range(4):
            lan.whole(bytes(100 + round_))
        packet = memoryview(bytearray(PACKET_ROOM) + bytes(100 + round_))
        assert sealer.seal_packet(lan.burst, pair.now, packet, PACKET_ROOM, len(packet), 0)
        lan.leave()
        pair.a.challenge(pair.now, pair.direct("a"), PathKind.DIRECT)
        pair.run(0.3)
    packet = memoryview(bytearray(PACKET_ROOM) + bytes(2_000))
    sealer.begin(lan.burst, 0)
    assert sealer.seal_split(lan.burst, pair.now, packet, PACKET_ROOM, len(packet))
    lan.leave()
    pair.a.close(pair.now, 0, "enough")
    pair.run(0.5)
    assert len(numbers) == len(set(numbers)) == sent.stats.packets_sent - before
    assert not set(numbers) & set(sent._skipped)
    assert sent.next_number - first - len(numbers) > 100  # left out


def test_a_path_that_only_acknowledges_carries_nothing_more_after_a_minute() -> None:
    peer = Optimist()
    peer.go_on(PROOF_INTERVAL + PROOF_ATTEMPTS * PROOF_SPACING + 2, knows=True)
    assert not peer.victim.is_closed
    assert [type(event) for event in peer.events if isinstance(event, PathLost | AllPathsLost)] == [PathLost, AllPathsLost]
    before = peer.bytes_out
    peer.go_on(30.0, knows=True)
    assert peer.bytes_out - before < 20_000  # challenges, and what asks for an answer
    assert not peer.victim.has_path


def test_a_path_proves_itself_each_minute_of_one_way_bulk_and_goes_on() -> None:
    pair = Pair(1, relayed=False, rate=50_000)
    stream = pair.a.open_stream()
    proofs = 0
    until = pair.now + 200
    while pair.now < until:
        pair.a.stream_write(stream, bytes(5_000))
        before = pair.a._shared.paths.current.proof_at
        pair.step()
        proofs += pair.a._shared.paths.current.proof_at > before + PROOF_INTERVAL - 1
    assert 3 <= proofs <= 6
    assert pair.a.has_path
    assert pair.a._shared.paths.current.proof_attempts == 0
    assert not [event for event in pair.events["a"] if isinstance(event, PathLost)]


def test_a_path_that_is_proven_again_carries_again() -> None:
    pair = Pair(1, relayed=False, rate=50_000)
    stream = pair.a.open_stream()
    pair.hook = lambda name, _relayed, data: [] if name == "a" and len(data) == 57 else None  # its challenges are lost
    until = pair.now + 90
    while pair.now < until:
        pair.a.stream_write(stream, bytes(5_000))
        pair.step()
    assert not pair.a._shared.paths.current.is_proven
    held = len(pair.read["b"][stream])
    pair.run(5.0)
    assert len(pair.read["b"][stream]) - held < 30_000
    pair.hook = None
    pair.run(6.0)
    assert pair.a.has_path
    assert pair.a._shared.paths.current.kind is PathKind.DIRECT
    before = len(pair.read["b"][StreamId(stream)])
    pair.a.stream_write(stream, bytes(20_000))
    pair.run(1.0)
    assert len(pair.read["b"][stream]) > before
