"""The PROXY protocol, version 2: a header in front of a forwarded connection, which tells the program who has connected.

https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt §2.2; nginx, HAProxy, Apache, Postfix, Traefik and others read it.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Final

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_PROXY: Final = 0x21  # version 2, command PROXY
_UNSPECIFIED: Final = 0x00
_TCP4: Final = 0x11
_TCP6: Final = 0x21
_PORTS: Final = struct.Struct(">HH")

End = tuple[str, int]  # numeric host, port


def header(source: End | None, destination: End | None) -> bytes:
    """`source` None: not known, as over a relay; then the program has to go by the connection itself.

    `destination` None: it is no port but a Unix socket.
    """
    if source is None:
        return SIGNATURE + bytes((_PROXY, _UNSPECIFIED, 0, 0))
    ours, theirs = _address(source), _address(destination) if destination is not None else None
    if ours.version == 4 and (theirs is None or theirs.version == 4):
        family, hosts = _TCP4, ours.packed + (theirs.packed if theirs is not None else bytes(4))
    else:
        family, hosts = _TCP6, _packed6(ours) + (_packed6(theirs) if theirs is not None else bytes(16))
    body = hosts + _PORTS.pack(source[1], destination[1] if destination is not None else 0)
    return SIGNATURE + bytes((_PROXY, family)) + len(body).to_bytes(2, "big") + body


def _address(end: End) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(end[0].partition("%")[0])
    return address.ipv4_mapped or address if isinstance(address, ipaddress.IPv6Address) else address


def _packed6(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bytes:
    return address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed
