"""Records in a connection: when they are sent, that they arrive whatever happens to their parts, and what a stranger can do."""

from __future__ import annotations

import random
import sys
from collections import Counter
from itertools import pairwise

import pytest

from tests.fuzz.hostile import PATH, Hostile, stream
from tests.unit.connection.pair import RELAY, Pair, keypairs
from tunnel.transport.connection.events import StreamReadable
from tunnel.transport.connection.reassembly import LEAST_BODY, MAX_WAITING
from tunnel.transport.connection.records import LEAST_PARTS, MOST_PARTS, RECORD, RECORD_HEADER, RECORD_HEADER_SIZE
from tunnel.transport.connection.shared import RECORDS_AFTER, RECORDS_AFTER_KEYS
from tunnel.transport.packet.frames import Frame
from tunnel.transport.packet.header import NONCE_PREFIX, TAG_SIZE, TRANSPORT
from tunnel.units import StreamId

MUCH = (RECORDS_AFTER + 4_000) * 1_400  # bytes: thousands of datagrams behind the first that may be of a record


class Wire:
    """What `a` sends to `b` of a pair, by type; `fate` may change what becomes of a part of a record."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.kinds: Counter[int] = Counter()
        self.parts: list[tuple[int, int, int]] = []  # number, index, parts
        self.lose: set[int] = set()  # which parts of records are lost, by the order sent
        self.shuffles = self.doubles = False
        pair.hook = self._hook

    def _hook(self, name: str, _relayed: bool, data: bytes) -> list[float] | None:
        if name != "a":
            return None
        skip = len(RELAY) if data.startswith(RELAY) else 0
        self.kinds[data[skip]] += 1
        if data[skip] != RECORD:
            return None
        _, _, number, index, parts = RECORD_HEADER.unpack_from(data, skip)
        self.parts.append((number, index, parts))
        if len(self.parts) in self.lose:
            return []
        if not (self.shuffles or self.doubles):
            return None
        delay = self.pair.delay + (self.pair.rng.uniform(0, 0.000_05) if self.shuffles else 0.0)
        return [delay, delay + 0.000_02] if self.doubles else [delay]


def transfer(pair: Pair, size: int = MUCH) -> tuple[bytes, bytes]:
    """A stream from `a` to `b` that ends: what was sent and what arrived."""
    data = random.Random(5).randbytes(size)
    number = pair.a.open_stream()
    pair.write_all("a", number, data)
    pair.run_until(lambda: len(pair.read["b"].get(number, b"")) >= size)
    pair.run(0.05)
    assert any(isinstance(event, StreamReadable) and event.stream_id == number for event in pair.events["b"])
    return data, bytes(pair.read["b"][number])


@pytest.mark.parametrize("relayed", [False, True])
def test_a_fast_stream_comes_by_records_after_a_while_without_losses(relayed: bool) -> None:
    pair = Pair(1, relayed=relayed, delay=0.000_1)
    wire = Wire(pair)
    sent, arrived = transfer(pair)
    assert arrived == sent
    assert min(number for number, *_ in wire.parts) >= RECORDS_AFTER
    assert wire.kinds[RECORD] > 3 * (wire.kinds[TRANSPORT] - RECORDS_AFTER)
    assert {parts for *_, parts in wire.parts} <= set(range(LEAST_PARTS, MOST_PARTS + 1))
    assert not pair.b.stats().drops
    assert pair.a.stats().packets_lost == 0


def test_whoever_takes_none_gets_none() -> None:
    pair = Pair(1, relayed=False, delay=0.000_1)
    pair.a._shared.peer_record_parts = 0
    wire = Wire(pair)
    sent, arrived = transfer(pair)
    assert arrived == sent
    assert not wire.kinds[RECORD]


def test_a_slow_link_gets_none() -> None:
    pair = Pair(1, relayed=False, delay=0.005, rate=12_500_000, queue=0.2)
    wire = Wire(pair)
    sent, arrived = transfer(pair)
    assert arrived == sent
    assert not wire.kinds[RECORD]


def test_a_lost_part_costs_its_record_and_then_there_are_none_for_a_while() -> None:
    pair = Pair(1, relayed=False, delay=0.000_1)
    wire = Wire(pair)
    wire.lose = {100}
    sent, arrived = transfer(pair, 2 * MUCH)
    assert arrived == sent
    assert 0 < pair.a.stats().packets_lost <= MOST_PARTS
    numbers = [number for number, *_ in wire.parts]
    gaps = [(after - before, before) for before, after in pairwise(numbers) if after != before + 1]
    assert max(gaps)[0] >= RECORDS_AFTER
    assert max(gaps)[1] - numbers[99] < 2_000, "they stop within a round trip of the loss"


@pytest.mark.parametrize("doubles", [False, True])
def test_parts_find_together_in_any_order(doubles: bool) -> None:
    pair = Pair(3, relayed=False, delay=0.000_1)
    wire = Wire(pair)
    wire.shuffles, wire.doubles = True, doubles
    sent, arrived = transfer(pair)
    assert arrived == sent
    assert wire.kinds[RECORD] > LEAST_PARTS
    drops = pair.b.stats().drops
    assert not drops.get("does not authenticate")
    assert bool(drops.get("replayed")) == doubles


def test_records_survive_new_keys_in_between() -> None:
    pair = Pair(1, relayed=False, delay=0.000_1)
    wire = Wire(pair)
    data = random.Random(5).randbytes(MUCH)
    number = pair.a.open_stream()
    pair.write_all("a", number, data, fin=False)
    assert wire.kinds[RECORD]
    key_a, key_b = keypairs(random.Random(77), 300)
    pair.b.install_keypair(pair.now, key_b, confirmed=False)
    pair.a.install_keypair(pair.now, key_a, confirmed=True)
    pair.write_all("a", number, data)
    pair.run_until(lambda: len(pair.read["b"][number]) == 2 * len(data))
    assert bytes(pair.read["b"][number]) == data + data
    assert not pair.b.stats().drops.get("does not authenticate")


class Foe(Hostile):
    """Seals records too."""

    def record(self, body: bytes, parts: int, number: int | None = None) -> list[bytes]:
        if number is None:
            number, self.number = self.number, self.number + parts
        head = RECORD_HEADER.pack(RECORD, self.keys.remote_index, number, 0, parts)
        body += bytes(-(len(body) + TAG_SIZE) % parts)
        sealed = self.keys.send.encrypt(NONCE_PREFIX + number.to_bytes(8, "big"), body, head)
        piece = len(sealed) // parts
        return [
            RECORD_HEADER.pack(RECORD, self.keys.remote_index, number + index, index, parts)
            + sealed[index * piece : (index + 1) * piece]
            for index in range(parts)
        ]

    def together(self, datagrams: list[bytes]) -> None:
        buffer = memoryview(b"".join(datagrams))
        self.victim.handle_datagrams(self.now, PATH, buffer, 0, len(datagrams[0]))
        self.settle()

    def has(self, number: int) -> int:
        """How many bytes of that stream came."""
        receiving = self.victim._shared.streams.receiving.get(StreamId(number))
        return 0 if receiving is None else receiving.highest


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("parts", [2, 16, 32])
def test_a_record_is_one_packet(together: bool, parts: int) -> None:
    foe = Foe()
    datagrams = foe.record(stream(2, 0, b"x" * 2_000), parts)
    if together:
        foe.together(datagrams)
    else:
        for index in random.Random(1).sample(range(parts), parts):
            assert foe.has(2) == 0
            foe.deliver(datagrams[index])
    assert foe.has(2) == 2_000
    assert foe.victim.stats().packets_received == parts
    before = dict(foe.victim.stats().drops)
    foe.together(datagrams)  # a replay
    after = foe.victim.stats().drops
    assert not before.get("replayed")
    assert after["replayed"] == parts
    assert foe.has(2) == 2_000


def test_a_record_and_packets_come_in_one_batch_one_behind_the_other() -> None:
    foe = Foe()
    first = foe.record(stream(2, 0, b"r" * 1_000), 4)
    size = len(first[0])
    body = stream(2, 1_000, b"p" * (size - 13 - TAG_SIZE - 15))
    packets = [foe.seal(body)]
    end = 1_000 + size - 44
    second = foe.record(stream(2, end, b"s" * (4 * (size - RECORD_HEADER_SIZE) - TAG_SIZE - 15)), 4)
    foe.together(first + packets + second)
    assert foe.has(2) == end + 4 * (size - RECORD_HEADER_SIZE) - TAG_SIZE - 15
    assert foe.victim.stats().packets_received == 9


@pytest.mark.parametrize("together", [True, False])
def test_a_forged_part_costs_its_record_and_no_more(together: bool) -> None:
    foe = Foe()
    datagrams = foe.record(stream(2, 0, b"x" * 1_000), 16)
    forged = datagrams[7][:-1] + bytes([datagrams[7][-1] ^ 1])
    if together:
        foe.together([*datagrams[:7], forged, *datagrams[8:]])
    else:
        for datagram in [forged, *datagrams]:
            foe.deliver(datagram)
    assert foe.has(2) == 0
    assert foe.victim.stats().drops["does not authenticate"] == 16
    foe.together(foe.record(stream(2, 0, b"x" * 1_000), 16))
    assert foe.has(2) == 1_000
    assert foe.victim.close_reason is None


def test_a_record_that_overlaps_what_was_seen_is_a_replay() -> None:
    foe = Foe()
    foe.number = 5
    foe.deliver(foe.seal(bytes([Frame.PING]), 7))
    foe.together(foe.record(stream(2, 0, b"x" * 1_000), 4))  # 5 to 8
    assert foe.has(2) == 0
    assert foe.victim.stats().drops["replayed"] == 4


def test_what_waits_for_missing_parts_is_bounded() -> None:
    foe = Foe()
    for number in range(0, 50_000, 100):
        for part in foe.record(stream(2, 0, b"x" * 40_000), 32, number)[1:]:
            foe.deliver(part)
    waiting = foe.victim._receiver._records._waiting
    assert len(waiting) == MAX_WAITING
    assert foe.victim.stats().drops["record incomplete"] == (500 - MAX_WAITING) * 31
    assert foe.victim.close_reason is None


def test_headers_that_cannot_be_are_dropped() -> None:
    foe = Foe()
    index = foe.keys.remote_index
    impossible = (
        (5, 3, 3, 100),  # number, index, parts, bytes behind them
        (2, 3, 9, 100),
        (9, 0, 0, 100),
        (9, 0, 1, 100),
        (9, 0, 33, 100),
        (9, 0, 32, 3_000),
        (9, 0, 2, LEAST_BODY - 1),
    )
    for number, part, parts, size in impossible:
        foe.deliver(RECORD_HEADER.pack(RECORD, index, number, part, parts) + bytes(size))
    foe.deliver(RECORD_HEADER.pack(RECORD, index, 9, 0, 2)[:-1])
    assert not foe.victim._receiver._records._waiting
    assert foe.victim.stats().drops["part of no record"] == len(impossible)
    first = RECORD_HEADER.pack(RECORD, index, 9, 0, 3) + bytes(50)
    other = RECORD_HEADER.pack(RECORD, index, 10, 1, 3) + bytes(51)  # of another size than its neighbours
    for datagram in (first, first, other):
        foe.deliver(datagram)
    assert foe.victim.stats().drops["part of no record"] == len(impossible) + 2
    assert foe.victim.close_reason is None


def test_a_number_from_nowhere_pushes_no_record_out() -> None:
    foe = Foe()
    datagrams = foe.record(stream(2, 0, b"x" * 1_000), 4)
    foe.deliver(datagrams[0])
    for number in range(MAX_WAITING):
        foe.deliver(RECORD_HEADER.pack(RECORD, foe.keys.remote_index, 10**12 + 99 * number, 0, 2) + bytes(50))
    for datagram in datagrams[1:]:
        foe.deliver(datagram)
    assert foe.has(2) == 1_000
    assert foe.victim.stats().drops["part too far ahead"] == MAX_WAITING


def test_a_datagram_is_opened_as_part_of_one_record_only() -> None:
    """Otherwise firsts of many records, and as many lasts, would have each of them copied and opened all."""
    foe = Foe()
    opened = 0
    unseal = foe.victim._shared.keys.current.receive.decrypt_into

    class Counting:
        def decrypt_into(self, *arguments: object) -> int:
            nonlocal opened
            opened += 1
            return unseal(*arguments)  # type: ignore[arg-type]

    foe.victim._shared.keys.current.receive = Counting()  # type: ignore[assignment]
    index = foe.keys.remote_index
    firsts = [RECORD_HEADER.pack(RECORD, index, 100 + each, 0, 32) + bytes(100) for each in range(31)]
    lasts = [RECORD_HEADER.pack(RECORD, index, 131 + each, 31, 32) + bytes(100) for each in range(31)]
    foe.together(firsts + lasts)
    assert opened == 0


def test_a_record_over_packets_of_its_batch_is_a_replay() -> None:
    foe = Foe()
    datagrams = foe.record(stream(2, 0, b"x" * 1_000), 6, 5)  # 5 to 10
    for datagram in datagrams[:5]:
        foe.deliver(datagram)
    size = len(datagrams[0])
    packets = [foe.seal(bytes([Frame.PING]) + bytes(size - 30), number) for number in range(10)]
    foe.together([*packets, datagrams[5]])
    assert foe.victim.stats().packets_received == 10
    assert foe.victim.stats().drops["replayed"] == 1


def test_a_part_that_came_twice_does_not_wait_on() -> None:
    foe = Foe()
    datagrams = foe.record(stream(2, 0, b"x" * 1_000), 4)
    foe.deliver(datagrams[2])
    foe.together(datagrams)
    assert not foe.victim._receiver._records._waiting
    assert foe.has(2) == 1_000


def test_bytes_are_counted_however_they_come() -> None:
    for together in (True, False):
        foe = Foe()
        datagrams = foe.record(stream(2, 0, b"x" * 1_000), 4)
        foe.together(datagrams) if together else [foe.deliver(datagram) for datagram in datagrams]
        assert foe.victim.stats().received_bytes == sum(map(len, datagrams))


def test_padding_costs_its_bytes_once() -> None:
    """In a plaintext of 45,000 bytes a look at the rest for every byte of it would take seconds."""
    foe = Foe()
    foe.together(foe.record(bytes(45_000) + bytes([Frame.PING]), 32))
    assert foe.victim.stats().packets_received == 32
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        foe.together(foe.record(bytes(45_000) + bytes([Frame.PING]), 32))
    finally:
        sys.setprofile(None)
    assert calls < 5_000


def test_a_key_is_confirmed_by_a_packet_before_records_come_under_it() -> None:
    pair = Pair(1, relayed=False, delay=0.000_1)
    transfer(pair)
    key_a, _ = keypairs(random.Random(77), 300)
    before = pair.a._shared.next_number
    pair.a.install_keypair(pair.now, key_a, confirmed=True)
    assert pair.a._shared.records_from >= before + RECORDS_AFTER_KEYS


def test_any_bytes_behind_the_first_are_survived() -> None:
    foe = Foe()
    rng = random.Random(3)
    index = foe.keys.remote_index.to_bytes(4, "big")
    for _ in range(3_000):
        foe.together([bytes([RECORD]) + index + rng.randbytes(rng.choice((0, 3, 10, 30, 200)))] * rng.choice((1, 2, 5)))
    assert foe.victim.close_reason is None
    assert len(foe.victim._receiver._records._waiting) <= MAX_WAITING
