"""One UDP flow and the exposed program, where the name of the program's machine has several addresses: all of them are tried.

An address that refuses (ICMP) makes way for the next at once.  One that is silent shares what is said with the next after a
moment, as the first may be a family that leads nowhere (RFC 8305 §5, for datagrams); whichever answers first has the flow.  Where
none does, as for a log that never answers, the first keeps it.
"""

from __future__ import annotations

import ipaddress
import socket
from collections import deque
from typing import Final

import trio

from tunnel.core.scope import is_loopback
from tunnel.ports.counters import ForwardCounters
from tunnel.ports.flows import Flow, FlowTable
from tunnel.ports.link import Flows
from tunnel.ports.local import open_udp
from tunnel.ports.names import Place
from tunnel.ports.outlet import Outlet, Overruns
from tunnel.ports.rate import Limit
from tunnel.units import Seconds

MAX_UNANSWERED: Final = 16 * 1024  # bytes said again where a name has another address, and the first one has not answered them
SILENT_AFTER: Final = Seconds(1.0)  # without an answer, before the next address hears the same ...
MAX_TOGETHER: Final = 4  # ... so many at once: the one tried longest ago makes way, but for the first
MAX_PLACES: Final = 16  # of a name, in all
MAX_DATAGRAM: Final = 65_535  # bytes to offer recv
DRAIN_BATCH: Final = 128  # datagrams taken from one socket before other tasks get their turn


class _Attempt:
    """One place, with a socket of its own."""

    def __init__(self, place: Place, counters: ForwardCounters) -> None:
        """Raises OSError."""
        self.place = place
        self.sock: socket.socket = open_udp(place)
        self.outlet = Outlet(self.sock, None, counters)
        self.scope = trio.CancelScope()


class Outward:
    """One flow's datagrams and the places of its program."""

    def __init__(
        self, flow: Flow, target: tuple[str, int], places: list[Place], flows: Flows, counters: ForwardCounters,
        pace: Limit | None = None,
    ) -> None:  # fmt: skip
        self._flow = flow
        self._pace = pace
        self._target = target
        self._flows = flows
        self._counters = counters
        self._left = deque(places[:MAX_PLACES])
        #: Whether it is this machine, which does not keep silent about where nothing listens.
        self._is_here = all(is_loopback(ipaddress.ip_address(place[1][0].partition("%")[0])) for place in places)
        self._tried: list[_Attempt] = []  # those that hear what is said; one, once it has answered
        self._is_answered = False
        self._spoke = trio.Event()
        self._answered = trio.Event()
        self._unanswered: list[bytes] = []  # said again at the next place
        self._unanswered_size = 0
        self.refusal: OSError | None = None

    def open_next(self) -> _Attempt:
        """Raises OSError when none is left that can be opened."""
        while True:
            place = self._left.popleft()
            try:
                attempt = _Attempt(place, self._counters)
            except OSError:
                if not self._left:
                    raise
                continue
            self._tried.append(attempt)
            return attempt

    def close(self) -> None:
        while self._tried:
            self._drop(self._tried[-1])

    def _drop(self, attempt: _Attempt) -> None:
        self._tried.remove(attempt)
        attempt.scope.cancel()
        attempt.sock.close()

    def deliver(self, batch: list[bytes]) -> None:
        """To the program."""
        if self._pace is not None and not (batch := self._pace.admitted_down(batch, self._counters)):
            return
        self._flow.touch(len(batch))
        self._flow.access.received += sum(map(len, batch))
        if self._left and not self._is_answered:
            for data in batch:
                self._unanswered_size += len(data)
                if self._unanswered_size > MAX_UNANSWERED:
                    break
                self._unanswered.append(data)
        self._spoke.set()
        for attempt in self._tried:
            attempt.outlet.send(batch)

    async def run(self, table: FlowTable, scope: trio.CancelScope) -> None:
        """From the program, until cancelled; cancels `scope` with a `refusal` when nothing listens at any of the places."""
        async with trio.open_nursery() as nursery:
            for attempt in self._tried:
                nursery.start_soon(self._hear, attempt, table, nursery, scope)
            if self._left and not self._is_here and not table.is_mute(self._target):
                await self._share(table, nursery, scope)

    async def _share(self, table: FlowTable, nursery: trio.Nursery, scope: trio.CancelScope) -> None:
        """One place after the other hears what is said, until one answers."""
        await self._spoke.wait()
        while not self._is_answered:
            with trio.move_on_after(SILENT_AFTER):
                await self._answered.wait()
                return
            if not self._left:
                break
            if len(self._tried) >= MAX_TOGETHER:
                self._drop(self._tried[1])
            self._try_next(table, nursery, scope)
        table.mute(self._target)
        for attempt in self._tried[1:]:
            self._drop(attempt)
        self._left.clear()

    def _try_next(self, table: FlowTable, nursery: trio.Nursery, scope: trio.CancelScope) -> bool:
        """False when none is left that can be opened."""
        try:
            attempt = self.open_next()
        except OSError:
            return False
        nursery.start_soon(self._hear, attempt, table, nursery, scope)
        attempt.outlet.send(self._unanswered)
        return True

    async def _hear(self, attempt: _Attempt, table: FlowTable, nursery: trio.Nursery, scope: trio.CancelScope) -> None:
        """One place, until it refuses or another one answers."""
        with attempt.scope:
            try:
                await self._return_datagrams(attempt, table)
            except ConnectionRefusedError as error:
                self._drop(attempt)
                if self._tried or (self._left and self._try_next(table, nursery, scope)):
                    return
                self.refusal = error
                scope.cancel()

    async def _return_datagrams(self, attempt: _Attempt, table: FlowTable) -> None:
        """Replies of the program to the peer.  Raises ConnectionRefusedError as long as there has been none."""
        sock, flows, flow, counters = attempt.sock, self._flows, self._flow, self._counters
        receive, number = sock.recv, flow.number
        overruns = Overruns(sock)
        while True:
            await trio.lowlevel.wait_readable(sock)
            is_drained = False
            batch: list[bytes] = []
            for _ in range(DRAIN_BATCH):
                try:
                    batch.append(receive(MAX_DATAGRAM))
                except BlockingIOError:
                    is_drained = True
                    break
                except OSError as error:
                    counters.udp_local_dropped += 1
                    if isinstance(error, ConnectionRefusedError) and not self._is_answered and not batch:
                        raise  # nothing listens there; later it may have gone for a moment
            if batch:
                if not self._is_answered:
                    self._settle(attempt, table)
                if self._pace is not None:
                    batch = self._pace.admitted_up(batch, counters)
                flow.touch(len(batch))
                flow.access.sent += sum(map(len, batch))
                counters.udp_datagrams_in += len(batch)
                counters.udp_queue_dropped += len(batch) - flows.send(number, batch)
                flows.flush()
            counters.udp_overrun += overruns.fresh()
            if not is_drained:
                await trio.lowlevel.checkpoint()

    def _settle(self, attempt: _Attempt, table: FlowTable) -> None:
        """This place has answered first: the flow is its own."""
        self._is_answered = True
        self._answered.set()
        self._unanswered.clear()
        table.answered(self._target, attempt.place)
        for other in [each for each in self._tried if each is not attempt]:
            self._drop(other)
