"""An endpoint under trio: a task for each socket, one for the deadlines, and a flush after every input.

Whoever calls into the core (a stream, a link) flushes behind it, without awaiting; the tasks here only wait.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias, assert_never

import trio

from tunnel.core.trace import Traces
from tunnel.doors.udp.socket import UdpSocket
from tunnel.faults import Faults
from tunnel.host.clock import boottime, processor_time, wall_ns
from tunnel.host.cpu import has_aes
from tunnel.host.machine import machine_id
from tunnel.host.monitor import watch
from tunnel.nat.candidate import CandidateKind
from tunnel.nat.memory import Remembered, WayMemory
from tunnel.node.context import EndpointConfig, PeerStore
from tunnel.node.endpoint import Endpoint
from tunnel.node.events import (
    CodeIssued,
    EndpointEvent,
    Faulted,
    KnownPeer,
    PeerBack,
    PeeringClosed,
    PeeringEvent,
    PeeringRestarted,
    PeeringStarted,
    PeerPaired,
    Problem,
    ServerReached,
    Troubled,
    WayLearned,
)
from tunnel.node.flows.claim_code import ConnectorPairing
from tunnel.node.flows.expose_code import ExposerPairing
from tunnel.node.peering import Peering
from tunnel.node.pool import CloseRoute, OpenRoute, OpenSockets
from tunnel.server_spec import tls_options
from tunnel.settings import Settings
from tunnel.shell.alarm import LONGEST_SLEEP, Alarm
from tunnel.shell.copies import Copies
from tunnel.shell.dht_door import DhtDoor, NodeMemory
from tunnel.shell.hurry import BURSTS_IN_A_HURRY, BYTES_IN_A_HURRY, Hurry
from tunnel.shell.lasting import last
from tunnel.shell.link import Link
from tunnel.shell.links import Links
from tunnel.shell.outbox import Outbox
from tunnel.shell.packets import PacketDoor
from tunnel.shell.places import machine_hosts
from tunnel.shell.receive_coalescing import DRIZZLE_PAUSE, Drizzle
from tunnel.shell.routes import Routes
from tunnel.shell.servers import Servers
from tunnel.shell.sockets import OpenSocket, PoolSockets, drops_of, open_all, open_large
from tunnel.shell.traces import WalledTraces
from tunnel.transport.connection.events import OF_STREAMS
from tunnel.transport.crypto.keys import preferred_aeads
from tunnel.units import Address, Instant, Seconds, SocketId

if TYPE_CHECKING:
    from tunnel.shell.portmap import PortMapKeeper

BATCHES_A_TURN: Final = 16  # receives of one socket before what they caused is sent and others get their turn ...
BYTES_A_TURN: Final = 1 << 20  # ... or so many bytes
BURSTS_A_TURN: Final = 16  # sends before whoever called goes on; the timer task sends the rest
Records: TypeAlias = tuple[dict[str, object], ...]
JUMP: Final = Seconds(5.0)  # of our clock beyond a sleep: the machine was suspended

__all__ = ["CandidateKind", "EndpointDriver", "KnownPeer", "OpenSocket", "Remembered", "Traces"]


class EndpointDriver:
    """Owns the sockets and the core; makes a Link of every peering."""

    def __init__(
        self,
        *,
        static_key: bytes,
        name: str,
        peers: Iterable[KnownPeer],
        store: PeerStore,
        settings: Settings | None = None,
        on_event: Callable[[EndpointEvent], None] | None = None,
        on_link: Callable[[Link], None] | None = None,
        opener: OpenSocket = open_large,
        bind: Iterable[str] = ("0.0.0.0", "::"),
        hosts: Callable[[], list[str]] = machine_hosts,
        clock: Callable[[], Instant] = boottime,
        wall: Callable[[], float] | None = None,
        traces: Traces | None = None,
        port_mapping: bool = False,
        memory: WayMemory | None = None,
        nodes: NodeMemory | None = None,
        machine: Callable[[], bytes] = machine_id,
        place: Callable[[], bytes] = bytes,
        faults: Faults | None = None,
        link_type: type[Link] = Link,
    ) -> None:
        """Opens the sockets; a family that the machine lacks is left out.  Raises ConfigurationError.

        `wall` is the calendar that stands beside `clock`, in seconds; None: the system's, if the clock is the system's.
        `port_mapping`: ask the router for ports, while run() runs, unless the path policy keeps candidates at home anyway.
        `place` tells the home from copies of it.
        """
        settings = Settings() if settings is None else settings
        self._port_mapping = port_mapping and settings.path != "relay"
        self.port_maps: PortMapKeeper | None = None
        self._copies = Copies(clock, wall, self._give_up_keys)
        self.clock = self._copies.clock
        self.faults = Faults() if faults is None else faults
        self.faults.tell = self._tell_fault
        self.on_event = on_event
        self.on_link = on_link
        self.after_events: Callable[[], None] | None = None  # called when all events so far were passed on
        self._sockets: dict[SocketId, UdpSocket] = {}
        self._hosts = hosts
        self._outbox = Outbox(self._sockets)
        self._unheard: BrokenPipeError | None = None  # nobody hears our events any more
        self._packet_door = PacketDoor(self._sockets, lambda: self.flush() if self.core.ready else None, self.faults)
        self._alarm = Alarm()
        self._changed = trio.Event()
        self._is_flushing = False
        self._before_flush: list[Callable[[], None]] = []  # each called once, before anything is sent
        self._hurry = Hurry(self.clock)
        make_link = partial(
            link_type,
            flush=self.flush,
            before_flush=self._before_flush.append,
            hurry=self._hurry,
            clock=self.clock,
            counters=self.counters,
            door=self._packet_door,
            faults=self.faults,
        )
        self._links = Links(make_link)
        self._has_more = False
        bind = tuple(bind)
        self._sockets.update((SocketId(number), each) for number, each in enumerate(open_all(bind, opener)))
        self.pool = PoolSockets(self._sockets, opener, next((host for host in bind if ":" not in host), None))
        self._memory = memory
        self.routes = Routes(
            self._sockets,
            options=lambda server: tls_options(server, settings.tls),
            serve=self._run_pool_socket,
            faults=self.faults,
            up=self._route_up,
            down=self._route_down,
        )
        config = EndpointConfig(
            name=name,
            aeads=preferred_aeads(has_aes()),
            receive_buffer=min(socket.receive_buffer for socket in self._sockets.values()),
            path_policy=settings.path,
            repeat=settings.repeat,
            repairs=settings.repair == "on",
            machine_id=machine(),
            place_id=place(),
        )
        self.core = Endpoint(
            config=config,
            static_key=static_key,
            peers=peers,
            store=store,
            entropy=os.urandom,
            rng=random.SystemRandom(),  # a peer sees what path challenges are made of, and must not foretell the next
            wall_ns=wall_ns,
            traces=None if traces is None else WalledTraces(traces, self.faults),
            processor=processor_time,
        )
        self.servers = Servers(
            self.core,
            clock=self.clock,
            flush=self.flush,
            access_token=settings.access_token_bytes,
            routes=self.routes,
            dht=DhtDoor(
                self.core, self._sockets, settings.dht_bootstrap, nodes, clock=self.clock, flush=self.flush, faults=self.faults
            ),
        )
        for socket_id, socket in self._sockets.items():
            self.core.add_socket(socket_id, is_ipv6=socket.is_ipv6, port=socket.local_address.port)
        self.core.set_hosts(self.clock(), hosts())
        self._load_memory()

    def _load_memory(self) -> None:
        if self._memory is not None:
            with self.faults.wall("state", "kept what led to peers before from being read"):
                self.core.set_memory(self._memory.load())

    @property
    def links(self) -> dict[Peering, Link]:
        """The live ones."""
        return self._links.of

    # --- verbs

    def offer_code(self, server: str, *, grants: Records, lent: Records = (), keep: bool) -> ExposerPairing:
        """`grants` are remembered with who comes, `lent` only until `set_peers` says otherwise."""
        flow = self.core.offer_code(self.clock(), server, grants=grants, lent=lent, keep=keep)
        self.flush()
        return flow

    def renew_code(self, flow: ExposerPairing) -> None:
        self.core.renew_code(self.clock(), flow)
        self.flush()

    def withdraw_code(self, flow: ExposerPairing) -> None:
        self.core.withdraw_code(self.clock(), flow)
        self.flush()

    def claim_code(self, server: str, code: str, *, expected: KnownPeer | None = None) -> ConnectorPairing:
        flow = self.core.claim_code(self.clock(), server, code, expected=expected)
        self.flush()
        return flow

    def dial(self, peer: KnownPeer, server: str) -> Peering:
        peering = self.core.dial(self.clock(), peer, server)
        self.flush()
        return peering

    def listen(self) -> None:
        self.core.listen(self.clock())
        self.flush()

    def set_peers(self, peers: Iterable[KnownPeer]) -> None:
        """Set the peers as the store has them now; one that is no longer there is cut off."""
        self.core.set_peers(self.clock(), peers)
        self._links.peers_changed()
        self.flush()

    def close(self, text: str) -> None:
        """Say goodbye to everybody.  Sends without waiting, so there is nothing to shield; then cancel run() and release()."""
        self.servers.dht.close()
        self.core.close(self.clock(), text)
        self._outbox.forget()
        self.flush()

    def release(self) -> None:
        """Close the sockets, when run() has ended."""
        for socket in self._sockets.values():
            socket.close()

    def counters(self) -> dict[str, dict[str, int]]:
        """Every drop outside of connections, by room and reason: endpoint, servers, sockets (what the kernel dropped too)."""
        found = self.core.counters()
        if self.faults.counts:
            found["faults"] = dict(self.faults.counts)
        for socket_id, socket in self._sockets.items():
            drops = drops_of(socket)
            if drops or not self.pool.owns(socket_id):  # hundreds of them with nothing to say would fill a screen
                found[self.routes.name_of(socket_id) or f"udp {socket.local_address}"] = drops
        return found

    # --- tasks

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled.  The sockets stay open, so that close() can still say goodbye; release() ends them."""
        async with trio.open_nursery() as nursery:
            for socket_id, socket in self._sockets.items():
                reading = f"interrupted the reading of udp {socket.local_address}"
                nursery.start_soon(last, self.faults, "socket", reading, partial(self._run_socket, socket_id))
            self.pool.nursery = self.routes.nursery = nursery
            for what, task in (
                ("interrupted the timers", self._run_timers),
                ("interrupted the sending", partial(self._outbox.run, self.flush)),
                ("interrupted the watch over the network", partial(watch, self._network_changed, self._resumed)),
                ("interrupted the watch for copies", self._copies.run),
                ("interrupted the looking up of servers", self.servers.run),
            ):
                nursery.start_soon(last, self.faults, "driver", what, task)
            if self._port_mapping:
                nursery.start_soon(last, self.faults, "port mapping", "interrupted port mapping", self._run_port_mapping)
            nursery.start_soon(self._run_unheard)
            task_status.started()

    async def _run_unheard(self) -> None:
        """Ends all when whoever hears our events has gone, as a command does when its standard output is closed."""
        while self._unheard is None:
            await self._changed.wait()
        raise self._unheard

    async def _run_pool_socket(self, socket_id: SocketId) -> None:
        wall = self.faults.wall("socket", "closed a socket of the search for a direct path")
        with wall, contextlib.suppress(trio.ClosedResourceError):
            await self._run_socket(socket_id)
        socket = self._sockets.get(socket_id)
        if wall.error is not None and socket is not None:
            socket.close()

    async def _run_socket(self, socket_id: SocketId) -> None:
        core, clock, socket = self.core, self._copies.unwatched, self._sockets.get(socket_id)  # nothing is sealed before flush
        drizzle = Drizzle()
        has_paused = False  # so there is something, most likely
        seen = 0  # of what the kernel dropped
        while socket is not None and socket_id in self._sockets:  # what it received may have closed it, if it was one of the pool
            if not has_paused:
                await socket.wait_readable()
            batches = size = datagrams = 0
            turn_ends, soon, is_due = BYTES_A_TURN, BYTES_IN_A_HURRY, False
            while (batch := socket.receive()) is not None:
                now = clock()
                try:
                    if core.handle_batch(now, socket_id, batch.remote, batch.buffer, batch.stride, batch.ecn):
                        is_due = True
                        if core.has_events:  # before the next batch: a local program's socket buffer holds little of a turn's
                            self._tell(now)
                except Exception as error:
                    is_due = True
                    self.faults.note("datagram", f"dropped datagrams from {batch.remote}", error)
                batches, size = batches + 1, size + len(batch.buffer)
                datagrams += -(-len(batch.buffer) // batch.stride)
                if batches >= BATCHES_A_TURN or size >= turn_ends or (size >= soon and now < self._hurry.until):
                    batches, turn_ends, soon = 0, size + BYTES_A_TURN, size + BYTES_IN_A_HURRY
                    if (overruns := socket.overruns()) != seen:
                        seen = overruns
                        core.overflowed()
                    self.flush()
                    await trio.lowlevel.checkpoint()
            if batches and (is_due or self._before_flush):
                self.flush()
            self._packet_door.emptied()
            has_paused = drizzle.is_on(now if batches else clock(), size, datagrams)
            if has_paused:
                await trio.sleep(DRIZZLE_PAUSE)

    async def _run_timers(self) -> None:
        core, clock = self.core, self.clock
        before = clock()
        while True:
            now = clock()
            if now - before > LONGEST_SLEEP + JUMP:
                core.network_changed(now)
            before = now
            deadline = core.poll_timeout()
            if deadline is not None and deadline <= now:
                core.handle_timeout(now)
            self.flush()
            deadline = core.poll_timeout()
            now = clock()
            if self._has_more:
                await trio.lowlevel.checkpoint()
                continue
            await self._alarm.sleep(now, deadline)

    def _network_changed(self) -> None:
        self._load_memory()
        if not self.core.set_hosts(self.clock(), self._hosts()):
            self.core.network_changed(self.clock())  # the same addresses, but another way out
        self._begin_anew()

    def _resumed(self) -> None:
        self.core.network_changed(self.clock())
        self._begin_anew()

    def _begin_anew(self) -> None:
        if self.port_maps is not None:
            self.port_maps.network_changed()
        self.routes.network_changed()
        self.servers.network_changed()
        self.flush()

    def _give_up_keys(self, now: Instant, text: str) -> None:
        """Whoever reads the clock may be about to send, so this comes first; what follows is for the timers' task."""
        self.core.give_up_keys(now, text)
        self.routes.network_changed()
        self._alarm.ring()

    async def _run_port_mapping(self) -> None:
        """Beside everything else; nobody waits for it."""
        from tunnel.shell.portmap import PortMapKeeper

        sockets = {socket.local_address.port: socket_id for socket_id, socket in self._sockets.items() if not socket.is_ipv6}

        mapped: dict[SocketId, Address] = {}

        def changed(port: int, external: Address | None) -> None:
            mapped.pop(sockets[port], None)
            if external is not None:
                mapped[sockets[port]] = external
            self.core.set_candidates(self.clock(), CandidateKind.PORT_MAPPED, mapped.items())
            self.servers.dht.set_mapped(mapped)
            self.flush()

        self.port_maps = PortMapKeeper(on_change=changed, clock=self.clock, faults=self.faults)
        await self.port_maps.run(tuple(sockets))

    def _route_up(self, server: str, socket_id: SocketId, remote: Address, words: str) -> None:
        self.core.route_up(self.clock(), server, socket_id, remote, words)
        self.flush()

    def _route_down(self, socket_id: SocketId) -> None:
        self.core.route_down(self.clock(), socket_id)
        self.flush()

    # --- after every input

    def flush(self) -> None:
        """Send what may leave now, tell what happened, and arm the timer.  Never waits; calls from inside are merged."""
        if self._is_flushing:
            return
        self._is_flushing = True
        core, first = self.core, self._before_flush
        try:
            while first:
                try:
                    first.pop()()
                except Exception as error:
                    self.faults.note("local program", "left something unread that a local program said", error)
            now = self.clock()
            while True:
                is_dry = self._send(now)
                while (order := core.poll_socket_order()) is not None:
                    if isinstance(order, OpenRoute | CloseRoute):
                        self.servers.fulfil(order)
                        continue
                    opened = self.pool.fulfil(order, self._run_pool_socket)
                    if isinstance(order, OpenSockets):
                        core.add_pool_sockets(now, opened or (), order.count)
                        is_dry = False
                if not self._tell(now):
                    break
            self._has_more = not is_dry
            if self._alarm.is_set:  # else the timer task is about to look by itself
                self._alarm.move(now, core.poll_timeout() if is_dry else now)
        except Exception as error:  # whoever called has nothing to do with it
            self.faults.note("driver", "interrupted the sending", error)
        finally:
            self._is_flushing = False

    def _send(self, now: Instant) -> bool:
        """False when there is more to send than one turn allows."""
        core, outbox = self.core, self._outbox
        for _ in range(BURSTS_A_TURN if now >= self._hurry.until else BURSTS_IN_A_HURRY):
            if outbox.is_blocked:
                return True
            burst = core.poll_transmit(now, outbox.room)
            if burst is None:
                return True
            outbox.put(burst)
        return False

    def _tell(self, now: Instant) -> bool:
        """Pass on what happened, in order; False when that was nothing.  Who flushes meanwhile is served by the caller's next."""
        found, was_flushing = False, self._is_flushing
        self._is_flushing = True
        try:
            while (event := self.core.poll_event(now)) is not None:
                found = True
                self._dispatch(event)
                if type(event) is not PeeringEvent or type(event.event) not in OF_STREAMS:
                    self._tell_owner(event)
            if found and self.after_events is not None:
                with self.faults.wall("events", "left something undone"):
                    self.after_events()
        finally:
            self._is_flushing = was_flushing
        return found

    def _dispatch(self, event: EndpointEvent) -> None:
        match event:
            case PeeringEvent():
                self._links.pass_on(event)
            case PeeringStarted() | PeeringRestarted() | PeeringClosed():
                self._links.handle_event(event, self.on_link)
            case WayLearned(static=static, way=way):
                if self._memory is not None:
                    with self.faults.wall("state", "kept what led to a peer from being remembered"):
                        self._memory.note(static, way)
            case Faulted(place=place, what=what, error=fault):
                self.faults.note(place, what, fault)
            case ServerReached() | CodeIssued() | PeerPaired() | PeerBack() | Troubled():
                self.servers.changed()
            case _:
                assert_never(event)

    def _tell_owner(self, event: EndpointEvent) -> None:
        if self.on_event is None:
            return
        try:
            self.on_event(event)
        except BrokenPipeError as error:
            self._unheard = error
            self._changed.set()
        except Exception as error:
            self.faults.note("events", "left something untold", error)

    def _tell_fault(self, text: str) -> None:
        if self.on_event is None:
            raise LookupError("nobody listens")
        self.on_event(Troubled(problem=Problem.INTERNAL, text=text))
