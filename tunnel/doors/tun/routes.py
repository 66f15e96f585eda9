"""Which networks this machine already uses: what a room's must not clash with.  Needs no privilege.

Three kinds: those that it has (addresses, routes, name servers); those that somebody here speaks with right now; and those around
it.  For what is reached by the default route alone, an office's other floors, the modem behind the router, is in no table: it is
mostly numbered like this machine is, and so taken for used.
Asked by rtnetlink(7) directly: four dumps, a millisecond, and no import of pyroute2 in a process that stays.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import struct
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

from tunnel.core.scope import PRIVATE
from tunnel.doors.tun.config import IPV4_RANGES

# linux/netlink.h, linux/rtnetlink.h
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_RTM_GETADDR: Final = 22
_RTM_GETROUTE: Final = 26
_NLM_F_REQUEST: Final = 0x001
_NLM_F_DUMP: Final = 0x300
_RTN_UNICAST: Final = 1
_RTN_BLACKHOLE: Final = 6
_RTN_PROHIBIT: Final = 8
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
_ADDRESS: Final = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefixlen, flags, scope, index
_ATTRIBUTE: Final = struct.Struct("=HH")
_NUMBER: Final = struct.Struct("=I")

SHORTEST_PREFIX: Final = 8  # a shorter one is somebody's way to everything, as a default route; our subnet goes before it
ANSWER_TIMEOUT: Final = 2.0  # seconds for a dump; the kernel answers at once
SHORTEST_IPV6_PREFIX: Final = 48  # likewise: a unique local prefix of one site (RFC 4193 §3.1)
MAX_RESOLVER_FILE: Final = 65_536  # bytes of a list of name servers that are read
MAX_SOCKET_TABLE: Final = 1 << 20  # bytes of each list of sockets that are read: some 7,000 of them
SPOKEN_BITS: Final = 24  # of a network that is taken because somebody in it is spoken with, ...
SPOKEN_IPV6_BITS: Final = 64  # ... or for IPv6
MAX_MESSAGES: Final = 100_000  # a router with the whole internet's table is not read to the end
_BUFFER: Final = 1 << 16

#: Where name servers are listed; the second is what systemd-resolved asks.
RESOLVER_FILES: Final = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
_NAME_SERVER: Final = re.compile(r"(?m)^[ \t]*nameserver[ \t]+([0-9A-Fa-f.:]+)")
_LINK_LOCAL: Final = ipaddress.IPv6Network("fe80::/10")
_UNIQUE_LOCAL: Final = ipaddress.IPv6Network("fc00::/7")

#: Lists of sockets: proc_net_tcp.txt.  The third column is the far end, in the machine's byte order.
SOCKET_TABLES: Final = tuple(f"/proc/thread-self/net/{name}" for name in ("tcp", "tcp6", "udp", "udp6"))

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


def taken_prefixes(interface: str | None = None, *, besides: Iterable[Network] = ()) -> list[str]:
    """IPv4 prefixes in private ranges that this machine uses outside `interface`; sorted, none inside another.

    Those of routes, addresses and name servers, and of `besides`.  An empty list where the kernel tells nothing.
    """
    found = {*taken_networks(interface, spoken=False), *besides}
    private = [each for each in found if isinstance(each, ipaddress.IPv4Network) and any(map(each.overlaps, IPV4_RANGES))]
    return [str(network) for network in sorted(ipaddress.collapse_addresses(private))]


def taken_networks(interface: str | None = None, *, spoken: bool = True) -> set[Network]:
    """Return the networks that must not be led into a room: those that this machine uses outside `interface`.

    Those of routes and addresses, but for ways to everything and link-local ones; and name servers, each by itself, and (unless
    not `spoken`) private networks of whom sockets here are connected to, since many are reached by the default route alone.
    Without those in the networks of `interface`, to which they were given on purpose.
    """
    own = 0
    if interface is not None:
        with contextlib.suppress(OSError):
            own = socket.if_nametoindex(interface)
    found: set[Network] = set()
    inside: list[Network] = []
    with contextlib.suppress(OSError):
        for network, index in (*_addresses(), *_routes()):
            if own and index == own:
                inside.append(network)
            elif not _is_way_to_everything(network):
                found.add(network)
    inside = [network for network in inside if network.prefixlen]
    others = {*name_servers(RESOLVER_FILES), *(spoken_with() if spoken else ())}
    found |= {each for each in others if not overlapping(each, inside)}
    return found


def surroundings(interface: str | None = None) -> set[Network]:
    """Return the private networks around this machine's addresses, which the default route may lead to unseen.

    IPv4: the private block (RFC 1918) of each address on an interface that a way to everything leaves by.  IPv6: the site of each
    unique local address (RFC 4193 §3.1).  Without those of `interface`.
    """
    found: set[Network] = set()
    with contextlib.suppress(OSError):
        own = socket.if_nametoindex(interface) if interface else 0
        ways = {index for network, index in _routes() if network.version == 4 and network.prefixlen < SHORTEST_PREFIX}
        for network, index in _addresses():
            if own and index == own:
                continue
            if isinstance(network, ipaddress.IPv6Network):
                if network.subnet_of(_UNIQUE_LOCAL):
                    found.add(network.supernet(new_prefix=min(network.prefixlen, SHORTEST_IPV6_PREFIX)))
            elif index in ways or 0 in ways:  # 0: by several interfaces at once, which are not told here
                found |= {block for block in PRIVATE if network.subnet_of(block)}
    return found


def spoken_with() -> set[Network]:
    """The private networks of the far ends of connected sockets, of all users: a /24 each, or a /64."""
    found: set[Network] = set()
    for table in SOCKET_TABLES:
        with (
            contextlib.suppress(OSError),
            Path(table).open(encoding="ascii", errors="replace") as file,
        ):
            for line in file.read(MAX_SOCKET_TABLE).splitlines()[1:]:
                with contextlib.suppress(ValueError, IndexError):
                    found |= _private_network(line.split()[2].partition(":")[0])
    return found


def _private_network(text: str) -> set[Network]:
    """Of an address as lists of sockets have it; nothing for one that is not private.  Raises ValueError."""
    raw = b"".join(int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8))
    address = ipaddress.ip_address(raw)
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        if mapped is None:
            return {ipaddress.ip_network((raw, SPOKEN_IPV6_BITS), strict=False)} if address in _UNIQUE_LOCAL else set()
        address = mapped
    if not any(address in block for block in IPV4_RANGES):
        return set()
    return {ipaddress.ip_network((address.packed, SPOKEN_BITS), strict=False)}


def overlapping(network: Network, others: Collection[Network]) -> Network | None:
    """One of the others that shares an address with it."""
    return next((other for other in others if other.version == network.version and other.overlaps(network)), None)


def name_servers(paths: Collection[str]) -> set[Network]:
    """Each address that programs here ask for names, as a network of one."""
    found: set[Network] = set()
    for path in paths:
        with contextlib.suppress(OSError), Path(path).open(encoding="utf-8", errors="replace") as file:
            for word in _NAME_SERVER.findall(file.read(MAX_RESOLVER_FILE)):
                with contextlib.suppress(ValueError):
                    found.add(ipaddress.ip_network(word))
    return found


def _is_way_to_everything(network: Network) -> bool:
    if isinstance(network, ipaddress.IPv4Network):
        return network.prefixlen < SHORTEST_PREFIX
    return network.prefixlen < SHORTEST_IPV6_PREFIX or network.subnet_of(_LINK_LOCAL)


def _addresses() -> Iterator[tuple[Network, int]]:
    """(subnet, interface index) of every address."""
    for family, size in ((socket.AF_INET, 4), (socket.AF_INET6, 16)):
        for index, prefix, raw in _address_messages(family):
            if len(raw) == size and prefix <= 8 * size:
                yield ipaddress.ip_network((raw, prefix), strict=False), index


def networks_of(interface: str) -> set[Network]:
    """The subnets of the addresses that this interface has: what is reached by it.  Raises OSError."""
    own = socket.if_nametoindex(interface)
    return {network for network, index in _addresses() if index == own}


def own_addresses() -> set[tuple[int, bytes]]:
    """(interface index, packed address) of every IPv4 and IPv6 address of this machine.  Raises OSError."""
    both = (*_address_messages(socket.AF_INET), *_address_messages(socket.AF_INET6))
    return {(index, raw) for index, _, raw in both}


def _address_messages(family: int) -> Iterator[tuple[int, int, bytes]]:
    """(interface index, prefix length, packed address) of every address of one family."""
    for body in dump(_RTM_GETADDR, _ADDRESS.pack(family, 0, 0, 0, 0)):
        _, prefix, _, _, index = _ADDRESS.unpack_from(body)
        attributes = _attributes(body, _ADDRESS.size)
        # On a point-to-point interface IFA_ADDRESS is the far end.
        yield index, prefix, attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS, b"")


def _routes() -> Iterator[tuple[Network, int]]:
    """(prefix, interface index) of every route, in whatever table, that leads somewhere or is walled up."""
    for family, size in ((socket.AF_INET, 4), (socket.AF_INET6, 16)):
        for body in dump(_RTM_GETROUTE, _ROUTE.pack(family, *(0,) * 8)):
            _, prefix, _, _, _, _, _, kind, _ = _ROUTE.unpack_from(body)
            if kind != _RTN_UNICAST and not _RTN_BLACKHOLE <= kind <= _RTN_PROHIBIT:
                continue
            attributes = _attributes(body, _ROUTE.size)
            raw = attributes.get(_RTA_DST, b"" if prefix else bytes(size))  # a default route names no destination
            oif = attributes.get(_RTA_OIF, b"")
            if len(raw) == size and prefix <= 8 * size:
                yield ipaddress.ip_network((raw, prefix), strict=False), _NUMBER.unpack(oif)[0] if len(oif) == 4 else 0


def dump(kind: int, request: bytes, protocol: int = socket.NETLINK_ROUTE) -> Iterator[bytes]:
    """The messages of one dump, without their headers.  Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as netlink:
        netlink.settimeout(ANSWER_TIMEOUT)
        netlink.bind((0, 0))
        flags = _NLM_F_REQUEST | _NLM_F_DUMP
        netlink.send(_HEADER.pack(_HEADER.size + len(request), kind, flags, 1, 0) + request)
        count = 0
        while count < MAX_MESSAGES:
            datagram = netlink.recv(_BUFFER)
            at = 0
            while at + _HEADER.size <= len(datagram):
                length, message_kind, _, _, _ = _HEADER.unpack_from(datagram, at)
                if message_kind in (_NLMSG_DONE, _NLMSG_ERROR) or length < _HEADER.size:
                    return
                yield datagram[at + _HEADER.size : at + length]
                count += 1
                at += (length + 3) & ~3


def _attributes(body: bytes, at: int) -> dict[int, bytes]:
    found = {}
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind] = body[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found
