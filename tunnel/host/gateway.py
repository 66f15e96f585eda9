"""The router towards the internet: where it is asked for port mappings."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import sys
from pathlib import Path
from typing import Final, NamedTuple

from tunnel.core.scope import CARRIER, LINK, PRIVATE
from tunnel.host.interfaces import ANYWHERE, kernel_text, local_addresses, source_address

_UP_AND_GATEWAY: Final = 0x1 | 0x2  # RTF_UP, RTF_GATEWAY (linux/route.h)
_TRANSLATED: Final = (*PRIVATE, CARRIER, LINK)  # behind addresses of these a translator stands


class Gateway(NamedTuple):
    """The IPv4 router of the default route, and our own address towards it."""

    address: str
    own: str


def default_gateway() -> Gateway | None:
    """None without a default route over a router.  Linux tells which it is; elsewhere our network's first address is guessed."""
    if sys.platform == "linux":
        for address in gateways_in(kernel_text(Path("/proc/net/route"))):
            own = source_address(address)
            if own is not None:
                return Gateway(address, own)
        return None
    own = source_address(ANYWHERE[False])
    for local in local_addresses():
        if local.address == own and not local.is_ipv6:
            first = ipaddress.IPv4Interface(f"{own}/{local.prefix}").network.network_address + 1
            return Gateway(str(first), own) if str(first) != own else None
    return None


def is_translated(host: str) -> bool:
    """Can this address only be reached from elsewhere because somebody translates it?  Says nothing of IPv6."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return isinstance(address, ipaddress.IPv4Address) and any(address in network for network in _TRANSLATED)


def gateways_in(table: str) -> list[str]:
    """The routers of the default routes in /proc/net/route, the preferred one first."""
    found: list[tuple[int, str]] = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        with contextlib.suppress(ValueError, IndexError, OverflowError):
            destination, gateway, mask = (int(fields[number], 16) for number in (1, 2, 7))
            flags, metric = int(fields[3], 16), int(fields[6])
            if destination == mask == 0 and gateway and flags & _UP_AND_GATEWAY == _UP_AND_GATEWAY:
                found.append((metric, socket.inet_ntoa(gateway.to_bytes(4, sys.byteorder))))
    return [address for _, address in sorted(found, key=lambda each: each[0])]
