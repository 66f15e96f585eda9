"""Which private IPv4 prefixes this machine already uses: what a room's subnet must not clash with.  Needs no privilege.

Asked by rtnetlink(7) directly: two dumps, a millisecond, and no import of pyroute2 in a process that stays.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Iterator
from typing import Final

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
MAX_MESSAGES: Final = 100_000  # a router with the whole internet's table is not read to the end
_BUFFER: Final = 1 << 16


def taken_prefixes(interface: str | None = None) -> list[str]:
    """IPv4 prefixes of all routes and addresses outside `interface` that lie in a private range; sorted, none inside another.

    An empty list where the kernel tells nothing.
    """
    own = 0
    if interface is not None:
        with contextlib.suppress(OSError):
            own = socket.if_nametoindex(interface)
    found: set[ipaddress.IPv4Network] = set()
    with contextlib.suppress(OSError):
        for network, index in (*_addresses(), *_routes()):
            private = any(network.overlaps(allowed) for allowed in IPV4_RANGES)
            if private and network.prefixlen >= SHORTEST_PREFIX and (not own or index != own):
                found.add(network)
    return [str(network) for network in sorted(ipaddress.collapse_addresses(found))]


def _addresses() -> Iterator[tuple[ipaddress.IPv4Network, int]]:
    """(subnet, interface index) of every IPv4 address."""
    for index, prefix, raw in _address_messages(socket.AF_INET):
        if len(raw) == 4 and prefix <= 32:
            yield ipaddress.IPv4Network((raw, prefix), strict=False), index


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


def _routes() -> Iterator[tuple[ipaddress.IPv4Network, int]]:
    """(prefix, interface index) of every IPv4 route, in whatever table, that leads somewhere or is walled up."""
    for body in _dump(_RTM_GETROUTE, _ROUTE.pack(socket.AF_INET, *(0,) * 8)):
        _, prefix, _, _, _, _, _, kind, _ = _ROUTE.unpack_from(body)
        if kind != _RTN_UNICAST and not _RTN_BLACKHOLE <= kind <= _RTN_PROHIBIT:
            continue
        attributes = _attributes(body, _ROUTE.size)
        raw = attributes.get(_RTA_DST, b"")
        oif = attributes.get(_RTA_OIF, b"")
        if len(raw) == 4 and prefix <= 32:
            yield ipaddress.IPv4Network((raw, prefix), strict=False), _NUMBER.unpack(oif)[0] if len(oif) == 4 else 0


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
