"""Datagrams beside streams, policies, goodbyes and deadlines: what one part of a connection must not do to another."""

from __future__ import annotations

import random

import pytest

from tests.unit.connection.pair import Pair
from tests.unit.connection.test_paths import upgrade
from tunnel.transport.connection.events import CloseCode, ConnectionClosed, PathKind
from tunnel.units import Instant


@pytest.mark.parametrize("size", [200, 1150, 9000])
def test_a_flood_of_datagrams_does_not_starve_a_stream(size: int) -> None:
    pair = Pair(rate=1_250_000, delay=0.01, queue=0.03)
    pair.run(0.5)
    stream = pair.a.open_stream()
    pair.a.stream_write(stream, bytes(50_000))
    until = pair.now + 2
    flood_at = pair.now
    while pair.now < until:
        while flood_at <= pair.now:  # twice what the link carries
            pair.a.send_datagrams(pair.now, 1, [bytes(size)])
            flood_at = Instant(flood_at + size / 2_500_000)
        pair.a.stream_write(stream, bytes(50_000))
        pair.step(flood_at)
        pair.b.receive_datagrams()
    assert len(pair.read["b"][stream]) > 300_000


def test_a_few_datagrams_go_before_bulk() -> None:
    pair = Pair(rate=1_250_000, delay=0.01, queue=0.03)
    stream = pair.a.open_stream()
    pair.run(0.5)
    slowest = 0.0
    for number in range(40):
        until = pair.now + 0.05
        while pair.now < until:
            pair.a.stream_write(stream, bytes(100_000))
            pair.step(until)
        asked_at = pair.now
        pair.a.send_datagrams(pair.now, number, [b"move"])
        while not pair.b.receive_datagrams():
            pair.a.stream_write(stream, bytes(100_000))
            pair.step()
            if pair.now - asked_at > 0.2:
                break  # the link dropped it
        else:
            slowest = max(slowest, pair.now - asked_at)
    assert slowest < 0.015 + 0.03 + 0.01  # one way, the link's queue, our pacing


@pytest.mark.parametrize("seed", [1, 2])
def test_a_steady_flow_of_datagrams_outlasts_a_receiver_that_pauses(seed: int) -> None:
    """40,000 a second on a short path whose far end is not scheduled for 4 to 12 ms, ten times a second.

    What is known of the path says less: a stream has filled it before, and was slower.
    """
    pair = Pair(seed, relayed=False, delay=0.000_15, rate=20_000_000, queue=0.01)
    stream = pair.a.open_stream()
    pair.write_all("a", stream, bytes(8_000_000))
    pair.rate = None
    paused_until = 0.0

    def late(_name: str, _relayed: bool, _data: bytes) -> list[float]:
        return [max(0.000_15, paused_until - pair.now) + (pair.rng.random() < 0.1) * 0.000_5]

    pair.hook = late
    pair.run(0.1)
    began = pair.now
    sent = arrived = 0
    for millisecond in range(1, 501):
        if millisecond % 100 == 0:
            paused_until = pair.now + pair.rng.uniform(0.004, 0.012)
        sent += pair.a.send_datagrams(pair.now, 1, [bytes(1200)] * 40)
        pair.run(began + millisecond * 0.001 - pair.now)
        arrived += len(pair.b.receive_datagrams())
    pair.run(0.1)
    arrived += len(pair.b.receive_datagrams())
    assert sent == 20_000
    assert arrived >= 0.999 * sent, pair.a.stats().drops


def test_under_policy_direct_no_datagram_crosses_the_relay() -> None:
    pair = Pair()
    for side in pair.sides.values():
        side.set_policy(pair.now, "direct")
    pair.run(0.2)
    for number in range(50):
        pair.a.send_datagrams(pair.now, number, [bytes(30 * number)])
        pair.run(0.01)
    assert pair.b.receive_datagrams() == []
    assert pair.a.stats().drops["datagram waited too long"] >= 49
    upgrade(pair)
    pair.a.send_datagrams(pair.now, 7, [b"now"])
    pair.run(0.2)
    assert pair.b.receive_datagrams() == [(7, b"now")]


def test_nothing_is_told_after_the_goodbye() -> None:
    pair = Pair()
    pair.run(0.5)
    pair.a.close(pair.now, CloseCode.NO_ERROR, "bye")
    late = pair.b.open_stream()
    pair.b.stream_write(late, b"did you hear?")
    pair.b.send_datagrams(pair.now, 1, [b"anyone?"])
    pair.run(3)
    for side in "ab":
        assert [e for e in pair.events[side] if isinstance(e, ConnectionClosed)] == pair.events[side][-1:]


def test_two_goodbyes_that_cross_end_quietly() -> None:
    pair = Pair()
    pair.run(0.5)
    pair.a.close(pair.now, CloseCode.NO_ERROR, "bye")
    pair.b.close(pair.now, CloseCode.NO_ERROR, "bye bye")
    pair.run(3)
    assert pair.a.is_drained
    assert pair.b.is_drained


def test_a_responder_that_was_never_confirmed_says_nothing_even_when_it_closes() -> None:
    pair = Pair()
    pair.b.close(pair.now, CloseCode.FORGOTTEN, "go away")
    assert pair.b.poll_transmit(pair.now, bytearray(65_536)) is None
    pair.run(2)
    assert pair.b.is_drained


@pytest.mark.parametrize("delay", [0.0, 1e-7, 0.001, 0.9])
def test_any_delay_from_nothing_to_a_second_carries(delay: float) -> None:
    pair = Pair(delay=delay)
    data = random.Random(1).randbytes(200_000)
    stream = pair.a.open_stream()
    pair.write_all("a", stream, data)
    pair.run_until(lambda: pair.read["b"].get(stream, b"") == data, 120)
    upgrade(pair)
    pair.run(60)


@pytest.mark.parametrize("seed", range(4))
def test_a_path_that_narrows_while_small_packets_still_arrive_is_noticed(seed: int) -> None:
    pair = Pair(seed)
    streams = [pair.b.open_stream() for _ in range(3)]
    pair.b.challenge(pair.now, pair.direct("b"), PathKind.DIRECT)
    pair.run(2)
    assert pair.b.current_path.mtu > 1_400
    pair.hook = lambda name, relayed, data: [] if len(data) > 1_200 else None
    for stream in streams:
        pair.b.stream_write(stream, bytes(1000))
    pair.run_until(lambda: all(len(pair.read["a"].get(s, b"")) == 1000 for s in streams), 3)
