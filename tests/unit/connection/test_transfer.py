"""Streams over a connection: bytes arrive, whole and in order, whatever the link does."""

from __future__ import annotations

import random

import pytest

from tests.unit.connection.pair import Pair
from tunnel.errors import StreamLimitError
from tunnel.transport.connection.events import StreamCode, StreamReset, StreamsAllowed, StreamStopped, StreamWritable
from tunnel.transport.stream.flow import INITIAL_STREAM_WINDOW, MAX_STREAMS
from tunnel.units import Instant, StreamId


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.1, 0.3])
@pytest.mark.parametrize("relayed", [True, False])
def test_a_megabyte_arrives_whole(loss: float, relayed: bool) -> None:
    pair = Pair(seed=int(loss * 100), loss=loss, relayed=relayed)
    data = random.Random(1).randbytes(300_000 if loss > 0.05 else 1_000_000)
    stream = pair.a.open_stream()
    pair.write_all("a", stream, data)
    pair.run_until(lambda: pair.b.stream_at_end(stream) and pair.read["b"].get(stream, b"") == data, 300)
    pair.run_until(lambda: pair.a.stream_is_acked(stream))


@pytest.mark.parametrize("seed", range(8))
def test_reordering_and_duplication_change_nothing(seed: int) -> None:
    pair = Pair(seed)
    rng = random.Random(seed)
    pair.hook = lambda *_: [0.01 + rng.random() * 0.01 for _ in range(rng.choice((0, 1, 1, 1, 1, 1, 2)))]
    data = rng.randbytes(200_000)
    there, back = pair.a.open_stream(), pair.b.open_stream()
    pair.write_all("a", there, data, limit=600)
    pair.write_all("b", back, data[::-1], limit=600)
    pair.run_until(lambda: pair.read["b"].get(there, b"") == data and pair.read["a"].get(back, b"") == data[::-1], 600)


def test_half_close_lets_the_other_half_go_on() -> None:
    pair = Pair()
    stream = pair.a.open_stream()
    pair.write_all("a", stream, b"question")
    pair.run_until(lambda: pair.b.stream_at_end(stream))
    assert not pair.a.stream_at_end(stream)
    pair.write_all("b", stream, b"answer")
    pair.run_until(lambda: pair.a.stream_at_end(stream))
    assert pair.read["a"][stream] == b"answer"
    pair.run(1.0)
    assert pair.a.stats().streams == pair.b.stats().streams == 0


def test_a_reset_and_a_stop_cross_faithfully() -> None:
    pair = Pair(loss=0.2, seed=4)
    stream = pair.a.open_stream()
    pair.a.stream_write(stream, b"x" * 5000)
    pair.run(0.2)
    pair.b.stream_stop(stream, StreamCode.RESET)
    pair.b.stream_reset(stream, StreamCode.REFUSED)
    pair.run_until(
        lambda: (
            StreamReset(stream, StreamCode.REFUSED) in pair.events["a"]
            and StreamStopped(stream, StreamCode.RESET) in pair.events["a"]
        )
    )
    pair.run(3.0)
    assert pair.a.stats().streams == pair.b.stats().streams == 0


@pytest.mark.parametrize("way", ["read", "stopped"])
def test_what_came_before_a_reset_is_read_late_and_all_credit_comes_back(way: str) -> None:
    pair = Pair()
    stream = pair.a.open_stream()
    pair.not_read = {stream}
    text = random.Random(3).randbytes(20_000)
    pair.write_all("a", stream, text, fin=False)
    pair.run_until(lambda: pair.a.stream_is_acked(stream))
    pair.a.stream_write(stream, b"lost on the way")
    pair.a.stream_reset(stream, StreamCode.RESET)
    pair.b.stream_finish(stream)
    pair.run_until(lambda: StreamReset(stream, StreamCode.RESET) in pair.events["b"])
    assert pair.b.stats().streams == 1
    assert not pair.b.stream_at_end(stream)
    if way == "read":
        assert b"".join(pair.b.stream_read(stream)) == text
    else:
        pair.b.stream_stop(stream, StreamCode.CANCELLED)
    assert pair.b.stream_read(stream) == []
    pair.run(3.0)
    assert pair.a.stats().streams == pair.b.stats().streams == 0
    assert pair.b._shared.streams.receive_window.consumed == pair.b._receiver.inflow._received


def test_a_stream_nobody_reads_holds_its_window_and_blocks_no_other() -> None:
    pair = Pair()
    stuck, free = pair.a.open_stream(), pair.a.open_stream()
    pair.not_read = {stuck}
    while pair.a.stream_write(stuck, bytes(10_000)):
        pass
    data = random.Random(2).randbytes(2_000_000)
    pair.write_all("a", free, data)
    pair.run_until(lambda: pair.read["b"].get(free, b"") == data)
    held = sum(map(len, pair.b.stream_read(stuck, 10_000)))
    assert held == INITIAL_STREAM_WINDOW


def test_two_thousand_streams_at_once() -> None:
    pair = Pair()
    streams = [pair.a.open_stream() for _ in range(2_000)]
    for stream in streams:
        pair.a.stream_write(stream, stream.to_bytes(4, "big") * 50)
        pair.a.stream_finish(stream)
    pair.run_until(lambda: all(pair.b.stream_at_end(s) and s in pair.read["b"] for s in streams))
    assert all(pair.read["b"][s] == s.to_bytes(4, "big") * 50 for s in streams)


def test_streams_are_granted_again_as_they_end() -> None:
    pair = Pair()
    done = 0
    for _ in range(60):
        batch = []
        for _ in range(100):
            try:
                batch.append(pair.a.open_stream())
            except StreamLimitError:
                break
        for stream in batch:
            pair.write_all("a", stream, b"q")
        pair.run_until(lambda b=batch: all(pair.b.stream_at_end(s) and s in pair.read["b"] for s in b))
        for stream in batch:
            pair.b.stream_finish(stream)
        pair.run_until(lambda b=batch: all(pair.a.stream_at_end(s) for s in b))
        pair.run(0.1)
        done += len(batch)
    assert done == 6000
    assert pair.a.stats().streams == pair.b.stats().streams == 0


def test_whoever_has_all_streams_open_may_open_one_as_soon_as_one_has_ended() -> None:
    pair = Pair()
    streams = [pair.a.open_stream() for _ in range(MAX_STREAMS)]
    with pytest.raises(StreamLimitError):
        pair.a.open_stream()
    for stream in streams:
        pair.a.stream_write(stream, b"q")
    pair.run_until(lambda: all(pair.read["b"].get(stream) for stream in streams))
    for ended in range(3):
        assert StreamsAllowed() not in pair.events["a"]
        for side in (pair.a, pair.b):
            side.stream_finish(streams[ended])
        at = pair.now
        pair.run_until(lambda: StreamsAllowed() in pair.events["a"])
        assert pair.now - at < 6 * pair.delay + 0.02  # two ways over the relay for the FIN and its ACK, and one for the news
        streams.append(pair.a.open_stream())
        pair.a.stream_write(streams[-1], b"q")
        pair.run_until(lambda: bool(pair.read["b"].get(streams[-1])))
        pair.events["a"].clear()


def test_a_keystroke_does_not_wait_behind_bulk() -> None:
    pair = Pair(rate=12.5e6 / 8, delay=0.02)
    bulk, keys = pair.a.open_stream(), pair.a.open_stream()
    slowest = 0.0
    pair.run(0.1)
    for number in range(1, 30):
        until = pair.now + 0.1
        while pair.now < until:
            pair.a.stream_write(bulk, bytes(100_000))
            pair.step()
        at = pair.now
        pair.a.stream_write(keys, b"k")
        while len(pair.read["b"].get(keys, b"")) < number:
            pair.a.stream_write(bulk, bytes(100_000))
            pair.step()
        slowest = max(slowest, pair.now - at)
    # One way, the drop-tail queue of the link (50 ms) that CUBIC fills, and a turn of the scheduler.
    assert slowest < 0.03 + 0.05 + 0.02 + 0.01


def test_a_writer_is_told_when_there_is_room_again() -> None:
    pair = Pair()
    stream = pair.a.open_stream()
    while pair.a.stream_write(stream, bytes(100_000)):
        pass
    pair.flush()
    pair.run_until(lambda: StreamWritable(stream) in pair.events["a"])
    assert pair.a.stream_write(stream, b"more")


@pytest.mark.parametrize("size", [0, 1, 1000, 1160, 1161, 5000, 60_000, 65_507])
def test_datagrams_of_any_size_arrive(size: int) -> None:
    pair = Pair()
    pair.run(0.1)
    data = random.Random(size).randbytes(size)
    assert pair.a.send_datagrams(pair.now, 7, [data])
    got: list[tuple[int, bytes]] = []
    pair.run_until(lambda: bool(got) or bool(got.extend(pair.b.receive_datagrams())) or bool(got), 5)
    assert got == [(7, data)]


def test_a_flood_of_datagrams_is_dropped_by_name_and_never_queued_for_long() -> None:
    pair = Pair(rate=125_000, queue=0.02)
    sent = 0
    for _ in range(200):
        for _ in range(20):
            pair.a.send_datagrams(pair.now, 1, [bytes(1000)])
            sent += 1
        pair.now = Instant(pair.now + 0.001)
        pair.flush()
    pair.run(2.0)
    arrived = len(pair.b.receive_datagrams())
    drops = pair.a.stats().drops
    assert 0 < arrived < sent
    assert drops["datagram waited too long"] > 0


def test_datagram_too_large_is_refused() -> None:
    pair = Pair()
    assert not pair.a.send_datagrams(pair.now, 1, [bytes(65_508)])
    assert pair.a.drops["datagram too large"] == 1


def test_unknown_stream_calls_are_harmless() -> None:
    pair = Pair()
    ghost = StreamId(4242)
    assert pair.a.stream_write(ghost, b"x") == 0
    assert pair.a.stream_read(ghost) == []
    assert len(pair.a.stream_space(ghost)) == 0
    pair.a.stream_finish(ghost)
    pair.a.stream_reset(ghost, 1)
    pair.a.stream_stop(ghost, 1)
    assert pair.a.stream_at_end(ghost)


def test_many_slow_readers_that_were_fast_once_block_no_other() -> None:
    """Their windows have grown; still every stream's credit fits into the connection's."""
    pair = Pair(delay=0.005)
    slow = [pair.a.open_stream() for _ in range(20)]
    for stream in slow:
        pair.write_all("a", stream, bytes(3_000_000), fin=False)
        pair.run(0.05)
    pair.not_read = set(slow)
    for _ in range(40):
        for stream in slow:
            while pair.a.stream_write(stream, bytes(100_000)):
                pass
        pair.run(0.05)
    data = random.Random(3).randbytes(1_000_000)
    free = pair.a.open_stream()
    pair.write_all("a", free, data)
    pair.run_until(lambda: pair.read["b"].get(free, b"") == data, 20)
