"""Endpoints and a server in the simulated network of tests/sim, made by the arguments that all versions take."""

from __future__ import annotations

import inspect
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any, Final

from tests.sim.link import Link
from tests.sim.world import Host, World
from tunnel.nat.technique import PoolSocket
from tunnel.node.context import EndpointConfig
from tunnel.node.endpoint import Endpoint
from tunnel.node.events import EndpointEvent, KnownPeer, PeeringEvent, Troubled
from tunnel.node.peering import Peering
from tunnel.node.pool import CloseSockets, OpenSockets
from tunnel.node.stun_codec import ServerStun
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.server import Server
from tunnel.rendezvous.stun import ServerSocket
from tunnel.transport.connection.connection import Connection
from tunnel.transport.connection.events import StreamOpened, StreamReadable
from tunnel.units import Address, Instant, Seconds, SocketId, Transmit

SERVER: Final = "rv.example.net"
FIRST, SECOND = SocketId(0), SocketId(1)
EPOCH_NS: Final = 1_700_000_000 * 10**9
DAY_NS: Final = 86_400 * 10**9


class ServerNode:
    """The rendezvous server; `disguise` may change each datagram that it says, not what it relays."""

    def __init__(self, world: World, host: Host) -> None:
        self.addresses = [host.bind(port=24_531), host.bind(port=24_532)]
        self.days_ahead = 0.0  # of its calendar
        self._world = world
        self.disguise: Callable[[bytes], bytes] = lambda datagram: datagram
        self._relayed: deque[Transmit] = deque()
        places = [ServerSocket(FIRST, self.addresses[0], SECOND), ServerSocket(SECOND, self.addresses[1], FIRST)]
        entropy = random.Random(f"{host.name} {world.seed}").randbytes
        more: dict[str, Any] = {"unix_time": self._unix_time, "secret": sha256(host.name.encode()).digest()}
        heard = {name: value for name, value in more.items() if name in inspect.signature(Server).parameters}  # by this version
        self._server = Server(ServerConfig(), sockets=places, now=world.now, entropy=entropy, stun=ServerStun(), **heard)
        world.attach(host, self, {FIRST: self.addresses[0], SECOND: self.addresses[1]})

    def _unix_time(self) -> int:
        return int(EPOCH_NS / 1e9 + self.days_ahead * 86_400 + self._world.now)

    def handle_datagrams(self, now: Instant, socket_id: SocketId, remote: Address, buffer: memoryview, stride: int) -> None:
        for burst in self._server.handle_batch(now, socket_id, remote, buffer, stride, 0):
            self._relayed.append(burst._replace(buffer=memoryview(bytes(burst.buffer))))

    def handle_timeout(self, now: Instant) -> None:
        self._server.handle_timeout(now)

    def poll_timeout(self) -> Instant | None:
        return self._server.poll_timeout()

    def poll_transmit(self, now: Instant, out: bytearray) -> Transmit | None:
        if self._relayed:
            return self._relayed.popleft()
        said = self._server.poll_transmit(now)
        if said is None:
            return None
        datagram = self.disguise(bytes(said.buffer))
        return said._replace(buffer=memoryview(datagram), segment_size=len(datagram))


class Person:
    """An endpoint, what it remembers, what it was told.  It reads whatever streams the others open."""

    def __init__(self, world: World, host: Host, name: str) -> None:
        self.world, self.host, self.name = world, host, name
        self.saved: dict[bytes, KnownPeer] = {}
        self.days_ahead = 0.0  # of its calendar
        self.boots = 0
        self.boot()

    def boot(self) -> None:
        """Start the process, or start it again."""
        self.boots += 1
        self.told: list[EndpointEvent] = []
        self.bytes_taken = 0
        self.sent: Counter[Address] = Counter()  # datagrams, but for those whose TTL ends on the way
        self.endpoint = Endpoint(
            config=EndpointConfig(name=self.name, aeads=(1, 2), receive_buffer=212_992),
            static_key=sha256(self.name.encode()).digest(),
            peers=self.saved.values(),
            store=self,
            entropy=random.Random(f"entropy of {self.name} {self.boots} {self.world.seed}").randbytes,
            rng=random.Random(f"{self.name} {self.boots} {self.world.seed}"),
            wall_ns=lambda: EPOCH_NS + int(self.days_ahead * DAY_NS) + int(self.world.now * 1e9),
        )
        self._pool = 1_000 * self.boots
        address = self.host.bind()
        self.endpoint.add_socket(FIRST, is_ipv6=False, port=address.port)
        self.endpoint.set_hosts(self.world.now, self.host.addresses)
        self.world.attach(self.host, self, {FIRST: address})

    # the store: what versions ask of it differs

    def save(self, peer: KnownPeer) -> KnownPeer:
        self.saved[peer.static] = peer
        return peer

    def unsave(self, peer: KnownPeer) -> KnownPeer | None:
        self.saved.pop(peer.static, None)
        return None

    def keep(self, static: bytes, psk: bytes, *, is_shown: bool) -> KnownPeer | None:
        return None  # as with a disk that is full

    def reread(self, peer: KnownPeer) -> KnownPeer:
        return self.saved.get(peer.static, peer)

    # the world's face

    def handle_datagrams(self, now: Instant, socket_id: SocketId, remote: Address, buffer: memoryview, stride: int) -> None:
        self.endpoint.handle_batch(now, socket_id, remote, buffer, stride)
        self._hear(now)

    def handle_timeout(self, now: Instant) -> None:
        self.endpoint.handle_timeout(now)
        self._hear(now)

    def poll_timeout(self) -> Instant | None:
        return self.endpoint.poll_timeout()

    def poll_transmit(self, now: Instant, out: bytearray) -> Transmit | None:
        for _ in range(2):  # what is heard may give it more to say
            while (burst := self.endpoint.poll_transmit(now, out)) is not None:
                if burst.socket_id in self.host.sockets:
                    if burst.ttl is None:
                        self.sent[burst.remote] += -(-len(burst.buffer) // burst.segment_size)
                    return burst
            self._hear(now)
        return None

    def _hear(self, now: Instant) -> None:
        while (order := self.endpoint.poll_socket_order()) is not None:
            if isinstance(order, OpenSockets):
                self._open(now, order.count)
            elif isinstance(order, CloseSockets):
                for socket_id in order.socket_ids:
                    del self.host.by_address[self.host.sockets.pop(socket_id)]
        while (event := self.endpoint.poll_event(now)) is not None:
            self.told.append(event)
            if not isinstance(event, PeeringEvent) or event.peering.is_closed or event.peering.connection is None:
                continue
            if isinstance(event.event, StreamOpened | StreamReadable):
                read = event.peering.connection.stream_read(event.event.stream_id)
                self.bytes_taken += sum(len(each) for each in read)

    def _open(self, now: Instant, count: int) -> None:
        fresh = []
        for _ in range(count):
            self._pool += 1
            socket_id, address = SocketId(self._pool), self.host.bind()
            self.host.sockets[socket_id] = address
            self.host.by_address[address] = socket_id
            fresh.append(PoolSocket(socket_id, address.port))
        self.endpoint.add_pool_sockets(now, fresh, count)

    # verbs

    def meet(self, *servers: ServerNode) -> None:
        """By one name; the first of them answers first."""
        self.endpoint.add_server(self.world.now, SERVER, [server.addresses[0] for server in servers])
        self.world.touch(self.host)

    def listen(self) -> None:
        self.endpoint.listen(self.world.now)
        self.world.touch(self.host)

    def dial(self, other: Person) -> Peering:
        peering = self.endpoint.dial(self.world.now, self.saved[other.endpoint.static_public], SERVER)
        self.world.touch(self.host)
        return peering

    def connect(self, other: Person, limit: float = 60.0) -> Connection:
        """Dial, and wait until the connection stands on both sides.  AssertionError after `limit` seconds."""
        peering = self.dial(other)

        def stands() -> bool:
            theirs = [each.connection for each in other.endpoint.peerings if each.peer.static == self.endpoint.static_public]
            return peering.connection is not None and any(each is not None for each in theirs)

        end = self.world.now + limit
        while not stands() and self.world.step(Instant(end)):
            pass
        assert stands(), f"{self.name} could not connect to {other.name} in {limit:.0f} s; it was told: {self.problems[-1:]}"
        assert peering.connection is not None
        return peering.connection

    def forget(self, other: Person) -> None:
        del self.saved[other.endpoint.static_public]
        self.endpoint.set_peers(self.world.now, self.saved.values())
        self.world.touch(self.host)

    def end(self) -> None:
        """As by Ctrl-C."""
        for peering in self.endpoint.peerings:
            peering.close(self.world.now, 0, "the other side has ended")
        self.endpoint.close(self.world.now)
        self.world.touch(self.host)
        self.world.run(1.0)

    @property
    def problems(self) -> list[str]:
        """What the person was told of."""
        return [event.text for event in self.told if isinstance(event, Troubled)]


class Cast:
    """A server, home that exposes, and others that home and they remember; each behind a NAT of a kind of tests/sim/nat.py."""

    def __init__(self, *others: str, kinds: dict[str, str] | None = None, seed: int = 1) -> None:
        kinds = kinds or {}
        self.world = World(seed, Link(delay=Seconds(0.010)))
        self.server_host = self.world.host("server")
        self.server = ServerNode(self.world, self.server_host)
        self.sites = {name: self.world.site(name, kinds.get(name, "prc")) for name in ("home", *others)}
        self.people = {name: Person(self.world, self.world.host(name, self.sites[name]), name) for name in self.sites}
        self.home = self.people["home"]
        for name in others:
            other = self.people[name]
            psk = sha256(f"home and {name}".encode()).digest()
            known = KnownPeer(name="home", static=self.home.endpoint.static_public, psk=psk, server=SERVER)
            other.save(known)
            self.home.save(replace(known, name=name, static=other.endpoint.static_public))
            other.endpoint.set_peers(self.world.now, other.saved.values())
        self.home.endpoint.set_peers(self.world.now, self.home.saved.values())
        for person in self.people.values():
            person.meet(self.server)
        self.home.listen()
        self.world.run(1.0)

    def __enter__(self) -> Cast:
        self.world.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.world.__exit__(*error)  # type: ignore[arg-type]

    def public(self, name: str) -> str:
        """The IPv4 address by which the internet knows that site."""
        return self.sites[name].gateways[False].box.host
