"""Small frames are owed, not queued: told once, as of when they leave, again when they are lost, and not when needless."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest

from tests.unit.connection.pair import Pair
from tunnel.transport.connection.carried import (
    OWED_FRAMES,
    MaxData,
    MaxStreamData,
    MaxStreams,
    OwedFrame,
    Ping,
    Reset,
    StopSending,
)
from tunnel.transport.recovery.loss import PROBES
from tunnel.units import Instant, StreamId

#: Of each type: one that is about a stream, if it is about any.
EACH: Final[dict[type[OwedFrame], Callable[[StreamId], OwedFrame]]] = {
    Ping: lambda _: Ping(),
    MaxData: lambda _: MaxData(),
    MaxStreams: lambda _: MaxStreams(),
    MaxStreamData: MaxStreamData,
    Reset: Reset,
    StopSending: StopSending,
}


class Told:
    """A trace of the frames that leave."""

    def __init__(self) -> None:
        self.frames: list[str] = []

    def event(self, _now: Instant, name: str, data: dict[str, Any]) -> None:
        if name == "packets_sent":
            self.frames += [frame["frame_type"] for frame in data["frames"]]


def opened() -> tuple[Pair, StreamId, Told]:
    pair = Pair(relayed=False)
    stream = pair.a.open_stream()
    pair.a.stream_write(stream, b"to b")
    pair.run(1.0)
    pair.b.stream_write(stream, b"to a")
    pair.run(1.0)
    told = Told()
    pair.a._shared.trace = told
    return pair, stream, told


def wish(pair: Pair, kind: type[OwedFrame], stream: StreamId) -> OwedFrame:
    """Have `a` owe one of `kind`, by what an application does where that is easily done."""
    frame = EACH[kind](stream)
    if kind is Reset:
        pair.a.stream_reset(stream, 7)
    elif kind is StopSending:
        pair.a.stream_stop(stream, 7)
    pair.a._shared.owe(frame)
    pair.a._shared.owe(EACH[kind](stream))  # equal ones are one
    return frame


def in_qlog(kind: type[OwedFrame]) -> str:
    return "reset_stream" if kind is Reset else kind.NAME.lower()


def test_every_type_is_tried_here() -> None:
    assert list(EACH) == list(OWED_FRAMES.values())


@pytest.mark.parametrize("kind", EACH)
def test_a_frame_that_is_owed_twice_is_told_once_and_traced(kind: type[OwedFrame]) -> None:
    pair, stream, told = opened()
    wish(pair, kind, stream)
    pair.run(1.0)
    assert told.frames.count(in_qlog(kind)) == 1
    assert not pair.a._shared.owed


@pytest.mark.parametrize("kind", [kind for kind in EACH if kind is not Ping])
def test_a_frame_that_is_lost_is_told_again(kind: type[OwedFrame]) -> None:
    pair, stream, told = opened()
    frame = wish(pair, kind, stream)
    values = frame.values(pair.a._shared)
    assert values is not None
    lost: list[bytes] = []

    def once(sender: str, _relayed: bool, datagram: bytes) -> list[float] | None:
        if sender == "a" and not lost:
            lost.append(datagram)
            return []
        return None

    pair.hook = once
    pair.run(3.0)
    assert lost
    assert 2 <= told.frames.count(in_qlog(kind)) <= 1 + PROBES
    assert not pair.a._shared.owed


@pytest.mark.parametrize("kind", [MaxStreamData, Reset, StopSending])
def test_a_frame_of_a_stream_that_is_over_is_not_told(kind: type[OwedFrame]) -> None:
    pair, stream, told = opened()
    for side in (pair.a, pair.b):
        side.stream_finish(stream)
    pair.run(1.0)
    assert not pair.a.stats().streams
    told.frames.clear()
    pair.a._shared.owe(EACH[kind](stream))
    EACH[kind](stream).lost(pair.a._shared)
    pair.run(1.0)
    assert told.frames == []
    assert not pair.a._shared.owed


def test_what_does_not_fit_one_packet_is_told_by_the_next_ones() -> None:
    pair, _, told = opened()
    streams = [pair.a.open_stream() for _ in range(500)]
    for stream in streams:
        pair.a.stream_write(stream, b"x")
    pair.run(1.0)
    told.frames.clear()
    for stream in streams:
        pair.a.stream_reset(stream, 7)
    pair.run(1.0)
    assert told.frames.count("reset_stream") == 500
    assert not pair.a._shared.owed
