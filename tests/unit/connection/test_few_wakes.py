"""On a link that delivers each datagram by itself, both ends wake as seldom as the flow allows: ACKs and bursts are counted."""

from __future__ import annotations

import pytest

from tests.unit.connection.pair import Pair
from tunnel.transport.connection import shared
from tunnel.units import StreamId

RATE = 12.5e6  # bytes a second: 100 Mbit/s
SECONDS = 2.0


class Link(Pair):
    """100 Mbit/s, 40 ms there and back; counts what each side sends."""

    def __init__(self, delay: float = 0.020) -> None:
        super().__init__(seed=3, relayed=False, delay=delay, rate=RATE, queue=0.04)
        self.sent = {"a": 0, "b": 0}
        self.hook = self._count_it
        self.run(0.5)
        self.bulk: StreamId = self.a.open_stream()

    def _count_it(self, name: str, _relayed: bool, _data: bytes) -> None:
        self.sent[name] += 1

    def transfer(self, seconds: float) -> tuple[float, int, int]:
        """Share of the rate that arrived, bursts of both sides, datagrams of the receiving side; a second each."""
        self.sent = {"a": 0, "b": 0}
        bursts, before, ends = self.bursts, len(self.read["b"].get(self.bulk, b"")), self.now + seconds
        while self.now < ends:
            while self.a.stream_write(self.bulk, bytes(65_536)) == 65_536:
                pass
            self.step(min(ends, self.now + 0.01))
        arrived = len(self.read["b"][self.bulk]) - before
        return arrived / seconds / RATE, int((self.bursts - bursts) / seconds), int(self.sent["b"] / seconds)


def test_a_steady_flow_over_a_long_path_is_acknowledged_some_sixteen_times_in_a_round_trip() -> None:
    link = Link()
    link.transfer(1.0)
    share, _, acks = link.transfer(SECONDS)
    assert share > 0.93
    assert 16 / 0.050 * 0.6 < acks < 16 / 0.040 * 1.6


def test_on_a_short_path_it_is_acknowledged_every_millisecond_as_ever() -> None:
    link = Link(delay=0.001)
    link.transfer(1.0)
    share, _, acks = link.transfer(SECONDS)
    assert share > 0.93
    assert 600 < acks < 1_600


def test_an_ack_of_a_side_that_only_receives_stays_short_however_many_numbers_never_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "SKIP_FIRST", 200)
    monkeypatch.setattr(shared, "SKIP_MOST", 200)
    link = Link()
    link.transfer(SECONDS)
    left_out = link.a._shared.next_number - link.a.stats().packets_sent
    acks = link.b._shared.acks
    assert left_out > 100
    assert len(acks.build_ranges(1_000)) < left_out / 3
    share, _, told = link.transfer(1.0)
    assert share > 0.93
    assert len(acks.build_ranges(1_000)) < left_out / 3
    assert told < 900  # what asks to be acknowledged is an ACK that leaves anyway


def test_between_two_acks_bytes_that_a_sink_takes_call_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link()
    link.transfer(1.0)
    calls = taken = 0

    def touched() -> None:
        nonlocal calls
        calls += 1

    def take(pieces: list[memoryview]) -> int:
        nonlocal taken
        size = sum(map(len, pieces))
        taken += size
        return size

    link.b.stream_read(link.bulk, 10_000, link.now)
    link.b.set_stream_sink(link.bulk, take)
    monkeypatch.setattr(link.b, "_touched", touched)
    _, _, acks = link.transfer(0.5)
    assert taken > 0.9 * RATE * 0.5
    assert calls < 2.5 * acks * 0.5  # of 4,000 datagrams: one that an ACK waits for from then on, and one that brings it
