"""Which addresses belong to a local network.  A party on the internet has no business naming one of those as a target."""

from __future__ import annotations

import ipaddress
from typing import Final

#: RFC 1918, 6598, 3927, 1122 §3.2.1.3, 4193 and 4291 §2.5.  Not `is_private`, which holds documentation addresses for private.
_LOCAL: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "127.0.0.0/8",
        "fc00::/7", "fe80::/10", "fec0::/10", "::1/128",
    )
)  # fmt: skip


def is_local(host: str) -> bool:
    """Whether this numeric host lies in a private, shared, link-local or loopback network.  Raises ValueError if not numeric."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in _LOCAL)


def may_name(source: str, target: str) -> bool:
    """Whether a party at `source` may name `target` as an address for us to send to.

    A party on the internet may not name an address of a local network: ours, or one that we reach.  One within a local network
    may name others of such networks.
    """
    return source == target or not is_local(target) or is_local(source)
