"""Joins on the LAN interface the multicast groups that local programs joined on other interfaces.

A multicast packet reaches local sockets only if this machine is a member of the group on the interface it came in by.  Then every
socket gets it that joined the group anywhere, unless it asked otherwise (IP_MULTICAST_ALL and IPV6_MULTICAST_ALL are on by
default).  So a program that joins on the interface of the default route hears the LAN as well.  Source: ip(7), ipv6(7).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import trio

from tunnel.doors.tun.config import MAC_PREFIX

POLL_INTERVAL: Final = 1.0  # seconds between looks; reading both tables takes some ten microseconds
HINT_INTERVAL: Final = 0.02  # seconds between two looks that packets to unknown groups bring about, however many are sent
MAX_GROUPS: Final = 64  # that we join; a machine with more programs than that keeps the first, in the order of addresses
MAX_SOCKETS: Final = 8  # one socket joins 20 IPv4 groups unless net.ipv4.igmp_max_memberships says otherwise
MAX_TABLE: Final = 1 << 20  # bytes of /proc/net/igmp that are read

_SIOCGIFHWADDR: Final = 0x8927  # linux/sockios.h
_IFREQ: Final = struct.Struct("=16s2s6s16x")
_IP_MULTICAST_ALL: Final = 49  # linux/in.h
_IPV6_MULTICAST_ALL: Final = 29  # linux/in6.h

#: Groups that the kernel joins by itself on every interface: all hosts, all nodes, all routers, snoopers, solicited nodes.
_KERNELS: Final = tuple(
    ipaddress.ip_network(prefix) for prefix in ("224.0.0.1/32", "224.0.0.2/32", "224.0.0.22/32", "224.0.0.106/32", "ff00::/15",
    "ff02::1/128", "ff02::2/128", "ff02::16/128", "ff02::6a/128", "ff05::2/128", "ff02::1:ff00:0/104")
)  # fmt: skip

Group = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_igmp(text: str) -> Iterator[tuple[str, Group]]:
    """(interface, group) of /proc/net/igmp: a line for each interface, and indented below it one for each group."""
    interface = ""
    for line in text.splitlines():
        fields = line.split()
        if not line[:1].isspace():
            interface = fields[1].rstrip(":") if len(fields) > 1 else ""
        elif interface and fields:
            with contextlib.suppress(ValueError, OverflowError):
                yield interface, ipaddress.IPv4Address(int(fields[0], 16).to_bytes(4, sys.byteorder))


def parse_igmp6(text: str) -> Iterator[tuple[str, Group]]:
    """(interface, group) of /proc/net/igmp6: index, interface, group, users, flags, timer."""
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 3:
            with contextlib.suppress(ValueError):
                yield fields[1], ipaddress.IPv6Address(bytes.fromhex(fields[2]))


class GroupMirror:
    """Keeps the memberships of `interface` in step.  Needs no privilege; all of them end with close or this process."""

    def __init__(self, interface: str) -> None:
        self._interface = interface
        self._index = socket.if_nametoindex(interface)
        self._joined: dict[Group, socket.socket] = {}
        self._sockets: list[socket.socket] = []
        self._looked_at = float("-inf")
        #: Groups that could not be joined, and why, by the name of the errno.
        self.errors: dict[str, int] = {}

    @property
    def groups(self) -> set[Group]:
        """The groups that are joined now."""
        return set(self._joined)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.poll()
            await trio.sleep(POLL_INTERVAL)

    def hint(self, destination: bytes) -> None:
        """A program has just sent to this address (packed).

        Whoever asks a group has often joined it a moment before, to hear an answer that comes before the next look.
        """
        group = ipaddress.ip_address(destination)
        if group.is_multicast and group not in self._joined and time.monotonic() - self._looked_at >= HINT_INTERVAL:
            self.poll()

    def poll(self) -> None:
        """Look once: join what programs joined elsewhere since, leave what they left."""
        self._looked_at = time.monotonic()
        wanted = set(sorted(self._elsewhere(), key=lambda group: (group.version, int(group)))[:MAX_GROUPS])
        for group in set(self._joined) - wanted:
            self._leave(group)
        for group in wanted - set(self._joined):
            self._join(group)

    def close(self) -> None:
        self._joined.clear()
        while self._sockets:
            self._sockets.pop().close()

    def _elsewhere(self) -> set[Group]:
        """Groups joined on interfaces that are none of ours: what mirrors joined would otherwise keep one another alive."""
        found: set[Group] = set()
        ours: dict[str, bool] = {"lo": True, self._interface: True}
        for name, parse in (("igmp", parse_igmp), ("igmp6", parse_igmp6)):
            try:
                with Path(f"/proc/thread-self/net/{name}").open(encoding="ascii", errors="replace") as file:
                    text = file.read(MAX_TABLE)
            except OSError:
                continue
            for interface, group in parse(text):
                if interface not in ours:
                    ours[interface] = _is_ours(interface)
                if not ours[interface] and group.is_multicast and not any(group in kernels for kernels in _KERNELS):
                    found.add(group)
        return found

    def _membership(self, group: Group) -> bytes:
        """struct ip_mreqn or ipv6_mreq."""
        if group.version == 4:
            return group.packed + struct.pack("=4xi", self._index)
        return group.packed + struct.pack("=I", self._index)

    def _join(self, group: Group) -> None:
        family = socket.AF_INET if group.version == 4 else socket.AF_INET6
        tried = [sock for sock in self._sockets if sock.family == family]
        for attempt in range(len(tried) + 1):
            try:
                sock = tried[attempt] if attempt < len(tried) else self._open(family)
                if group.version == 4:
                    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, self._membership(group))
                else:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, self._membership(group))
            except OSError as error:
                if error.errno == errno.ENOBUFS and attempt < min(len(tried), MAX_SOCKETS - 1):
                    continue  # this socket is full
                name = errno.errorcode.get(error.errno or 0, "unknown")
                self.errors[name] = self.errors.get(name, 0) + 1
                return
            self._joined[group] = sock
            return

    def _leave(self, group: Group) -> None:
        sock = self._joined.pop(group)
        with contextlib.suppress(OSError):  # the interface may be gone
            if group.version == 4:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP, self._membership(group))
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_LEAVE_GROUP, self._membership(group))

    def _open(self, family: int) -> socket.socket:
        """A socket that only holds memberships: it has no port, so nothing is ever delivered to it."""
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        with contextlib.suppress(OSError):
            if family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL, 0)
        self._sockets.append(sock)
        return sock


def _is_ours(interface: str) -> bool:
    """Whether it is a LAN interface of this or another ptunnel, by its MAC address."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        answer = fcntl.ioctl(any_socket, _SIOCGIFHWADDR, _IFREQ.pack(interface.encode(), b"", b""))
        return bytes(_IFREQ.unpack(answer)[2]).startswith(MAC_PREFIX)
    return False
