"""The alarm of the task of the deadlines: moved as often as anybody likes, and nobody wakes for it."""

from __future__ import annotations

from collections.abc import Callable

import trio
import trio.testing

from tunnel.shell.alarm import LONGEST_SLEEP, NEAR, Alarm
from tunnel.units import Instant

AHEAD = 1_000.0  # of our clock before trio's


def clock() -> Instant:
    return Instant(trio.current_time() + AHEAD)


async def slept(deadline: float | None, *moves: tuple[float, Callable[[Alarm], None]]) -> tuple[float, int]:
    """How long a task slept that had `deadline` seconds, while others did this at those times; and how often it ran."""
    alarm, began = Alarm(), clock()
    steps = 0

    async def task() -> None:
        nonlocal steps
        await alarm.sleep(began, None if deadline is None else Instant(began + deadline))
        steps += 1
        assert not alarm.is_set
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(task)
        await trio.testing.wait_all_tasks_blocked()
        for at, move in moves:
            await trio.sleep(began + at - clock())
            assert alarm.is_set
            move(alarm)
        await trio.sleep_forever()
    return clock() - began, steps


def to(seconds: float | None) -> Callable[[Alarm], None]:
    """Move it to so many seconds from then."""
    return lambda alarm: alarm.move(clock(), None if seconds is None else Instant(clock() + seconds))


async def test_it_rings_at_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    took, _ = await slept(0.25)
    assert abs(took - 0.25) < 1e-6


async def test_an_earlier_deadline_wakes_nobody_before_it(autojump_clock: trio.testing.MockClock) -> None:
    took, steps = await slept(0.5, (0.1, to(0.2)), (0.2, to(0.05)))
    assert abs(took - 0.25) < 1e-6
    assert steps == 1


async def test_an_alarm_that_is_about_to_ring_for_nothing_is_put_off(autojump_clock: trio.testing.MockClock) -> None:
    """As when each ACK moves the next moment at which the pacer lets something go."""
    moves = [(0.001 * number, to(NEAR)) for number in range(1, 100)]
    took, steps = await slept(NEAR, *moves)
    assert abs(took - (0.099 + NEAR)) < 1e-6
    assert steps == 1


async def test_one_that_rings_much_later_is_left_where_it_is(autojump_clock: trio.testing.MockClock) -> None:
    took, _ = await slept(0.5, (0.1, to(0.8)))
    assert abs(took - 0.5) < 1e-6


async def test_what_is_due_already_rings_now(autojump_clock: trio.testing.MockClock) -> None:
    took, _ = await slept(0.5, (0.125, to(0.0)))
    assert abs(took - 0.125) < 1e-6
    took, _ = await slept(0.5, (0.125, Alarm.ring))
    assert abs(took - 0.125) < 1e-6


async def test_nobody_sleeps_longer_than_a_second_however_often_the_alarm_is_moved(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The jump of the clock after suspend is looked for then."""
    took, _ = await slept(None)
    assert abs(took - LONGEST_SLEEP) < 1e-6
    moves = [(0.001 * number, to(NEAR)) for number in range(1, 1_000)]
    took, _ = await slept(NEAR, *moves)
    assert abs(took - LONGEST_SLEEP) < 1e-6
    took, _ = await slept(0.001, (0.0005, to(None)))
    assert abs(took - LONGEST_SLEEP) < 1e-6


async def test_a_ring_while_the_task_is_awake_is_not_lost(autojump_clock: trio.testing.MockClock) -> None:
    alarm, began = Alarm(), clock()
    alarm.ring()
    alarm.move(began, began)  # of no use while it is awake
    await alarm.sleep(began, None)
    assert clock() == began
    await alarm.sleep(began, Instant(began + 0.5))
    assert abs(clock() - began - 0.5) < 1e-6


async def test_suspend_does_not_put_it_off(autojump_clock: trio.testing.MockClock) -> None:
    """trio's clock stood still for an hour, ours did not: a deadline that is reckoned from ours is due at once."""
    took, _ = await slept(0.5, (0.125, lambda alarm: alarm.move(Instant(clock() + 3_600), Instant(clock() + 3_600.005))))
    assert abs(took - 0.125) < 1e-6
