"""Who writes next, who may open what, and how much may be under way."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.errors import PeerError, StreamLimitError
from tunnel.transport.stream.flow import (
    GROWTH_IN_ALL,
    INITIAL_STREAM_WINDOW,
    MAX_STREAM_WINDOW,
    MAX_STREAMS,
    Growth,
    ReceiveWindow,
    SendCredit,
)
from tunnel.transport.stream.send import SMALLEST_RING, SendStream
from tunnel.transport.stream.streams import LARGEST_QUANTUM, LARGEST_RING, LAST_STREAM, LOSSY, QUANTUM, Scheduler, Streams
from tunnel.units import Instant, Seconds, StreamId

BIG = 1 << 40


def busy(stream_id: int) -> SendStream:
    stream = SendStream(StreamId(stream_id), BIG)
    stream.written = BIG // 2  # only offsets matter to the scheduler
    return stream


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 6), st.lists(st.integers(1, 3 * QUANTUM), min_size=400, max_size=600))
def test_busy_streams_share_alike_whatever_their_packets(count: int, sizes: list[int]) -> None:
    scheduler = Scheduler()
    streams = [busy(n) for n in range(count)]
    for stream in streams:
        scheduler.wake(stream)
    sent = dict.fromkeys(range(count), 0)
    for size in sizes:
        head = scheduler.head(True)
        assert head is not None
        size = max(1, min(size, scheduler.allowance(head)))
        head.sent += size
        sent[head.stream_id] += size
        scheduler.charge(head, size)
    assert max(sent.values()) - min(sent.values()) <= 2 * QUANTUM


def test_a_stream_that_wakes_goes_before_those_always_busy() -> None:
    scheduler = Scheduler()
    bulk, keys = busy(1), busy(2)
    scheduler.wake(bulk)
    for _ in range(5):
        assert scheduler.head(True) is bulk
        scheduler.charge(bulk, QUANTUM)
    scheduler.wake(keys)
    assert scheduler.head(True) is keys


@pytest.mark.parametrize(("burst", "turn"), [(1, QUANTUM), (50_000, 50_000), (1 << 20, LARGEST_QUANTUM)])
def test_a_turn_follows_what_the_path_takes_at_once(burst: int, turn: int) -> None:
    scheduler = Scheduler()
    scheduler.set_pace(burst)
    one, two = busy(1), busy(2)
    scheduler.wake(one)
    scheduler.wake(two)
    assert scheduler.allowance(one) == turn
    scheduler.charge(one, turn)
    assert scheduler.head(True) is two
    scheduler.charge(two, turn)
    assert scheduler.head(True) is one
    assert scheduler.allowance(one) == turn


def test_waking_often_does_not_starve_the_others() -> None:
    scheduler = Scheduler()
    bulk, nagging = busy(1), SendStream(StreamId(2), BIG)
    scheduler.wake(bulk)
    served = {1: 0, 2: 0}
    for _ in range(3000):
        if nagging.sent == nagging.written:
            nagging.written += 1000
            scheduler.wake(nagging)
        head = scheduler.head(True)
        assert head is not None
        head.sent += 1000
        scheduler.charge(head, 1000)
        served[head.stream_id] += 1000
    assert served[1] > 1_000_000


def test_streams_held_back_by_the_connections_credit_come_back_with_it() -> None:
    streams = Streams(is_initiator=True)
    stream = streams.sending[streams.open()]
    stream.write(memoryview(b"x" * 100), 1 << 16)
    streams.scheduler.wake(stream)
    streams.send_credit.used = streams.send_credit.limit
    assert streams.head() is None
    streams.send_credit.raise_to(streams.send_credit.limit)
    assert streams.head() is None
    streams.send_credit.raise_to(streams.send_credit.limit + 1)
    assert streams.head() is stream


@pytest.mark.parametrize("is_initiator", [True, False])
def test_ids_are_checked_by_side_and_by_what_was_granted(is_initiator: bool) -> None:
    streams = Streams(is_initiator=is_initiator)
    ours, theirs = (2, 1) if is_initiator else (1, 2)
    with pytest.raises(PeerError, match="never opened"):
        streams.accept(ours)
    assert streams.open() == ours
    assert not streams.accept(ours)
    assert streams.accept(theirs + 4)
    assert not streams.accept(0)
    with pytest.raises(PeerError, match="beyond"):
        streams.accept(theirs + 2 * MAX_STREAMS)
    assert streams.accept(theirs + 2 * (MAX_STREAMS - 1))
    assert len(streams) == 3


def test_naming_a_stream_opens_those_below_which_are_made_when_they_are_named() -> None:
    streams = Streams(is_initiator=True)
    assert streams.accept(2 * MAX_STREAMS - 1)
    assert len(streams) == 1
    for stream_id in (1, 2 * MAX_STREAMS - 3, 7):
        assert streams.accept(stream_id)
        assert not streams.accept(stream_id)
        assert StreamId(stream_id) in streams.sending
        assert StreamId(stream_id) in streams.receiving
    assert len(streams) == 4
    assert all(
        streams.accept(stream_id) for stream_id in range(3, 2 * MAX_STREAMS, 2) if StreamId(stream_id) not in streams.sending
    )
    assert len(streams) == MAX_STREAMS
    assert len(streams._unnamed) == 0


def held_back(count: int) -> Streams:
    """Streams with bytes to send, none of which the connection has credit for."""
    streams = Streams(is_initiator=True)
    streams.send_credit.used = streams.send_credit.limit
    for _ in range(count):
        stream = streams.sending[streams.open()]
        stream.write(memoryview(bytes(1000)), 1 << 16)
        streams.scheduler.wake(stream)
    assert streams.head() is None
    return streams


def test_credit_goes_round_all_who_were_held_back_however_little_comes_at_a_time() -> None:
    streams = held_back(50)
    got = dict.fromkeys(streams.sending, 0)
    for _ in range(500):
        streams.send_credit.raise_to(streams.send_credit.limit + 10)
        while (stream := streams.head()) is not None:
            offset, length, _, _ = stream.next_range(1200, streams.send_credit.available)
            stream.mark_sent(offset, length, False, True)
            streams.send_credit.used += length
            streams.scheduler.charge(stream, length)
            got[stream.stream_id] += length
    assert set(got.values()) == {0, 100}  # the control stream had nothing to say


def test_credit_without_end_does_not_leave_out_those_who_were_held_back() -> None:
    streams = held_back(50)
    streams.send_credit.raise_to(1 << 60)
    for each in streams.sending.values():
        each.limit = 1 << 60
        each.written = 1 << 50  # only offsets matter here
    served: dict[StreamId, int] = {}
    for _ in range(200):
        stream = streams.head()
        assert stream is not None
        stream.sent += QUANTUM
        streams.scheduler.charge(stream, QUANTUM)
        served[stream.stream_id] = served.get(stream.stream_id, 0) + 1
    assert len(served) >= 50
    assert max(served.values()) <= 3 + min(served.values())


def test_a_stream_that_is_held_back_repeats_what_was_lost_without_credit_and_is_forgotten_when_it_ends() -> None:
    streams = held_back(3)
    one, two = streams.sending[StreamId(2)], streams.sending[StreamId(4)]
    one.sent = 500
    one.on_lost(0, 500, False)
    streams.scheduler.wake(one)
    assert streams.head() is one
    one.lost.remove(0, 500)
    two.reset(1)
    two.on_reset_acked()
    streams.accept(4)
    streams.receiving[StreamId(4)].admit(0, True)
    streams.forget_if_done(StreamId(4))
    assert streams.head() is None
    assert list(streams.scheduler._held) == [6, 2]


@pytest.mark.parametrize("left", [0, 1, 10, MAX_STREAMS // 8, MAX_STREAMS])
def test_a_peer_is_told_of_ended_streams_when_they_are_as_many_as_it_has_left(left: int) -> None:
    streams = Streams(is_initiator=True)
    opened = [2 * n + 1 for n in range(MAX_STREAMS // 4)]
    for stream_id in opened:
        streams.accept(stream_id)
    granted = streams.max_streams = len(opened) + left
    streams._peer_closed = granted - MAX_STREAMS  # of which it was told
    ended = 0
    for stream_id in opened:
        streams.receiving[StreamId(stream_id)].admit(0, True)
        streams.sending[StreamId(stream_id)].reset(1)
        streams.sending[StreamId(stream_id)].on_reset_acked()
        ended += 1
        if streams.forget_if_done(StreamId(stream_id)):
            break
    assert ended == min(max(left, 1), MAX_STREAMS // 8)
    assert streams.max_streams == granted + ended


def test_whoever_may_open_streams_again_is_told_once() -> None:
    streams = Streams(is_initiator=True)
    assert not streams.allow(MAX_STREAMS + 1)
    while streams.can_open:
        streams.open()
    assert not streams.allow(3)
    assert streams.allow(MAX_STREAMS + 2)
    assert not streams.allow(MAX_STREAMS + 3)


def test_ids_end_at_32_bits_whatever_the_peer_grants() -> None:
    streams = Streams(is_initiator=True)
    streams.peer_max_streams = 2**64 - 1
    streams._next_ours = LAST_STREAM - 1
    assert streams.open() == LAST_STREAM - 1
    with pytest.raises(StreamLimitError):
        streams.open()


def test_an_ended_stream_is_forgotten_and_late_frames_for_it_are_ignored() -> None:
    streams = Streams(is_initiator=True)
    streams.accept(1)
    streams.receiving[StreamId(1)].admit(0, True)
    assert not streams.forget_if_done(StreamId(1))
    streams.sending[StreamId(1)].reset(1)
    streams.sending[StreamId(1)].on_reset_acked()
    streams.forget_if_done(StreamId(1))
    assert len(streams) == 0
    assert not streams.accept(1)
    assert len(streams) == 0


@given(st.integers(0, 1 << 40), st.integers(1, 3000))
def test_ring_limits_are_bounded_powers_of_two(window: int, count: int) -> None:
    streams = Streams(is_initiator=True)
    streams.sending = {StreamId(n): None for n in range(count)}  # type: ignore[misc]
    limit = streams.ring_limit(window)
    assert limit & (limit - 1) == 0
    assert 4 * SMALLEST_RING <= limit <= LARGEST_RING


def test_a_ring_has_room_for_what_is_lost_twice() -> None:
    streams = Streams(is_initiator=True)
    in_flight = 8 * SMALLEST_RING
    assert streams.ring_limit(in_flight) == 2 * in_flight
    assert streams.ring_limit(in_flight, LOSSY) == 4 * in_flight


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5000), st.floats(0, 1)), max_size=60))
def test_a_window_never_shrinks_and_never_grants_more_than_itself(reads: list[tuple[int, float]]) -> None:
    window = ReceiveWindow(1000, Growth())
    now, limit = 0.0, window.limit
    for count, wait in reads:
        now += wait
        count = min(count, window.limit - window.consumed)
        moved = window.consume(count, Instant(now), Seconds(0.1))
        assert window.limit >= limit
        assert moved == (window.limit > limit)
        assert window.limit - window.consumed <= window.window <= MAX_STREAM_WINDOW
        assert window.limit - window.consumed >= window.window // 2 or not moved
        limit = window.limit


def test_credit_never_shrinks() -> None:
    credit = SendCredit(100)
    credit.used = 60
    assert not credit.raise_to(50)
    assert credit.available == 40
    assert credit.raise_to(2**64 - 1)
    assert credit.available == 2**64 - 61


def test_what_just_woke_goes_before_bulk_that_comes_back() -> None:
    scheduler = Scheduler()
    bulk, small = SendStream(StreamId(2), 1 << 20), SendStream(StreamId(4), 1 << 20)
    bulk.source = len  # has as much as there is room for
    scheduler.wake(bulk)
    small.write(memoryview(b"a key"), 1 << 16)
    scheduler.wake(small)
    assert scheduler.head(True) is small
    small.mark_sent(0, 5, False, True)
    assert scheduler.head(True) is bulk


def test_a_window_grows_where_half_of_it_came_at_once_however_rarely_that_is() -> None:
    for count, at_once, grows in ((600, True, True), (500, True, False), (600, False, False)):
        window = ReceiveWindow(1000, Growth())
        window.consume(1, Instant(0.0), Seconds(0.1), at_once=True)
        for minute in range(1, 4):
            window.consume(count, Instant(60.0 * minute), Seconds(0.1), at_once=at_once)
        assert (window.window > 1000) == grows


def test_many_windows_have_a_first_step_each_and_none_goes_far_ahead() -> None:
    growth = Growth()
    windows = [ReceiveWindow(INITIAL_STREAM_WINDOW, growth) for _ in range(200)]
    for step in range(6):
        for window in windows:
            window.consume(window.window, Instant(step * 0.01), Seconds(0.1))
    assert {window.window for window in windows} == {4 * INITIAL_STREAM_WINDOW}
    assert growth.left >= 0


def test_growth_always_leaves_some_for_the_next_one_and_comes_back() -> None:
    growth = Growth()
    windows = [ReceiveWindow(1 << 18, growth) for _ in range(50)]
    for step in range(200):
        for window in windows[: 1 + step // 4]:  # the first one is alone at first
            window.consume(window.limit - window.consumed, Instant(step * 0.01), Seconds(0.1))
    assert sum(window.window - (1 << 18) for window in windows) <= GROWTH_IN_ALL
    assert windows[0].window > 4 << 20
    assert growth.left > 0
    for window in windows:
        window.release()
        window.release()
    assert growth.left == GROWTH_IN_ALL
