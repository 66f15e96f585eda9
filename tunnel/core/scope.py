"""Which addresses belong to a local network, and which are nobody's to name: this machine, its link, the inside of a cloud.

A party on the internet has no business naming one of a local network as a target.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Final, TypeAlias

Host: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"

#: RFC 1918: whoever has an address in one of these mostly has more of it, behind the router.
PRIVATE: Final = tuple(map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
CARRIER: Final = ipaddress.IPv4Network("100.64.0.0/10")  # RFC 6598: between a carrier's NAT and its customers
LINK: Final = ipaddress.IPv4Network("169.254.0.0/16")  # RFC 3927


def _networks(*texts: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


# Not is_global: 203.0.113.0/24 and friends count as private there, and LANs are wanted.
_RESERVED: Final = _networks(
    "0.0.0.0/8",  # this network; unspecified
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved and broadcast
    "169.254.0.0/16",  # link-local; among it metadata and credentials of AWS, Azure, GCP, OpenStack
    "100.100.100.200/32",  # metadata of Alibaba
    "168.63.129.16/32",  # wire server of Azure
    "192.0.0.192/32",  # metadata of Oracle
    "::/96",  # unspecified, and IPv4-compatible (deprecated)
    "::ffff:0:0/96",  # IPv4-mapped: `unmapped` has already rewritten it
    "::ffff:0:0:0/96",  # IPv4-translated (SIIT): a translator would carry it to an IPv4 address not looked at here
    "64:ff9b:1::/48",  # NAT64 of the local network (RFC 8215): likewise
    "2001::/32",  # Teredo: likewise, through a relay
    "ff00::/8",  # multicast
    "fe80::/10",  # link-local: a zone of somebody else's means nothing here
    "fec0::/10",  # site-local (deprecated)
    "fd00:ec2::/32",  # metadata of AWS
    "fd20:ce::/32",  # metadata of GCP
    "fd00:c1::/32",  # metadata of Oracle
)
_LOOPBACK: Final = _networks("127.0.0.0/8", "::1/128")
#: RFC 4193 and 4291 §2.5, and those above.  Not `is_private`, which holds documentation addresses for private.
_LOCAL: Final = (*PRIVATE, CARRIER, LINK, *_LOOPBACK, *_networks("fc00::/7", "fe80::/10", "fec0::/10"))
_RESERVED_OF: Final = {version: tuple(each for each in _RESERVED if each.version == version) for version in (4, 6)}
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


@lru_cache(maxsize=1_024)
def is_local(host: str) -> bool:
    """Whether this numeric host lies in a private, shared, link-local or loopback network.  Raises ValueError if not numeric."""
    address = unmapped(ipaddress.ip_address(host.partition("%")[0]))
    return any(address in network for network in _LOCAL)


def may_name(source: str, target: str) -> bool:
    """Whether a party at `source` may name `target` as an address for us to send to.

    A party on the internet may not name an address of a local network: ours, or one that we reach.  One within a local network
    may name others of such networks.
    """
    return source == target or not is_local(target) or is_local(source)


def may_be_second(first: str, second: str) -> bool:
    """Whether a server at `first` may send us to `second` to see our mapping there: not to our loopback or LAN from outside."""
    if first == second:
        return True
    ours, other = ipaddress.ip_address(first.partition("%")[0]), ipaddress.ip_address(second)
    is_special = other.is_loopback or other.is_multicast or other.is_unspecified or other.is_link_local or other.is_reserved
    return not is_special and ours.version == other.version and is_local(first) == is_local(second)


def unmapped(host: Host) -> Host:
    """IPv4-mapped IPv6 as the IPv4 address that it is."""
    return host.ipv4_mapped or host if isinstance(host, ipaddress.IPv6Address) else host


def is_loopback(host: Host) -> bool:
    return any(host in network for network in _LOOPBACK)


@lru_cache(maxsize=1_024)
def is_reserved(host: Host) -> bool:
    """Loopback apart; also where 6to4 or NAT64 would carry it to a reserved address."""
    if not is_loopback(host) and any(host in network for network in _RESERVED_OF[host.version]):
        return True
    if isinstance(host, ipaddress.IPv6Address):
        inner = host.sixtofour or (ipaddress.IPv4Address(int(host) & 0xFFFFFFFF) if host in _NAT64 else None)
        return inner is not None and (is_loopback(inner) or is_reserved(inner))
    return False


def is_named_by(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    """Whether who wrote this network meant what is special in it: it is one address, or lies in loopback or a reserved one."""
    if network.num_addresses == 1:
        return True
    return any(
        network.version == special.version and network.subnet_of(special)  # type: ignore[arg-type]
        for special in (*_LOOPBACK, *_RESERVED)
    )
