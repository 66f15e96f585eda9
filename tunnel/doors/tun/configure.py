"""Gives a TAP interface its addresses, MTU and routes.  All changes hang on the interface and vanish with it.

pyroute2 is imported inside one function: it costs 365 ms and 11 MB, which only a short-lived privileged child pays.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tunnel.doors.tun.config import InterfaceConfig, check_mtu
from tunnel.doors.tun.routes import Network, overlapping, surroundings, taken_networks
from tunnel.errors import ConfigurationError

_SIOCSIFMTU: Final = 0x8922  # linux/sockios.h
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFREQ_NUMBER: Final = struct.Struct("=16si20x")
_IFREQ_FLAGS: Final = struct.Struct("=16sH22x")
_IFF_UP: Final = 0x1  # linux/if.h
_IFF_NOARP: Final = 0x80
_IFA_F_NODAD: Final = 0x02  # linux/if_addr.h
_IFA_F_DEPRECATED: Final = 0x20
_FOREVER: Final = 0xFFFFFFFF  # seconds, linux/if_addr.h
_FIRST: Final = 128  # the metric of a route that goes before the kernel's own of 256
_ADDR_GEN_MODE_NONE: Final = 1  # linux/if_link.h: the link-local address comes from the configuration
_SCOPE_LINK: Final = 253  # linux/rtnetlink.h
_SCOPE_UNIVERSE: Final = 0

#: Nobody on the far side may send us elsewhere: the interface takes no router, redirect or source route from there.
SYSCTLS: Final = (
    ("ipv4/conf", "accept_redirects", 0),
    ("ipv4/conf", "secure_redirects", 0),
    ("ipv4/conf", "send_redirects", 0),
    ("ipv4/conf", "accept_source_route", 0),
    ("ipv6/conf", "accept_ra", 0),
    ("ipv6/conf", "accept_redirects", 0),
    ("ipv6/conf", "autoconf", 0),
    ("ipv6/conf", "router_solicitations", 0),
)
#: A host that forwards for others (containers, virtual machines) does not for this interface, and takes no packet whose source
#: another one leads to.  IPv6 has no forwarding switch of one interface that counts.
OPEN_LAND: Final = (("ipv4/conf", "forwarding", 0), ("ipv4/conf", "rp_filter", 1))
#: Behind a wall (tunnel.doors.tun.wall) it forwards what this machine's own NAT sent on, and the wall knows the sources.
BEHIND_WALL: Final = (("ipv4/conf", "forwarding", 1), ("ipv4/conf", "rp_filter", 2))


def apply(config: InterfaceConfig, is_walled: bool = False) -> list[str]:
    """Make the interface `config.name` exactly what `config` says, and up; what is so already is left alone.

    But for addresses in a network that this machine uses elsewhere, or may use (unless any_subnet), whoever chose them: a room
    must take nothing from it.
    Gives facts for the user: one sentence each for what this machine would not do although the interface works without it.
    Takes some milliseconds after the import.  Raises ConfigurationError.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    facts: list[str] = []
    try:
        with IPRoute() as netlink:
            indices = netlink.link_lookup(ifname=config.name)
            if not indices:
                raise ConfigurationError(f"The interface {config.name} is gone.")
            index = int(indices[0])
            _set_link(netlink, index, config)
            _set_switches(config.name, SYSCTLS if is_walled else (*SYSCTLS, *OPEN_LAND), facts)
            has_address = _set_addresses(netlink, index, config, facts)
            if is_walled:
                _set_switches(config.name, BEHIND_WALL if has_address else OPEN_LAND, facts)
            for route in config.routes:
                try:
                    netlink.route("replace", dst=route, oif=index, family=_family(route), table=254)
                except NetlinkError as error:
                    facts.append(f"The route {route} could not be set: {_why(error.code)}.")
    except NetlinkError as error:
        raise ConfigurationError(f"The interface {config.name} could not be set up: {_why(error.code)}.") from error
    return facts


def renumber(config: InterfaceConfig) -> list[str]:
    """Replace addresses and routes by those of `config`, without taking the interface down: what apply does the second time."""
    return apply(config)


def set_mtu(name: str, mtu: int) -> None:
    """Change the MTU alone, in microseconds and without pyroute2: it follows the path.  Raises ConfigurationError."""
    check_mtu(mtu)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
            fcntl.ioctl(any_socket, _SIOCSIFMTU, _IFREQ_NUMBER.pack(name.encode(), mtu))
    except OSError as error:
        raise ConfigurationError(f"The MTU of {name} could not be set to {mtu}: {_why(error.errno)}.") from error


def bring_up_loopback() -> None:
    """`lo` of a new network namespace; programs expect it.  Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        _, flags = _IFREQ_FLAGS.unpack(fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _IFREQ_FLAGS.pack(b"lo", 0)))
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _IFREQ_FLAGS.pack(b"lo", flags | _IFF_UP))


# ------------------------------------------------------------ what apply does, with the netlink socket handed in


def _set_link(netlink: Any, index: int, config: InterfaceConfig) -> None:
    """All but the state; gso_max_size below 64 KB is IPv4's limit too (netif_set_gso_max_size)."""
    limits = {"IFLA_GSO_MAX_SIZE": config.gso_max_size, "IFLA_GSO_MAX_SEGS": config.gso_max_segs}
    netlink.link(
        "set",
        index=index,
        address=config.mac,
        flags=_IFF_NOARP,
        change=_IFF_NOARP,
        mtu=config.mtu,
        txqlen=config.txqueuelen,
        **{name: limit for name, limit in limits.items() if limit},
    )


def _set_switches(name: str, switches: tuple[tuple[str, str, int], ...], facts: list[str]) -> None:
    refused = []
    for folder, switch, value in switches:
        path = Path("/proc/sys/net") / folder / name / switch
        try:
            if path.read_text(encoding="ascii").strip() != str(value):
                path.write_text(str(value), encoding="ascii")
        except FileNotFoundError:
            continue  # no IPv6 here
        except OSError:
            refused.append(f"{folder.partition('/')[0]} {switch}")
    if refused:
        facts.append(f"/proc/sys is read-only here, so these keep the machine's defaults on {name}: {', '.join(refused)}.")


def _set_addresses(netlink: Any, index: int, config: InterfaceConfig, facts: list[str]) -> bool:
    """Whether the interface has its IPv4 address."""
    from pyroute2.netlink.exceptions import NetlinkError

    taken = taken_networks(config.name)
    around: set[Network] = set() if config.any_subnet else surroundings(config.name)

    def is_free(address: str, prefix: int) -> bool:
        network = ipaddress.ip_network((address, prefix), strict=False)
        other = overlapping(network, taken)
        if other is not None:
            facts.append(f"The LAN's network {network} is in use on this machine ({other}), so the LAN does without it here.")
        elif (near := overlapping(network, around)) is not None:
            facts.append(
                f"The LAN's network {network} lies in {near}, as this machine does, so it may be part of the network that you "
                "are in: the LAN does without it here. If it is not, --any-subnet takes it."
            )
            return False
        return other is None

    wanted4 = {config.ipv4} if config.ipv4 is not None and is_free(*config.ipv4) else set()
    wanted6 = {(str(ipaddress.IPv6Address(address)), prefix) for address, prefix in config.ipv6 if is_free(address, prefix)}
    present4 = _present(netlink, index, socket.AF_INET)
    present6 = _present(netlink, index, socket.AF_INET6)
    # What is not wanted goes first: a second address of one subnet would be a secondary one, and go with the first.
    for address, prefix in present4 - wanted4 | present6 - wanted6:
        if ":" in address and not address.startswith("fe80"):
            subnet = str(ipaddress.ip_network((address, prefix), strict=False))
            with contextlib.suppress(NetlinkError):  # of _prefer_ipv4, and before the kernel takes one of the two away
                netlink.route("del", dst=subnet, oif=index, priority=_FIRST, family=socket.AF_INET6, table=254)
        netlink.addr("del", index=index, address=address, prefixlen=prefix)
    for address, prefix in wanted4 - present4:
        broadcast = str(ipaddress.IPv4Network((address, prefix), strict=False).broadcast_address)
        netlink.addr("add", index=index, address=address, prefixlen=prefix, broadcast=broadcast)
    try:
        without_own = {"attrs": [["AF_INET6", {"attrs": [["IFLA_INET6_ADDR_GEN_MODE", _ADDR_GEN_MODE_NONE]]}]]}
        netlink.link("set", index=index, IFLA_AF_SPEC=without_own)
        for address, prefix in sorted(wanted6 - present6):
            scope = _SCOPE_LINK if address.startswith("fe80") else _SCOPE_UNIVERSE
            netlink.addr("add", index=index, address=address, prefixlen=prefix, scope=scope, IFA_FLAGS=_IFA_F_NODAD)
    except NetlinkError as error:
        if error.code not in (errno.EACCES, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.ENODEV, errno.EPERM):
            raise
        facts.append("IPv6 is switched off on this machine, so the LAN is IPv4 only here.")
    netlink.link("set", index=index, state="up")
    _prefer_ipv4(netlink, index, wanted6, bool(wanted4))
    return bool(wanted4)


def _prefer_ipv4(netlink: Any, index: int, addresses: set[tuple[str, int]], has_ipv4: bool) -> None:
    """Have members' names lead to IPv4 first, where the interface has it: many games try one address, and listen on IPv4 alone.

    RFC 6724 §2.1 ranks fc00::/7 below IPv4.  The C library of GNU keeps to the table of RFC 3484, which does not know it; but it
    leaves an address for later whose source is deprecated (RFC 6724 §6, rule 3).  Packets in the room keep that source by a route
    of their own: the kernel would rather take another address of this machine (§5, rule 3).
    """
    from pyroute2.netlink.exceptions import NetlinkError

    late = {address for address, flags in _flags(netlink, index, socket.AF_INET6) if flags & _IFA_F_DEPRECATED}
    for address, prefix in sorted(addresses):
        if address.startswith("fe80") or (address in late) == has_ipv4:
            continue
        subnet = str(ipaddress.ip_network((address, prefix), strict=False))
        ours = {"index": index, "address": address, "prefixlen": prefix, "IFA_FLAGS": _IFA_F_NODAD}
        lasts = {"ifa_preferred": _FOREVER, "ifa_valid": _FOREVER}
        with contextlib.suppress(NetlinkError):  # no IPv6 here; or the names lead to IPv6 first
            if not has_ipv4:
                netlink.addr("replace", **ours, IFA_CACHEINFO=lasts)
                continue
            netlink.addr("replace", **ours, IFA_CACHEINFO={**lasts, "ifa_preferred": 0})
            try:  # afterwards: with the address the kernel would take it away
                netlink.route(
                    "replace", dst=subnet, oif=index, prefsrc=address, priority=_FIRST, family=socket.AF_INET6, table=254
                )
            except NetlinkError:
                netlink.addr("replace", **ours, IFA_CACHEINFO=lasts)


def _present(netlink: Any, index: int, family: int) -> set[tuple[str, int]]:
    return {(address, int(message["prefixlen"])) for address, message in _addresses(netlink, index, family)}


def _flags(netlink: Any, index: int, family: int) -> Iterator[tuple[str, int]]:
    for address, message in _addresses(netlink, index, family):
        yield address, int(dict(message["attrs"]).get("IFA_FLAGS", message["flags"]))


def _addresses(netlink: Any, index: int, family: int) -> Iterator[tuple[str, Any]]:
    for message in netlink.get_addr(index=index, family=family):
        attributes = dict(message["attrs"])
        address = attributes.get("IFA_LOCAL") or attributes.get("IFA_ADDRESS")
        if address is not None and message["index"] == index:
            yield str(address), message


def _family(prefix: str) -> int:
    return socket.AF_INET6 if ":" in prefix else socket.AF_INET


def _why(code: int | None) -> str:
    return os.strerror(code or 0)
