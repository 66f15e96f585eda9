"""When a path is asked whether it still works: after silences that are measured, and when nothing we say is answered."""

from __future__ import annotations

import random

import pytest

from tests.unit.connection.pair import Pair
from tests.unit.connection.test_paths import upgrade
from tunnel.transport.connection.events import PathKind
from tunnel.transport.connection.paths import KEEPALIVE, KEEPALIVE_MEMORY, MAX_KEEPALIVE, MIN_KEEPALIVE, Keepalive
from tunnel.units import Instant, Seconds


@pytest.mark.parametrize("writer", ["a", "b"])
@pytest.mark.parametrize("silent", [("a",), ("b",), ("a", "b")])
def test_a_stream_that_goes_on_and_on_does_not_speak_into_the_dark(writer: str, silent: tuple[str, ...]) -> None:
    """Each packet sent puts off the probe timeout, so the path has to be doubted for another reason."""
    pair = Pair()
    upgrade(pair)
    pair.run(0.5)
    reader = "b" if writer == "a" else "a"
    side = pair.sides[writer]
    stream = side.open_stream()
    written, before, changed_at, longest = 0, 0, pair.now, 0.0
    for tick in range(400):
        written += side.stream_write(stream, bytes(64))
        if tick == 100:
            pair.cut |= {(name, False) for name in silent}
        pair.run(0.01)
        got = len(pair.read[reader].get(stream, b""))
        if got > before:
            before, changed_at = got, pair.now
        longest = max(longest, pair.now - changed_at)
    pair.run(1.0)
    assert longest < 0.8
    assert side.current_path.kind is PathKind.RELAY or writer not in silent
    assert len(pair.read[reader][stream]) == written


def keepalive() -> Keepalive:
    return Keepalive(random.Random(1))


def survive(measured: Keepalive, now: float, times: int) -> None:
    for _ in range(times):
        measured.roll()
        measured.survived(Instant(now), measured.next_after)


def test_silences_that_are_survived_grow_to_the_limit() -> None:
    measured = keepalive()
    survive(measured, 0.0, 20)
    assert measured.interval == MAX_KEEPALIVE


def test_one_that_is_not_survived_shortens_them_and_is_tried_again_much_later() -> None:
    measured = keepalive()
    measured.died(Instant(0.0), KEEPALIVE)
    learned = measured.interval
    assert MIN_KEEPALIVE < learned < KEEPALIVE
    survive(measured, 100.0, 20)
    assert measured.interval == learned
    survive(measured, KEEPALIVE_MEMORY + 1.0, 20)
    assert measured.interval == MAX_KEEPALIVE


def test_it_never_falls_below_the_least_nor_counts_shorter_silences_as_proof() -> None:
    measured = keepalive()
    for _ in range(20):
        measured.died(Instant(0.0), measured.interval)
    assert measured.interval == MIN_KEEPALIVE
    fresh = keepalive()
    for _ in range(20):
        fresh.survived(Instant(0.0), Seconds(KEEPALIVE / 2))
    assert fresh.interval == KEEPALIVE


def test_on_an_idle_path_keep_alives_measure_the_round_trip_on_both_sides() -> None:
    """Nothing is sent for that alone."""
    pair = Pair(delay=0.010)
    upgrade(pair)
    pair.run(1.0)
    pair.delay = 0.050
    ages: dict[str, list[float]] = {"a": [], "b": []}
    for _ in range(300):
        pair.run(1.0)
        for name, side in pair.sides.items():
            at = side.current_path.measured_at
            assert at is not None
            ages[name].append(pair.now - at)
    for name, side in pair.sides.items():
        view = side.current_path
        assert view.newest_rtt == pytest.approx(0.1, abs=0.002), "after the average has long been something else"
        assert max(ages[name]) < 120.0, (name, max(ages[name]))
