"""Pauses of a process with a quota, beside a kernel that makes it stand still when it is used up."""

from __future__ import annotations

import pytest
import trio

from tunnel.host.breaths import BURST, DEBT, SHARE, Breaths
from tunnel.host.quota import Quota

QUARTER = Quota(0.025, 0.1)


class Kernel:
    """Time, and the bandwidth control of a group: sched-bwc.rst."""

    def __init__(self, quota: Quota, phase: float = 0.0) -> None:
        self.now = phase
        self.used = 0.0
        self.stood = 0.0  # seconds stood still, in all
        self.pauses: list[float] = []
        self._quota = quota
        self._period, self._in_period = 0, 0.0
        self.breaths = Breaths(quota, clock=lambda: self.now, used=lambda: self.used, sleep=self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def work(self, seconds: float) -> None:
        while seconds > 1e-12:
            period = int(self.now / self._quota.period + 1e-9)
            if period != self._period:
                self._period, self._in_period = period, 0.0
            ends = (period + 1) * self._quota.period
            step = min(seconds, self._quota.seconds - self._in_period, ends - self.now)
            if step <= 1e-12:
                self.stood += ends - self.now
                self.now = ends
                continue
            self.now, self.used, self._in_period, seconds = (
                self.now + step,
                self.used + step,
                self._in_period + step,
                seconds - step,
            )

    def turn(self, seconds: float) -> None:
        """One of the loop, with so much to do."""
        self.work(seconds)
        self.breaths.before_io_wait(0)


@pytest.mark.parametrize("phase", [0.0, 0.013, 0.05, 0.077, 0.099])
@pytest.mark.parametrize("turn", [0.000_1, 0.000_5, 0.001, 0.002])
@pytest.mark.parametrize("quota", [QUARTER, Quota(0.05, 0.1), Quota(0.08, 0.1)])
def test_who_always_has_something_to_do_never_stands_still_and_uses_nearly_all_of_its_share(
    quota: Quota, turn: float, phase: float
) -> None:
    kernel = Kernel(quota, phase)
    while kernel.now < 5:
        kernel.turn(turn)
    assert kernel.stood <= turn  # once, when it began with all of its burst
    assert kernel.used / (kernel.now - phase) == pytest.approx(quota.share * SHARE, rel=0.02)
    assert max(kernel.pauses) <= turn / (quota.share * SHARE) + 1e-9


def test_without_pauses_the_kernel_here_makes_it_stand_still_for_most_of_the_time() -> None:
    kernel = Kernel(QUARTER)
    while kernel.now < 5:
        kernel.work(0.001)
    assert kernel.stood == pytest.approx(0.75 * 5, rel=0.05)


def test_who_does_little_never_pauses() -> None:
    kernel = Kernel(QUARTER)
    for _ in range(100):
        kernel.turn(QUARTER.seconds * BURST)
        kernel.now += 0.1
    assert kernel.pauses == []
    assert kernel.breaths.pauses == 0


def test_nobody_waits_long_for_what_took_long() -> None:
    kernel = Kernel(QUARTER)
    kernel.turn(3.0)
    kernel.turn(0.0)
    assert sum(kernel.pauses) == pytest.approx(QUARTER.seconds * DEBT / (QUARTER.share * SHARE))


def test_trio_calls_it_between_two_turns() -> None:
    kernel = Kernel(QUARTER)

    async def main() -> None:
        for _ in range(10):
            kernel.used += 0.001
            await trio.lowlevel.checkpoint()

    trio.run(main, instruments=[kernel.breaths])
    assert kernel.breaths.pauses >= 5
