"""When the socket's task lets datagrams gather, and above all when it does not."""

from __future__ import annotations

import pytest

from tunnel.shell.receive_coalescing import LARGE_WAKE, SPACING, WAKES, Drizzle
from tunnel.units import Instant


def wakes(drizzle: Drizzle, count: int, *, size: int, datagrams: int = 1, spacing: float = 0.000_1) -> list[bool]:
    return [drizzle.is_on(Instant(number * spacing), size, datagrams) for number in range(count)]


def raining() -> Drizzle:
    drizzle = Drizzle()
    assert wakes(drizzle, WAKES + 1, size=1472) == [False] * WAKES + [True]
    return drizzle


def test_many_full_datagrams_one_by_one_are_let_gather() -> None:
    drizzle = raining()
    assert all(
        drizzle.is_on(Instant(1.0 + number), 9 * 1472, 9) for number in range(100)
    )  # what gathered in a pause, however long


def test_nothing_else_is() -> None:
    assert not any(wakes(Drizzle(), 100, size=60))  # keystrokes and ACKs
    assert not any(wakes(Drizzle(), 100, size=1472, spacing=2 * SPACING))  # 12 Mbit/s
    assert not any(wakes(Drizzle(), 100, size=44 * 1472, datagrams=44))  # 2 Gbit/s, joined by the kernel


@pytest.mark.parametrize(("size", "datagrams"), [(1472, 1), (9 * 60, 9), (LARGE_WAKE + 1472, 45), (0, 0)])
def test_it_ends_with_the_rain(size: int, datagrams: int) -> None:
    drizzle = raining()
    assert not drizzle.is_on(Instant(1.0), size, datagrams)
    assert not drizzle.is_on(Instant(1.0 + SPACING), 1472, 1)
