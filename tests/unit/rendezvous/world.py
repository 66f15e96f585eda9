"""Clients and a server wired together in virtual time, with loss, reordering, NAT rebinding and server restarts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import Any

from tunnel.rendezvous import messages
from tunnel.rendezvous.client import Client
from tunnel.rendezvous.events import ClientEvent, Told
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.server import Server
from tunnel.rendezvous.stun import ServerSocket, StunCodec
from tunnel.units import Address, Instant, SocketId

V4, SECOND, V6, V6_SECOND = SocketId(0), SocketId(1), SocketId(2), SocketId(3)
TLS = SocketId(10_000)  # the server's listener
CLIENT_TLS = SocketId(100)  # a client's connection to it
SERVER = {
    V4: Address("192.88.99.1", 24531),
    SECOND: Address("192.88.99.1", 24532),
    V6: Address("3fff::1", 24531),
    V6_SECOND: Address("3fff::1", 24532),
    TLS: Address("192.88.99.1", 443),
}
SOCKETS = [ServerSocket(socket_id, SERVER[socket_id], SocketId(socket_id ^ 1)) for socket_id in (V4, SECOND, V6, V6_SECOND)]


def entropy_of(seed: int) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes


class Heard:
    """A message of the server with what belongs to it, each field by its name."""

    def __init__(self, told: Told) -> None:
        self.message, self.request, self.channel, _ = told

    def __getattr__(self, name: str) -> Any:
        return getattr(self.message, name)


def heard(events: Iterable[ClientEvent], kind: type[Any]) -> list[Any]:
    return [
        Heard(event) if isinstance(event, Told) else event
        for event in events
        if isinstance(event.message if isinstance(event, Told) else event, kind)
    ]


class Host:
    """One client behind whatever NAT the test gives it: `public` maps (socket, server address) to what the server sees."""

    def __init__(self, world: World, name: str, addresses: dict[SocketId, Address], **options: Any) -> None:
        self.world = world
        self.addresses = dict(addresses)
        self.varies = False  # the NAT maps each destination to a port of its own
        self.is_deaf = False
        self.blocks_udp = False  # as its network does
        servers = [(sid, SERVER[V6] if address.is_ipv6 else SERVER[V4]) for sid, address in addresses.items()]
        self.client = Client(
            servers=servers,
            now=world.now,
            rng=random.Random(name),
            entropy=random.Random(f"entropy of {name}").randbytes,
            **options,
        )
        self.events: list[ClientEvent] = []
        self.relayed: list[bytes] = []

    def public(self, socket_id: SocketId, target: Address) -> Address:
        address = self.addresses[socket_id]
        if self.varies and target in (SERVER[SECOND], SERVER[V6_SECOND]):
            return Address(address.host, address.port + 1)
        return address

    def of(self, kind: type[Any]) -> list[Any]:
        """The events of a kind, and what the server has told in messages of a kind."""
        return heard(self.events, kind)

    @property
    def uses_fallback(self) -> bool:
        """Whether the server is spoken to over another route than UDP."""
        return self.client._primary is not None and self.client._primary.is_fallback

    def connect_tls(self, port: int = 7000) -> None:
        """A TLS connection stands; the server sees it come from `port`."""
        self.addresses[CLIENT_TLS] = Address(self.addresses[SocketId(10)].host, port)
        self.client.fallback_up(self.world.now, CLIENT_TLS, SERVER[TLS])
        self.world.pump()

    def drop_tls(self) -> None:
        del self.addresses[CLIENT_TLS]
        self.client.fallback_down(self.world.now, CLIENT_TLS)

    def lets_through(self, socket_id: SocketId) -> bool:
        return socket_id == CLIENT_TLS or not self.blocks_udp

    def relay(self, channel: bytes, payload: bytes) -> None:
        """Send through the relay from the socket of the primary address."""
        socket_id = next(c.socket_id for c in self.client.channels if c.channel == channel)
        target = next(c.server for c in self.client.channels if c.channel == channel)
        if self.lets_through(socket_id):
            self.world.send_to_server(self.public(socket_id, target), target, channel + payload)


class World:
    def __init__(
        self,
        seed: int = 1,
        *,
        config: ServerConfig | None = None,
        stun: StunCodec | None = None,
        secret: bytes | None = None,
    ) -> None:
        self.secret = secret
        self.now = Instant(1000.0)
        self.rng = random.Random(seed)
        self.delay = 0.010
        self.jitter = 0.0
        self.loss = 0.0
        self.config = config or ServerConfig()
        self.stun = stun
        self.hosts: list[Host] = []
        self.stray: list[tuple[Address, Address, bytes]] = []  # from the server to nobody we know: (from, to, data)
        self.bytes_in: Counter[Address] = Counter()
        self.bytes_out: Counter[Address] = Counter()
        self.is_up = True
        self.down: set[SocketId] = set()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._boots = 0
        self.start_server()

    def start_server(self) -> None:
        self._boots += 1
        self.is_up = True
        self.server = Server(
            self.config,
            sockets=SOCKETS,
            now=self.now,
            entropy=entropy_of(9000 + self._boots),
            stun=self.stun,
            secret=self.secret,
        )

    def host(self, name: str, host: str = "", *, v6: str = "", port: int = 5000, **options: Any) -> Host:
        addresses = {}
        if host or not v6:
            addresses[SocketId(10)] = Address(host or f"198.18.0.{len(self.hosts) + 1}", port)
        if v6:
            addresses[SocketId(11)] = Address(v6, port)
        self.hosts.append(Host(self, name, addresses, **options))
        self.pump()
        return self.hosts[-1]

    # the network

    def _later(self, action: Callable[[], None]) -> None:
        if self.rng.random() < self.loss:
            return
        self._order += 1
        heappush(self._queue, (self.now + self.delay + self.rng.random() * self.jitter, self._order, action))

    def send_to_server(self, source: Address, target: Address, data: bytes) -> None:
        socket_id = next(sid for sid, address in SERVER.items() if address == target)
        self._later(lambda: self._arrive_at_server(socket_id, source, data))

    def _arrive_at_server(self, socket_id: SocketId, source: Address, data: bytes) -> None:
        if not self.is_up or socket_id in self.down:
            return
        self.bytes_in[source] += len(data)
        relayed = self.server.handle_batch(self.now, socket_id, source, memoryview(data), len(data))
        for burst in relayed:
            self._send_to_client(burst.socket_id, burst.remote, bytes(burst.buffer))

    def _send_to_client(self, socket_id: SocketId, remote: Address, data: bytes) -> None:
        self.bytes_out[remote] += len(data)
        self._later(lambda: self._arrive_at_client(SERVER[socket_id], remote, data))

    def _arrive_at_client(self, source: Address, target: Address, data: bytes) -> None:
        for host in self.hosts:
            for socket_id in host.addresses:
                if host.public(socket_id, source) == target:
                    if host.is_deaf or not host.lets_through(socket_id):
                        return
                    if data[0] >= 0xC0:
                        host.relayed.append(data)
                    else:
                        host.client.handle_datagram(self.now, socket_id, source, data)
                    return
        self.stray.append((source, target, data))

    # time

    def pump(self) -> None:
        for host in self.hosts:
            while (out := host.client.poll_transmit(self.now)) is not None:
                socket_id, target, data = out
                if host.lets_through(socket_id):
                    self.send_to_server(host.public(socket_id, target), target, data)
            while (event := host.client.poll_event()) is not None:
                host.events.append(event)
        while (transmit := self.server.poll_transmit(self.now)) is not None:
            if self.is_up:
                self._send_to_client(transmit.socket_id, transmit.remote, bytes(transmit.buffer))

    def run(self, seconds: float = 0.5, until: Callable[..., bool] | None = None) -> None:
        """Step from deadline to deadline.  With `until`: fail if it has not come true in time."""
        end = self.now + seconds
        self.pump()
        while True:
            if until is not None and until():
                return
            deadlines = [self._queue[0][0]] if self._queue else []
            deadlines += [at for host in self.hosts if (at := host.client.poll_timeout()) is not None]
            if self.is_up and (at := self.server.poll_timeout()) is not None:
                deadlines.append(at)
            due = min(deadlines, default=end)
            if due > end:
                self.now = Instant(end)
                if until is not None and not until():
                    raise AssertionError(f"not within {seconds} s; events {[h.events for h in self.hosts]}")
                return
            self.now = Instant(max(self.now, due))
            while self._queue and self._queue[0][0] <= self.now:
                heappop(self._queue)[2]()
            for host in self.hosts:
                at = host.client.poll_timeout()
                if at is not None and at <= self.now:
                    host.client.handle_timeout(self.now)
            if self.is_up:
                self.server.handle_timeout(self.now)
            self.pump()

    # a hand-made client, for what ours would never do

    def ask(
        self,
        source: Address,
        message: messages.RequestMessage,
        *,
        session: bytes = b"s" * 16,
        cookie: bytes = b"",
        **options: Any,
    ) -> list[messages.ResponseMessage]:
        """Straight into the server, straight back."""
        transaction = self.rng.getrandbits(64)
        data = messages.encode_request(transaction, session, message, cookie=cookie, **options)
        self.bytes_in[source] += len(data)
        self.server.handle_datagram(self.now, V4, source, data)
        answers = []
        while (transmit := self.server.poll_transmit(self.now)) is not None:
            self.bytes_out[transmit.remote] += len(transmit.buffer)
            if transmit.remote == source and transmit.buffer[0] == messages.RESPONSE:
                answers.append(messages.decode_response(transmit.buffer).message)
        return answers

    def cookie(self, source: Address) -> bytes:
        (retry,) = self.ask(source, messages.Hello())
        assert isinstance(retry, messages.Retry)
        return retry.cookie
