"""A server and any number of endpoints in the simulated world, each with its store and with what it told."""

from __future__ import annotations

import random
from dataclasses import replace
from hashlib import sha256

from tests.sim.link import Link
from tests.sim.peers import DAY_NS, EPOCH_NS, FIRST, GRANTS, SERVER, ServerNode, entropy_of
from tests.sim.store import PeersInMemory
from tests.sim.world import Host, World
from tunnel.node.context import EndpointConfig
from tunnel.node.endpoint import Endpoint
from tunnel.node.events import CodeIssued, EndpointEvent, KeptPsk, KnownPeer, PeeringEvent, PeeringStarted, Problem, Troubled
from tunnel.node.peering import Peering
from tunnel.transport.connection.events import PathChanged, PathKind, StreamOpened, StreamReadable
from tunnel.units import Address, Instant, Seconds, SocketId, Transmit

__all__ = ["DAY_NS", "EPOCH_NS", "FIRST", "GRANTS", "SERVER", "Party", "Person", "ServerNode", "entropy_of"]


class Person(PeersInMemory):
    """An endpoint with the world's face; it echoes whatever streams the others open."""

    def __init__(
        self, world: World, host: Host, name: str, *, path: str = "auto", static: bytes | None = None, machine: bytes = b""
    ) -> None:  # fmt: skip
        super().__init__()
        self.world = world
        self.host = host
        self.name = name
        self.static_key = static or sha256(name.encode()).digest()
        self.path = path
        self.machine = machine  # nothing tells it from others, unless a test says so
        self.place = b""
        self.told: list[EndpointEvent] = []
        self.received: dict[Peering, bytes] = {}
        self.boots = 0
        self.is_hybrid = True
        self.days_ahead = 0.0  # of its calendar
        self.boot()

    def boot(self) -> None:
        self.boots += 1
        self.endpoint = Endpoint(
            config=EndpointConfig(
                name=self.name,
                aeads=(1, 2),
                receive_buffer=212_992,
                path_policy=self.path,
                machine_id=self.machine,
                place_id=self.place,
                is_hybrid=self.is_hybrid,
            ),
            static_key=self.static_key,
            peers=self.saved.values(),
            store=self,
            entropy=entropy_of((self.name, self.boots, self.world.seed)),
            rng=random.Random(f"{self.name} {self.boots} {self.world.seed}"),
            wall_ns=lambda: EPOCH_NS + int(self.days_ahead * DAY_NS) + int(self.world.now * 1e9),
        )
        self.told.clear()
        address = self.host.bind()
        self.endpoint.add_socket(FIRST, is_ipv6=False, port=address.port)
        self.endpoint.set_hosts(self.world.now, self.host.addresses)
        self.world.attach(self.host, self, {FIRST: address})

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
        burst = self.endpoint.poll_transmit(now, out)
        self._hear(now)
        return burst

    def _hear(self, now: Instant) -> None:
        while (event := self.endpoint.poll_event(now)) is not None:
            self.told.append(event)
            match event:
                case PeeringEvent(peering=peering, event=StreamReadable(stream_id=stream_id) | StreamOpened(stream_id=stream_id)):
                    if peering.connection is None or peering.is_closed:
                        continue  # told late
                    data = b"".join(peering.connection.stream_read(stream_id))
                    if stream_id % 2 == (0 if peering.is_initiator else 1):
                        self.received[peering] = self.received.get(peering, b"") + data
                    elif data:
                        assert peering.connection.stream_write(stream_id, data) == len(data)
                case _:
                    pass

    # verbs

    def meet(self, server: ServerNode) -> None:
        self.endpoint.add_server(self.world.now, SERVER, server.addresses[:1])
        self.world.touch(self.host)

    def offer(self, *, keep: bool = False) -> None:
        self.endpoint.offer_code(self.world.now, SERVER, grants=GRANTS, keep=keep)
        self.endpoint.listen(self.world.now)
        self.world.touch(self.host)

    def claim(self, code: str) -> None:
        self.endpoint.claim_code(self.world.now, SERVER, code)
        self.world.touch(self.host)

    def listen(self) -> None:
        self.endpoint.listen(self.world.now)
        self.world.touch(self.host)

    def dial(self, other: Person) -> Peering:
        peer = next(peer for peer in self.saved.values() if peer.name == other.name)
        peering = self.endpoint.dial(self.world.now, peer, SERVER)
        self.world.touch(self.host)
        return peering

    def say(self, peering: Peering, data: bytes) -> None:
        """On a new stream; the echo goes to `received`."""
        assert peering.connection is not None
        stream_id = peering.connection.open_stream()
        assert peering.connection.stream_write(stream_id, data) == len(data)
        self.world.touch(self.host)

    # what it told

    @property
    def codes(self) -> list[str]:
        return [event.code for event in self.told if isinstance(event, CodeIssued)]

    @property
    def problems(self) -> list[Problem]:
        return [event.problem for event in self.told if isinstance(event, Troubled)]

    @property
    def peerings(self) -> list[Peering]:
        return [event.peering for event in self.told if isinstance(event, PeeringStarted)]

    @property
    def kinds(self) -> list[PathKind]:
        return [e.event.kind for e in self.told if isinstance(e, PeeringEvent) and isinstance(e.event, PathChanged)]


class Party:
    """home exposes, friend connects, the server stands between."""

    def __init__(
        self, *, seed: int = 1, link: Link | None = None, home: str = "prc", friend: str = "prc", home_path: str = "auto",
        friend_path: str = "auto",
    ) -> None:  # fmt: skip
        self.world = World(seed, link or Link(delay=Seconds(0.010)))
        self.server = ServerNode(self.world, self.world.host("server"))
        self.home_site = self.world.site("home", home)
        self.friend_site = self.world.site("friend", friend)
        self.home = Person(self.world, self.world.host("home", self.home_site), "home", path=home_path)
        self.friend = Person(self.world, self.world.host("friend", self.friend_site), "friend", path=friend_path)

    def __enter__(self) -> Party:
        self.world.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.world.__exit__(*error)  # type: ignore[arg-type]

    def claim(self) -> None:
        """The friend types the code."""
        self.home.meet(self.server)
        self.friend.meet(self.server)
        self.home.offer()
        self.world.run_until(lambda: bool(self.home.codes))
        self.friend.claim(self.home.codes[0])

    def pair(self) -> Peering:
        """By a code, as far as the friend's first connection."""
        self.claim()
        self.world.run_until(lambda: bool(self.friend.peerings and self.home.peerings))
        return self.friend.peerings[0]

    def acquaint(self) -> None:
        """Let them remember each other without the ceremony."""
        psk = sha256(b"pair").digest()
        kept = (KeptPsk(sha256(psk).digest(), True),)
        static = self.home.endpoint.static_public
        peer = KnownPeer(name="home", static=static, psk=psk, server=SERVER, kept=kept, is_hybrid=True)
        self.friend.save(peer)
        self.home.save(replace(peer, name="friend", static=self.friend.endpoint.static_public))
        for person in (self.home, self.friend):
            person.endpoint.set_peers(self.world.now, person.saved.values())
            person.meet(self.server)

    def echoed(self, peering: Peering, data: bytes, limit: float = 30.0) -> Seconds:
        """Say it and wait for the echo."""
        before = self.friend.received.get(peering, b"")
        self.friend.say(peering, data)
        return self.world.run_until(lambda: self.friend.received.get(peering, b"") == before + data, limit)
