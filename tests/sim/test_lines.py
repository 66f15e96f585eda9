"""A stream over lines that lose in bursts or deliver unevenly, between ends that are not always scheduled, in virtual time."""

from __future__ import annotations

import pytest

from tests.sim.games import bad_times, runs_of
from tests.sim.lines import MBIT, Line

PAYLOAD = 0.96  # of a datagram


@pytest.mark.parametrize("seed", [3, 7])
def test_losses_in_bursts_between_busy_ends_pass_for_no_full_queue(seed: int) -> None:
    """Each end is away for a quarter of the time, so round trips vary by themselves; that and a few losses are no queue."""
    line = Line(lambda: runs_of(8, 0.05), seed=seed, rate=50 * MBIT, pauses=(0.030, 0.025))
    assert line.measure(4.0, 2.0) > 0.65


def test_a_sender_that_is_woken_late_does_not_lose_the_time() -> None:
    line = Line(seed=1, rate=20 * MBIT, pauses=(0.030, 0.015))
    assert line.measure(2.0, 2.0) > 0.9


def test_what_is_lost_in_twenty_bad_milliseconds_costs_little_more_than_that_time() -> None:
    line = Line(lambda: bad_times(0.020, 0.05), seed=2, rate=20 * MBIT)
    assert line.measure(2.0, 4.0) > 0.85 * 0.95 * PAYLOAD


@pytest.mark.parametrize("in_order", [False, True])
def test_thirty_milliseconds_of_jitter_cost_under_a_tenth(in_order: bool) -> None:
    line = Line(seed=1, rate=20 * MBIT, jitter=0.030, in_order=in_order)
    assert line.measure(2.0, 3.0) > 0.9 * PAYLOAD
