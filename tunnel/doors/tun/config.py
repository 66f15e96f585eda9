"""The configuration of a LAN interface: one frozen value, checked whole, that crosses to the privileged child as JSON.

The limits are those of the child too, so that whoever takes over the unprivileged process can ask for nothing but a LAN.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from tunnel.core.scope import CARRIER, PRIVATE
from tunnel.errors import ConfigurationError

MIN_MTU: Final = 1280  # bytes: below it the kernel takes IPv6 off the interface (RFC 8200 §5)
MAX_MTU: Final = 65_521  # bytes: a TAP's own limit, 65,535 less the Ethernet header
DEFAULT_TXQUEUELEN: Final = 500  # frames that the kernel keeps for us; a frame is up to 64 KB
MAX_TXQUEUELEN: Final = 10_000
MAX_GSO_SIZE: Final = 65_536  # bytes: GSO_LEGACY_MAX_SIZE; larger ones (BIG TCP) have another header
MAX_GSO_SEGS: Final = 65_535
MAX_ADDRESSES: Final = 8  # IPv6 addresses of one interface: ULA and link-local, and some to spare
MAX_ROUTES: Final = 16  # extra routes: multicast groups, everybody's broadcast address
MIN_IPV4_PREFIX: Final = 16  # a room has 254 members at most
MIN_IPV6_PREFIX: Final = 48  # a ULA's own

MAC_PREFIX: Final = bytes.fromhex("027074")  # of every LAN interface of ours, so that the rooms of one machine know each other

#: Where a room's IPv4 subnet may lie: RFC 1918, RFC 6598, RFC 2544, and RFC 5737 for examples and tests.
IPV4_RANGES: Final = (
    *PRIVATE, CARRIER,
    *map(ipaddress.IPv4Network, ("198.18.0.0/15", "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")),
)  # fmt: skip
#: Unique local (RFC 4193), link-local (RFC 4291 §2.5.6), documentation (RFC 3849).
IPV6_RANGES: Final = tuple(map(ipaddress.IPv6Network, ("fc00::/7", "fe80::/10", "2001:db8::/32")))
IPV4_MULTICAST: Final = ipaddress.IPv4Network("224.0.0.0/4")
LIMITED_BROADCAST: Final = ipaddress.IPv4Network("255.255.255.255/32")
IPV6_MULTICAST: Final = ipaddress.IPv6Network("ff00::/8")

#: Where Minecraft announces games to a LAN.  Java hears a group only on the interface that it joined (it turns IP_MULTICAST_ALL
#: off), which is that of the route, so the mirrored membership does not do here; no other program uses this group.  What it says
#: and hears on the ethernet is carried over: see tunnel.doors.tun.ethernet.
MINECRAFT: Final = "224.0.2.60/32"

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,12}(%d)?|[A-Za-z0-9_.-]{13,15}")
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceConfig:
    """One LAN interface.  Raises ConfigurationError for what no LAN interface may have.

    `ipv4` and each of `ipv6` is (address, prefix length); the link-local address is one of `ipv6`.  `mtu` is in bytes;
    `gso_max_size` (bytes) and `gso_max_segs` limit super-packets, 0 leaves the kernel's own limit.  `routes` are multicast
    prefixes, as 224.0.2.60/32, or 255.255.255.255/32, that shall leave by this interface although another has the default route.
    `any_subnet`: a person agrees to a subnet that may be part of the network that this machine is in, and reached by its router.
    """

    name: str = "ptunnel%d"
    mac: str
    ipv4: tuple[str, int] | None
    ipv6: tuple[tuple[str, int], ...] = ()
    mtu: int = MIN_MTU
    txqueuelen: int = DEFAULT_TXQUEUELEN
    gso_max_size: int = 0
    gso_max_segs: int = 0
    routes: tuple[str, ...] = ()
    any_subnet: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in (".", ".."):
            raise ConfigurationError(f"{self.name!r} cannot name an interface: use at most 12 letters, digits, dots and hyphens.")
        if not _MAC.fullmatch(self.mac) or int(self.mac[:2], 16) & 3 != 2:
            raise ConfigurationError(f"{self.mac!r} is no locally administered MAC address of one interface.")
        check_mtu(self.mtu)
        _check_number("transmit queue", self.txqueuelen, 1, MAX_TXQUEUELEN)
        _check_number("GSO size", self.gso_max_size, 0, MAX_GSO_SIZE)
        _check_number("GSO segment count", self.gso_max_segs, 0, MAX_GSO_SEGS)
        if type(self.any_subnet) is not bool:
            raise ConfigurationError(f"{self.any_subnet!r} is neither yes nor no to subnets around this machine's own.")
        if self.ipv4 is not None:
            _check_ipv4(*self.ipv4)
        if len(self.ipv6) > MAX_ADDRESSES or len(self.routes) > MAX_ROUTES:
            raise ConfigurationError(f"A LAN interface has at most {MAX_ADDRESSES} IPv6 addresses and {MAX_ROUTES} routes.")
        for address, prefix in self.ipv6:
            _check_ipv6(address, prefix)
        for route in self.routes:
            _check_route(route)

    @property
    def networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """The subnets of all addresses: what a member's name may stand for."""
        both = [self.ipv4, *self.ipv6] if self.ipv4 is not None else list(self.ipv6)
        return tuple(ipaddress.ip_network(f"{address}/{prefix}", strict=False) for address, prefix in both)

    @property
    def routed_groups(self) -> frozenset[bytes]:
        """The single IPv4 groups among the routes, packed."""
        wanted = map(ipaddress.ip_network, self.routes)
        return frozenset(net[0].packed for net in wanted if net.version == 4 and net.prefixlen == 32 and net[0].is_multicast)

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, value: object) -> InterfaceConfig:
        """Read the result of to_json, after JSON.  Raises ConfigurationError for anything else."""
        try:
            fields = dict(value)  # type: ignore[call-overload]
            if fields.get("ipv4") is not None:
                fields["ipv4"] = _pair(fields["ipv4"])
            fields["ipv6"] = tuple(_pair(pair) for pair in fields.get("ipv6", ()))
            fields["routes"] = tuple(str(route) for route in fields.get("routes", ()))
            return cls(**fields)
        except (TypeError, ValueError) as error:
            raise ConfigurationError("This is no configuration of a LAN interface.") from error


def check_mtu(mtu: int) -> int:
    """Return it, or raise ConfigurationError."""
    _check_number("MTU", mtu, MIN_MTU, MAX_MTU)
    return mtu


def _pair(value: Iterable[Any]) -> tuple[str, int]:
    address, prefix = value
    if not isinstance(address, str) or type(prefix) is not int:
        raise TypeError("address and prefix length")
    return address, prefix


def _check_number(what: str, value: int, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ConfigurationError(f"{value!r} is not a {what} that an interface may have: {low} to {high}.")


def _check_ipv4(address: str, prefix: int) -> None:
    try:
        parsed = ipaddress.IPv4Address(address)
        network = ipaddress.IPv4Network((address, prefix), strict=False)
    except ValueError:
        raise ConfigurationError(f"{address!r}/{prefix} is no IPv4 address.") from None
    usable = parsed not in (network.network_address, network.broadcast_address)
    inside = any(network.subnet_of(allowed) for allowed in IPV4_RANGES)
    if not usable or not inside or not MIN_IPV4_PREFIX <= prefix <= 30:
        raise ConfigurationError(f"{address}/{prefix} is no address of a private subnet between /{MIN_IPV4_PREFIX} and /30.")


def _check_ipv6(address: str, prefix: int) -> None:
    try:
        ipaddress.IPv6Address(address)
        network = ipaddress.IPv6Network((address, prefix), strict=False)
    except ValueError:
        raise ConfigurationError(f"{address!r}/{prefix} is no IPv6 address.") from None
    if "%" in address or prefix < MIN_IPV6_PREFIX or not any(network.subnet_of(allowed) for allowed in IPV6_RANGES):
        raise ConfigurationError(f"{address}/{prefix} is neither a unique local nor a link-local IPv6 address.")


def _check_route(route: str) -> None:
    try:
        network = ipaddress.ip_network(route)
    except ValueError:
        raise ConfigurationError(f"{route!r} is no IP prefix.") from None
    whole: ipaddress.IPv4Network | ipaddress.IPv6Network = IPV4_MULTICAST if network.version == 4 else IPV6_MULTICAST
    if network == LIMITED_BROADCAST:
        return
    if not network.subnet_of(whole):  # type: ignore[arg-type]
        raise ConfigurationError(f"{route} is not multicast: a LAN interface takes no other traffic of this machine.")
