"""The share of what is sent that does not arrive, as ACKs tell."""

from __future__ import annotations

import pytest

from tunnel.transport.recovery.lossiness import LOOK, MEMORY, MOST_LEFT_OUT, LossMeter
from tunnel.units import Instant


def looks(meter: LossMeter, *acks: list[tuple[int, int]], skipped: tuple[int, ...] = (), apart: float = LOOK) -> None:
    for number, ranges in enumerate(acks):
        meter.on_ack(ranges, list(skipped), Instant(number * apart))


def test_what_is_missing_at_the_second_look_is_lost() -> None:
    meter = LossMeter()
    looks(meter, [(5, 9), (0, 3)])
    assert meter.total == 0  # it may still come
    meter.on_ack([(4, 12), (0, 2)], [], Instant(0.1))
    assert (meter.total, meter.lost) == (10, 1)  # 3; what came late was only late


def test_numbers_that_were_never_sent_and_probes_do_not_count() -> None:
    meter = LossMeter()
    for number in (2, 7):
        meter.leave_out(number)
    looks(meter, [(9, 9), (5, 7), (0, 1)], [(9, 20), (5, 7), (0, 1)], skipped=(8,))
    assert meter.total == 7
    assert meter.lost == 2  # 3 and 4


def test_below_the_lowest_range_an_ack_says_nothing() -> None:
    meter = LossMeter()
    looks(meter, [(190, 199), (100, 180)], [(190, 210), (100, 180)])
    assert meter.total == 100
    assert meter.lost == 9


def test_looks_are_not_taken_more_often_than_they_tell_something() -> None:
    meter = LossMeter()
    assert not meter.on_ack([(0, 9)], [], Instant(0.0))
    assert not meter.on_ack([(0, 19)], [], Instant(LOOK / 2))
    assert meter.on_ack([(0, 29)], [], Instant(LOOK))
    assert meter.total == 10


def test_losses_are_forgotten_with_time() -> None:
    meter = LossMeter()
    looks(meter, [(50, 99)], [(50, 99)])
    meter.on_ack([(120, 150), (50, 99)], [], Instant(MEMORY))
    meter.on_ack([(120, 200), (50, 99)], [], Instant(MEMORY + LOOK))
    assert meter.lost == pytest.approx(20, rel=0.01)
    meter.on_ack([(120, 1200)], [], Instant(4 * MEMORY))
    meter.on_ack([(120, 1300)], [], Instant(4 * MEMORY + LOOK))
    assert meter.share < 0.002


def test_another_path_begins_with_nothing() -> None:
    meter = LossMeter()
    looks(meter, [(50, 99), (0, 9)], [(50, 99), (0, 9)])
    assert meter.share == 0.4
    meter.restart(200)
    assert meter.share == 0.0
    meter.on_ack([(150, 210)], [], Instant(1.0))
    meter.on_ack([(150, 230)], [], Instant(2.0))
    assert (meter.total, meter.lost) == (11, 0)


def test_probes_are_remembered_by_the_hundreds() -> None:
    meter = LossMeter()
    for number in range(2 * MOST_LEFT_OUT):
        meter.leave_out(number)
    last = 2 * MOST_LEFT_OUT
    looks(meter, [(last, last)], [(last, last + 1)])
    assert meter.total == 1
