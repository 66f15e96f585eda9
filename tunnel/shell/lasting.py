"""Tasks that go on until cancelled, whatever they meet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from tunnel.faults import Faults

FIRST_PAUSE: Final = 0.5  # seconds after a fault of ours, before the task begins anew; doubled each time ...
LONGEST_PAUSE: Final = 60.0  # ... up to this


async def last(faults: Faults, place: str, what: str, task: Callable[[], Awaitable[None]], *passing: type[Exception]) -> None:
    """Run `task` until it returns; after a fault of ours, which has done `what`, it begins anew in a moment.

    `passing` is foreseen, and raised.
    """
    pause = FIRST_PAUSE
    while True:
        with faults.wall(place, what, *passing) as wall:
            await task()
        if wall.error is None:
            return
        await trio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
