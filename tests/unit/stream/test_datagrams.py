"""The queue of datagrams and the rejoining of split ones: whole or not at all, and bounded."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.core.trace import Drops
from tunnel.errors import MalformedPacket
from tunnel.transport.stream.datagrams import (
    ENTRY_BYTES,
    MAX_DATAGRAM,
    MAX_FRAGMENTS,
    QUEUE_BYTES,
    QUEUE_TIME,
    REJOIN_BYTES,
    REJOIN_TIME,
    DatagramQueue,
    Rejoiner,
)
from tunnel.units import Instant

NOW = Instant(5.0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 9000), max_size=8), st.lists(st.integers(300, 1400), min_size=1, max_size=5), st.randoms())
def test_datagrams_split_by_any_room_come_out_whole(sizes: list[int], rooms: list[int], rng: random.Random) -> None:
    queue, rejoiner = DatagramQueue(Drops()), Rejoiner(Drops())
    data = {flow: rng.randbytes(size) for flow, size in enumerate(sizes)}
    for flow, payload in data.items():
        queue.push(NOW, flow, [payload])
    fragments = []
    turn = 0
    while queue:
        room = rooms[turn % len(rooms)]
        turn += 1
        fragment = queue.next_fragment(room)
        if fragment is not None:
            assert len(fragment[4]) <= room
            fragments.append(fragment)
    rng.shuffle(fragments)
    whole: dict[int, bytes] = {}
    for flow, identifier, index, count, part in fragments:
        joined = bytes(part) if count == 1 else rejoiner.add(NOW, flow, identifier, index, count, bytes(part))
        if joined is not None:
            whole[flow] = joined
    assert all(data[flow] == payload for flow, payload in whole.items())
    assert len(whole) + queue.drops.total() == len(data)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 5000), max_size=40), st.integers(1, 20), st.integers(300, 1400))
def test_runs_are_of_pieces_that_make_equal_packets_and_hold_all_there_is(sizes: list[int], count: int, room: int) -> None:
    queue, rejoiner = DatagramQueue(Drops()), Rejoiner(Drops())
    data = [bytes([flow]) * size for flow, size in enumerate(sizes)]
    for flow, payload in enumerate(data):
        queue.push(NOW, flow, [payload])
    arrived: dict[int, bytes] = {}
    while queue:
        run = queue.take_run(count, room // 2, room)
        lengths = [len(payload) for *_, payload in run]
        assert len(run) <= count
        assert all(room // 2 < length <= room for length in lengths)
        assert len(set(lengths[:-1])) <= 1
        assert not lengths[1:] or lengths[-1] <= lengths[0]
        if not run:  # something small stands in front: it goes by itself
            assert queue.head_size() <= room // 2
            one = queue.next_fragment(room)
            assert one is not None
            run = [one]
        for flow, identifier, index, total, part in run:
            whole = rejoiner.add(NOW, flow, identifier, index, total, bytes(part)) if total > 1 else bytes(part)
            if whole is not None:
                arrived[flow] = whole
    assert arrived == dict(enumerate(data))
    assert queue._bytes == 0
    assert list(arrived) == sorted(arrived)


def test_what_needs_too_many_pieces_is_dropped_and_those_behind_it_are_sent() -> None:
    queue = DatagramQueue(Drops())
    queue.push(NOW, 1, [bytes(MAX_DATAGRAM), bytes(200)])
    assert [(flow, len(data)) for flow, _, _, _, data in queue.take_run(10, 100, MAX_DATAGRAM // MAX_FRAGMENTS - 10)] == [
        (1, 200)
    ]
    assert queue.drops.total() == 1


def test_the_queue_drops_the_oldest_first_by_bytes_and_by_age() -> None:
    queue = DatagramQueue(Drops())
    for number in range(40):
        queue.push(NOW, number, [bytes(MAX_DATAGRAM)])
    assert queue._bytes <= QUEUE_BYTES
    assert queue.drops.total() == 40 - QUEUE_BYTES // (MAX_DATAGRAM + ENTRY_BYTES)
    first = queue.next_fragment(1000)
    assert first is not None
    queue.push(Instant(NOW + 1), 99, [b"young"])
    queue.drop_stale(Instant(NOW + 1))
    assert queue.next_fragment(1000) is not None  # the one that is partly sent is finished
    queue.drop_stale(Instant(NOW + 1 + 2 * QUEUE_TIME))
    assert [entry[0] for entry in queue._queue] == [first[0]]


def test_a_flood_of_empty_datagrams_is_bounded_too() -> None:
    queue = DatagramQueue(Drops())
    for number in range(100_000):
        queue.push(NOW, number, [b""])
    assert len(queue._queue) <= QUEUE_BYTES // ENTRY_BYTES


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 255), st.integers(0, 255), st.integers(0, 1300))))
def test_any_fragments_give_a_datagram_nothing_or_malformed(pieces: list[tuple[int, int, int, int, int]]) -> None:
    rejoiner = Rejoiner(Drops())
    for flow, identifier, index, count, size in pieces:
        try:
            whole = rejoiner.add(NOW, flow, identifier, index, count, bytes(size))
        except MalformedPacket:
            assert index >= count
            continue
        assert whole is None or len(whole) <= MAX_DATAGRAM
        held = sum(len(part) for partial in rejoiner._partials.values() for part in partial.parts.values())
        assert held == rejoiner._bytes <= REJOIN_BYTES
        assert len(rejoiner._partials) <= MAX_FRAGMENTS


def test_a_flood_of_first_fragments_is_bounded_and_counted() -> None:
    rejoiner = Rejoiner(Drops())
    for number in range(3000):
        rejoiner.add(NOW, number, 0, 0, 2, bytes(1200))
    assert rejoiner._bytes <= REJOIN_BYTES
    assert len(rejoiner._partials) <= MAX_FRAGMENTS
    assert rejoiner.drops.total() == 3000 - len(rejoiner._partials)


def test_fragments_of_different_times_are_not_joined() -> None:
    rejoiner = Rejoiner(Drops())
    rejoiner.add(NOW, 1, 1, 0, 2, b"old")
    late = Instant(NOW + REJOIN_TIME + 0.1)
    assert rejoiner.add(late, 1, 1, 1, 2, b"new") is None
    assert rejoiner.drops.total() == 1
    assert rejoiner.add(late, 1, 1, 0, 2, b"first ") == b"first new"


def test_an_impossible_index_is_malformed() -> None:
    with pytest.raises(MalformedPacket):
        Rejoiner(Drops()).add(NOW, 1, 1, 0, 0, b"")
