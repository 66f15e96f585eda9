"""Between the tuples of the socket module and our canonical Address, both ways, remembered in two small caches."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import TypeAlias

from tunnel.units import Address

#: What the socket module calls an address: (host, port) or (host, port, flow, scope).
SockAddr: TypeAlias = tuple[str, int] | tuple[str, int, int, int]

#: Entries of each cache.  A stranger can make up source addresses, so a full cache is emptied, not grown.
MAX_CACHED = 4_096

_MAPPED = "::ffff:"


class AddressError(Exception):
    """An address that this socket cannot send to; the text is the name it is counted under."""


def to_address(sockaddr: SockAddr) -> Address:
    """The canonical Address of what recvfrom returned: IPv4-mapped as IPv4, link-local with its zone."""
    host = sockaddr[0].partition("%")[0]
    if host.startswith(_MAPPED) and "." in host:
        return Address(host[len(_MAPPED) :], sockaddr[1])
    if len(sockaddr) == 4 and sockaddr[3]:
        zone = str(sockaddr[3])
        with contextlib.suppress(OSError):
            name = socket.if_indextoname(sockaddr[3])
            zone = name if name.isascii() else zone  # Linux takes any bytes for a name
        host = f"{host}%{zone}"
    return Address(host, sockaddr[1])


def to_sockaddr(address: Address, *, is_ipv6: bool, dual_stack: bool) -> SockAddr:
    """Return the address as sendmsg takes it.  Never asks the DNS.  Raises AddressError."""
    host, port = address
    if not 0 < port < 65_536:
        raise AddressError("bad_address")
    if ":" not in host:
        try:
            socket.inet_pton(socket.AF_INET, host)
        except (OSError, ValueError):
            raise AddressError("bad_address") from None
        if not is_ipv6:
            return (host, port)
        if not dual_stack:
            raise AddressError("family")
        return (_MAPPED + host, port, 0, 0)
    if not is_ipv6:
        raise AddressError("family")
    plain, _, zone = host.partition("%")
    try:
        socket.inet_pton(socket.AF_INET6, plain)
        scope = 0 if not zone else int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
    except (OSError, ValueError):
        raise AddressError("bad_address") from None
    return (plain, port, 0, scope)


class AddressCache:
    """Both directions for one socket.  `addresses` and `sockaddrs` may be read directly on the hot path."""

    __slots__ = ("_convert", "addresses", "sockaddrs")

    def __init__(self, *, is_ipv6: bool, dual_stack: bool) -> None:
        self.addresses: dict[SockAddr, Address] = {}
        self.sockaddrs: dict[Address, SockAddr] = {}
        self._convert: Callable[[Address], SockAddr] = lambda a: to_sockaddr(a, is_ipv6=is_ipv6, dual_stack=dual_stack)

    def address(self, sockaddr: SockAddr) -> Address:
        """Convert and remember."""
        address = to_address(sockaddr)
        if len(self.addresses) >= MAX_CACHED:
            self.addresses.clear()
        self.addresses[sockaddr] = address
        return address

    def sockaddr(self, address: Address) -> SockAddr:
        """Convert and remember.  Raises AddressError, which is not remembered: an interface may appear later."""
        sockaddr = self._convert(address)
        if len(self.sockaddrs) >= MAX_CACHED:
            self.sockaddrs.clear()
        self.sockaddrs[address] = sockaddr
        return sockaddr
