"""The simulated network: hosts in realms joined by boxes, stepped from deadline to deadline in pure virtual time.

A node is anything with the sans-IO face of `Node`: an endpoint, a server, a stub.  Use a World in a `with` block: when the block
fails, the seed and the last lines of the trace are added to the error.

    with World(seed=7, link=Link(delay=Seconds(0.050))) as world:
        a = world.host("a", world.site("home", "prc"))
        world.attach(a, node, {SocketId(0): a.bind()})
        world.run_until(lambda: node.done, Seconds(5))
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from tests.sim.link import Link, Pipe
from tests.sim.nat import CARRIERS, FIREWALL, SITES, Behaviour, Box
from tunnel.units import Address, Instant, Seconds, SocketId, Transmit

START = Instant(1_000.0)  # not 0, so that nobody counts on it
DEFAULT_TTL = 64
CORE_HOPS = 8  # routers between any two sites: TTL 3 to 8 dies between the NATs, 10 arrives
LAN = Link(delay=Seconds(0.0002))
TRACE_LINES = 400  # kept for a failure
MAX_TURNS = 20_000  # of one node at one instant; more is a busy loop


class Node(Protocol):
    """The sans-IO face of the core, as the driver uses it."""

    def handle_datagrams(self, now: Instant, socket_id: SocketId, remote: Address, buffer: memoryview, stride: int) -> object: ...
    def handle_timeout(self, now: Instant) -> None: ...
    def poll_timeout(self) -> Instant | None: ...
    def poll_transmit(self, now: Instant, out: bytearray) -> Transmit | None: ...


@dataclass(eq=False, slots=True)
class Realm:
    """One address space: a LAN, a carrier's network, the internet."""

    name: str
    link: Link
    hops: int
    number: int
    attached: dict[str, Host | Gateway] = field(default_factory=dict)
    gateways: dict[bool, Gateway] = field(default_factory=dict)  # by "is IPv6"
    counter: int = 1


@dataclass(eq=False, slots=True)
class Gateway:
    """A box between two realms, for one address family."""

    name: str
    box: Box
    inner: Realm
    outer: Realm


@dataclass(eq=False, slots=True)
class Host:
    name: str
    realm: Realm
    addresses: list[str]  # IPv4 first
    node: Node | None = None
    sockets: dict[SocketId, Address] = field(default_factory=dict)
    by_address: dict[Address, SocketId] = field(default_factory=dict)
    deadline: Instant | None = None
    asleep_until: Instant = START
    drop_next: int = 0
    next_port: int = 40_000

    def bind(self, *, ipv6: bool = False, port: int | None = None) -> Address:
        """An address for a socket of this host."""
        if port is None:
            port, self.next_port = self.next_port, self.next_port + 1
        return Address(next(host for host in self.addresses if (":" in host) == ipv6), port)


class World:
    """Steps any number of nodes by the next deadline and routes their bursts through links and boxes."""

    def __init__(self, seed: int = 0, link: Link | None = None, *, are_apart: bool = False) -> None:
        """`are_apart`: no two public IPv4 addresses are neighbours; a server lets those of a /24 have so much, too."""
        self.seed = seed
        self.are_apart = are_apart
        self.now = START
        self.rng = random.Random(seed)
        self.internet = Realm("internet", link or Link(), CORE_HOPS, 0)
        self.hosts: dict[str, Host] = {}
        self.drops: Counter[str] = Counter()
        self.filter: Callable[[Host, Address, bytes], bool] | None = None  # (sender, destination, datagram) -> let it through?
        self._trace: deque[tuple[float, str, str]] = deque(maxlen=TRACE_LINES)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._pipes: dict[tuple[str, str], Pipe] = {}
        self._links: dict[tuple[str, str], Link] = {}
        self._realms = 0
        self._out = bytearray(65_536)

    def __enter__(self) -> World:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            error.add_note(f"World(seed={self.seed}) at {self.now - START:.6f} s, drops {dict(self.drops)}\n{self.trace()}")

    # --- building ---------------------------------------------------------------------------------------------------------

    def realm(self, name: str, outer: Realm, behaviour: Behaviour | None, *, ipv6: bool = False, link: Link = LAN) -> Realm:
        """A realm behind a box for IPv4 (None: no IPv4 way out) and, if wanted, a firewall for IPv6."""
        self._realms += 1
        inner = Realm(name, link, 0, self._realms)
        if behaviour is not None:
            host = self._public(outer) if behaviour.translates else ""
            gateway = Gateway(f"{name}/v4", self._box(behaviour, host, name), inner, outer)
            inner.gateways[False] = gateway
            gateway.box.more_hosts = tuple(self._public(outer) for _ in range(behaviour.addresses - 1))
            for each in filter(None, (host, *gateway.box.more_hosts)):
                outer.attached[each] = gateway
        if ipv6:
            inner.gateways[True] = Gateway(f"{name}/v6", self._box(FIREWALL, "", name), inner, outer)
        return inner

    def site(self, name: str, kind: str, *, outer: Realm | None = None, ipv6: bool = False) -> Realm:
        """A realm of one of the kinds in nat.SITES or nat.CARRIERS."""
        realm = outer or self.internet
        for level, behaviour in enumerate(reversed((SITES | CARRIERS)[kind])):
            realm = self.realm(f"{name}.{level}", realm, behaviour, ipv6=ipv6)
        return realm

    def host(self, name: str, realm: Realm | None = None, *, ipv4: bool = True, ipv6: bool = False) -> Host:
        """A host in a realm: public when nothing there translates.  Sites use overlapping LAN ranges, on purpose."""
        realm = realm or self.internet
        host = Host(name, realm, [])
        if ipv4:
            gateway = realm.gateways.get(False)
            if gateway is not None and gateway.box.behaviour.translates:
                realm.counter += 1
                host.addresses.append(f"192.168.1.{realm.counter}")
            else:
                host.addresses.append(self._public(self.internet))
                self._announce(realm, False, host.addresses[-1])
        if ipv6:
            self.internet.counter += 1
            host.addresses.append(f"3fff:{self.internet.counter:x}::2")
            self._announce(realm, True, host.addresses[-1])
        for address in host.addresses:
            realm.attached[address] = host
        self.hosts[name] = host
        return host

    def attach(self, host: Host, node: Node, sockets: dict[SocketId, Address]) -> None:
        """Give the host its node and the node its sockets, and let it speak."""
        host.node = node
        host.sockets = dict(sockets)
        host.by_address = {address: socket_id for socket_id, address in sockets.items()}
        self.touch(host)

    def set_link(self, a: Host, b: Host, link: Link) -> None:
        """Replace what lies between two sites, in the direction from a to b."""
        key = (self._edge(a).name, self._edge(b).name)
        self._links[key] = link
        if key in self._pipes:
            self._pipes[key].link = link

    # --- events -----------------------------------------------------------------------------------------------------------

    def flush_mappings(self, realm: Realm) -> None:
        """The router in front of the realm forgets every flow."""
        for gateway in realm.gateways.values():
            gateway.box.flush()

    def renumber(self, realm: Realm) -> None:
        """The router in front of the realm gets a new outer IPv4 address, and forgets every flow."""
        gateway = realm.gateways[False]
        del gateway.outer.attached[gateway.box.host]
        gateway.box.host = self._public(gateway.outer)
        gateway.outer.attached[gateway.box.host] = gateway
        gateway.box.flush()

    def suspend(self, host: Host, duration: Seconds) -> None:
        """The machine sleeps: what is sent to it is lost, its timers come late, its clock runs on."""
        host.asleep_until = Instant(self.now + duration)
        self._at(host.asleep_until, lambda: self._timer(host))

    def drop_next(self, host: Host, count: int = 1) -> None:
        """Lose the next datagrams that the host sends."""
        host.drop_next += count

    def call_later(self, delay: float, action: Callable[[], None]) -> None:
        self._at(Instant(self.now + delay), action)

    def note(self, who: str, text: str) -> None:
        """One line for the trace."""
        self._trace.append((self.now, who, text))

    def trace(self) -> str:
        return "\n".join(f"{at - START:12.6f}  {who:16} {text}" for at, who, text in self._trace)

    # --- running ----------------------------------------------------------------------------------------------------------

    def step(self, until: Instant | None = None) -> bool:
        """Run what is next.  False when nothing is, or nothing before `until`."""
        if not self._events or (until is not None and self._events[0][0] > until):
            return False
        at, _, action = heapq.heappop(self._events)
        self.now = Instant(max(self.now, at))
        action()
        return True

    def run(self, duration: float) -> None:
        end = Instant(self.now + duration)
        while self.step(end):
            pass
        self.now = end

    def run_until(self, predicate: Callable[..., bool], limit: float = 60.0) -> Seconds:
        """Run until it holds and return how long that took; AssertionError after `limit` seconds of virtual time."""
        begun, end = self.now, Instant(self.now + limit)
        while not predicate():
            if not self.step(end):
                raise AssertionError(f"not within {limit} s (seed {self.seed})")
        return Seconds(self.now - begun)

    def touch(self, host: Host) -> None:
        """Something was called on the host's node from outside: send what it has, and look at its deadline again."""
        node = host.node
        if node is None or self.now < host.asleep_until:
            return
        for _ in range(MAX_TURNS):
            while (transmit := node.poll_transmit(self.now, self._out)) is not None:
                self._send(host, transmit)
            deadline = node.poll_timeout()
            if deadline is None or deadline > self.now:
                break
            node.handle_timeout(self.now)
        else:
            raise AssertionError(f"{host.name} is busy for ever at {self.now - START:.6f} (seed {self.seed})")
        if deadline is not None and deadline != host.deadline:
            self._at(deadline, lambda: self._timer(host, deadline))
        host.deadline = deadline

    # --- inside -----------------------------------------------------------------------------------------------------------

    def _timer(self, host: Host, deadline: Instant | None = None) -> None:
        if host.node is None or (deadline is not None and host.deadline != deadline):
            return  # a later look moved it
        if self.now < host.asleep_until:
            return  # suspend() has its own event
        host.deadline = None
        host.node.handle_timeout(self.now)
        self.touch(host)

    def _at(self, at: Instant, action: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (at, self._sequence, action))

    def _public(self, realm: Realm) -> str:
        realm.counter += 1
        if realm is self.internet:
            high, low = realm.counter >> 8, realm.counter & 255
            return f"45.{1 + high}.{low}.1" if self.are_apart else f"45.1.{high}.{low}"
        return f"100.64.{realm.number}.{realm.counter & 255}"

    def _box(self, behaviour: Behaviour, host: str, name: str) -> Box:
        def report(reason: str, text: str) -> None:
            self._drop(reason, name, text)

        return Box(behaviour, host, random.Random(self.rng.random()), report)

    def _announce(self, realm: Realm, is_ipv6: bool, address: str) -> None:
        """Route an untranslated address from the internet inwards."""
        while realm is not self.internet:
            gateway = realm.gateways[is_ipv6]
            gateway.outer.attached[address] = gateway
            realm = gateway.outer

    def _edge(self, host: Host) -> Host | Gateway:
        edge: Host | Gateway = host
        realm = host.realm
        while realm is not self.internet:
            edge = realm.gateways.get(False) or realm.gateways[True]
            realm = edge.outer
        return edge

    def _drop(self, reason: str, who: str, text: str) -> None:
        self.drops[reason] += 1
        self._trace.append((self.now, who, f"drop {reason}: {text}"))

    def _send(self, host: Host, transmit: Transmit) -> None:
        source, destination = host.sockets[transmit.socket_id], transmit.remote
        data, size = bytes(transmit.buffer), transmit.segment_size
        segments = [data[at : at + size] for at in range(0, len(data), size)]
        if host.drop_next:
            cut = min(host.drop_next, len(segments))
            host.drop_next -= cut
            self._drop("asked", host.name, f"{cut} to {destination}")
            segments = segments[cut:]
        if self.filter is not None:
            segments = [segment for segment in segments if self.filter(host, destination, segment)]
        if segments:
            ttl = transmit.ttl if transmit.ttl is not None else DEFAULT_TTL
            self._trace.append((self.now, host.name, f"{len(segments)} x {size} to {destination} ttl {ttl}"))
            self._climb(host, source, destination, ttl, segments)

    def _climb(self, host: Host, source: Address, destination: Address, ttl: int, segments: list[bytes]) -> None:
        """From the host outwards until the destination's realm."""
        realm, edge = host.realm, host.name
        while True:
            target = realm.attached.get(destination.host)
            if target is not None:
                self._cross(realm, edge, target, source, destination, ttl - realm.hops, segments)
                return
            gateway = realm.gateways.get(destination.is_ipv6)
            if gateway is None:
                self._drop("unroutable", edge, f"{source} -> {destination}")
                return
            ttl -= 1
            if ttl < 1:
                self._drop("ttl", gateway.name, f"{source} -> {destination}")
                return
            seen = gateway.box.outbound(self.now, source, destination)
            if seen is None:
                return
            if gateway.box.owns(destination):
                if gateway.box.behaviour.hairpins:
                    self._enter(gateway, seen, destination, ttl, segments)
                else:
                    self._drop("hairpin", gateway.name, f"{source} -> {destination}")
                return
            source, realm, edge = seen, gateway.outer, gateway.name

    def _cross(
        self,
        realm: Realm,
        edge: str,
        target: Host | Gateway,
        source: Address,
        destination: Address,
        ttl: int,
        segments: list[bytes],
    ) -> None:
        """Over the realm's link, each segment by itself; those that arrive at one instant arrive as one batch."""
        if ttl < 1:
            self._drop("ttl", realm.name, f"{source} -> {destination}")
            return
        pipe = self._pipe(realm, edge, target.name)
        batches: dict[Instant, list[bytes]] = {}
        for segment in segments:
            arrivals = pipe.send(self.now, len(segment))
            if not arrivals:
                self._drop("link", f"{edge}>{target.name}", f"{source} -> {destination}")
            for at in arrivals:
                batches.setdefault(at, []).append(segment)
        for at, batch in batches.items():
            self._at(at, lambda batch=batch: self._arrive(target, source, destination, ttl, batch))  # type: ignore[misc]

    def _pipe(self, realm: Realm, edge: str, target: str) -> Pipe:
        pipe = self._pipes.get((edge, target))
        if pipe is None:
            link = self._links.get((edge, target), realm.link)
            pipe = self._pipes[edge, target] = Pipe(link, random.Random(self.rng.random()))
        return pipe

    def _arrive(self, target: Host | Gateway, source: Address, destination: Address, ttl: int, batch: list[bytes]) -> None:
        if isinstance(target, Gateway):
            self._enter(target, source, destination, ttl, batch)
        else:
            self._deliver(target, source, destination, batch)

    def _enter(self, gateway: Gateway, source: Address, destination: Address, ttl: int, batch: list[bytes]) -> None:
        """Inwards through a box, and through the next one behind it."""
        inner = gateway.box.inbound(self.now, source, destination)
        if inner is None:
            return
        if ttl <= 1:
            self._drop("ttl", gateway.name, f"{source} -> {destination}")
            return
        target = gateway.inner.attached.get(inner.host)
        if target is None:
            self._drop("unroutable", gateway.name, f"{source} -> {inner}")
        else:
            self._arrive(target, source, inner, ttl - 1, batch)

    def _deliver(self, host: Host, source: Address, destination: Address, batch: list[bytes]) -> None:
        socket_id = host.by_address.get(destination)
        if socket_id is None or host.node is None:
            self._drop("closed port", host.name, f"{source} -> {destination}")
            return
        if self.now < host.asleep_until:
            self._drop("asleep", host.name, f"{source} -> {destination}")
            return
        self._trace.append((self.now, host.name, f"{len(batch)} x {len(batch[0])} from {source}"))
        at = 0
        while at < len(batch):  # a batch is equal segments of which the last may be shorter
            stride, end = len(batch[at]), at + 1
            while end < len(batch) and len(batch[end - 1]) == stride and len(batch[end]) <= stride:
                end += 1
            buffer = memoryview(b"".join(batch[at:end]))
            host.node.handle_datagrams(self.now, socket_id, source, buffer, stride)
            at = end
        self.touch(host)


class InWorld:
    """Whatever is played in a world.  In a `with` block, as the world itself."""

    world: World

    def __enter__(self) -> Self:
        self.world.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.world.__exit__(kind, error, trace)
