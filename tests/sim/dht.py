"""A DHT in virtual time: nodes that know one another by their distance, homes behind NATs, delay, loss, dead nodes and liars.

The nodes are ours to write, so that ten thousand of them fit into a test; tests/netns has real ones.
"""

from __future__ import annotations

import hashlib
import heapq
import ipaddress
import itertools
import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunnel.dht.bencode import Value, decode_value, encode_value
from tunnel.dht.ids import bound_id, distance, is_bound
from tunnel.dht.route import DhtRoute
from tunnel.dht.stretch import Stretch, secret_of
from tunnel.rendezvous.events import Told
from tunnel.rendezvous.messages import Introduced
from tunnel.units import Address, Instant, SocketId

BUCKET = 8  # nodes in an answer
EPOCH = 1_800_000_000.0 + 1_800.0  # the calendar at the beginning: the middle of an hour
SHOWN = 64  # of the nearest by position, among which an answer is chosen


def packed(address: Address) -> bytes:
    return ipaddress.ip_address(address.host).packed + address.port.to_bytes(2, "big")


@dataclass
class Node:
    """One node of the DHT, as libtorrent's is."""

    id: bytes
    address: Address
    is_dead: bool = False
    echoes: bool = True
    lie: Callable[[World, Node, dict[bytes, Value], Address], dict[bytes, Value] | None] | None = None
    asked: int = 0
    fits: bool = False  # its id fits its address
    peers: dict[bytes, dict[bytes, None]] = field(default_factory=dict)  # by infohash, in compact form
    drops_announcements: bool = False  # as one whose tables are full: it says yes all the same


@dataclass
class World:
    """Everything, in the order of time."""

    seed: int = 1
    delay: float = 0.01  # seconds one way
    loss: float = 0.0
    is_ipv6: bool = False
    nodes: dict[Address, Node] = field(default_factory=dict)
    now: Instant = field(default_factory=lambda: Instant(0.0))

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.orders: dict[bool, list[tuple[int, Address]]] = {False: [], True: []}  # by family: IPv6 is a DHT of its own
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self.sent: dict[str, int] = {}  # datagrams to each host
        self.homes: list[Client] = []

    # --- building

    def add_nodes(self, count: int, *, make_id: Callable[[str], bytes] | None = None, is_ipv6: bool | None = None) -> list[Node]:
        """Each in a network of its own, with an id that fits its address unless `make_id` says which."""
        fresh = []
        for _ in range(count):
            number = len(self.nodes)
            if self.is_ipv6 if is_ipv6 is None else is_ipv6:
                host = f"3fff:{number:x}::1"
            else:
                host = f"{44 + (number >> 14)}.{number & 0xFF}.{number >> 8 & 0x3F}.1"
            address = Address(host, 6881)
            node_id = bound_id(host, self.rng.randbytes) if make_id is None else make_id(host)
            node = Node(node_id, address, fits=is_bound(node_id, host))
            self.nodes[address] = node
            fresh.append(node)
        self._sort()
        return fresh

    def add_node(self, address: Address) -> Node:
        node = self.nodes[address] = Node(self.rng.randbytes(20), address, fits=True)
        self._sort()
        return node

    def _sort(self) -> None:
        for is_ipv6 in self.orders:
            of_family = [each for each in self.nodes.values() if each.address.is_ipv6 == is_ipv6]
            self.orders[is_ipv6] = sorted((int.from_bytes(each.id, "big"), each.address) for each in of_family)

    def closest(self, target: bytes, count: int = BUCKET, *, is_ipv6: bool | None = None) -> list[Node]:
        """Of all nodes.  A node's own table holds fewer; it knows those near itself best."""
        order = self.orders[self.is_ipv6 if is_ipv6 is None else is_ipv6]
        at = bisect_left(order, (int.from_bytes(target, "big"), Address("", 0)))
        near = order[max(0, at - SHOWN) : at + SHOWN]
        found = sorted((self.nodes[address] for _, address in near), key=lambda each: distance(each.id, target))
        return found[:count]

    def known_to(self, node: Node, target: bytes) -> list[Node]:
        """What `node` tells of the way to `target`: nodes that share eight bits more with it than `node` does."""
        apart = distance(node.id, target)
        shared = min(160 - apart.bit_length() + 8, 159)
        low = int.from_bytes(target, "big") >> (160 - shared) << (160 - shared)
        order = self.orders[node.address.is_ipv6]
        at = bisect_left(order, (low, Address("", 0)))
        end = bisect_left(order, (low + (1 << (160 - shared)), Address("", 0)))
        chance = random.Random(int.from_bytes(node.id[:8], "big") ^ shared)
        chosen = [self.nodes[order[number][1]] for number in chance.sample(range(at, end), min(end - at, SHOWN))]
        fitting = [each for each in chosen if each.fits]
        if len(fitting) >= BUCKET:
            return fitting[:BUCKET]
        # Those whose ids fit their addresses are preferred, as in libtorrent's own tables.
        near = self.closest(target, 2 * SHOWN, is_ipv6=node.address.is_ipv6)
        return sorted(near, key=lambda each: not each.fits)[:BUCKET]

    # --- time

    def at(self, delay: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay, next(self._count), action))

    def run(self, until: Callable[[], bool], seconds: float, *clients: Client) -> bool:
        """Step by step until the condition holds; False when the time is over."""
        end = self.now + seconds
        while not until():
            for each in clients:
                each.flush()
            deadlines = [self._queue[0][0]] if self._queue else []
            deadlines += [at for each in clients if (at := each.part.poll_timeout()) is not None]
            if not deadlines or min(deadlines) > end:
                self.now = Instant(end)
                return until()
            self.now = Instant(max(self.now, min(deadlines)))
            while self._queue and self._queue[0][0] <= self.now:
                heapq.heappop(self._queue)[2]()
            for each in clients:
                deadline = each.part.poll_timeout()
                if deadline is not None and deadline <= self.now:
                    each.part.handle_timeout(self.now)
        return True

    # --- nodes

    def ask(self, source: Address, target: Address, data: bytes, answer: Callable[[Address, bytes], None]) -> None:
        """A datagram from `source`; what comes of it goes to `answer`, with the address that it is from."""
        self.sent[target.host] = self.sent.get(target.host, 0) + 1
        node = self.nodes.get(target)
        if node is None or node.is_dead or self.rng.random() < self.loss:
            return
        self.at(self.delay, lambda: self._serve(node, source, data, answer))

    def _serve(self, node: Node, source: Address, data: bytes, answer: Callable[[Address, bytes], None]) -> None:
        question = decode_value(data)
        assert isinstance(question, dict)
        node.asked += 1
        reply = self.reply(node, question, source)
        if node.lie is not None:
            lie = node.lie(self, node, question, source)
            reply = reply if lie is None else lie
        if self.rng.random() >= self.loss:
            self.at(self.delay, lambda: answer(node.address, encode_value(reply)))

    def reply(self, node: Node, question: dict[bytes, Value], source: Address) -> dict[bytes, Value]:
        arguments = question[b"a"]
        assert isinstance(arguments, dict)
        target = arguments.get(b"target", arguments.get(b"info_hash"))
        assert isinstance(target, bytes)
        answer: dict[bytes, Value] = {b"id": node.id}
        reply: dict[bytes, Value] = {b"t": question[b"t"], b"y": b"r", b"r": answer}
        token = hashlib.sha256(node.id + source.host.encode() + target).digest()[:4]  # not of the port, as libtorrent's
        if question[b"q"] == b"announce_peer":
            if arguments[b"token"] != token:
                return {b"t": question[b"t"], b"y": b"e", b"e": [203, b"invalid token"]}
            port = arguments[b"port"]
            assert isinstance(port, int)
            peer = packed(source if arguments[b"implied_port"] else Address(source.host, port))
            if not node.drops_announcements:
                node.peers.setdefault(target, {})[peer] = None
        elif arguments.get(b"want") != []:
            found = [each.id + packed(each.address) for each in self.known_to(node, target)]
            answer[b"nodes6" if node.address.is_ipv6 else b"nodes"] = b"".join(found)
        if question[b"q"] == b"get_peers":
            answer[b"token"] = token
            known = list(node.peers.get(target, ()))
            if known:
                answer[b"values"] = list(self.rng.sample(known, min(len(known), 100)))
        return reply | ({b"ip": packed(source)} if node.echoes else {})


class Client:
    """Something of ours on one socket, behind a NAT: `external` says from which address a datagram to another one leaves.

    The NAT lets in what comes from an address that was sent to (address-and-port-dependent filtering), unless it is `is_open`.
    """

    def __init__(self, world: World, part: Any, external: Callable[[Address], Address], *, is_open: bool = False) -> None:
        self.world = world
        self.part = part
        self.external = external
        self.is_open = is_open
        self.mappings: dict[Address, set[Address]] = {}  # our external addresses, and to whom each was used
        self.sent = 0
        self.received = 0
        self.bytes = 0
        world.homes.append(self)

    def flush(self) -> None:
        while (ready := self.poll()) is not None:
            target, data = ready
            self.sent += 1
            self.bytes += len(data) + 28
            source = self.external(target)
            self.mappings.setdefault(source, set()).add(target)
            home = next((each for each in self.world.homes if target in each.mappings), None)
            if home is None:
                self.world.ask(source, target, data, self.take)
            elif self.world.rng.random() >= self.world.loss:
                self.world.at(2 * self.world.delay, lambda home=home, s=source, t=target, d=data: home.let_in(s, t, d))  # type: ignore[misc]

    def poll(self) -> tuple[Address, bytes] | None:
        found: tuple[Address, bytes] | None = self.part.poll_transmit()
        return found

    def let_in(self, source: Address, target: Address, data: bytes) -> None:
        if self.is_open or source in self.mappings[target]:
            self.take(source, data)

    def take(self, source: Address, data: bytes) -> None:
        self.received += 1
        self.bytes += len(data) + 28
        self.hand_in(source, data)

    def hand_in(self, source: Address, data: bytes) -> None:
        self.part.handle_datagram(self.world.now, source, data)


class Home(Client):
    """A whole route, with what it has told so far; slow hashes are quick ones here.

    On socket 0, or with `families` on one for each of these (is it IPv6?).
    """

    def __init__(
        self,
        world: World,
        external: Callable[[Address], Address],
        *,
        seed: int,
        entries: int = 3,
        is_open: bool = False,
        saved: Sequence[Address] = (),
        families: Sequence[bool] | None = None,
    ) -> None:
        families = (world.is_ipv6,) if families is None else families
        self.sockets = {SocketId(number): is_ipv6 for number, is_ipv6 in enumerate(families)}
        of_families = ([each for each in world.nodes if each.is_ipv6 == is_ipv6] for is_ipv6 in families)
        entry = [each for family in of_families for each in family[:entries]]
        part = DhtRoute(
            sockets=self.sockets, entry=entry, saved=saved, now=world.now, entropy=random.Random(seed).randbytes,
            unix_time=lambda: world.now + EPOCH,
            order=self._stretch,
        )  # fmt: skip
        super().__init__(world, part, external, is_open=is_open)
        self.events: list[Any] = []

    def poll(self) -> tuple[Address, bytes] | None:
        while (event := self.part.poll_event()) is not None:
            self.events.append(event)
        ready = self.part.poll_transmit(self.world.now)
        return None if ready is None else ready[1:]

    def _stretch(self, order: Stretch) -> None:
        self.world.at(0.5, lambda: self.part.stretched(self.world.now, order, secret_of(order._replace(cost=2))))

    def hand_in(self, source: Address, data: bytes) -> None:
        socket_id = next(each for each, is_ipv6 in self.sockets.items() if is_ipv6 == source.is_ipv6)
        self.part.handle_datagram(self.world.now, socket_id, source, data)

    def heard(self, kind: type[Any]) -> list[Any]:
        """The messages of that kind that the route has told."""
        self.flush()
        return [each.message for each in self.events if isinstance(each, Told) and isinstance(each.message, kind)]

    def paths(self) -> list[Address]:
        """Where each peer is whom the route has led us to."""
        return [each.channel.path_key.remote for each in self.told(Introduced) if each.channel is not None]

    def told(self, kind: type[Any]) -> list[Told]:
        self.flush()
        return [each for each in self.events if isinstance(each, Told) and isinstance(each.message, kind)]


def cone(host: str = "198.18.0.7", port: int = 40_000) -> Callable[[Address], Address]:
    """An endpoint-independent mapping."""
    return lambda _target: Address(host, port)


def dual(ipv4: Callable[[Address], Address], host: str, port: int = 45_000) -> Callable[[Address], Address]:
    """An IPv4 NAT, and beside it an IPv6 address that nothing translates."""
    return lambda target: Address(host, port) if target.is_ipv6 else ipv4(target)


def sequential(host: str = "198.18.0.8", port: int = 46_000, step: int = 1) -> Callable[[Address], Address]:
    """Another port for each destination, one after the other."""
    ports: dict[Address, int] = {}
    return lambda target: Address(host, ports.setdefault(target, port + step * len(ports)))


def scattered(host: str = "198.18.0.9", seed: int = 5) -> Callable[[Address], Address]:
    """Another port for each destination, by chance."""
    rng, ports = random.Random(seed), {}  # type: random.Random, dict[Address, int]
    return lambda target: Address(host, ports.setdefault(target, rng.randrange(1024, 65_536)))
