"""Which local programs hear by one address or interface alone: what is answered to another one of this machine's is lost on them.

Source: sock_diag(7), linux/inet_diag.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Final

from tunnel.doors.tun.routes import dump

_SOCK_DIAG: Final = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY: Final = 20  # SOCK_DIAG_BY_FAMILY
_REQUEST: Final = struct.Struct("=BBBxI")  # inet_diag_req_v2: family, protocol, extensions, states; an inet_diag_sockid follows
_ID: Final = struct.Struct("!HH16s16s")  # of that: ports and addresses; an interface and a cookie follow
_ID_SIZE: Final = 48
_ALL_STATES: Final = 0xFFFF_FFFF
_MAPPED: Final = bytes(10) + b"\xff\xff"  # RFC 4291 §2.5.5.2


def is_bound_to(address: bytes, port: int) -> bool:
    """Whether UDP sockets of that port hear by this IPv4 address (packed) or by one interface alone, and none by any.

    False where the kernel tells nothing.
    """
    found = False
    try:
        for source, interface in _udp_sockets(port):
            if interface or source in (address, _MAPPED + address):
                found = True
            elif not any(source.removeprefix(_MAPPED)):
                return False
    except OSError:
        return False
    return found


def _udp_sockets(port: int) -> Iterator[tuple[bytes, int]]:
    """(address, index of the interface or 0) of each.  Raises OSError."""
    for family, size in ((socket.AF_INET, 4), (socket.AF_INET6, 16)):
        wanted = struct.pack("!H", port) + bytes(_ID_SIZE - 2)
        for body in dump(_BY_FAMILY, _REQUEST.pack(family, socket.IPPROTO_UDP, 0, _ALL_STATES) + wanted, _SOCK_DIAG):
            local, _, source, _ = _ID.unpack_from(body, 4)
            if local == port:
                yield source[:size], struct.unpack_from("=I", body, 4 + _ID.size)[0]
