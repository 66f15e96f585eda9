"""Deadlines by name: each rings once, the earliest first."""

from __future__ import annotations

from enum import Enum

from tunnel.core.timers import TimerTable, earliest
from tunnel.units import Instant


class Bell(Enum):
    FIRST = 1
    SECOND = 2
    THIRD = 3


def test_the_earliest_deadline_is_next_and_each_rings_once() -> None:
    table: TimerTable[Bell] = TimerTable()
    assert table.next() is None
    table.set(Bell.SECOND, Instant(2.0))
    table.set(Bell.FIRST, Instant(1.0))
    table.set(Bell.THIRD, Instant(3.0))
    assert table.next() == 1.0
    assert table.expired(Instant(0.5)) == []
    assert table.expired(Instant(2.0)) == [Bell.FIRST, Bell.SECOND]
    assert table.expired(Instant(2.0)) == []
    assert table.next() == 3.0


def test_a_timer_is_moved_by_setting_it_again_and_cleared_without_complaint() -> None:
    table: TimerTable[Bell] = TimerTable()
    table.set(Bell.FIRST, Instant(1.0))
    table.set(Bell.FIRST, Instant(5.0))
    assert table.get(Bell.FIRST) == 5.0
    assert table.expired(Instant(4.0)) == []
    table.clear(Bell.FIRST)
    table.clear(Bell.FIRST)
    assert table.get(Bell.FIRST) is None
    assert table.next() is None


def test_timers_of_one_instant_ring_in_the_order_of_their_values() -> None:
    table: TimerTable[Bell] = TimerTable()
    for bell in (Bell.THIRD, Bell.FIRST, Bell.SECOND):
        table.set(bell, Instant(1.0))
    assert table.expired(Instant(1.0)) == [Bell.FIRST, Bell.SECOND, Bell.THIRD]


def test_earliest_ignores_what_is_not_set() -> None:
    assert earliest(None, None) is None
    assert earliest(None, Instant(2.0), Instant(1.0)) == 1.0
