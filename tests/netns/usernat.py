"""A NAT of our own with all the knobs of RFC 4787, since nftables has only some: IPv4 packets in and out of one TUN device.

Run as `python -m tests.netns.usernat FD RULES_JSON SEED` in a router whose kernel sends here what comes from its LAN and what
goes to its public addresses, and forwards what comes out.  The kernel counts a hop before and one after, so one is given back:
in all, one is taken off the TTL, and what dies of it dies in the kernel, before there is a mapping.

It takes commands on its standard input, one a line, and answers each with a line of JSON: `mappings`, `drops`, `flush`.
"""

from __future__ import annotations

import ipaddress
import json
import os
import random
import select
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

Scope = Literal["E", "A", "AP"]
"""Endpoint-independent, address-dependent, address-and-port-dependent.  RFC 4787 §4.1, §5."""

FIRST_PORT, LAST_PORT = 1024, 65_535
ICMP, TCP, UDP = 1, 6, 17
ECHO_REPLY, UNREACHABLE, ECHO, TIME_EXCEEDED, PARAMETER_PROBLEM = 0, 3, 8, 11, 12
ICMP_LIFE: Final = 60.0  # RFC 5508 REQ-2
TCP_LIFE: Final = 7440.0  # RFC 5382 REQ-5
SWEEP: Final = 1.0  # seconds between two looks for what has expired
PACKETS_A_TURN: Final = 64

Endpoint = tuple[str, int]


@dataclass(frozen=True)
class Rules:
    """What the NAT does; section numbers are RFC 4787's."""

    inside: str  # the network before it, ADDRESS/LENGTH
    pool: tuple[str, ...]  # its public addresses, of which an inner host always gets the same (§4.1, "paired")
    mapping: Scope = "E"
    filtering: Scope = "AP"
    ports: Literal["preserving", "random", "sequential"] = "random"  # §4.2.1
    step: int = 1  # of sequential ones
    parity: bool = False  # an even port for an even one (§4.2.2)
    paired: bool = True  # False: any address of the pool for any mapping
    hairpin: bool = False  # §6
    life: float = 120.0  # seconds of silence after which a mapping ends (§4.3)
    refreshed_from_outside: bool = False  # §4.3, REQ-6
    quota: int | None = None  # UDP mappings of one inner host; what is over it is thrown away
    rate: int | None = None  # new UDP mappings of one inner host within any second, likewise
    block: int | None = None  # ports in a row that an inner host has to itself (RFC 6431, RFC 7422)
    reuses: bool = False  # one port for UDP mappings towards different remotes, as Linux does


@dataclass
class Mapping:
    """One inner endpoint's place outside, and who may send to it, until when."""

    protocol: int
    inner: Endpoint
    outer: Endpoint
    key: object
    life: float
    expires: float = 0.0
    permitted: dict[object, float] = field(default_factory=dict)


class Nat:
    """Packets in, packets out; the clock and the chance are handed in."""

    def __init__(self, rules: Rules, rng: random.Random, clock: Callable[[], float]) -> None:
        self.rules = rules
        self.drops: dict[str, int] = {}
        self.passed = {"out": 0, "in": 0}
        self._rng = rng
        self._clock = clock
        self._inside = ipaddress.IPv4Network(rules.inside)
        self._first, self._last = int(self._inside.network_address), int(self._inside.broadcast_address)
        self._pool = {ipaddress.IPv4Address(host).packed: host for host in rules.pool}
        self._by_key: dict[object, Mapping] = {}
        self._by_outer: dict[tuple[int, str, int], list[Mapping]] = {}  # more than one where ports are reused
        self._held: dict[str, int] = {}  # UDP mappings by inner host
        self._made: dict[str, deque[float]] = {}  # when, in the last second, by inner host
        self._blocks: dict[str, int] = {}  # the first port of each inner host's own
        self._next_port = rng.randrange(20_000, 40_000)

    # ---------------------------------------------------------------- one packet

    def handle(self, packet: bytearray) -> bytearray | None:
        """The packet as it goes on, or None; `drops` says why."""
        if len(packet) < 20 or packet[0] >> 4 != 4:
            return self._drop("not IPv4")
        header = (packet[0] & 15) * 4
        if int.from_bytes(packet[6:8], "big") & 0x3FFF:
            return self._drop("fragment")
        protocol = packet[9]
        if len(packet) < header + (8 if protocol != TCP else 20):
            return self._drop("too short")
        if packet[8] < 255:
            _adjust(packet, 10, 0x100)
            packet[8] += 1  # the kernel takes one before us and one after us
        if self._first <= int.from_bytes(packet[12:16], "big") <= self._last:
            return self._outwards(packet, header, protocol)
        if bytes(packet[16:20]) in self._pool:
            return self._inwards(packet, header, protocol)
        return self._drop("neither from inside nor to us")

    def _outwards(self, packet: bytearray, header: int, protocol: int) -> bytearray | None:
        if protocol == ICMP and packet[header] in (UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM):
            return self._error(packet, header, outwards=True)
        if protocol == ICMP and packet[header] != ECHO:
            return self._drop("ICMP of another kind")
        if protocol not in (ICMP, TCP, UDP):
            return self._drop("another protocol")
        source, destination = _endpoints(packet, header, protocol)
        mapping = self._map(protocol, source, destination)
        if mapping is None:
            return None
        is_hairpin = bytes(packet[16:20]) in self._pool
        if is_hairpin and not self.rules.hairpin:
            return self._drop("hairpin")
        now = self._clock()
        mapping.expires = mapping.permitted[self._remote(protocol, destination)] = now + mapping.life
        _rewrite(packet, header, protocol, source=mapping.outer)
        self.passed["out"] += 1
        return self._inwards(packet, header, protocol) if is_hairpin else packet

    def _inwards(self, packet: bytearray, header: int, protocol: int) -> bytearray | None:
        if protocol == ICMP and packet[header] in (UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM):
            return self._error(packet, header, outwards=False)
        if protocol not in (ICMP, TCP, UDP) or (protocol == ICMP and packet[header] != ECHO_REPLY):
            return self._drop("unasked")
        source, destination = _endpoints(packet, header, protocol)
        now = self._clock()
        remote = self._remote(protocol, source)
        mapping = self._find(protocol, destination, remote)
        if mapping is None:
            return self._drop("no mapping")
        if mapping.permitted.get(remote, 0.0) <= now and (protocol != UDP or self.rules.filtering != "E"):
            return self._drop("filtered")
        if self.rules.refreshed_from_outside or protocol != UDP:
            mapping.expires = mapping.permitted[remote] = now + mapping.life
        _rewrite(packet, header, protocol, destination=mapping.inner)
        self.passed["in"] += 1
        return packet

    def _error(self, packet: bytearray, header: int, *, outwards: bool) -> bytearray | None:
        """An ICMP error goes where the packet it is about came from.  RFC 5508 §4."""
        inner = bytearray(packet[header + 8 :])
        if len(inner) < 28 or inner[0] >> 4 != 4:
            return self._drop("ICMP about too little")
        length, protocol = (inner[0] & 15) * 4, inner[9]
        if protocol not in (ICMP, TCP, UDP) or len(inner) < length + 8:
            return self._drop("ICMP about another protocol")
        source, destination = _endpoints(inner, length, protocol)
        if outwards:  # about a packet that came in, so it names our host as its destination
            mapping = self._by_key.get(self._key(protocol, destination, source))
            if mapping is None:
                return self._drop("ICMP about no mapping")
            _rewrite(inner, length, protocol, destination=mapping.outer, partial=True)
            _rewrite(packet, header, 0, source=mapping.outer)
        else:
            mapping = self._find(protocol, source, self._remote(protocol, destination))
            if mapping is None:
                return self._drop("ICMP about no mapping")
            _rewrite(inner, length, protocol, source=mapping.inner, partial=True)
            _rewrite(packet, header, 0, destination=mapping.inner)
        packet[header + 8 :] = inner
        packet[header + 2 : header + 4] = b"\0\0"
        struct.pack_into(">H", packet, header + 2, checksum(packet[header:]))
        return packet

    def _drop(self, reason: str) -> None:
        self.drops[reason] = self.drops.get(reason, 0) + 1

    # ---------------------------------------------------------------- mappings

    def _key(self, protocol: int, source: Endpoint, destination: Endpoint) -> object:
        scope = self.rules.mapping if protocol == UDP else "E"
        return (protocol, source, _scoped(scope, destination))

    def _remote(self, protocol: int, remote: Endpoint) -> object:
        return _scoped(self.rules.filtering if protocol == UDP else "A" if protocol == ICMP else "AP", remote)

    def _find(self, protocol: int, outer: Endpoint, remote: object) -> Mapping | None:
        """The mapping there through which the remote may send, or else any."""
        now, found = self._clock(), None
        for mapping in list(self._by_outer.get((protocol, *outer), ())):
            if mapping.expires <= now:
                self._forget(mapping)
            elif found is None or mapping.permitted.get(remote, 0.0) > now:
                found = mapping
        return found

    def _map(self, protocol: int, source: Endpoint, destination: Endpoint) -> Mapping | None:
        key = self._key(protocol, source, destination)
        mapping = self._by_key.get(key)
        if mapping is not None:
            if mapping.expires > self._clock():
                return mapping
            self._forget(mapping)
        quota = self.rules.quota
        if protocol == UDP and quota is not None and self._held.get(source[0], 0) >= quota:
            self.sweep()
            if self._held.get(source[0], 0) >= quota:
                return self._drop("quota")
        if protocol == UDP and self.rules.rate is not None and self._is_too_fast(source[0], self.rules.rate):
            return self._drop("rate")
        outer = self._choose(protocol, source, self._remote(protocol, destination))
        if outer is None:
            return self._drop("no port left")
        life = self.rules.life if protocol == UDP else TCP_LIFE if protocol == TCP else ICMP_LIFE
        mapping = Mapping(protocol, source, outer, key, life)
        self._by_key[key] = mapping
        self._by_outer.setdefault((protocol, *outer), []).append(mapping)
        if protocol == UDP:
            self._held[source[0]] = self._held.get(source[0], 0) + 1
        return mapping

    def _forget(self, mapping: Mapping) -> None:
        del self._by_key[mapping.key]
        place = (mapping.protocol, *mapping.outer)
        self._by_outer[place].remove(mapping)
        if not self._by_outer[place]:
            del self._by_outer[place]
        if mapping.protocol == UDP:
            self._held[mapping.inner[0]] -= 1

    def sweep(self) -> None:
        now = self._clock()
        for mapping in [mapping for mapping in self._by_key.values() if mapping.expires <= now]:
            self._forget(mapping)

    def flush(self) -> None:
        """The router restarts: all is forgotten, but not where in its range of ports it was."""
        self._by_key.clear()
        self._by_outer.clear()
        self._held.clear()

    def mappings(self) -> list[Mapping]:
        self.sweep()
        return list(self._by_key.values())

    def _is_too_fast(self, host: str, rate: int) -> bool:
        now, made = self._clock(), self._made.setdefault(host, deque())
        while made and made[0] <= now - 1.0:
            made.popleft()
        if len(made) >= rate:
            return True
        made.append(now)
        return False

    def _block_of(self, host: str, size: int) -> int:
        """The first port of an inner host's own block."""
        while host not in self._blocks:
            first = FIRST_PORT + size * self._rng.randrange((LAST_PORT + 1 - FIRST_PORT) // size)
            if first not in self._blocks.values():
                self._blocks[host] = first
        return self._blocks[host]

    def _choose(self, protocol: int, source: Endpoint, remote: object) -> Endpoint | None:
        rules = self.rules
        if rules.paired:
            host = rules.pool[int(ipaddress.IPv4Address(source[0])) % len(rules.pool)]
        else:
            host = self._rng.choice(rules.pool)
        kind = rules.ports if protocol == UDP else "preserving"
        first, last = FIRST_PORT, LAST_PORT
        if rules.block is not None and protocol != ICMP:
            first = self._block_of(source[0], rules.block)
            last = first + rules.block - 1
        if kind == "preserving" and first <= source[1] <= last and self._is_free(protocol, host, source[1], remote):
            return host, source[1]
        for _ in range(4 * (last - first)):
            if kind == "sequential":
                port = self._next_port if first <= self._next_port <= last else first
                self._next_port = first + (port + rules.step - first) % (last + 1 - first)
            else:
                port = self._rng.randrange(first, last + 1)
            if rules.parity and (port ^ source[1]) & 1:
                continue
            if self._is_free(protocol, host, port, remote):
                return host, port
        return None

    def _is_free(self, protocol: int, host: str, port: int, remote: object) -> bool:
        mapping = self._find(protocol, (host, port), remote)
        return mapping is None or (protocol == UDP and self.rules.reuses and remote not in mapping.permitted)


def _scoped(scope: Scope, remote: Endpoint) -> object:
    return None if scope == "E" else remote[0] if scope == "A" else remote


# -------------------------------------------------------------------- bytes


def checksum(data: bytes | bytearray) -> int:
    """RFC 1071."""
    if len(data) & 1:
        data = bytes(data) + b"\0"
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _host(packed: bytes | bytearray) -> str:
    return f"{packed[0]}.{packed[1]}.{packed[2]}.{packed[3]}"


def _endpoints(packet: bytearray, header: int, protocol: int) -> tuple[Endpoint, Endpoint]:
    """Source and destination; of an ICMP echo the identifier stands for both ports."""
    if protocol == ICMP:
        port = int.from_bytes(packet[header + 4 : header + 6], "big")
        return (_host(packet[12:16]), port), (_host(packet[16:20]), port)
    source, destination = struct.unpack_from(">HH", packet, header)
    return (_host(packet[12:16]), source), (_host(packet[16:20]), destination)


def _adjust(packet: bytearray, at: int, change: int) -> None:
    """A checksum after the words it covers grew by `change` together.  RFC 1624."""
    total = (~int.from_bytes(packet[at : at + 2], "big") & 0xFFFF) + change
    struct.pack_into(">H", packet, at, ~(total % 0xFFFF) & 0xFFFF)


def _words(data: bytes | bytearray) -> int:
    return int.from_bytes(data[:2], "big") + int.from_bytes(data[2:4], "big")


def _rewrite(
    packet: bytearray,
    header: int,
    protocol: int,
    *,
    source: Endpoint | None = None,
    destination: Endpoint | None = None,
    partial: bool = False,
) -> None:
    """Another source or destination, with all checksums.  `protocol` 0 leaves the ports alone; `partial`: no more than 8 bytes
    of the payload may be there, as within an ICMP error."""
    endpoint = source if source is not None else destination
    assert endpoint is not None
    at, port_at = (12, header) if source is not None else (16, header + 2)
    fresh = ipaddress.IPv4Address(endpoint[0]).packed
    moved = _words(fresh) - _words(packet[at : at + 4])
    packet[at : at + 4] = fresh
    _adjust(packet, 10, moved)
    if not protocol:
        return
    if protocol == ICMP:
        port_at = header + 4
    renumbered = endpoint[1] - int.from_bytes(packet[port_at : port_at + 2], "big")
    struct.pack_into(">H", packet, port_at, endpoint[1])
    check_at = header + {ICMP: 2, TCP: 16, UDP: 6}[protocol]
    if len(packet) < check_at + 2 or (protocol == UDP and packet[check_at : check_at + 2] == b"\0\0"):
        return  # cut off, or the sender made none
    if protocol == ICMP and partial:
        return  # it covers what may not be here, and nobody looks at it
    _adjust(packet, check_at, renumbered + (moved if protocol != ICMP else 0))


# -------------------------------------------------------------------- the process


def answer(nat: Nat, command: str) -> object:
    match command:
        case "mappings":
            return [[mapping.protocol, mapping.inner, mapping.outer] for mapping in nat.mappings()]
        case "drops":
            return nat.drops
        case "passed":
            return nat.passed
        case "flush":
            nat.flush()
            return True
    return None


def main() -> None:
    fd, options, seed = int(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
    options["pool"] = tuple(options["pool"])
    nat = Nat(Rules(**options), random.Random(seed), time.monotonic)
    commands = sys.stdin.fileno()  # read without a buffer
    sources = [fd, commands]
    swept_at = time.monotonic()
    asked = b""
    while True:
        readable, _, _ = select.select(sources, [], [], SWEEP)
        if fd in readable:
            for _ in range(PACKETS_A_TURN):
                try:
                    packet = nat.handle(bytearray(os.read(fd, 65_536)))
                except BlockingIOError:
                    break
                if packet is not None:
                    try:
                        os.write(fd, packet)
                    except OSError:  # the device is down: lost, as on any router
                        continue
        if commands in readable:
            data = os.read(commands, 4096)
            if not data:
                return  # whoever started us is gone
            asked += data
            while b"\n" in asked:
                command, _, asked = asked.partition(b"\n")
                print(json.dumps(answer(nat, command.decode())), flush=True)
        now = time.monotonic()
        if now - swept_at >= SWEEP:
            swept_at = now
            nat.sweep()


if __name__ == "__main__":
    main()
