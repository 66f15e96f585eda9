"""Limits of what is sent to each host: anybody who names addresses in the DHT can aim us at a stranger.

A node hands out addresses that it chose, and nothing says that a node of the DHT is there, or anybody who wants to hear of us.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import Final

from tunnel.core.scope import is_loopback, is_reserved, may_name, unmapped
from tunnel.units import Address, Instant, Seconds

MAX_UNANSWERED: Final = 12  # datagrams to a host that has not answered since
UNANSWERED_LIFETIME: Final = Seconds(600.0)  # after the first of them the host gets as many again
MAX_IN_WINDOW: Final = 30  # datagrams to one host in a window, answered or not; nodes of libtorrent block whoever sends 50
WINDOW: Final = Seconds(10.0)
MIN_PORT: Final = 1_024  # the lowest that is sent to; services sit below
MAX_HOSTS: Final = 2_048  # that are remembered; the one longest unused goes


class _Host:
    __slots__ = ("begun_at", "first_at", "in_window", "unanswered")

    def __init__(self, now: Instant) -> None:
        self.unanswered = self.in_window = 0
        self.begun_at = self.first_at = now


class Ledger:
    """Counts by host, whatever the ports."""

    def __init__(self, unanswered: int = MAX_UNANSWERED, in_window: int = MAX_IN_WINDOW) -> None:
        self._max_unanswered = unanswered
        self._max_in_window = in_window
        self._hosts: OrderedDict[str, _Host] = OrderedDict()

    def __len__(self) -> int:
        return len(self._hosts)

    def take(self, now: Instant, host: str) -> bool:
        """Whether one more datagram may go to `host`; it is counted then."""
        found = self._hosts.get(host)
        if found is None:
            while len(self._hosts) >= MAX_HOSTS:
                self._hosts.popitem(last=False)
            found = self._hosts[host] = _Host(now)
        self._hosts.move_to_end(host)
        if now - found.first_at >= UNANSWERED_LIFETIME:
            found.first_at, found.unanswered = now, 0
        if now - found.begun_at >= WINDOW:
            found.begun_at, found.in_window = now, 0
        if found.unanswered >= self._max_unanswered or found.in_window >= self._max_in_window:
            return False
        found.unanswered += 1
        found.in_window += 1
        return True

    def answered(self, host: str) -> None:
        """Something that answers us has come from `host`."""
        found = self._hosts.get(host)
        if found is not None:
            found.unanswered = 0


def is_target(source: Address, address: Address) -> bool:
    """Whether whoever speaks from `source` may name `address` for us to send to: no service, no local network of ours."""
    host = unmapped(ipaddress.ip_address(address.host.partition("%")[0]))
    if address.port < MIN_PORT or is_loopback(host) != source.host.startswith("127."):
        return False
    return not is_reserved(host) and may_name(source.host, address.host)
