"""When the task of the deadlines wakes: others move that while it sleeps, and nobody is woken by it.

A deadline moves with almost every datagram.  To wake a task each time, so that it sleeps until another instant, cost as much as
the datagram.
"""

from __future__ import annotations

from typing import Final

import trio

from tunnel.units import Instant, Seconds

LONGEST_SLEEP: Final = Seconds(1.0)  # trio's clock stands still in suspend, ours does not: look at it this often
SHORTEST_SLEEP: Final = Seconds(0.0003)
NEAR: Final = Seconds(0.002)  # an alarm that would ring sooner for nothing is put off; a later one may be moved again anyway
_NEVER: Final = Instant(float("-inf"))


class Alarm:
    """Of one task.  `is_set` while it sleeps."""

    __slots__ = ("_ahead", "_at", "_has_rung", "_latest", "_scope")

    def __init__(self) -> None:
        self._scope: trio.CancelScope | None = None  # in which the task sleeps
        self._at = self._latest = _NEVER
        self._ahead = 0.0  # seconds that trio's clock is ahead of ours; what it loses in suspend _latest makes up for
        self._has_rung = False  # while the task was awake

    @property
    def is_set(self) -> bool:
        return self._scope is not None

    async def sleep(self, now: Instant, deadline: Instant | None) -> None:
        """Until `deadline`, or what `move` makes of it; LONGEST_SLEEP at most, also where others move it again and again."""
        if self._has_rung:
            self._has_rung = False
            await trio.lowlevel.checkpoint()
            return
        self._ahead = trio.current_time() - now
        self._latest = Instant(now + LONGEST_SLEEP)
        self._at = self._latest if deadline is None else min(self._latest, max(deadline, Instant(now + SHORTEST_SLEEP)))
        with trio.CancelScope(deadline=self._at + self._ahead) as self._scope:
            try:
                await trio.sleep_forever()
            finally:
                self._scope = None

    def move(self, now: Instant, deadline: Instant | None) -> None:
        """The sleeping task is needed at `deadline`, and no sooner."""
        if self._scope is None:
            return
        at = self._latest if deadline is None or deadline > self._latest else deadline
        if at <= now:
            self.ring()
        elif at < self._at or (at > self._at and self._at - now < NEAR):
            self._at = at
            self._scope.deadline = at + self._ahead

    def ring(self) -> None:
        """Wake the task now; if it is awake it does not sleep next time."""
        if self._scope is None:
            self._has_rung = True
        else:
            self._scope.cancel()
            self._scope = None
