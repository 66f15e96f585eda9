"""UDP flows on one side of a link: how long each may be silent, and which one goes where there are too many."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any, Final

import trio

from tunnel.ports.access import Access
from tunnel.ports.counters import ForwardCounters
from tunnel.ports.link import Stream
from tunnel.ports.names import Place
from tunnel.units import Seconds

FLOW_IDLE: Final = Seconds(120.0)  # a flow without datagrams ends; RFC 4787 §4.3 asks for two minutes at least
LOOKUP_PORT: Final = 53  # DNS: one question, one answer, and often a new port for each
LOOKUP_DATAGRAMS: Final = 2  # of a flow that asks and is answered
LOOKUP_IDLE: Final = Seconds(16.0)  # a flow of those ends sooner; RFC 4787 §4.3 allows that for a well-known port
IDLE_TICKS: Final = 8  # looks at a flow in one of these times: it ends at most one look late
MAX_FLOWS: Final = 1_024  # of one local port, or of one link on the exposing side over all targets: half of its streams
MUTE_FOR: Final = Seconds(60.0)  # a target of which no address answered: so long only its first one is spoken to
LASTING_PART: Final = 0.75  # of these that flows of more than a question and an answer may keep from the others


class Flow:
    """One client's datagrams.  `is_active` is cleared by the idle watch."""

    __slots__ = (
        "access",
        "client",
        "count",
        "held",
        "held_size",
        "idle",
        "is_active",
        "is_lasting",
        "is_refused",
        "number",
        "scope",
        "table",
    )

    def __init__(self, number: int, client: Any = None, *, idle: Seconds = FLOW_IDLE, access: Access | None = None) -> None:
        self.access = access or Access()
        self.number = number
        self.client = client  # as UdpForward's receive gave it; on the connecting side only
        self.idle = idle  # how long it may be without datagrams
        self.scope = trio.CancelScope()
        self.table: FlowTable | None = None  # that it is in
        self.is_active = True
        self.is_lasting = False  # more than a question and its answer
        self.count = 0  # datagrams, both ways
        self.is_refused = False
        self.held: deque[bytes] | None = deque()  # None once the peer has opened the flow
        self.held_size = 0

    def touch(self, count: int) -> None:
        """So many datagrams went by."""
        self.is_active = True
        self.count += count
        if self.count > LOOKUP_DATAGRAMS and self.table is not None:
            self.table.last(self)


def idle_of(target: int | str) -> Seconds:
    """How long a flow to this port, or NAME:port, may be without datagrams."""
    port = target if isinstance(target, int) else target.rpartition(":")[2]
    return LOOKUP_IDLE if str(port) == str(LOOKUP_PORT) else FLOW_IDLE


class FlowTable:
    """The flows of one local port, or of one link on the exposing side.

    When there are too many, the oldest of those goes that were a question and an answer so far.  Where nearly all are more than
    that, the one longest silent goes (segmented LRU).  So one that is never silent outlives any number of others, and one that
    pauses any number of short ones.
    """

    def __init__(self, counters: ForwardCounters, *, limit: int = MAX_FLOWS) -> None:
        self._flows: dict[Any, Flow] = {}
        self._new: OrderedDict[Flow, Any] = OrderedDict()  # their keys, the oldest first
        self._lasting: OrderedDict[Flow, Any] = OrderedDict()  # the one longest silent first
        self._counters = counters
        self._limit = limit
        self._answered: OrderedDict[Any, Place] = OrderedDict()
        self._mute: OrderedDict[Any, float] = OrderedDict()  # until when
        self.get = self._flows.get

    def __len__(self) -> int:
        return len(self._flows)

    def in_order(self, target: Any, places: list[Place]) -> list[Place]:
        """Those of `target`, the one that has answered last first."""
        answered = self._answered.get(target)
        return sorted(places, key=lambda place: place != answered)

    def answered(self, target: Any, place: Place) -> None:
        """Remember it; of as many targets as there may be flows."""
        self._mute.pop(target, None)
        self._answered[target] = place
        self._answered.move_to_end(target)
        if len(self._answered) > self._limit:
            self._answered.popitem(last=False)

    def mute(self, target: Any) -> None:
        """No place of it has answered: remember that for a while; of as many targets as there may be flows."""
        self._mute[target] = trio.current_time() + MUTE_FOR
        self._mute.move_to_end(target)
        if len(self._mute) > self._limit:
            self._mute.popitem(last=False)

    def is_mute(self, target: Any) -> bool:
        return self._mute.get(target, 0.0) > trio.current_time()

    def add(self, key: Any, flow: Flow) -> None:
        if len(self._flows) >= self._limit:
            self._evict()
        self._flows[key] = flow
        self._new[flow] = key
        flow.table = self
        self._counters.udp_flows_active += 1

    def last(self, flow: Flow) -> None:
        """Datagrams of one that lasts went by."""
        if flow.is_lasting:
            self._lasting.move_to_end(flow)
        else:
            flow.is_lasting = True
            self._lasting[flow] = self._new.pop(flow)

    def _evict(self) -> None:
        order = self._lasting if len(self._lasting) > self._limit * LASTING_PART else self._new
        first, key = next(iter(order.items()))
        self._remove(key, first)
        first.scope.cancel()
        self._counters.udp_flows_evicted += 1

    def discard(self, key: Any, flow: Flow) -> None:
        """The flow has ended; an evicted one left the table before."""
        self._counters.udp_flows_active -= 1
        if self._flows.get(key) is flow:
            self._remove(key, flow)

    def _remove(self, key: Any, flow: Flow) -> None:
        flow.table = None
        del self._flows[key]
        del (self._lasting if flow.is_lasting else self._new)[flow]

    async def wait_over(self, flow: Flow, stream: Stream) -> None:
        """Until the peer ends the flow or it was idle for long enough.  Raises what the stream raises."""
        quiet = 0
        while quiet < IDLE_TICKS:
            with trio.move_on_after(flow.idle / IDLE_TICKS) as tick:
                if not await stream.receive_chunks():
                    return
            if flow.is_active:
                flow.is_active = False
                quiet = 0
            elif tick.cancelled_caught:
                quiet += 1
        self._counters.udp_flows_idle += 1
