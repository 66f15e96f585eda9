"""The real thing on the simulated network: endpoints with a store in memory, and a rendezvous server that can be killed.

Every node gets chance and both clocks from the world, so that a seed is a whole story.  tests.sim.cast has the usual set of them.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from typing import Any

from tests.sim.link import Link
from tests.sim.store import PeersInMemory
from tests.sim.world import Host, World
from tunnel.nat.memory import Remembered
from tunnel.nat.technique import PoolSocket
from tunnel.node.context import EndpointConfig, PeerStore
from tunnel.node.endpoint import Endpoint
from tunnel.node.events import (
    CodeIssued,
    EndpointEvent,
    KnownPeer,
    PeeringClosed,
    PeeringEvent,
    PeeringRestarted,
    PeeringStarted,
    PeerPaired,
    Problem,
    Troubled,
    WayLearned,
)
from tunnel.node.peering import Peering
from tunnel.node.pool import CloseRoute, CloseSockets, OpenRoute, OpenSockets
from tunnel.node.stun_codec import ServerStun
from tunnel.pairing.grants import GrantSet
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.server import Server
from tunnel.rendezvous.stun import ServerSocket
from tunnel.transport.connection.events import (
    PathChanged,
    PathKind,
    StreamOpened,
    StreamReadable,
    StreamReset,
    StreamStopped,
    StreamWritable,
)
from tunnel.units import Address, Instant, Seconds, SocketId, StreamId, Transmit

SERVER = "rv.example.net"
FIRST, SECOND = SocketId(0), SocketId(1)
SERVER_TLS, CLIENT_TLS = SocketId(10_000), SocketId(100)
TLS_PORT = 443  # what goes there and comes from there stands for a TLS connection, which the core cannot tell from a socket
TLS_SETUP = 0.08  # seconds from the order to the connection
EPOCH_NS = 1_700_000_000 * 10**9
DAY_NS = 86_400 * 10**9
GRANTS = tuple(GrantSet.parse("22").to_dicts())
BLACK_HOLE = Link(loss=1.0)


def entropy_of(seed: object) -> Callable[[int], bytes]:
    """Secrets that nobody keeps: the same ones for the same seed."""
    return random.Random(str(seed)).randbytes


class ServerNode:
    """The rendezvous server with the world's face."""

    def __init__(self, world: World, host: Host, config: ServerConfig | None = None, *, secret: bytes | None = None) -> None:
        self.world = world
        self._secret = secret
        self.host = host
        self.addresses = [host.bind(port=24_531), host.bind(port=24_532)]
        self.tls_address = host.bind(port=TLS_PORT)
        self._config = config or ServerConfig()
        self._queue: deque[Transmit] = deque()
        self._boots = 0
        self.days_ahead = 0  # of its calendar
        self.tells_time = True  # older ones do not
        self.boot()

    def boot(self) -> None:
        """Start, or start again with empty hands."""
        self._boots += 1
        self._queue.clear()
        places = [ServerSocket(FIRST, self.addresses[0], SECOND), ServerSocket(SECOND, self.addresses[1], FIRST)]
        self.server = Server(
            self._config,
            sockets=places,
            now=self.world.now,
            entropy=entropy_of((self.host.name, self._boots, self.world.seed)),
            stun=ServerStun(),
            unix_time=self._unix_time,
            secret=self._secret,
        )
        self.world.attach(self.host, self, {FIRST: self.addresses[0], SECOND: self.addresses[1], SERVER_TLS: self.tls_address})

    def _unix_time(self) -> int:
        return (EPOCH_NS + self.days_ahead * DAY_NS) // 10**9 + int(self.world.now) if self.tells_time else 0

    def kill(self) -> None:
        """As by SIGKILL: nothing is said, and what is sent to it is lost until boot()."""
        self.host.node = None

    def handle_datagrams(self, now: Instant, socket_id: SocketId, remote: Address, buffer: memoryview, stride: int) -> None:
        for burst in self.server.handle_batch(now, socket_id, remote, buffer, stride, 0):
            self._queue.append(burst._replace(buffer=memoryview(bytes(burst.buffer))))

    def handle_timeout(self, now: Instant) -> None:
        self.server.handle_timeout(now)

    def poll_timeout(self) -> Instant | None:
        return self.server.poll_timeout()

    def poll_transmit(self, now: Instant, out: bytearray) -> Transmit | None:
        return self._queue.popleft() if self._queue else self.server.poll_transmit(now)


@dataclass(eq=False, slots=True)
class Transfer:
    """Bytes on one stream there, and what came back of them."""

    peering: Peering
    stream_id: StreamId
    data: bytes
    begun: Instant
    written: int = 0
    echo: bytearray = field(default_factory=bytearray)
    arrivals: list[Instant] = field(default_factory=list)
    is_cut: bool = False  # reset or stopped

    @property
    def is_done(self) -> bool:
        """All came back, byte by byte."""
        return len(self.echo) == len(self.data) and self.echo == self.data

    def longest_silence(self, since: Instant | None = None) -> Seconds:
        """The longest time between two arrivals after `since`."""
        begun = self.begun if since is None else since
        times = [begun, *(at for at in self.arrivals if at > begun)]
        return Seconds(max((b - a for a, b in pairwise(times)), default=0.0))


class EndpointNode:
    """An endpoint at a host of the world, which gets chance and both clocks from there."""

    endpoint: Endpoint
    address: Address  # of its first socket, at the host

    def __init__(self, world: World, host: Host, name: str, static: bytes | None = None) -> None:
        self.world = world
        self.host = host
        self.name = name
        self.static_key = static or sha256(name.encode()).digest()
        self.told: list[EndpointEvent] = []
        self.boots = 0
        self.days_ahead = 0.0  # of its calendar

    def start(self, peers: Iterable[KnownPeer], store: PeerStore, **config: Any) -> Callable[[int], bytes]:
        """Make the endpoint of a process that starts, with a fresh socket.  Return the entropy that it was given."""
        self.boots += 1
        entropy = entropy_of((self.host.name, self.boots, self.world.seed))
        self.endpoint = Endpoint(
            config=EndpointConfig(name=self.name, aeads=(1, 2), receive_buffer=212_992, **config),
            static_key=self.static_key,
            peers=peers,
            store=store,
            entropy=entropy,
            rng=random.Random(f"{self.host.name} {self.boots} {self.world.seed}"),
            wall_ns=lambda: EPOCH_NS + int(self.days_ahead * DAY_NS) + int(self.world.now * 1e9),
        )
        self.told.clear()
        self.address = self.host.bind()
        self.endpoint.add_socket(FIRST, is_ipv6=False, port=self.address.port)
        self.endpoint.set_hosts(self.world.now, self.host.addresses)
        return entropy

    def kill(self) -> None:
        """As by SIGKILL."""
        self.host.node = None


class PeerNode(EndpointNode, PeersInMemory):
    """An endpoint with the world's face.  It echoes whatever streams the others open, as a program behind a forward would."""

    def __init__(
        self,
        world: World,
        host: Host,
        name: str,
        *,
        path: str = "auto",
        static: bytes | None = None,
        server: str = SERVER,
        machine: bytes = b"",
    ) -> None:
        EndpointNode.__init__(self, world, host, name, static)
        PeersInMemory.__init__(self)
        self.path = path
        self.server = server
        self.machine = machine  # nothing tells it from others, unless a test says so
        self.place = b""
        self.told_at: list[Instant] = []
        self.heard: list[tuple[SocketId, Address, bytes, int]] | None = None  # every datagram, when somebody wants to replay it
        self.bytes_taken = 0  # from streams that others opened
        self.is_hybrid = True
        self.remembers = False  # what worked, over a restart
        self.memory: dict[bytes, Remembered] = {}
        self.may_use_tls = False
        self.tls_server: Address | None = None  # where OpenRoute leads, if anywhere
        self.has_tls = False  # a connection stands
        self.parts = False  # each process says goodbye for the one before it, as one that keeps its sessions does
        self._sessions: tuple[bytes, ...] = ()
        self._transfers: dict[tuple[Peering, StreamId], Transfer] = {}
        self._backlogs: dict[tuple[Peering, StreamId], bytearray] = {}
        self._pool_ids = 1000
        self.boot()

    def boot(self) -> None:
        """Start the process, or start it again: it knows what the store holds, and gets a fresh socket."""
        self.start(
            self.saved.values(),
            self,
            path_policy=self.path,
            machine_id=self.machine,
            place_id=self.place,
            is_hybrid=self.is_hybrid,
        )
        if self.remembers:
            self.endpoint.set_memory(self.memory)
        self.told_at.clear()
        self._transfers.clear()
        self._backlogs.clear()
        self.world.attach(self.host, self, {FIRST: self.address})

    # the world's face

    def handle_datagrams(self, now: Instant, socket_id: SocketId, remote: Address, buffer: memoryview, stride: int) -> None:
        if self.heard is not None:
            self.heard.append((socket_id, remote, bytes(buffer), stride))
        self.endpoint.handle_batch(now, socket_id, remote, buffer, stride)
        self._hear(now)

    def handle_timeout(self, now: Instant) -> None:
        self.endpoint.handle_timeout(now)
        self._hear(now)

    def poll_timeout(self) -> Instant | None:
        return self.endpoint.poll_timeout()

    def poll_transmit(self, now: Instant, out: bytearray) -> Transmit | None:
        burst = self._next_burst(now, out)
        if burst is None:
            self._hear(now)
            burst = self._next_burst(now, out)
        return burst

    def _next_burst(self, now: Instant, out: bytearray) -> Transmit | None:
        """What leaves by a socket of the pool that was closed meanwhile is dropped, as the driver does."""
        while (burst := self.endpoint.poll_transmit(now, out)) is not None and burst.socket_id not in self.host.sockets:
            pass
        return burst

    def _serve_pool(self, now: Instant) -> None:
        """Open and close the sockets that punching asks for, as the driver does."""
        while (order := self.endpoint.poll_socket_order()) is not None:
            match order:
                case OpenSockets(count=count):
                    fresh: list[PoolSocket] = []
                    for _ in range(count):
                        self._pool_ids += 1
                        socket_id, address = SocketId(self._pool_ids), self.host.bind()
                        self.host.sockets[socket_id] = address
                        self.host.by_address[address] = socket_id
                        fresh.append(PoolSocket(socket_id, address.port))
                    self.endpoint.add_pool_sockets(now, fresh, count)
                case CloseSockets(socket_ids=socket_ids):
                    for socket_id in socket_ids:
                        del self.host.by_address[self.host.sockets.pop(socket_id)]
                case OpenRoute():
                    self.world.note(self.name, "wants TLS")
                    if self.tls_server is not None:
                        self.world.call_later(TLS_SETUP, self._connect_tls)
                case CloseRoute():
                    self.world.note(self.name, "wants no TLS any more")
                    self.drop_tls()

    def _connect_tls(self) -> None:
        assert self.tls_server is not None
        address = self.host.bind()
        self.host.sockets[CLIENT_TLS] = address
        self.host.by_address[address] = CLIENT_TLS
        self.has_tls = True
        self.endpoint.route_up(self.world.now, self.server, CLIENT_TLS, self.tls_server, "TLS on TCP")
        self.world.touch(self.host)

    def drop_tls(self) -> None:
        if self.has_tls:
            self.has_tls = False
            del self.host.by_address[self.host.sockets.pop(CLIENT_TLS)]
            self.endpoint.route_down(self.world.now, CLIENT_TLS)
            self.world.touch(self.host)

    def _hear(self, now: Instant) -> None:
        self._serve_pool(now)
        while (event := self.endpoint.poll_event(now)) is not None:
            self.told.append(event)
            self.told_at.append(now)
            match event:
                case PeeringEvent(peering=peering, event=StreamReadable(stream_id=stream_id) | StreamOpened(stream_id=stream_id)):
                    self._read(now, peering, stream_id)
                case PeeringEvent(peering=peering, event=StreamWritable(stream_id=stream_id)):
                    self._write(peering, stream_id)
                case PeeringEvent(peering=peering, event=StreamReset(stream_id=stream_id) | StreamStopped(stream_id=stream_id)):
                    transfer = self._transfers.get((peering, stream_id))
                    if transfer is not None:
                        transfer.is_cut = True
                case PeeringEvent(event=PathChanged() as change):
                    self.world.note(self.name, f"path {change.kind.name} {change.remote}: {change.why}")
                case PeeringEvent():
                    pass
                case WayLearned(static=static, way=way):
                    self.world.note(self.name, f"remembers {way}")
                    if way is None:
                        self.memory.pop(static, None)
                    else:
                        self.memory[static] = way
                case PeeringRestarted(peering=peering):
                    self._forget_streams(peering)
                    self.world.note(self.name, "peering restarted")
                case PeeringClosed(peering=peering):
                    self._forget_streams(peering)
                    self.world.note(self.name, f"peering closed: {event.reason.text}")
                case _:
                    self.world.note(self.name, type(event).__name__)

    def _read(self, now: Instant, peering: Peering, stream_id: StreamId) -> None:
        connection = peering.connection
        if connection is None or peering.is_closed:
            return  # told late
        is_ours = stream_id % 2 == (0 if peering.is_initiator else 1)
        data = b"".join(connection.stream_read(stream_id))
        if is_ours:
            transfer = self._transfers.get((peering, stream_id))
            if transfer is not None and data:
                transfer.echo += data
                transfer.arrivals.append(now)
        elif data:
            self.bytes_taken += len(data)
            self._backlogs.setdefault((peering, stream_id), bytearray()).extend(data)
            self._write(peering, stream_id)

    def _write(self, peering: Peering, stream_id: StreamId) -> None:
        connection = peering.connection
        assert connection is not None
        transfer = self._transfers.get((peering, stream_id))
        if transfer is not None:
            transfer.written += connection.stream_write(stream_id, memoryview(transfer.data)[transfer.written :])
        backlog = self._backlogs.get((peering, stream_id))
        if backlog:
            del backlog[: connection.stream_write(stream_id, bytes(backlog))]

    def _forget_streams(self, peering: Peering) -> None:
        for key, transfer in list(self._transfers.items()):
            if key[0] is peering:
                transfer.is_cut = True
                del self._transfers[key]
        self._backlogs = {key: backlog for key, backlog in self._backlogs.items() if key[0] is not peering}

    # verbs

    def meet(self, server: ServerNode) -> None:
        self.tls_server = server.tls_address if self.may_use_tls else None
        former = self._sessions if self.parts else ()
        self.endpoint.add_server(
            self.world.now, self.server, server.addresses[:1], has_fallback=self.may_use_tls, former=former
        )  # fmt: skip
        self._sessions = (self.endpoint.session(self.server),)
        self.world.touch(self.host)

    def offer(self, *, keep: bool = False) -> None:
        self.endpoint.offer_code(self.world.now, self.server, grants=GRANTS, keep=keep)
        self.endpoint.listen(self.world.now)
        self.world.touch(self.host)

    def claim(self, code: str) -> None:
        self.endpoint.claim_code(self.world.now, self.server, code)
        self.world.touch(self.host)

    def listen(self) -> None:
        self.endpoint.listen(self.world.now)
        self.world.touch(self.host)

    def dial(self, other: PeerNode) -> Peering:
        peer = next(peer for peer in self.saved.values() if peer.name == other.name)
        peering = self.endpoint.dial(self.world.now, peer, self.server)
        self.world.touch(self.host)
        return peering

    def connect(self, other: PeerNode, limit: float = 60.0) -> Peering:
        """Dial and run the world until a connection stands."""
        peering = self.dial(other)
        self.world.run_until(lambda: peering.connection is not None, limit)
        return peering

    def hang_up(self, peering: Peering) -> None:
        peering.close(self.world.now, 0, "the other side has ended")
        self.world.touch(self.host)

    def send(self, peering: Peering, data: bytes) -> Transfer:
        """On a new stream, as fast as it goes; the echo collects in what is returned."""
        assert peering.connection is not None
        stream_id = peering.connection.open_stream()
        transfer = Transfer(peering, stream_id, data, self.world.now)
        self._transfers[peering, stream_id] = transfer
        self._write(peering, stream_id)
        self.world.touch(self.host)
        return transfer

    def suspend(self, duration: Seconds) -> None:
        """The machine sleeps so long.  When it wakes, the jump of the clock is noticed, as the driver does."""

        def wake() -> None:
            self.endpoint.network_changed(self.world.now)

        self.world.call_later(duration, wake)
        self.world.suspend(self.host, duration)

    # what it told

    @property
    def codes(self) -> list[str]:
        return [event.code for event in self.told if isinstance(event, CodeIssued)]

    @property
    def paired(self) -> list[KnownPeer]:
        return [event.peer for event in self.told if isinstance(event, PeerPaired)]

    @property
    def problems(self) -> list[Problem]:
        return [event.problem for event in self.told if isinstance(event, Troubled)]

    @property
    def peerings(self) -> list[Peering]:
        """All that ever started."""
        return [event.peering for event in self.told if isinstance(event, PeeringStarted)]

    @property
    def live(self) -> list[Peering]:
        """Those with a connection now."""
        return [each for each in self.endpoint.peerings if each.connection is not None and not each.connection.is_closed]

    @property
    def closed(self) -> list[PeeringClosed]:
        return [event for event in self.told if isinstance(event, PeeringClosed)]

    @property
    def restarts(self) -> int:
        return sum(isinstance(event, PeeringRestarted) for event in self.told)

    @property
    def kinds(self) -> list[PathKind]:
        return [e.event.kind for e in self.told if isinstance(e, PeeringEvent) and isinstance(e.event, PathChanged)]

    @property
    def is_direct(self) -> bool:
        """All its connections have a direct path now."""
        kinds = [each.connection.current_path.kind for each in self.live if each.connection is not None]
        return bool(kinds) and all(kind is PathKind.DIRECT for kind in kinds)
