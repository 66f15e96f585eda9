"""A source gives a stream's bytes when its turn to send has come: whole turns of many streams, and none is left behind."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.unit.connection.pair import Pair
from tunnel.transport.packet.header import CALL_ROOM
from tunnel.transport.stream import streams
from tunnel.transport.stream.flow import INITIAL_STREAM_WINDOW
from tunnel.units import StreamId, Transmit

MANY = 150  # streams: rings of 64 KiB are the part of each
FULL = 60_000  # bytes of a call, nearly


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MANY", 1)


class Teller:
    """A local program that says `text` on a stream of `a`; `wit` says how many of so many bytes it has ready."""

    def __init__(self, pair: Pair, stream: StreamId, text: bytes, wit: Callable[[int], int] = lambda size: size) -> None:
        self.pair, self.stream, self.text, self.wit = pair, stream, text, wit
        self.said = 0
        self.is_lent = False

    def source(self, room: memoryview) -> int:
        assert self.is_lent
        count = min(self.wit(len(room)), len(self.text) - self.said)
        room[:count] = self.text[self.said : self.said + count]
        self.said += count
        self.is_lent = count == len(room)
        return count

    def lend(self) -> bool:
        self.is_lent = True
        self.is_lent = self.pair.a.set_stream_source(self.stream, self.source)
        return self.is_lent


def tellers(pair: Pair, texts: list[bytes], wit: Callable[[int], int] = lambda size: size) -> list[Teller]:
    """A stream for each of `texts`.  Each has a byte to send that is not part of it, so that none is alone."""
    streams = [pair.a.open_stream() for _ in texts]
    for stream in streams:
        pair.a.stream_write(stream, b"!")
    found = [Teller(pair, stream, text, wit) for stream, text in zip(streams, texts, strict=True)]
    for teller in found:
        assert teller.lend()
    return found


@pytest.mark.parametrize("seed", range(4))
def test_what_sources_give_is_the_text(seed: int) -> None:
    """On a link that loses, from programs that have everything ready, little, or nothing now and then."""
    pair = Pair(seed, loss=0.02)
    rng = random.Random(seed)
    texts = [rng.randbytes(6 * INITIAL_STREAM_WINDOW + rng.randrange(3000)) for _ in range(4)]
    found = tellers(pair, texts, lambda size: rng.choice((0, size, size, rng.randrange(size + 1))))

    def done() -> bool:
        for teller in found:
            if not teller.is_lent and teller.said < len(teller.text) and not teller.lend():
                teller.said += pair.a.stream_write(teller.stream, teller.text[teller.said : teller.said + 5_000])
        return all(len(pair.read["b"].get(teller.stream, b"")) == 1 + len(teller.text) for teller in found)

    pair.run_until(done)
    for teller in found:
        pair.a.stream_finish(teller.stream)
    pair.run_until(lambda: all(pair.b.stream_at_end(teller.stream) for teller in found))
    assert [bytes(pair.read["b"][teller.stream]) for teller in found] == [b"!" + text for text in texts]


def test_many_streams_leave_in_full_calls_and_one_has_as_much_as_the_other() -> None:
    pair = Pair(relayed=False, delay=0.001)
    pair._out = bytearray(2 * CALL_ROOM)
    found = tellers(pair, [bytes(2 << 20)] * MANY)
    pair.run_until(lambda: min(teller.said for teller in found) > 1 << 19)  # the windows have grown by then
    sizes: list[int] = []
    carry = pair.carry

    def watch(name: str, transmit: Transmit) -> None:
        if name == "a":
            sizes.append(len(transmit.buffer))
        carry(name, transmit)

    pair.carry = watch  # type: ignore[method-assign]
    before = [teller.said for teller in found]
    pair.run_until(lambda: min(teller.said for teller in found) > 3 << 19)
    gained = [teller.said - said for teller, said in zip(found, before, strict=True)]
    assert min(gained) > 0.8 * max(gained)
    full = [size for size in sizes if size > FULL]
    assert sum(full) > 0.9 * sum(sizes)
    assert len(full) > 0.6 * len(sizes)  # the others are ACKs and what the pacer cut off


def test_a_stream_alone_has_no_use_for_a_source() -> None:
    pair = Pair()
    stream = pair.a.open_stream()
    assert not Teller(pair, stream, b"alone").lend()
    pair.a.stream_write(stream, b"alone")
    assert not Teller(pair, stream, b"alone").lend()


def test_a_source_that_has_no_more_is_let_go_and_what_is_written_then_follows() -> None:
    pair = Pair()
    [teller, _] = tellers(pair, [bytes(1000), b""])
    pair.run(1.0)
    assert not teller.is_lent  # it was asked once, and gave less than there was room for
    pair.a.stream_write(teller.stream, b"then this")
    pair.a.stream_finish(teller.stream)
    pair.run(1.0)
    assert bytes(pair.read["b"][teller.stream]) == b"!" + bytes(1000) + b"then this"
    assert pair.b.stream_at_end(teller.stream)


@pytest.mark.parametrize("end", ["reset", "finish", "taken back", "closed"])
def test_nothing_is_asked_of_the_source_of_a_stream_that_has_ended(end: str) -> None:
    pair = Pair()
    [teller, _] = tellers(pair, [bytes(1 << 20)] * 2)
    match end:
        case "reset":
            pair.a.stream_reset(teller.stream, 7)
        case "finish":
            pair.a.stream_finish(teller.stream)
        case "taken back":
            pair.a.set_stream_source(teller.stream, None)
        case _:
            pair.a.close(pair.now, 0, "enough")
    teller.is_lent = False
    pair.run(1.0)
    assert teller.said == 0
    assert not teller.lend() or end == "taken back"


def test_bulk_waits_for_credit_that_is_worth_a_turn_and_never_for_ever() -> None:
    """Windows that do not grow are smaller than a turn: what is read is a whole window each time, not the rest of one."""
    pair = Pair()
    found = tellers(pair, [bytes(1 << 20)] * 20)
    for stream in list(pair.b._shared.streams.receiving.values()):
        stream.window._growth = None
    asked: list[int] = []
    for teller in found:
        teller.wit = lambda size: asked.append(size) or size
    pair.run_until(lambda: all(teller.said >= 300_000 for teller in found))
    assert sum(asked) / len(asked) > INITIAL_STREAM_WINDOW / 2


def test_beside_few_others_a_source_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    pair = Pair(relayed=False, delay=0.001)
    opened = [pair.a.open_stream() for _ in range(streams.MANY + 1)]
    for stream in opened[:-1]:
        pair.a.stream_write(stream, b"!")
    assert not pair.a.set_stream_source(opened[0], len)
    pair.a.stream_write(opened[-1], b"!")
    assert pair.a.set_stream_source(opened[0], len)
