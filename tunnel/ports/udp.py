"""UDP over flows: one flow for each local client's address, with a stream as its lifeline.

The connecting side numbers the flow and names its target in the stream's Open; datagrams ride beside the stream.  Either
side ends a flow by ending the stream.
"""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import trio

from tunnel.core.bucket import Bucket
from tunnel.doors.udp import pktinfo
from tunnel.errors import TunnelError
from tunnel.ports.access import Access, AccessLog
from tunnel.ports.counters import ForwardCounters, Notices
from tunnel.ports.flows import MAX_FLOWS, Flow, FlowTable, idle_of
from tunnel.ports.link import Flows, Link, Stream
from tunnel.ports.local import OUT_OF_DESCRIPTORS, stream_code, udp_places
from tunnel.ports.names import MisledError, Place
from tunnel.ports.open import Open, Opened, decode_opened, encode, read_message
from tunnel.ports.outlet import Outlet, Overruns
from tunnel.ports.outward import DRAIN_BATCH, MAX_DATAGRAM, Outward
from tunnel.ports.rate import Limit
from tunnel.ports.refusals import describe_refusal, say_unserved
from tunnel.ports.tcp import code_of, refuse
from tunnel.shell.stream import StreamCode
from tunnel.units import Instant, Seconds

MAX_HELD: Final = 64 * 1024  # bytes of datagrams held while a flow opens; one of the largest fits
MAX_HELD_TOTAL: Final = 4 * 1024 * 1024  # bytes so held by one local port
NEW_FLOW_RATE: Final = 500.0  # new clients a second of one local port
NEW_FLOW_BURST: Final = 1_000  # new clients at once
REFUSED_PAUSE: Final = Seconds(1.0)  # a client's datagrams are dropped so long after a refusal


class UdpForward:
    """The connecting side of one UDP forward."""

    def __init__(
        self,
        sock: socket.socket,
        target: int | str,
        *,
        link: Link,
        counters: ForwardCounters,
        notices: Notices,
        idle: Seconds | None = None,
        limit: int = MAX_FLOWS,
        log: AccessLog | None = None,
        pace: Limit | None = None,
    ) -> None:
        """`idle`: how long a flow may be without datagrams; None: as idle_of says."""
        self._sock = sock
        self._target = target
        self._link = link
        self._log = log or AccessLog()
        self._pace = pace
        self._counters = counters
        self._notices = notices
        self._idle = idle_of(target) if idle is None else idle
        self._table = FlowTable(counters, limit=limit)
        is_ipv6 = sock.family == socket.AF_INET6
        is_wildcard = sock.getsockname()[0] in pktinfo.WILDCARDS
        #: Whether clients are told apart by the address of ours that they asked, so that they are answered from there.
        self._tells_local = is_wildcard and pktinfo.ask(sock, is_ipv6=is_ipv6, is_ipv4=not is_ipv6)
        self._held_size = 0
        self._newcomers = Bucket(NEW_FLOW_BURST, NEW_FLOW_RATE)

    async def run(self) -> None:
        """Until cancelled.  Neighbours of one client go to the link together."""
        sock = self._sock
        overruns = Overruns(sock)
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(sock)
                is_drained = False
                try:
                    is_drained = self._drain(nursery)
                    self._counters.udp_overrun += overruns.fresh()
                except Exception as error:
                    self._link.faults.note("flow", f"dropped datagrams to udp/{self._target} of {self._link.peer_name}", error)
                if not is_drained:
                    await trio.lowlevel.checkpoint()

    def _drain(self, nursery: trio.Nursery) -> bool:
        """One turn; False when there may be more."""
        get = self._table.get
        receive = self._receiver()
        is_drained = False
        last: Any = None
        flow: Flow | None = None
        batch: list[bytes] = []
        for _ in range(DRAIN_BATCH):
            try:
                data, client = receive(MAX_DATAGRAM)
            except BlockingIOError:
                is_drained = True
                break
            except OSError:
                continue  # an ICMP error for something we sent (udp(7)): that flow ends by idleness
            if client != last:
                if batch:
                    self._pass_on(flow, batch)
                last, batch = client, []
                flow = get(client) or self._start(nursery, client)
            batch.append(data)
        if batch:
            self._pass_on(flow, batch)
        self._link.flows.flush()
        return is_drained

    def _receiver(self) -> Callable[[int], tuple[bytes, Any]]:
        """Gives a datagram and its client: whatever tells clients apart.  Raises OSError for what is to be left out."""
        return self._receive_telling if self._tells_local else self._sock.recvfrom

    def _target_of(self, client: Any) -> int | str:
        return self._target

    def _idle_of(self, client: Any) -> Seconds:
        return self._idle

    def _opening(self, flow: Flow) -> bytes:
        return encode(Open("udp", self._target, flow.number))

    def _receive_telling(self, size: int) -> tuple[bytes, Any]:
        """Like recvfrom; the client is its address and what pktinfo tells of ours."""
        data, ancillary, _, address = self._sock.recvmsg(size, pktinfo.SPACE)
        return data, (address, pktinfo.find(ancillary))

    def _pass_on(self, flow: Flow | None, batch: list[bytes]) -> None:
        """From one client to the link, or wherever else they end."""
        counters = self._counters
        counters.udp_datagrams_in += len(batch)
        if flow is None:
            counters.udp_flood_dropped += len(batch)
            return
        if self._pace is not None and not (batch := self._pace.admitted_up(batch, counters)):
            return
        flow.touch(len(batch))
        flow.access.sent += sum(map(len, batch))
        if flow.held is not None:
            for data in batch:
                self._hold(flow, data)
        else:
            counters.udp_queue_dropped += len(batch) - self._link.flows.send(flow.number, batch)

    def _start(self, nursery: trio.Nursery, client: Any) -> Flow | None:
        """A flow for a new client; None when clients come faster than NEW_FLOW_RATE."""
        if not self._newcomers.take(Instant(trio.current_time())):
            self._notices.say("udp flood", f"New clients of udp/{self._target} come too fast: some datagrams are dropped.")
            return None
        access = self._log.access(self._link.peer_name, f"udp/{self._target_of(client)}")
        flow = Flow(self._link.flows.allocate(), client, idle=self._idle_of(client), access=access)
        self._link.flows.register(flow.number, self._deliverer(flow))  # at once, so that no other flow gets this number
        self._table.add(client, flow)
        nursery.start_soon(self._serve, flow)
        return flow

    def _hold(self, flow: Flow, data: bytes) -> None:
        """Keep a datagram until the peer has opened the flow."""
        held, size = flow.held, len(data)
        assert held is not None
        if flow.is_refused:
            self._counters.udp_refused += 1
            return
        if flow.held_size + size > MAX_HELD or self._held_size + size > MAX_HELD_TOTAL:
            self._counters.udp_held_dropped += 1
            return
        held.append(data)
        flow.held_size += size
        self._held_size += size

    def _release(self, flow: Flow) -> deque[bytes]:
        """Return the held datagrams; the flow holds no more."""
        held, flow.held = flow.held or deque(), None
        self._held_size -= flow.held_size
        flow.held_size = 0
        return held

    def _deliverer(self, flow: Flow) -> Callable[[list[bytes]], None]:
        if not self._tells_local:
            return _deliverer(flow, Outlet(self._sock, flow.client, self._counters), self._pace, self._counters)
        address, told = flow.client
        local = pktinfo.local_of(told) if told else ""
        source = pktinfo.leave_from(local) if local else ()
        return _deliverer(flow, Outlet(self._sock, address, self._counters, source), self._pace, self._counters)

    async def _serve(self, flow: Flow) -> None:
        with self._link.faults.wall("flow", f"ended a flow to udp/{self._target} of {self._link.peer_name}"):
            await self._carry(flow)

    async def _carry(self, flow: Flow) -> None:
        counters, flows = self._counters, self._link.flows
        stream: Stream | None = None
        try:
            with flow.scope:
                try:
                    stream = await self._link.open_stream(self._opening(flow))
                    body, _rest = await read_message(stream)
                    decode_opened(body)
                    counters.udp_flows_opened += 1
                    flow.access.opened()
                    held = list(self._release(flow))
                    counters.udp_queue_dropped += len(held) - flows.send(flow.number, held)
                    flows.flush()
                    await self._table.wait_over(flow, stream)
                except TunnelError as error:
                    if flow.held is not None or code_of(error) == StreamCode.REFUSED:
                        await self._pause(flow, code_of(error))
        finally:
            self._release(flow)
            flow.access.closed()
            flows.unregister(flow.number)
            self._table.discard(flow.client, flow)
            if stream is not None:
                refuse(stream, StreamCode.CANCELLED)

    async def _pause(self, flow: Flow, code: int) -> None:
        """The peer turned the flow away: its client is not asked for again for a while."""
        if code == StreamCode.CANCELLED:
            return  # the link closed
        if code == StreamCode.DENIED:
            self._counters.udp_denied += 1
        self._counters.udp_refused += len(self._release(flow))
        flow.held = deque()
        flow.is_refused = True
        peer = self._link.peer_name
        target = self._target_of(flow.client)
        self._notices.say(f"udp {target} {code}", describe_refusal(peer, "udp", target, code))
        await trio.sleep(REFUSED_PAUSE)


async def serve_udp(
    stream: Stream,
    number: int,
    address: tuple[str, int],
    *,
    flows: Flows,
    table: FlowTable,
    counters: ForwardCounters,
    notices: Notices,
    asked: str = "A peer asked for a port",
    access: Access | None = None,
    pace: Limit | None = None,
    find: Callable[[], Awaitable[list[Place]]] | None = None,
) -> None:
    """The exposing side of one flow whose Open was granted: a socket of its own towards `address`, until either side ends it.

    `find` tells where that is; None: as names are resolved.
    """
    if table.get(number) is not None:
        counters.malformed_opens += 1  # two flows of one number: the peer is at fault
        refuse(stream, StreamCode.INTERNAL)
        return
    flow = Flow(number, idle=idle_of(address[1]), access=access)
    table.add(number, flow)
    try:
        with flow.scope:
            places = await (find or partial(udp_places, *address))()
            outward = Outward(flow, address, table.in_order(address, places), flows, counters, pace)
            try:
                outward.open_next()
                flows.register(number, outward.deliver)
                await stream.send_all(encode(Opened()))
                counters.udp_flows_opened += 1
                flow.access.opened()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(outward.run, table, nursery.cancel_scope)
                    with contextlib.suppress(TunnelError):  # the opener ended it by RESET, or the link closed
                        await table.wait_over(flow, stream)
                    nursery.cancel_scope.cancel()
                if outward.refusal is not None:
                    raise outward.refusal
            finally:
                flows.unregister(number)
                outward.close()
    except OSError as error:
        if isinstance(error, MisledError):
            counters.misled += 1
            notices.say(f"misled {address[0]}", error.sentence)
        if error.errno in OUT_OF_DESCRIPTORS:
            notices.say("shed", f"A UDP flow was turned away: {error.strerror}.  Raise the limit with 'ulimit -n'.")
        if stream_code(error) == StreamCode.DENIED:
            counters.udp_denied += 1
        say_unserved(notices, asked, address, error)
        refuse(stream, stream_code(error))
    except TunnelError:
        pass
    finally:
        table.discard(number, flow)
        flow.access.closed()
        refuse(stream, StreamCode.CANCELLED)


def _deliverer(flow: Flow, outlet: Outlet, pace: Limit | None, counters: ForwardCounters) -> Callable[[list[bytes]], None]:
    """Takes the peer's datagrams to the local program."""

    def deliver(batch: list[bytes]) -> None:
        if pace is not None and not (batch := pace.admitted_down(batch, counters)):
            return
        flow.touch(len(batch))
        flow.access.received += sum(map(len, batch))
        outlet.send(batch)

    return deliver
