"""Addresses that a peer may reach where a network is shared: each one is checked, and those named are special.

A name is looked up here, once, and what is connected to is what was looked at; so an answer that changes leads nowhere else (DNS
rebinding).  Loopback, link-local, metadata services, reserved networks and this machine's own addresses belong to no network
that somebody shares, unless the grant names just that.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable, Iterable
from typing import Final

from tunnel.core.scope import is_loopback, is_named_by, is_reserved, unmapped
from tunnel.host.interfaces import own_addresses
from tunnel.pairing.grants import Grant
from tunnel.ports.names import Place, look_up, lookups_under_way

MAX_LOOKUPS: Final = 16  # names that are looked up at once: of dead ones, each holds a thread for as long as the resolver waits


class OutsideError(OSError):
    """No address of the host lies in a network that is shared."""

    def __init__(self, host: str) -> None:
        super().__init__(errno.EACCES, f"{host} is in no network that is shared")


async def find_places(host: str, port: int, grants: Callable[[], Iterable[Grant]]) -> list[Place]:
    """The addresses of `host` that the grants let be reached, as these are once it was looked up.

    Raises OutsideError, and OSError where there is no such name.
    """
    if _is_literal(host):
        found: list[Place] = [(socket.AF_INET6 if ":" in host else socket.AF_INET, (host, port))]
    else:
        if lookups_under_way() >= MAX_LOOKUPS:
            raise socket.gaierror(socket.EAI_AGAIN, "too many names are looked up")
        found = [(family, (address[0], port, *address[2:])) for family, address in await look_up(host)]
    places = allowed_places(found, grants())
    if not places:
        raise OutsideError(host)
    return places


def allowed_places(places: Iterable[Place], grants: Iterable[Grant]) -> list[Place]:
    """Those that one of the grants reaches.  The grants are of the protocol and port already."""
    networks = [ipaddress.ip_network(grant.host) for grant in grants]
    own = {unmapped(ipaddress.ip_address(each)) for each in own_addresses()}
    return [place for place in dict.fromkeys(places) if _is_in_one(place[1][0], networks, own)]


def _is_in_one(
    text: str, networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network],
    own: set[ipaddress.IPv4Address | ipaddress.IPv6Address],
) -> bool:  # fmt: skip
    try:
        address = unmapped(ipaddress.ip_address(text))
    except ValueError:  # with a zone, which means nothing on another machine
        return False
    is_special = is_loopback(address) or is_reserved(address) or address in own
    return any(address in network and (not is_special or is_named_by(network)) for network in networks)


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
