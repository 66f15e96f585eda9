"""Simulated middleboxes: Mapping x Filtering x Expiry as RFC 4787 names them, Linux's conntrack race, stateful firewalls.

A box stands between an inner and an outer realm (world.py).  It sees addresses and times, never payloads.
"""

from __future__ import annotations

import random
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from tunnel.nat.behaviour import Filtering, Mapping
from tunnel.units import Address, Instant, Seconds

EI, AD, APD = Mapping.ENDPOINT_INDEPENDENT, Mapping.ADDRESS_DEPENDENT, Mapping.ADDRESS_AND_PORT_DEPENDENT
FILTER_EI, FILTER_AD, FILTER_APD = (
    Filtering.ENDPOINT_INDEPENDENT,
    Filtering.ADDRESS_DEPENDENT,
    Filtering.ADDRESS_AND_PORT_DEPENDENT,
)


LINUX_UNREPLIED: Final = Seconds(30.0)
LINUX_REPLIED: Final = Seconds(120.0)


class Ports(Enum):
    """How an external port is chosen."""

    PRESERVING = auto()
    RANDOM = auto()
    SEQUENTIAL = auto()


@dataclass(frozen=True, slots=True)
class Expiry:
    """Linux: 30 s, and 120 s once replied (nf_conntrack_udp_timeout and _stream)."""

    unreplied: Seconds = LINUX_UNREPLIED
    replied: Seconds = LINUX_REPLIED


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """All knobs of one box.  `translates` False makes it a stateful firewall."""

    mapping: Mapping = EI
    filtering: Filtering = FILTER_APD
    ports: Ports = Ports.PRESERVING
    races: bool = False  # an unsolicited datagram makes a conntrack entry, which takes the port away from our own host
    expiry: Expiry = Expiry()
    hairpins: bool = False
    quota: int | None = None  # mappings per inner host
    rate: int | None = None  # new mappings per inner host within any second
    block: int | None = None  # ports in a row that an inner host has to itself (RFC 6431, RFC 7422)
    reuses: bool = False  # one outer port for mappings towards different remotes, as Linux does
    addresses: int = 1  # outer ones
    paired: bool = True  # an inner host always gets the same of them (RFC 4787 §4.1); else each mapping gets any
    translates: bool = True


REFUSALS: Final = ("quota", "rate", "no port")
"""Drops that mean a mapping which was not made."""


@dataclass(slots=True)
class _Permission:
    """A remote that may send in, and until when."""

    expires_at: float
    replied: bool = False


@dataclass(slots=True)
class _Entry:
    """One mapping.  It lives as long as any of its permissions."""

    inner: Address
    outer: Address
    permitted: dict[object, _Permission] = field(default_factory=dict)

    def is_alive(self, now: float) -> bool:
        return any(permission.expires_at > now for permission in self.permitted.values())


class Box:
    """One NAT or stateful firewall for one address family."""

    def __init__(self, behaviour: Behaviour, host: str, rng: random.Random, report: Callable[[str, str], None]) -> None:
        """`host` is the outer address (unused by a firewall); `report(reason, text)` is told of every drop."""
        self.behaviour = behaviour
        self.host = host
        self.more_hosts: tuple[str, ...] = ()  # outer addresses beside it
        self._rng = rng
        self._report = report
        self._entries: dict[object, _Entry] = {}  # by mapping key
        self._by_outer: dict[Address, list[_Entry]] = {}  # more than one only after the race
        self._stolen: dict[tuple[int, Address], float] = {}  # (our port, remote) that conntrack gave to the router itself
        self._held: dict[str, int] = {}  # entries by inner host
        self._made: dict[str, deque[float]] = {}  # when, in the last second, by inner host
        self._blocks: dict[str, int] = {}  # the first port of each inner host's own
        self._purge_at = 0.0
        self._next_port = rng.randrange(20_000, 40_000)
        self.drops: dict[str, int] = {}
        self.made = 0  # mappings, in all

    # --- verbs ------------------------------------------------------------------------------------------------------------

    def outbound(self, now: Instant, source: Address, destination: Address) -> Address | None:
        """The source that the outside sees, or None when it is dropped."""
        behaviour = self.behaviour
        key = self._key(source, destination)
        entry = self._entries.get(key)
        if entry is not None and not entry.is_alive(now):
            self._forget(key, entry)
            entry = None
        if behaviour.races:
            flow_key = (source, destination)
            flow = self._entries.get(flow_key)
            if flow is not None and flow.is_alive(now):
                key, entry = flow_key, flow
            else:
                wanted = entry.outer.port if entry is not None else source.port
                if self._stolen.get((wanted, destination), 0.0) > now and (
                    entry is None or destination not in entry.permitted or entry.permitted[destination].expires_at <= now
                ):
                    if flow is not None:
                        self._forget(flow_key, flow)
                    outer = self._choose(now, source, destination, avoid=wanted)
                    key, entry = flow_key, None if outer is None else self._create(flow_key, source, outer)
        if entry is None:
            if behaviour.quota is not None and self._is_full(now, source.host, behaviour.quota):
                self._drop("quota", f"{source} -> {destination}")
                return None
            if behaviour.rate is not None and self._is_too_fast(now, source.host, behaviour.rate):
                self._drop("rate", f"{source} -> {destination}")
                return None
            outer = self._choose(now, source, destination)
            if outer is None:
                self._drop("no port", f"{source} -> {destination}")
                return None
            entry = self._create(key, source, outer)
        permission = entry.permitted.setdefault(self._filter_key(destination), _Permission(0.0))
        if permission.expires_at <= now:
            permission.replied = False
        permission.expires_at = now + (behaviour.expiry.replied if permission.replied else behaviour.expiry.unreplied)
        return entry.outer

    def inbound(self, now: Instant, source: Address, destination: Address) -> Address | None:
        """The inner address that gets it, or None when it is dropped."""
        filtered = False
        for entry in self._by_outer.get(destination, ()):
            if not entry.is_alive(now):
                continue
            permission = entry.permitted.get(self._filter_key(source))
            if permission is not None and permission.expires_at > now:
                permission.replied = True
                permission.expires_at = now + self.behaviour.expiry.replied
                return entry.inner
            if self.behaviour.filtering is FILTER_EI:
                return entry.inner
            filtered = True
        if self.behaviour.races:
            self._stolen[destination.port, source] = now + self.behaviour.expiry.unreplied
        self._drop("filtered" if filtered else "unmapped", f"{source} -> {destination}")
        return None

    def owns(self, address: Address) -> bool:
        """Is this the box's own outer address?"""
        return self.behaviour.translates and (address.host == self.host or address.host in self.more_hosts)

    def flush(self) -> None:
        """Lose every mapping, as after a restart of the router."""
        self._entries.clear()
        self._held.clear()
        self._by_outer.clear()
        self._stolen.clear()

    # --- inside -----------------------------------------------------------------------------------------------------------

    def _drop(self, reason: str, text: str) -> None:
        self.drops[reason] = self.drops.get(reason, 0) + 1
        self._report(reason, text)

    def _key(self, source: Address, destination: Address) -> object:
        match self.behaviour.mapping:
            case Mapping.ADDRESS_DEPENDENT:
                return (source, destination.host)
            case Mapping.ADDRESS_AND_PORT_DEPENDENT:
                return (source, destination)
            case _:
                return source

    def _filter_key(self, remote: Address) -> object:
        match self.behaviour.filtering:
            case Filtering.ADDRESS_AND_PORT_DEPENDENT:
                return remote
            case Filtering.ADDRESS_DEPENDENT:
                return remote.host
            case _:
                return None

    def _is_full(self, now: float, host: str, quota: int) -> bool:
        if self._held.get(host, 0) >= quota and now >= self._purge_at:
            self._purge_at = now + 0.5
            for key, entry in [(key, entry) for key, entry in self._entries.items() if not entry.is_alive(now)]:
                self._forget(key, entry)
        return self._held.get(host, 0) >= quota

    def _forget(self, key: object, entry: _Entry) -> None:
        del self._entries[key]
        self._by_outer[entry.outer].remove(entry)
        self._held[entry.inner.host] -= 1

    def _is_too_fast(self, now: float, host: str, rate: int) -> bool:
        made = self._made.setdefault(host, deque())
        while made and made[0] <= now - 1.0:
            made.popleft()
        if len(made) >= rate:
            return True
        made.append(now)
        return False

    def _create(self, key: object, source: Address, outer: Address) -> _Entry:
        self.made += 1
        entry = _Entry(source, outer)
        self._entries[key] = entry
        self._held[source.host] = self._held.get(source.host, 0) + 1
        self._by_outer.setdefault(outer, []).append(entry)
        return entry

    def _choose(self, now: float, source: Address, destination: Address, avoid: int | None = None) -> Address | None:
        """The outer address of a new mapping; None: no port is left."""
        behaviour = self.behaviour
        if not behaviour.translates:
            return source
        hosts = (self.host, *self.more_hosts)
        host = hosts[zlib.crc32(source.host.encode()) % len(hosts)] if behaviour.paired else self._rng.choice(hosts)
        first, last = 1024, 65_535
        if behaviour.block is not None:
            first = self._block_of(source.host, behaviour.block)
            last = first + behaviour.block - 1
        if behaviour.ports is Ports.SEQUENTIAL:
            for _ in range(last + 1 - first):
                self._next_port = self._next_port + 1 if first <= self._next_port < last else first
                if not self._is_taken(now, Address(host, self._next_port), destination):
                    return Address(host, self._next_port)
            return None
        port = source.port if behaviour.ports is Ports.PRESERVING else self._rng.randrange(first, last + 1)
        for _ in range(20):
            if port != avoid and first <= port <= last and not self._is_taken(now, Address(host, port), destination):
                return Address(host, port)
            port = self._rng.randrange(first, last + 1)
        free = [at for at in range(first, last + 1) if not self._is_taken(now, Address(host, at), destination)]
        return Address(host, self._rng.choice(free)) if free else None

    def _block_of(self, host: str, size: int) -> int:
        """The first port of an inner host's own block."""
        while host not in self._blocks:
            first = 1024 + size * self._rng.randrange((65_536 - 1024) // size)
            if first not in self._blocks.values():
                self._blocks[host] = first
        return self._blocks[host]

    def _is_taken(self, now: float, outer: Address, destination: Address) -> bool:
        entries = self._by_outer.get(outer)
        if not entries:
            return False
        if self.behaviour.block is None and not self.behaviour.reuses:
            return True
        remote = self._filter_key(destination)
        return any(entry.is_alive(now) and (not self.behaviour.reuses or remote in entry.permitted) for entry in entries)


#: The kinds of site by name; a double NAT is listed from the home outwards, an empty list is a public address.
HOME = Behaviour()
SYMMETRIC = Behaviour(mapping=APD, ports=Ports.RANDOM)
SITES: dict[str, tuple[Behaviour, ...]] = {
    "open": (),
    "fw": (Behaviour(translates=False),),
    "full": (Behaviour(filtering=FILTER_EI, ports=Ports.RANDOM),),
    "restricted": (Behaviour(filtering=FILTER_AD, ports=Ports.RANDOM),),
    "prc": (HOME,),
    "prcrace": (Behaviour(races=True),),
    "uprc": (Behaviour(ports=Ports.RANDOM),),
    "sym": (SYMMETRIC,),
    "symseq": (Behaviour(mapping=APD, ports=Ports.SEQUENTIAL),),
    "symad": (Behaviour(mapping=AD, filtering=FILTER_AD, ports=Ports.RANDOM),),
    "cgn": (HOME, Behaviour(ports=Ports.RANDOM, quota=128)),
    "cgnsym": (HOME, Behaviour(mapping=APD, ports=Ports.RANDOM, quota=128)),
    "quota": (HOME, Behaviour(mapping=APD, ports=Ports.RANDOM, quota=64)),
    "sympres": (Behaviour(mapping=APD),),
    "short": (Behaviour(expiry=Expiry(Seconds(8.0), Seconds(12.0))),),
}
#: An IPv6 site is open or behind this.
FIREWALL = Behaviour(translates=False)
#: Carriers that give each home ports of its own, and choose at random among those; the names in `SITES` stay those of the matrix.
CARRIERS: dict[str, tuple[Behaviour, ...]] = {
    "block512": (HOME, Behaviour(mapping=APD, ports=Ports.RANDOM, block=512, reuses=True)),
    "block1024": (HOME, Behaviour(mapping=APD, ports=Ports.RANDOM, block=1024, reuses=True)),
    "block2048": (HOME, Behaviour(mapping=APD, ports=Ports.RANDOM, block=2048, reuses=True)),
    "unique512": (HOME, Behaviour(mapping=APD, ports=Ports.RANDOM, block=512)),  # each port for one mapping
    "slow512": (HOME, Behaviour(mapping=APD, ports=Ports.RANDOM, block=512, reuses=True, rate=200)),
    "few512": (HOME, Behaviour(mapping=APD, ports=Ports.RANDOM, block=512, reuses=True, quota=300)),
    "pool512": (HOME, Behaviour(mapping=APD, ports=Ports.RANDOM, block=512, reuses=True, addresses=2, paired=False)),
}
