"""Limits of what is sent to each host: anybody who names addresses in the DHT can aim us at a stranger.

A node hands out addresses that it chose, and nothing says that a node of the DHT is there, or anybody who wants to hear of us.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import Final, TypeVar

from tunnel.core.scope import is_loopback, is_reserved, may_name, unmapped
from tunnel.dht.ids import network_of
from tunnel.dht.lookup import IPV6_NETWORK_BITS, NETWORK_BITS
from tunnel.units import Address, Instant, Seconds

MAX_UNANSWERED: Final = 12  # datagrams to a host that has not answered since
UNANSWERED_LIFETIME: Final = Seconds(600.0)  # after the first of them the host gets as many again
MAX_IN_WINDOW: Final = 30  # datagrams to one host in a window, answered or not; nodes of libtorrent block whoever sends 50
WINDOW: Final = Seconds(10.0)
MIN_PORT: Final = 1_024  # the lowest that is sent to; services sit below
MAX_HOSTS: Final = 2_048  # that are remembered; the one longest unused goes
NETWORK_SHARE: Final = 4  # hosts' worth of datagrams without an answer to one network, so that nobody aims us at all of its hosts

K = TypeVar("K")


class _Host:
    __slots__ = ("begun_at", "first_at", "in_window", "unanswered")

    def __init__(self, now: Instant) -> None:
        self.unanswered = self.in_window = 0
        self.begun_at = self.first_at = now


class Ledger:
    """Counts by host, whatever the ports, and by network (an IPv4 /24 or IPv6 /64), whatever the hosts."""

    def __init__(self, unanswered: int = MAX_UNANSWERED, in_window: int = MAX_IN_WINDOW) -> None:
        self._max_unanswered = unanswered
        self._max_in_window = in_window
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self._networks: OrderedDict[tuple[bool, int], _Host] = OrderedDict()

    def __len__(self) -> int:
        return len(self._hosts)

    def take(self, now: Instant, host: str, kept: int = 0) -> bool:
        """Whether one more datagram may go to `host`, so that `kept` may still go after it; it is counted then."""
        found = _entry(self._hosts, host, now)
        network = _entry(self._networks, _network(host), now)
        if now - found.begun_at >= WINDOW:
            found.begun_at, found.in_window = now, 0
        if found.unanswered + kept >= self._max_unanswered or found.in_window >= self._max_in_window:
            return False
        if network.unanswered >= NETWORK_SHARE * self._max_unanswered:
            return False
        found.unanswered += 1
        network.unanswered += 1
        found.in_window += 1
        return True

    def answered(self, host: str) -> None:
        """Something that answers us has come from `host`."""
        found, network = self._hosts.get(host), self._networks.get(_network(host))
        if found is not None:
            if network is not None:
                network.unanswered = max(0, network.unanswered - found.unanswered)
            found.unanswered = 0


def _entry(table: OrderedDict[K, _Host], key: K, now: Instant) -> _Host:
    found = table.get(key)
    if found is None:
        while len(table) >= MAX_HOSTS:
            table.popitem(last=False)
        found = table[key] = _Host(now)
    table.move_to_end(key)
    if now - found.first_at >= UNANSWERED_LIFETIME:
        found.first_at, found.unanswered = now, 0
    return found


def _network(host: str) -> tuple[bool, int]:
    return ":" in host, network_of(host, NETWORK_BITS, IPV6_NETWORK_BITS)


def is_target(source: Address, address: Address) -> bool:
    """Whether whoever speaks from `source` may name `address` for us to send to: no service, no local network of ours."""
    host = unmapped(ipaddress.ip_address(address.host.partition("%")[0]))
    if address.port < MIN_PORT or is_loopback(host) != source.host.startswith("127."):
        return False
    return not is_reserved(host) and may_name(source.host, address.host)
