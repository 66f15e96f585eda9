"""The parts of `ptunnel serve --fleet`: the store, the key, and the addresses by which clients reach this server alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

from tunnel.core.scope import is_local
from tunnel.errors import ConfigurationError
from tunnel.fleet.store import Store
from tunnel.host.clock import unix_time
from tunnel.host.interfaces import local_addresses
from tunnel.rendezvous.fleet.fleet import Fleet
from tunnel.rendezvous.fleet.seal import MIN_KEY
from tunnel.rendezvous.messages import MAX_PLACES
from tunnel.shell.fleet import Busy, Feed
from tunnel.units import Address, Instant, Seconds

WILDCARDS = ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """The way of one server into its fleet."""

    store: Store
    key: bytes = field(repr=False)
    advertised: tuple[tuple[str, int], ...] = ()  # addresses for clients; port 0: the one that it listens on
    drain: Seconds
    software: str = field(default_factory=lambda: f"ptunnel {_version()}")

    def __post_init__(self) -> None:
        """Raises ConfigurationError."""
        if len(self.key) < MIN_KEY:
            raise ConfigurationError(f"The key of a fleet has at least {MIN_KEY} characters: 'openssl rand -hex 32' makes one.")

    def core(self, listening: Sequence[Address]) -> Fleet:
        """Raises ConfigurationError when no client could reach this server alone."""
        at = advertised(self.advertised, listening)
        return Fleet(self.key, at, entropy=os.urandom, unix_time=unix_time, busy=Busy(), software=self.software)

    def feed(self, fleet: Fleet, clock: Callable[[], Instant], changed: Callable[[], None]) -> Feed:
        return Feed(fleet, clock, changed)

    async def run(self, feed: Feed) -> None:
        await self.store.run(feed)


def _version() -> str:
    try:
        return version("ptunnel")
    except PackageNotFoundError:
        return "unknown"


def advertised(wanted: Sequence[tuple[str, int]], listening: Sequence[Address]) -> list[Address]:
    """The addresses that were wanted, or else those that it listens on; of a machine that listens on all, the public ones.

    Raises ConfigurationError.
    """
    if wanted:
        port = listening[0].port
        return [Address(host, each or port) for host, each in wanted][:MAX_PLACES]
    found = [each for each in listening if each.host not in WILDCARDS]
    if not found:
        ports = {each.host: each.port for each in listening}
        places = [(each.address, ports.get(WILDCARDS[each.is_ipv6], 0)) for each in local_addresses()]
        machine = [Address(host, port) for host, port in places if port]
        found = [each for each in machine if not is_local(each.host)] or machine
    if not found:
        raise ConfigurationError("This machine has no address for clients of a fleet: name one with --advertise ADDR.")
    return found[:MAX_PLACES]
