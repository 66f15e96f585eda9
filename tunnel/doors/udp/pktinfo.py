"""Which address of ours a datagram was sent to, and how an answer leaves from there.

A socket that is bound to all addresses forgets which of them was asked, and the system answers from the one it likes best; who
asked another one drops the answer.  Linux only: ip(7) IP_PKTINFO, ipv6(7), RFC 3542 §6.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from collections.abc import Iterable
from typing import Final, TypeAlias

from tunnel.doors.udp.addresses import to_address

IP_PKTINFO: Final = 8
IPV6_RECVPKTINFO: Final = 49
IPV6_PKTINFO: Final = 50
_INFO: Final = struct.Struct("=i4s4s")  # interface, our address to answer from, destination in the header
_INFO6: Final = struct.Struct("=16si")  # our address, interface
_LINK_LOCAL: Final = b"\xfe\x80"
WILDCARDS: Final = frozenset(("0.0.0.0", "::"))

#: Bytes of an ancillary message that are at least this, one of ours.
SMALLEST: Final = _INFO.size
#: Room for one, in what recvmsg is told to leave for ancillary data.
SPACE: Final = socket.CMSG_SPACE(_INFO6.size) if hasattr(socket, "CMSG_SPACE") else 0

Control: TypeAlias = tuple[tuple[int, int, bytes], ...]


def ask(sock: socket.socket, *, is_ipv6: bool, is_ipv4: bool) -> bool:
    """Have the kernel tell it from now on.  False where it cannot."""
    if sys.platform != "linux":
        return False
    try:
        if is_ipv4:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        if is_ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
    except OSError:
        return False
    return True


def find(ancillary: Iterable[tuple[int, int, bytes]]) -> bytes:
    """Return the packet info among the ancillary data of one recvmsg; empty if there is none."""
    for level, kind, told in ancillary:
        if (level == socket.IPPROTO_IP and kind == IP_PKTINFO) or (level == socket.IPPROTO_IPV6 and kind == IPV6_PKTINFO):
            return told
    return b""


def local_of(told: bytes) -> str:
    """The address of ours in it, numeric; a link-local one with its zone.

    Empty where the kernel does not know it, as the datagram came before it was asked to tell.
    """
    if len(told) == _INFO.size:
        local: bytes = _INFO.unpack(told)[1]
        return socket.inet_ntop(socket.AF_INET, local) if any(local) else ""
    packed, interface = _INFO6.unpack(told)
    return to_address((socket.inet_ntop(socket.AF_INET6, packed), 0, 0, interface if packed[:2] == _LINK_LOCAL else 0)).host


def leave_from(local: str) -> Control:
    """The ancillary data that makes a datagram leave from that address of ours.

    The interface is told only where an address means nothing without it: the route decides, as always.
    """
    host, _, zone = local.partition("%")
    if ":" not in host:
        return ((socket.IPPROTO_IP, IP_PKTINFO, _INFO.pack(0, socket.inet_pton(socket.AF_INET, host), bytes(4))),)
    scope = 0
    with contextlib.suppress(OSError):  # the interface is gone
        scope = int(zone) if zone.isdecimal() else socket.if_nametoindex(zone) if zone else 0
    return ((socket.IPPROTO_IPV6, IPV6_PKTINFO, _INFO6.pack(socket.inet_pton(socket.AF_INET6, host), scope)),)
