"""A sink takes a stream's bytes on arrival: the same bytes as by reading, whatever the link does and however little it takes."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.unit.connection.pair import Pair
from tunnel.transport.connection.events import (
    CloseCode,
    StreamCode,
    StreamOpened,
    StreamReadable,
    StreamReset,
    StreamWritable,
)
from tunnel.transport.stream.flow import INITIAL_STREAM_WINDOW
from tunnel.units import StreamId


class Taker:
    """Reads one stream at `b` as a forward does: by a sink while nothing waits.  `appetite` says how many bytes of so many."""

    def __init__(self, pair: Pair, stream: StreamId, appetite: Callable[[int], int]) -> None:
        self.pair, self.stream, self.appetite = pair, stream, appetite
        self.got = bytearray()
        self.by_sink = 0
        self.may_be_called = False

    def sink(self, pieces: list[memoryview]) -> int:
        assert self.may_be_called
        data = b"".join(pieces)
        count = self.appetite(len(data))
        self.got += data[:count]
        self.by_sink += count
        self.may_be_called = count == len(data)
        return count

    def read(self) -> None:
        self.may_be_called = False
        while chunks := self.pair.b.stream_read(self.stream, 3, self.pair.now):
            self.got += b"".join(chunks)
        self.may_be_called = True
        self.pair.b.set_stream_sink(self.stream, self.sink)


def everything(size: int) -> int:
    return size


def bulk(pair: Pair, appetite: Callable[[int], int] = everything) -> Taker:
    """A stream from `a` to `b` that was opened, and whose sink stands."""
    stream = pair.a.open_stream()
    pair.not_read.add(stream)
    pair.a.stream_write(stream, b"opens")
    pair.run_until(lambda: StreamReadable(stream) in pair.events["b"])
    taker = Taker(pair, stream, appetite)
    taker.read()
    assert taker.got == b"opens"
    taker.got.clear()
    return taker


@pytest.mark.parametrize("relayed", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_what_sinks_take_and_what_is_read_are_the_text(seed: int, relayed: bool) -> None:
    """Late, lost and doubled datagrams; one sink takes all, one some, one hardly any, and one stream has none."""
    pair = Pair(seed, relayed=relayed)
    rng = random.Random(seed)
    takers = [
        bulk(pair),
        bulk(pair, lambda size: rng.choice((size, rng.randrange(size + 1)))),
        bulk(pair, lambda size: rng.choice((0, 0, size))),
    ]
    pair.hook = lambda *_: [0.01 + (rng.random() < 0.1) * 0.01 for _ in range(rng.choice((0, *[1] * 30, 2)))]
    texts = [rng.randbytes(8 * INITIAL_STREAM_WINDOW + rng.randrange(3000)) for _ in range(4)]
    streams = [*(taker.stream for taker in takers), pair.a.open_stream()]
    written = [0] * len(streams)

    def done() -> bool:
        for number, (stream, text) in enumerate(zip(streams, texts, strict=True)):
            if written[number] < len(text):
                written[number] += pair.a.stream_write(stream, text[written[number] : written[number] + 20_000])
                if written[number] == len(text):
                    pair.a.stream_finish(stream)
        if pair.events["b"]:
            for taker in takers:
                if StreamReadable(taker.stream) in pair.events["b"]:
                    taker.read()
            pair.events["b"].clear()
        return all(pair.b.stream_at_end(stream) for stream in streams) and written == [len(text) for text in texts]

    pair.run_until(done, 300)
    for taker, text in zip(takers, texts, strict=False):
        assert taker.got == text
    assert pair.read["b"][streams[3]] == texts[3]
    assert takers[0].by_sink > 5_000  # what comes behind a gap is read
    assert takers[1].by_sink > 5_000


def test_a_sink_that_takes_all_needs_no_reading_and_no_event_but_the_end() -> None:
    pair = Pair()
    taker = bulk(pair)
    pair.events["b"].clear()
    text = random.Random(1).randbytes(20 * INITIAL_STREAM_WINDOW)  # more than the window: credit comes back
    pair.write_all("a", taker.stream, text, fin=False)
    pair.run_until(lambda: taker.got == text)
    assert StreamReadable(taker.stream) not in pair.events["b"]
    pair.a.stream_finish(taker.stream)
    pair.b.stream_finish(taker.stream)
    pair.run_until(lambda: StreamReadable(taker.stream) in pair.events["b"])
    assert pair.b.stream_at_end(taker.stream)
    pair.run(1.0)
    assert pair.a.stats().streams == pair.b.stats().streams == 0


def test_after_a_byte_was_left_the_sink_is_not_asked_again() -> None:
    pair = Pair()
    taker = bulk(pair, lambda size: size - 1)
    pair.write_all("a", taker.stream, b"abcd", fin=False)
    pair.run(0.1)
    assert taker.got == b"abc"
    assert not taker.may_be_called  # so the next call would fail
    pair.b.set_stream_sink(taker.stream, taker.sink)  # in vain: something waits
    pair.write_all("a", taker.stream, b"efgh", fin=False)
    pair.run(0.1)
    assert taker.got == b"abc"
    taker.read()
    assert taker.got == b"abcdefgh"
    pair.write_all("a", taker.stream, b"ij", fin=False)
    pair.run(0.1)
    assert taker.got == b"abcdefghi"


@pytest.mark.parametrize("way", ["reset", "stop", "withdrawn"])
def test_a_stream_that_ends_lets_its_sink_go(way: str) -> None:
    pair = Pair()
    taker = bulk(pair)
    pair.a.stream_write(taker.stream, b"last")
    match way:
        case "reset":
            pair.a.stream_reset(taker.stream, StreamCode.RESET)
        case "stop":
            pair.b.stream_stop(taker.stream, StreamCode.RESET)
        case _:
            pair.b.set_stream_sink(taker.stream, None)
    taker.may_be_called = False
    pair.run(1.0)
    pair.b.set_stream_sink(taker.stream, taker.sink)  # in vain, as it is over or something waits
    pair.a.stream_write(taker.stream, b"behind")
    pair.run(1.0)
    assert taker.got == b""
    assert (StreamReset(taker.stream, StreamCode.RESET) in pair.events["b"]) == (way != "withdrawn")  # STOP is answered by it


def test_bytes_without_credit_reach_no_sink() -> None:
    pair = Pair()
    taker = bulk(pair)
    pair.b._receiver.inflow._received = pair.b._shared.streams.receive_window.limit - 5_000
    pair.a.stream_write(taker.stream, bytes(20_000))
    pair.run(1.0)
    assert pair.b.close_reason is not None
    assert pair.b.close_reason.code == CloseCode.PROTOCOL_VIOLATION
    assert len(taker.got) < 5_000


def acked_and_said(pair: Pair, taker: Taker | None) -> StreamId:
    """One packet to `b` that acknowledges what it wrote to the stream returned, and brings bytes of another stream."""
    answered = pair.b.open_stream()
    pair.b.stream_write(answered, b"hello")  # behind the probes for the MTU that were lost: a gap is acknowledged at once
    pair.run(1.0)
    pair.b.stream_write(answered, b"question")
    pair.b.stream_want_space(answered)
    pair.run(pair.delay + 0.001)  # there, and not acknowledged yet
    assert not pair.b.stream_is_acked(answered)
    pair.events["b"].clear()
    pair.a.stream_write(pair.a.open_stream() if taker is None else taker.stream, b"answer")
    before = pair.datagrams
    pair.run(pair.delay + 0.001)
    assert pair.datagrams - before == 1
    assert pair.b.stream_is_acked(answered)
    return answered


def test_bytes_for_a_sink_go_before_the_ack_beside_them() -> None:
    pair = Pair(relayed=False)
    seen: list[tuple[StreamId, bool]] = []

    def look(size: int) -> int:
        seen.extend((stream, pair.b.stream_is_acked(stream)) for stream in pair.b._shared.streams.sending if stream)
        return size

    taker = bulk(pair, look)
    pair.run(1.0)
    answered = acked_and_said(pair, taker)
    assert taker.got == b"answer"
    assert (answered, False) in seen
    assert StreamWritable(answered) in pair.events["b"]


def test_what_was_acknowledged_is_told_before_what_the_peer_did_then() -> None:
    """Who ends one stream and begins the next is not seen with both."""
    pair = Pair(relayed=False)
    pair.run(1.0)
    answered = acked_and_said(pair, None)
    kinds = [type(event) for event in pair.events["b"]]
    assert kinds.index(StreamWritable) < kinds.index(StreamOpened)
    assert StreamWritable(answered) in pair.events["b"]
