"""docs/transport.md: the calls of a connection, the turn, and what a sink may do and may not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.connection.pair import Pair
from tests.unit.connection.test_packets import Lan
from tests.unit.connection.test_stream_sink import Taker, bulk
from tunnel.errors import InternalError
from tunnel.transport.connection.connection import Connection
from tunnel.transport.connection.events import CloseCode, ConnectionClosed, StreamReadable
from tunnel.transport.connection.packets import PacketRun
from tunnel.units import Instant, StreamId

PAGE = (Path(__file__).parents[3] / "docs" / "transport.md").read_text()
FORBIDDEN: dict[str, Callable[[Connection, Instant], object]] = {
    "handle_datagrams": lambda c, now: c.handle_datagrams(now, c.paths[0], memoryview(bytes(100)), 0, 100),
    "handle_timeout": lambda c, now: c.handle_timeout(now),
    "poll_transmit": lambda c, now: c.poll_transmit(now, bytearray(65_536)),
    "poll_event": lambda c, now: c.poll_event(),
}


def test_the_page_has_every_call_once() -> None:
    table = [row.split("|")[2] for row in PAGE.splitlines() if row.startswith("| ") and "---" not in row]
    written = re.findall(r"`(\w+)`", " ".join(table))
    names = {name for part in Connection.__mro__[:-1] for name in vars(part) if not name.startswith("_")}
    assert sorted(written) == sorted(names)


def test_the_turn_of_the_page_carries_a_stream() -> None:
    place: dict[str, Any] = {}
    exec(PAGE.split("```python\n")[1].split("```")[0], place)  # noqa: S102  # the page is ours
    pair = Pair()
    stream = pair.a.open_stream()
    pair.a.stream_write(stream, b"carried by the page")
    pair.a.stream_finish(stream)
    told: list[object] = []
    arrived: list[tuple[Any, bytes, int]] = []
    for _ in range(6):
        for sender, taker in ((pair.a, pair.b), (pair.b, pair.a)):
            sent: list[tuple[Any, bytes, int]] = []
            path = taker.paths[0]
            at = place["turn"](
                sender, pair.now, arrived, lambda t, s=sent, p=path: s.append((p, bytes(t.buffer), t.segment_size)), told.append
            )
            assert at > pair.now
            arrived = sent
    assert StreamReadable(stream) in told
    assert pair.b.stream_read(stream) == [b"carried by the page"]
    assert pair.b.stream_at_end(stream)


def with_sink(act: Callable[[], object]) -> tuple[Pair, Taker]:
    """A sink that calls `act` once, with its first bytes, and takes all."""
    pair = Pair()
    taker = bulk(pair)
    acts = [act]

    def sink(pieces: list[memoryview]) -> int:
        count = taker.sink(pieces)
        if acts:
            acts.pop()()
        return count

    pair.b.set_stream_sink(taker.stream, sink)
    return pair, taker


def rest(pair: Pair, stream: StreamId) -> bytes:
    return b"".join(pair.b.stream_read(stream))


@pytest.mark.parametrize("call", FORBIDDEN)
def test_a_sink_that_drives_the_connection_meets_an_error_that_its_owner_gets(call: str) -> None:
    pair, taker = with_sink(lambda: FORBIDDEN[call](pair.b, pair.now))
    pair.a.stream_write(taker.stream, b"first")
    with pytest.raises(InternalError, match="a sink called"):
        pair.run(1.0)
    taker.got.clear()  # whoever raises has taken nothing
    pair.a.stream_write(taker.stream, b", then second")
    pair.run(1.0)
    assert rest(pair, taker.stream) == b"first, then second"
    assert not pair.a.is_closed
    assert not pair.b.is_closed


def test_a_sink_that_raises_loses_nothing_of_its_stream_or_of_others() -> None:
    class Met(Exception):
        pass

    def fails() -> None:
        raise Met

    pair, taker = with_sink(fails)
    other = pair.a.open_stream()
    text = bytes(range(256)) * 64
    assert pair.a.stream_write(other, text) == pair.a.stream_write(taker.stream, text) == len(text)
    raised = 0
    for _ in range(3):
        try:
            pair.run(1.0)
        except Met:
            raised += 1
    assert raised == 1
    assert rest(pair, taker.stream) == text
    assert bytes(pair.read["b"][other]) == text
    pair.run(1.0)
    assert pair.a.stats().streams == pair.b.stats().streams


def test_a_sink_may_answer_open_and_write_to_its_connection() -> None:
    def answers() -> None:
        pair.b.stream_write(taker.stream, b"answered")
        pair.b.stream_write(pair.b.open_stream(), b"opened")
        pair.b.send_datagrams(pair.now, 1, [b"sent"])
        pair.b.send_control(b"told")
        pair.b.ping(pair.now)

    pair, taker = with_sink(answers)
    pair.not_read.discard(taker.stream)
    pair.a.stream_write(taker.stream, b"asked")
    pair.run(1.0)
    assert taker.got == b"asked"
    assert bytes(pair.read["a"][taker.stream]) == b"answered"
    assert b"opened" in map(bytes, pair.read["a"].values())
    assert pair.a.receive_datagrams() == [(1, b"sent")]


@pytest.mark.parametrize("way", ["stop", "reset", "both"])
def test_a_sink_may_give_up_its_own_stream(way: str) -> None:
    def gives_up() -> None:
        if way != "reset":
            pair.b.stream_stop(taker.stream, 7)
        if way != "stop":
            pair.b.stream_reset(taker.stream, 7)

    pair, taker = with_sink(gives_up)
    pair.a.stream_write(taker.stream, bytes(20_000))
    pair.run(3.0)
    assert not pair.a.is_closed
    assert not pair.b.is_closed
    if way == "both":
        assert pair.b.stats().streams == 0


def test_a_sink_may_close_the_connection_in_the_middle_of_a_batch() -> None:
    pair, taker = with_sink(lambda: pair.b.close(pair.now, CloseCode.NO_ERROR, "enough"))
    pair.a.stream_write(taker.stream, bytes(20_000))
    pair.run(3.0)
    for side in "ab":
        assert [type(event) for event in pair.events[side]].count(ConnectionClosed) == 1
        assert isinstance(pair.events[side][-1], ConnectionClosed)
    assert pair.a.close_reason is not None
    assert pair.a.close_reason.text == "enough"
    assert pair.b.is_drained


def test_a_sink_of_packets_that_raises_leaves_the_streams_of_its_batch_alone() -> None:
    lan = Lan()

    def fails(_now: Instant, _runs: list[PacketRun]) -> None:
        raise OSError("the interface is gone")

    lan.pair.b.set_packet_sink(fails)
    stream = lan.pair.a.open_stream()
    lan.pair.a.stream_write(stream, b"beside the packet")
    lan.whole(bytes(100))
    with pytest.raises(OSError, match="the interface is gone"):
        lan.leave()
    lan.pair.run(1.0)
    assert bytes(lan.pair.read["b"][stream]) == b"beside the packet"
