"""Short pauses of a process that may use a part of a processor only.

A control group's quota counts in periods, of a tenth of a second mostly.  A process that carries much uses it up at once and then
stands still for the rest, with a keystroke in its sockets: 75 ms at a quarter of a processor.  Who pauses between two turns of
its loop, for as long as its share asks, does not stand still: a turn and its pause take milliseconds.  What comes in a pause
waits in the kernel, and costs less afterwards, as more of it comes at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import trio

from tunnel.host.quota import Quota

SHARE: Final = 0.9  # of the quota that is used: the rest is for the last turn of a period, and for what else runs in the group
BURST: Final = 0.05  # of a period's quota that may be used beyond that after a rest
DEBT: Final = 0.5  # periods' quota that are paused for at most: nobody is to wait for what a start took


class Breaths(trio.abc.Instrument):
    """Given to trio.run: pauses before the loop looks for what has come, when more than the share was used.

    A process that does little never pauses; a turn of its loop costs it two looks at clocks more.
    """

    def __init__(
        self,
        quota: Quota,
        *,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = time.process_time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`used` tells seconds of processor time."""
        self._rate = quota.share * SHARE
        self._most, self._least = quota.seconds * BURST, -quota.seconds * DEBT
        self._clock, self._used, self._sleep = clock, used, sleep
        self._left = self._most  # seconds of processor time that may be used now
        self._at, self._before = clock(), used()
        self.pauses = 0

    def before_io_wait(self, timeout: float) -> None:
        """trio calls it before each wait for sockets, be it for no time at all."""
        now, used = self._clock(), self._used()
        left = self._left + (now - self._at) * self._rate - (used - self._before)
        self._at, self._before = now, used
        self._left = left = max(self._least, min(self._most, left))
        if left < 0:
            self.pauses += 1
            self._sleep(-left / self._rate)
