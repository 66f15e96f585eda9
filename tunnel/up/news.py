"""Events for a foreground command that has handed its wish over: as many as it reads, and the rest is counted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

import trio

from tunnel.ports.counters import ForwardCounters

MAX_NEWS: Final = 256  # events of one command that it has not read yet; further ones are lost, and counted

Say: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[None]]


class News:
    """Of one command."""

    def __init__(self, counters: ForwardCounters) -> None:
        self._counters = counters
        self._in, self._out = trio.open_memory_channel[Mapping[str, Any]](MAX_NEWS)

    def tell(self, event: Mapping[str, Any]) -> None:
        try:
            self._in.send_nowait(event)
        except trio.WouldBlock:
            self._counters.untold += 1

    async def pass_on(self, say: Say) -> None:
        """Until cancelled."""
        while True:
            await say(await self._out.receive())
