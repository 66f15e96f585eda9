"""Which networks this machine already uses: what a room's must not clash with.  Needs no privilege.

Asked by rtnetlink(7) directly: four dumps, a millisecond, and no import of pyroute2 in a process that stays.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, TypeAlias

from tunnel.tun.config import IPV4_RANGES

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
MAX_MESSAGES: Final = 100_000  # a router with the whole internet's table is not read to the end
_BUFFER: Final = 1 << 16

#: Where name servers are listed; the second is what systemd-resolved asks.
RESOLVER_FILES: Final = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
_NAME_SERVER: Final = re.compile(r"(?m)^[ \t]*nameserver[ \t]+([0-9A-Fa-f.:]+)")
_LINK_LOCAL: Final = ipaddress.IPv6Network("fe80::/10")

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


def taken_prefixes(interface: str | None = None) -> list[str]:
    """IPv4 prefixes in private ranges that this machine uses outside `interface`; sorted, none inside another.

    Those of routes, addresses and name servers.  An empty list where the kernel tells nothing.
    """
    found = {network for network in taken_networks(interface) if isinstance(network, ipaddress.IPv4Network)}
    private = [network for network in found if any(network.overlaps(allowed) for allowed in IPV4_RANGES)]
    return [str(network) for network in sorted(ipaddress.collapse_addresses(private))]


def taken_networks(interface: str | None = None) -> set[Network]:
    """What must not be led into a room: networks of both families that this machine uses outside `interface`.

    Those of routes and addresses, but for ways to everything and link-local ones; and name servers, each by itself, since many
    are reached by the default route alone.  Without those in the networks of `interface`, to which they were given on purpose.
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
    found |= {server for server in name_servers(RESOLVER_FILES) if not overlapping(server, inside)}
    return found


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
    for body in _dump(_RTM_GETADDR, _ADDRESS.pack(family, 0, 0, 0, 0)):
        _, prefix, _, _, index = _ADDRESS.unpack_from(body)
        attributes = _attributes(body, _ADDRESS.size)
        # On a point-to-point interface IFA_ADDRESS is the far end.
        yield index, prefix, attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS, b"")


def _routes() -> Iterator[tuple[Network, int]]:
    """(prefix, interface index) of every route, in whatever table, that leads somewhere or is walled up."""
    for family, size in ((socket.AF_INET, 4), (socket.AF_INET6, 16)):
        for body in _dump(_RTM_GETROUTE, _ROUTE.pack(family, *(0,) * 8)):
            _, prefix, _, _, _, _, _, kind, _ = _ROUTE.unpack_from(body)
            if kind != _RTN_UNICAST and not _RTN_BLACKHOLE <= kind <= _RTN_PROHIBIT:
                continue
            attributes = _attributes(body, _ROUTE.size)
            raw = attributes.get(_RTA_DST, b"")
            oif = attributes.get(_RTA_OIF, b"")
            if len(raw) == size and prefix <= 8 * size:
                yield ipaddress.ip_network((raw, prefix), strict=False), _NUMBER.unpack(oif)[0] if len(oif) == 4 else 0


def _dump(kind: int, request: bytes) -> Iterator[bytes]:
    """The messages of one dump, without their headers.  Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
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
