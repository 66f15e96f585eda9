"""Which addresses of ours a peer could reach."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

# Flags of /proc/net/if_inet6 (linux/if_addr.h).
_DADFAILED: Final = 0x08
_DEPRECATED: Final = 0x20
_TENTATIVE: Final = 0x40
_UNUSABLE: Final = _DADFAILED | _DEPRECATED | _TENTATIVE

#: By IPv6: some address that a default route leads to; nothing is sent there (RFC 5737, RFC 3849).
ANYWHERE: Final = {False: "192.0.2.1", True: "2001:db8::1"}

#: Never a way to a peer: the metadata services of cloud machines.
_METADATA: Final = frozenset(("169.254.169.254", "fd00:ec2::254"))


#: How the LAN interfaces of all ptunnel processes are called: a tunnel through a tunnel is no way to a peer.
OWN_INTERFACES: Final = "ptunnel"


#: Some addresses that default routes lead to, and how long a network's prefix commonly is; nothing is sent there.
#: RFC 5737, RFC 3849.
_SOMEWHERE: Final = (("192.0.2.1", 24), ("2001:db8::1", 64))
_INTERFACES: Final = Path("/sys/class/net")
#: Of the kernel itself, as /sys names them: DEVTYPE in uevent, ARPHRD_ numbers (linux/if_arp.h) of IPIP, GRE and GRE over IPv6.
#: SIT and IPv4 in IPv6 are left: providers deliver the other family by them.
_TUNNEL_KINDS: Final = frozenset(("wireguard", "amneziawg", "ovpn", "ovpn-dco", "vxlan", "geneve", "l2tpeth"))
_TUNNEL_TYPES: Final = frozenset(("768", "778", "823"))
_NO_HARDWARE: Final = "65534"  # ARPHRD_NONE: IPsec's interfaces (xfrm), which say no more, and modems
_MODEM: Final = "wwan"  # DEVTYPE
_OVERLAYS: Final = re.compile(
    r"\butun|\bfeth\d|\bipsec\d|tailscale|zerotier|wireguard|wintun|tap-windows|vpn|nebula|hamachi|netbird|nordlynx|anyconnect",
    re.IGNORECASE,
)


class LocalAddress(NamedTuple):
    """One address of one interface; `prefix` is the length of its network's."""

    address: str
    interface: str
    is_ipv6: bool
    prefix: int


def local_addresses(exclude: Iterable[str] = (), *, overlays: bool = True) -> list[LocalAddress]:
    """Addresses of the interfaces that are up: IPv4, and the IPv6 ones that can be used from elsewhere.

    Left out: loopback, multicast, IPv6 link-local (its zone means nothing to a peer), IPv6 that is still tentative, deprecated
    or a duplicate, LAN interfaces of ptunnel, and the interfaces named in `exclude`.  An empty list when the
    system tells nothing.
    Without `overlays`, addresses in the network of another overlay (a VPN, a mesh) are left out where there are others: a path
    through it would be sealed twice, and might be relayed by it.
    """
    skipped = set(exclude)
    unusable = _unusable_ipv6()
    found: dict[str, LocalAddress] = {}
    inside: dict[str, LocalAddress] = {}  # of other overlays
    adapters = _adapters()
    if adapters is None:
        return _reachable()
    for adapter in adapters:
        name = str(adapter.name)
        if name in skipped or name.startswith(OWN_INTERFACES) or not _is_up(name):
            continue
        into = inside if not overlays and is_overlay(name, str(getattr(adapter, "nice_name", ""))) else found
        for ip in adapter.ips:
            host = str(ip.ip if isinstance(ip.ip, str) else ip.ip[0]).partition("%")[0]
            if _is_usable(host) and host not in unusable:
                into.setdefault(host, LocalAddress(host, name, ":" in host, int(ip.network_prefix)))
    return list((found or inside).values())


def is_overlay(interface: str, description: str = "") -> bool:
    """Whether that is the interface of another tunnel, so no wire: one that a program reads (TUN, TAP), or one of the kernel.

    Elsewhere than on Linux the names tell, as far as they can.
    """
    if sys.platform != "linux":
        return _OVERLAYS.search(f"{interface} {description}") is not None
    place = _INTERFACES / interface
    if "/" in interface or not place.exists():
        return False
    if (place / "tun_flags").exists():
        return True
    found = re.search(r"^DEVTYPE=(.+)$", kernel_text(place / "uevent"), re.MULTILINE)
    named = found[1] if found is not None else ""
    kind = kernel_text(place / "type").strip()
    is_modem = named == _MODEM or (place / "device").exists()
    return named in _TUNNEL_KINDS or kind in _TUNNEL_TYPES or (kind == _NO_HARDWARE and not is_modem)


def own_addresses() -> list[str]:
    """All addresses of all interfaces, loopback and link-local ones too, without zones; none when the system tells nothing."""
    adapters = _adapters()
    if adapters is None:
        return ["127.0.0.1", "::1", *(local.address for local in _reachable())]
    found = (str(ip.ip if isinstance(ip.ip, str) else ip.ip[0]).partition("%")[0] for adapter in adapters for ip in adapter.ips)
    return list(dict.fromkeys(found))


def _adapters() -> list[Any] | None:
    """None where their names cannot be read: Linux takes any bytes for one, which need not be UTF-8, nor be of the locale."""
    import ifaddr

    try:
        return list(ifaddr.get_adapters())
    except OSError:
        return []
    except ValueError:
        return None


def _reachable() -> list[LocalAddress]:
    """Those that the routing table picks towards anywhere."""
    found = ((source_address(somewhere), prefix) for somewhere, prefix in _SOMEWHERE)
    return [LocalAddress(host, "", ":" in host, prefix) for host, prefix in found if host is not None]


def kernel_text(path: Path) -> str:
    """A file of /proc or /sys, whatever bytes the names in it are; "" where it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        return path.read_text(encoding="ascii", errors="replace")
    return ""


def source_address(remote: str) -> str | None:
    """The address of ours that the routing table picks towards a numeric host; nothing is sent.  None: no route."""
    family = socket.AF_INET6 if ":" in remote else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((remote, 9))  # the discard port
        host = str(probe.getsockname()[0]).partition("%")[0]
        return host if _is_usable(host) else None
    return None


def _is_usable(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if address.is_loopback or address.is_multicast or address.is_unspecified or host in _METADATA:
        return False
    return not (address.version == 6 and (address.is_link_local or address.ipv4_mapped is not None))


def _is_up(interface: str) -> bool:
    """False only when Linux says that the link is down."""
    if sys.platform != "linux" or "/" in interface:
        return True
    return kernel_text(_INTERFACES / interface / "operstate").strip() not in ("down", "lowerlayerdown")


def _unusable_ipv6() -> set[str]:
    if sys.platform != "linux":
        return set()
    return unusable_in(kernel_text(Path("/proc/net/if_inet6")))


def unusable_in(table: str) -> set[str]:
    """Addresses of /proc/net/if_inet6 (address, index, prefix, scope, flags, name) that must not be offered."""
    unusable = set()
    for line in table.splitlines():
        fields = line.split()
        with contextlib.suppress(ValueError, IndexError):
            if int(fields[4], 16) & _UNUSABLE:
                unusable.add(str(ipaddress.IPv6Address(bytes.fromhex(fields[0]))))
    return unusable
