"""A driver that may go on in a copy of its machine: whom it tells, and what a person hears."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from tunnel.host.clock import boottime
from tunnel.host.copies import watch_generation, watched
from tunnel.node.clocks import spoken
from tunnel.units import Instant, Seconds

PARTED: Final = "The calendar of this machine jumped {}: it was set, or this is a copy of a machine. All links get new keys."
COPIED: Final = (
    "This machine is a copy, restored or cloned: all links get new keys. Copies that run at once need homes of their own."
)


class Copies:
    """Watches over one driver.  Its `clock` is the one to read: whatever is sealed comes after a look at it."""

    def __init__(
        self, clock: Callable[[], Instant], wall: Callable[[], float] | None, suspect: Callable[[Instant, str], None]
    ) -> None:
        """`wall` is the calendar beside `clock`, in seconds; None: the system's where the clock is.

        `suspect(now, text)` may be called whenever the clock is read.  `text` is for a person; "": there is nothing to tell.
        """
        self._suspect = suspect
        self.unwatched = clock
        if wall is None and clock is boottime:
            wall = time.time
        self.clock = clock if wall is None else watched(clock, self._parted, wall)

    async def run(self) -> None:
        """Until cancelled, or at once where the system tells nothing of copies."""
        await watch_generation(lambda: self._suspect(self.clock(), COPIED))

    def _parted(self, now: Instant, by: Seconds) -> None:
        far = spoken(abs(by)) if abs(by) >= 120 else f"{abs(by):.1f} s"
        self._suspect(now, PARTED.format(f"{far} {'ahead' if by > 0 else 'back'}") if by else "")
