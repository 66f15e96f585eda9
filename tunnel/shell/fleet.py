"""A fleet's server under trio: hands the orders of its core to whoever owns the store, and brings back what came of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import trio

from tunnel.rendezvous.fleet.directory import Entries, Order
from tunnel.rendezvous.fleet.fleet import Fleet
from tunnel.shell.server_log import logger
from tunnel.units import Address, Instant, Seconds

TWIN: Final = (
    "Another server of this fleet gives the same addresses to clients as this one, so nobody can be sent to either: "
    "give each its own with --advertise, or a port of its own."
)
NO_TWIN: Final = "No other server of this fleet gives this one's addresses any more."
DRAIN_LOOK: Final = Seconds(0.2)  # between two looks whether all clients have gone


class FleetDoor(Protocol):
    """The owner of a store."""

    @property
    def drain(self) -> Seconds:
        """For how long clients may take leave when the server is stopped."""

    def core(self, listening: Sequence[Address]) -> Fleet:
        """The core of a server that listens there.  Raises ConfigurationError when no client could reach it alone."""

    def feed(self, fleet: Fleet, clock: Callable[[], Instant], changed: Callable[[], None]) -> Feed:
        """`changed` is called when answers and deadlines may be other ones."""

    async def run(self, feed: Feed) -> None:
        """Carry out orders until cancelled."""


class Feed:
    """The side of the server that a store's owner sees."""

    def __init__(self, fleet: Fleet, clock: Callable[[], Instant], changed: Callable[[], None]) -> None:
        """`changed`: answers and deadlines may be other ones now."""
        self._fleet = fleet
        self._clock = clock
        self._changed = changed
        self._wakeup = trio.Event()
        self._batch: list[Order] = []
        self._has_twin = False

    @property
    def channels(self) -> tuple[str, ...]:
        """Of which the server hears everything."""
        return tuple(each.decode() for each in self._fleet.notes.channels)

    def look(self) -> None:
        """There may be orders."""
        if self._fleet.directory.has_orders:
            self._wakeup.set()

    async def orders(self) -> list[Order]:
        """The batch that is not finished, else the next one as soon as there is one."""
        while not self._batch:
            self._batch = self._fleet.directory.poll_orders()
            if not self._batch:
                self._wakeup = trio.Event()
                await self._wakeup.wait()
        return self._batch

    def finish(self, results: Sequence[Entries] | None) -> None:
        """Hear what came of the batch; None: nothing."""
        self._batch = []
        now = self._clock()
        self._fleet.directory.finish(now, results)
        if self._fleet.has_twin(now) != self._has_twin:
            self._has_twin = not self._has_twin
            logger.warning("%s", TWIN if self._has_twin else NO_TWIN, extra={"facts": {"what": "twin"}})
        self._changed()

    async def drain(self, within: Seconds) -> None:
        """Send all clients to other servers, and wait until they have gone, but no longer than that."""
        self._fleet.drain(self._clock(), within)
        self._changed()
        for _ in range(int(within / DRAIN_LOOK)):
            await trio.sleep(DRAIN_LOOK)
            if self._fleet.is_empty:
                break
        self._fleet.leave(self._clock())
        self._changed()
        await trio.sleep(DRAIN_LOOK)  # for the store to hear of it

    def hear(self, channel: bytes, data: bytes) -> None:
        self._fleet.hear(self._clock(), channel, data)
        self._changed()


class Busy:
    """The share of a processor that this thread has used since it was last asked, a few seconds ago."""

    def __init__(self) -> None:
        self._at, self._used = time.monotonic(), time.thread_time()
        self._share = 0.0

    def __call__(self) -> float:
        now, used = time.monotonic(), time.thread_time()
        if now - self._at >= 1.0:
            self._share = min(1.0, (used - self._used) / (now - self._at))
            self._at, self._used = now, used
        return self._share
