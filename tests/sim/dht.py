"""A DHT in virtual time: nodes that know one another by their distance, homes behind NATs, delay, loss, dead nodes and liars.

The nodes are ours to write, so that ten thousand of them fit into a test; tests/netns has real ones.
"""

from __future__ import annotations

import heapq
import ipaddress
import itertools
import random
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tunnel.dht.bencode import Value, decode_value, encode_value
from tunnel.dht.ids import distance
from tunnel.units import Address, Instant

BUCKET = 8  # nodes in an answer
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
        self.order: list[tuple[int, Address]] = []
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self.sent: dict[str, int] = {}  # datagrams to each host

    # --- building

    def add_nodes(self, count: int, *, make_id: Callable[[str], bytes] | None = None) -> list[Node]:
        """Each in a network of its own, with an id that fits its address unless `make_id` says which."""
        from tunnel.dht.ids import bound_id

        fresh = []
        for _ in range(count):
            number = len(self.nodes)
            if self.is_ipv6:
                host = f"3fff:{number:x}::1"
            else:
                host = f"{44 + (number >> 14)}.{number & 0xFF}.{number >> 8 & 0x3F}.1"
            address = Address(host, 6881)
            node_id = bound_id(host, self.rng.randbytes) if make_id is None else make_id(host)
            node = Node(node_id, address)
            self.nodes[address] = node
            fresh.append(node)
        self.order = sorted((int.from_bytes(each.id, "big"), each.address) for each in self.nodes.values())
        return fresh

    def closest(self, target: bytes, count: int = BUCKET) -> list[Node]:
        """Of all nodes.  A node's own table holds fewer; it knows those near itself best."""
        at = bisect_left(self.order, (int.from_bytes(target, "big"), Address("", 0)))
        near = self.order[max(0, at - SHOWN) : at + SHOWN]
        found = sorted((self.nodes[address] for _, address in near), key=lambda each: distance(each.id, target))
        return found[:count]

    def known_to(self, node: Node, target: bytes) -> list[Node]:
        """What `node` tells of the way to `target`: nodes that share eight bits more with it than `node` does."""
        apart = distance(node.id, target)
        shared = min(160 - apart.bit_length() + 8, 159)
        low = int.from_bytes(target, "big") >> (160 - shared) << (160 - shared)
        at = bisect_left(self.order, (low, Address("", 0)))
        end = bisect_left(self.order, (low + (1 << (160 - shared)), Address("", 0)))
        if end - at < BUCKET:
            return self.closest(target)
        chosen = random.Random(int.from_bytes(node.id[:8], "big") ^ shared).sample(range(at, end), BUCKET)
        return [self.nodes[self.order[number][1]] for number in chosen]

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
        reply = self._reply(node, question, source)
        if node.lie is not None:
            lie = node.lie(self, node, question, source)
            reply = reply if lie is None else lie
        if self.rng.random() >= self.loss:
            self.at(self.delay, lambda: answer(node.address, encode_value(reply)))

    def _reply(self, node: Node, question: dict[bytes, Value], source: Address) -> dict[bytes, Value]:
        arguments = question[b"a"]
        assert isinstance(arguments, dict)
        target = arguments.get(b"target")
        assert isinstance(target, bytes)
        found = [each.id + packed(each.address) for each in self.known_to(node, target)]
        answer: dict[bytes, Value] = {b"id": node.id, b"nodes6" if self.is_ipv6 else b"nodes": b"".join(found)}
        reply: dict[bytes, Value] = {b"t": question[b"t"], b"y": b"r", b"r": answer}
        return reply | ({b"ip": packed(source)} if node.echoes else {})


class Client:
    """Something of ours on one socket, behind a NAT: `external` says from which address a datagram to another one leaves."""

    def __init__(self, world: World, part: Any, external: Callable[[Address], Address]) -> None:
        self.world = world
        self.part = part
        self.external = external
        self.sent = 0
        self.received = 0

    def flush(self) -> None:
        while (ready := self.part.poll_transmit()) is not None:
            target, data = ready
            self.sent += 1
            self.world.ask(self.external(target), target, data, self.take)

    def take(self, source: Address, data: bytes) -> None:
        self.received += 1
        self.part.handle_datagram(self.world.now, source, data)


def cone(host: str = "198.18.0.7", port: int = 40_000) -> Callable[[Address], Address]:
    """An endpoint-independent mapping."""
    return lambda _target: Address(host, port)


def sequential(host: str = "198.18.0.8", port: int = 46_000, step: int = 1) -> Callable[[Address], Address]:
    """Another port for each destination, one after the other."""
    ports: dict[Address, int] = {}
    return lambda target: Address(host, ports.setdefault(target, port + step * len(ports)))


def scattered(host: str = "198.18.0.9", seed: int = 5) -> Callable[[Address], Address]:
    """Another port for each destination, by chance."""
    rng, ports = random.Random(seed), {}  # type: random.Random, dict[Address, int]
    return lambda target: Address(host, ports.setdefault(target, rng.randrange(1024, 65_536)))
